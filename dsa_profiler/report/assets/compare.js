"use strict";
/* The comparison's controls: filter the cases, walk through them, open one with its stages. */
(() => {
  const { data, state, el, number } = DSA;
  const drawer = document.getElementById("drawer");
  const filter = document.getElementById("filter");
  const open = DSA.drawerOf(drawer, show);

  function rowsShown() {
    return [...document.querySelectorAll("#cases tr[data-case]")].filter((r) => !r.hidden);
  }

  function show(slug) {
    const item = data.cases[slug];
    const rows = item.stages.map(([stage, a, b, ratio, level, text]) => el("tr", {},
      el("td", { class: "stage" }, el("i", { class: `swatch st-${stage}`, "aria-hidden": "true" }), stage),
      el("td", { class: "num" }, a ? number(a) : "–"), el("td", { class: "num" }, b ? number(b) : "–"),
      el("td", { class: "num" }, number(b - a)),
      el("td", { class: "num" }, ratio === null ? "–" : el("span", { class: `cell tag r${level}` }, text))));
    const head = [["stage"], ["A ms", true], ["B ms", true], ["B − A", true], ["B / A", true]];
    const table = el("table", { class: "rows" }, el("caption", {}, "Stages of the case"),
      el("thead", {}, el("tr", {}, ...head.map(([name, numeric]) => el("th", { scope: "col", class: numeric ? "num" : null }, name)))),
      el("tbody", {}, ...rows));
    DSA.makeSortable(table);
    drawer.replaceChildren(
      el("div", { class: "top-row" }, el("h2", {}, item.title), el("button", { type: "button", id: "drawer-close", onclick: () => DSA.set({ case: null }) }, "Close")),
      el("code", { class: "slug" }, slug),
      el("p", {}, el("b", {}, item.verdict), `: ${number(item.a)} ms in A, ${number(item.b)} ms in B, B / A = ${item.text}`),
      el("h3", {}, "Stages"), table);
    drawer.hidden = false;
    drawer.setAttribute("aria-label", `Case ${slug}`);
  }

  function update() {
    const words = (state.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    const hits = (row) => words.every((w) => (/^[bshp]\d+$/.test(w) ? row.dataset.case.split("-").includes(w) : row.textContent.toLowerCase().includes(w)));
    document.querySelectorAll("#cases tr[data-case]").forEach((row) => { row.hidden = !hits(row); });
    if (filter.value !== (state.q ?? "")) filter.value = state.q ?? "";
    document.querySelectorAll("[aria-current]").forEach((n) => n.removeAttribute("aria-current"));
    const slug = Object.hasOwn(data.cases, state.case ?? "") ? state.case : null;
    if (slug) document.querySelectorAll(`[data-case="${CSS.escape(slug)}"]`).forEach((n) => n.setAttribute("aria-current", "true"));
    open(slug);
  }

  function step(by) {
    const rows = rowsShown();
    if (!rows.length) return;
    const at = rows.findIndex((r) => r.dataset.case === state.case);
    const next = at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.max(0, Math.min(rows.length - 1, at + by));
    DSA.set({ case: rows[next].dataset.case });
    rows[next].scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("click", (event) => {
    const slug = (event.target.closest("[data-case]") ?? event.target.closest("a[href^='#']"))?.dataset.case;
    if (!slug || !Object.hasOwn(data.cases, slug)) return;
    event.preventDefault();
    DSA.set({ case: slug });
  });
  filter.addEventListener("input", () => DSA.set({ q: filter.value }));
  DSA.shortcuts.set("/", () => { filter.focus(); filter.scrollIntoView({ block: "center" }); });
  DSA.shortcuts.set("j", () => step(1));
  DSA.shortcuts.set("k", () => step(-1));
  DSA.shortcuts.set("Escape", () => DSA.set({ case: null }));
  DSA.onState(update);
})();
