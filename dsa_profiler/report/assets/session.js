"use strict";
/* The session page's controls: which slice, which metric, which cases. */
(() => {
  const { data, state, el } = DSA;
  const byId = (id) => document.getElementById(id);
  const slices = Object.fromEntries(data.slices.map((s) => [s.id, s]));
  const metrics = [...document.querySelectorAll("#metric button")].map((b) => b.dataset.value);
  let drawn = "";
  let current = null;

  function pickSlice() {
    const ofCase = state.case && data.cases[state.case]?.slice;
    return slices[ofCase] ?? slices[state.slice] ?? data.slices[0];
  }

  function press(group, value) {
    group.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.value === value)));
  }

  function colourMap(slice, metric) {
    for (const cell of document.querySelectorAll(`[data-slice="${CSS.escape(slice.id)}"] .cell`)) {
      const [text, level] = slice.cells[cell.dataset.case][metric] ?? ["–", 0];
      cell.textContent = text;
      cell.className = `cell q${level}`;
    }
    const values = Object.values(slice.cells).filter((c) => c[metric]).sort((a, b) => a[metric][1] - b[metric][1] || parseFloat(a[metric][0]) - parseFloat(b[metric][0]));
    const unit = metric === "latency" ? " ms" : "";
    byId("scale-low").textContent = values.length ? values[0][metric][0] + unit : "";
    byId("scale-high").textContent = values.length ? values.at(-1)[metric][0] + unit : "";
    byId("metric-lead").textContent = data.metrics[metric];
  }

  function markCase() {
    document.querySelectorAll("[aria-current]").forEach((n) => n.removeAttribute("aria-current"));
    if (!state.case) return;
    document.querySelectorAll(`[data-case="${CSS.escape(state.case)}"]`).forEach((n) => n.setAttribute("aria-current", "true"));
  }

  function rowsShown() {
    return [...document.querySelectorAll(`#cases [data-slice="${CSS.escape(current.id)}"] tbody tr`)].filter((r) => !r.hidden);
  }

  function filterRows() {
    const words = (state.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    /* "b64" is a whole part of the slug, anything else may stand anywhere in the row. */
    const hits = (row) => words.every((w) => (/^[bshp]\d+$/.test(w) ? row.dataset.case.split("-").includes(w) : row.textContent.toLowerCase().includes(w)));
    document.querySelectorAll("#cases tr[data-case]").forEach((row) => { row.hidden = !hits(row); });
    if (byId("filter").value !== (state.q ?? "")) byId("filter").value = state.q ?? "";
  }

  function drawLegend(present) {
    const groups = Map.groupBy(present, (stage) => data.groups[stage]);
    byId("legend").replaceChildren(...[...groups].map(([group, stages]) => el("li", {}, el("ul", { "aria-label": group },
      ...stages.map((stage) => el("li", {}, el("i", { class: `swatch st-${stage}`, "aria-hidden": "true" }), stage))))));
  }

  function drawCharts() {
    const { values, at, fixed, present } = DSA.charts.stages(current);
    byId("at").replaceChildren(...values.map((v) => el("option", { value: v, selected: v === at }, v.toLocaleString("en"))));
    byId("fix").value = fixed;
    press(byId("share"), state.share === "1" ? "1" : "");
    drawLegend(present);
    DSA.charts.latency(current);
  }

  function update() {
    current = pickSlice();
    if (current !== data.slices[0]) state.slice = current.id; /* closing a case stays in its slice */
    filterRows();
    markCase();
    document.querySelectorAll("[data-slice]").forEach((n) => { n.hidden = n.dataset.slice !== current.id; });
    if (byId("slice")) byId("slice").value = current.id;
    const metric = current.metrics.includes(state.metric) ? state.metric : "latency";
    press(byId("metric"), metric);
    colourMap(current, metric);
    const key = [current.id, state.fix, state.at, state.share, getComputedStyle(document.body).backgroundColor].join();
    if (key !== drawn && window.Plotly) {
      drawn = key;
      drawCharts();
    }
  }

  function step(by) {
    const rows = rowsShown();
    if (!rows.length) return;
    const at = rows.findIndex((r) => r.dataset.case === state.case);
    const next = at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.max(0, Math.min(rows.length - 1, at + by));
    DSA.set({ case: rows[next].dataset.case });
    rows[next].scrollIntoView({ block: "nearest" });
  }

  function copyCases(format) {
    const table = document.querySelector(`#cases [data-slice="${CSS.escape(current.id)}"] table`);
    const keep = [...table.tHead.rows[0].cells].map((th, i) => ("nosort" in th.dataset ? -1 : i)).filter((i) => i >= 0);
    const text = (cell) => cell.textContent.trim();
    const header = keep.map((i) => text(table.tHead.rows[0].cells[i]));
    const rows = rowsShown().map((row) => keep.map((i) => (row.cells[i].querySelector("code") ? row.dataset.case : text(row.cells[i]).replace(/(?<=\d),(?=\d{3})/g, ""))));
    DSA.copy(DSA.formats[format](header, rows), `${rows.length} cases as ${format === "csv" ? "CSV" : "Markdown"}`);
  }

  function nextMetric() {
    const known = metrics.filter((m) => current.metrics.includes(m));
    const at = known.indexOf(state.metric ?? "latency");
    DSA.set({ metric: known[(at + 1) % known.length] });
  }

  function listen() {
    const filter = byId("filter");
    byId("slice")?.addEventListener("change", (e) => DSA.set({ slice: e.target.value, case: null, at: null }));
    byId("metric").addEventListener("click", (e) => e.target.dataset.value && DSA.set({ metric: e.target.dataset.value }));
    byId("share").addEventListener("click", (e) => "value" in e.target.dataset && DSA.set({ share: e.target.dataset.value }));
    byId("fix").addEventListener("change", (e) => DSA.set({ fix: e.target.value, at: null }));
    byId("at").addEventListener("change", (e) => DSA.set({ at: e.target.value }));
    filter.addEventListener("input", () => DSA.set({ q: filter.value }));
    filter.addEventListener("keydown", (e) => {
      if (e.key !== "Escape") return;
      e.stopPropagation();
      DSA.set({ q: null });
      filter.blur();
    });
    document.querySelectorAll("[data-copy]").forEach((b) => b.addEventListener("click", () => copyCases(b.dataset.copy)));
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[href^='#']");
      const slug = link?.getAttribute("href").slice(1);
      if (!slug || !Object.hasOwn(data.cases, slug)) return;
      event.preventDefault();
      DSA.set({ case: slug });
    });
    document.querySelectorAll("#cases tbody").forEach((body) => body.addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-case]");
      if (row && !event.target.closest("a") && !String(getSelection())) DSA.set({ case: row.dataset.case });
    }));
    DSA.shortcuts.set("/", () => { filter.focus(); filter.scrollIntoView({ block: "center" }); });
    DSA.shortcuts.set("j", () => step(1));
    DSA.shortcuts.set("k", () => step(-1));
    DSA.shortcuts.set("m", nextMetric);
    DSA.shortcuts.set("s", () => DSA.set({ share: state.share === "1" ? null : "1" }));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
    matchMedia("print").addEventListener("change", update);
  }

  if (data.slices.length) {
    listen();
    DSA.onState(update);
    DSA.charts.ready.then(update);
  }
})();
