"use strict";
/* What every page has: state in the URL's fragment, theme, sortable tables, copying, help.
   Text reaches the document through textContent only. */
const DSA = (() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const listeners = [];
  const shortcuts = new Map();
  const state = {};

  /* Fragment: "#<case slug>&key=value&...". A lone word that is no case is a plain anchor. */
  function readState() {
    for (const key of Object.keys(state)) delete state[key];
    for (const part of location.hash.slice(1).split("&")) {
      const [key, value] = part.split(/=(.*)/s);
      try {
        if (value !== undefined) state[decodeURIComponent(key)] = decodeURIComponent(value);
        else if (data.cases && Object.hasOwn(data.cases, key)) state.case = key;
      } catch { /* a fragment that is no URI component says nothing */ }
    }
  }

  function set(changes) {
    for (const [key, value] of Object.entries(changes)) {
      if (value === null || value === "" || value === undefined) delete state[key];
      else state[key] = String(value);
    }
    const parts = Object.keys(state).filter((k) => k !== "case").sort()
      .map((k) => `${encodeURIComponent(k)}=${encodeURIComponent(state[k])}`);
    const hash = "#" + [...(state.case ? [state.case] : []), ...parts].join("&");
    if (hash !== (location.hash || "#")) history.replaceState(null, "", hash);
    update();
  }

  function update() {
    for (const listener of listeners) listener(state);
  }

  /* el("td", {class: "num"}, "text", child): children are nodes or text. */
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") node.style.cssText = value;
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((c) => c !== null && c !== undefined));
    return node;
  }

  /* Milliseconds to three figures, never in exponents. */
  function number(ms) {
    if (ms === null || ms === undefined) return "–";
    const size = Math.abs(ms);
    if (size === 0) return "0";
    if (size >= 100) return ms.toFixed(0);
    if (size >= 10) return ms.toFixed(1);
    return size >= 1e-6 ? ms.toPrecision(3) : ms.toFixed(6);
  }

  let toastTimer = 0;
  function toast(text) {
    const node = document.getElementById("toast");
    node.textContent = text;
    node.classList.add("on");
    clearTimeout(toastTimer);
    toastTimer = setTimeout(() => node.classList.remove("on"), 1800);
  }

  async function copy(text, what) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = el("textarea", { style: "position:fixed;opacity:0" });
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    toast(`Copied ${what}`);
  }

  const quoted = (v) => (/[",\n\r]/.test(v) ? `"${v.replaceAll('"', '""')}"` : v);
  const barred = (v) => v.replaceAll("\\", "\\\\").replaceAll("|", "\\|").replaceAll("`", "\\`")
    .replaceAll("<", "&lt;").replace(/\s+/g, " ");
  const formats = {
    csv: (header, rows) => [header, ...rows].map((r) => r.map((v) => quoted(String(v))).join(",")).join("\n") + "\n",
    markdown: (header, rows) => [header, header.map((_, i) => (rows.every((r) => !isNaN(parseFloat(r[i]))) ? "---:" : "---")), ...rows]
      .map((r) => `| ${r.map((v) => barred(String(v))).join(" | ")} |`).join("\n") + "\n",
  };

  /* Numbers sort as numbers: "1,234", "12.5%", "1.08 x". */
  function sortKey(cell) {
    const text = (cell?.dataset.sort ?? cell?.textContent ?? "").trim();
    const value = Number(text.replaceAll(",", "").replace(/\s*[%x×]$/, ""));
    return text !== "" && !isNaN(value) ? value : text.toLowerCase();
  }

  function sortTable(table, column, direction) {
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row, i) => [sortKey(row.cells[column]), i, row]);
    const sign = direction === "descending" ? -1 : 1;
    keyed.sort(([a, i], [b, j]) => {
      const order = typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
      return sign * order || i - j;
    });
    body.append(...keyed.map((k) => k[2]));
    [...table.tHead.rows[0].cells].forEach((th, i) => {
      if (i === column) th.setAttribute("aria-sort", direction);
      else th.removeAttribute("aria-sort");
    });
  }

  function makeSortable(table) {
    [...table.tHead.rows[0].cells].forEach((th, column) => {
      if ("nosort" in th.dataset) return;
      const button = el("button", { type: "button", title: "Sort" }, ...th.childNodes);
      th.replaceChildren(button);
      button.addEventListener("click", () => {
        const current = th.getAttribute("aria-sort");
        const first = th.classList.contains("num") ? "descending" : "ascending";
        const other = first === "descending" ? "ascending" : "descending";
        sortTable(table, column, current === first ? other : first);
      });
    });
  }

  function applyTheme() {
    const theme = ["light", "dark"].includes(state.theme) ? state.theme : "";
    const before = root.className;
    root.classList.toggle("light", theme === "light");
    root.classList.toggle("dark", theme === "dark");
    document.getElementById("theme").textContent = `Theme: ${theme || "auto"}`;
    return before !== root.className;
  }

  function nextTheme() {
    set({ theme: { "": "light", light: "dark", dark: "" }[state.theme ?? ""] });
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input, select, textarea");
    if (document.getElementById("help").open || (typing && event.key !== "Escape")) return;
    const action = shortcuts.get(event.key);
    if (action) {
      event.preventDefault();
      action(event);
    }
  }

  function start() {
    root.classList.add("scripted");
    readState();
    listeners.unshift(applyTheme);
    document.querySelectorAll("table.sortable").forEach(makeSortable);
    document.getElementById("theme").addEventListener("click", nextTheme);
    const help = document.getElementById("help");
    document.getElementById("help-open").addEventListener("click", () => help.showModal());
    shortcuts.set("?", () => help.showModal());
    shortcuts.set("t", nextTheme);
    document.addEventListener("keydown", onKey);
    /* Section links scroll and leave the state in the fragment alone. */
    document.querySelectorAll("nav.bar a[href^='#']").forEach((link) => link.addEventListener("click", (event) => {
      event.preventDefault();
      document.querySelector(link.getAttribute("href")).scrollIntoView();
    }));
    window.addEventListener("hashchange", () => { readState(); update(); });
    update();
  }

  document.addEventListener("DOMContentLoaded", start);
  /* What a drawer does with the state's case: `show` fills it; closing hands the focus back. */
  function drawerOf(drawer, show) {
    let shown = null;
    let opener = null;
    return (slug) => {
      if (slug === shown) return;
      if (slug && !shown) opener = document.activeElement;
      shown = slug;
      if (slug) {
        show(slug);
        return;
      }
      const inside = drawer.contains(document.activeElement);
      drawer.hidden = true;
      drawer.replaceChildren();
      if (inside) opener?.focus?.({ preventScroll: true });
    };
  }

  return { data, state, set, drawerOf, el, number, copy, toast, formats, makeSortable, shortcuts, onState: (f) => listeners.push(f) };
})();
