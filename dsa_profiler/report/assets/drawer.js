"use strict";
/* The case drawer: everything known of one case, built from the data by text alone. */
DSA.drawer = (() => {
  const { data, el, number } = DSA;
  const drawer = document.getElementById("drawer");

  const kernelHeader = ["stage", "kernel", "calls", "median_ms", "p10_ms", "p90_ms"];
  const kernelRows = (item) => item.kernels.map(([name, stage, calls, ...times]) => [stage, data.names[name], calls, ...times]);

  function fact(name, value, unit) {
    return value === null ? null : el("div", {}, el("dt", {}, name), el("dd", {}, value, unit ? el("small", {}, ` ${unit}`) : null));
  }

  function numbers(item) {
    const [median, p10, p90] = item.span;
    const floor = item.lines.find(([, kind]) => kind === "floor");
    return el("dl", { class: "numbers" },
      fact("median", number(median), "ms"),
      fact("p10 to p90", `${number(p10)}–${number(p90)}`, "ms"),
      fact("busy", number(item.busy), "ms"),
      fact("gap", number(item.gap), "ms"),
      fact("overlap", number(item.overlap), "ms"),
      ...item.lines.map(([name, , value]) => fact(name, number(value), "ms")),
      floor ? fact("roofline share", `${(100 * floor[2] / median).toFixed(1)}%`) : null,
      item.untraced === null ? null : fact("untraced", number(item.untraced), "ms"),
      ...item.gpu.map(([name, value, unit]) => fact(name, number(value), unit)));
  }

  function swatch(stage) {
    return el("i", { class: `swatch st-${stage}`, "aria-hidden": "true" });
  }

  function header(names) {
    return el("thead", {}, el("tr", {}, ...names.map(([name, numeric]) => el("th", { scope: "col", class: numeric ? "num" : null }, name))));
  }

  function table(label, head, rows) {
    const node = el("table", { class: "rows" }, el("caption", {}, label), header(head), el("tbody", {}, ...rows));
    DSA.makeSortable(node);
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, node);
  }

  function stages(item) {
    const withFloor = item.stages.some((s) => s[4] !== null);
    const bars = el("div", { class: "bars", "aria-hidden": "true" }, ...item.stages.filter((s) => s[1] > 0)
      .map(([stage, , share]) => el("i", { class: `st-${stage}`, style: `width:${100 * share}%`, title: `${stage} ${(100 * share).toFixed(1)}%` })));
    const head = [["stage"], ["group"], ["median ms", true], ["share", true], ["kernels", true]];
    if (withFloor) head.push(["floor ms", true], ["roofline", true]);
    const rows = item.stages.toSorted((a, b) => b[1] - a[1]).map(([stage, ms, share, kernels, floor]) => el("tr", {},
      el("td", { class: "stage" }, swatch(stage), stage), el("td", {}, data.groups[stage]),
      el("td", { class: "num" }, number(ms)), el("td", { class: "num" }, `${(100 * share).toFixed(1)}%`), el("td", { class: "num" }, String(kernels)),
      withFloor ? el("td", { class: "num" }, number(floor)) : null,
      withFloor ? el("td", { class: "num" }, floor && ms ? `${(100 * floor / ms).toFixed(1)}%` : "–") : null));
    return [el("h3", {}, "Stages"), bars, table("Stages of the case", head, rows)];
  }

  function iterations(item) {
    const spans = item.iterations;
    if (!spans.length) return [];
    const [least, most] = [Math.min(...spans), Math.max(...spans)];
    const median = item.span[0];
    const height = (ms) => (most > least ? 100 * (ms - least) / (most - least) : 50);
    const strip = el("div", { class: "iterations" },
      el("div", { class: "dots", role: "img", "aria-label": `${spans.length} iterations, ${number(least)} to ${number(most)} ms` },
        el("hr", { style: `bottom:${height(median)}%` }),
        ...spans.map((ms, i) => el("i", { class: ms > 1.1 * median ? "far" : null, style: `left:${100 * (i + 0.5) / spans.length}%;bottom:${height(ms)}%`, title: `iteration ${i}: ${number(ms)} ms` }))),
      el("div", { class: "ends" }, el("span", {}, `${number(most)} ms`), el("span", {}, `${number(least)} ms`)));
    return [el("h3", {}, `Iterations (${spans.length})`), strip];
  }

  function copyButtons(item, slug) {
    const button = (format, label) => el("button", { type: "button", "data-format": format, onclick: () => DSA.copy(DSA.formats[format](kernelHeader, kernelRows(item)), `kernels of ${slug} as ${label}`) }, `Copy ${label}`);
    return el("div", { class: "controls" }, button("csv", "CSV"), button("markdown", "Markdown"));
  }

  function kernels(item, slug) {
    if (!item.kernels.length) return [];
    const head = [["stage"], ["kernel"], ["calls", true], ["median µs", true], ["p10", true], ["p90", true]];
    const us = (ms) => (1000 * ms).toFixed(2);
    const rows = item.kernels.map(([name, stage, calls, median, p10, p90]) => el("tr", {},
      el("td", { class: "stage" }, swatch(stage), stage), el("td", { class: "name" }, el("bdi", {}, data.names[name])),
      el("td", { class: "num" }, String(calls)), el("td", { class: "num" }, us(median)), el("td", { class: "num" }, us(p10)), el("td", { class: "num" }, us(p90))));
    return [el("div", { class: "head" }, el("h3", {}, `Kernels (${rows.length})`), copyButtons(item, slug)), table("Kernels of the case", head, rows)];
  }

  function nsight(item) {
    const [from, to] = item.window;
    if (to <= from) return [];
    const seconds = (ns) => `${(ns / 1e9).toFixed(6)}s`;
    const text = `${seconds(from)} – ${seconds(to)}`;
    return [el("h3", {}, "In Nsight Systems"), el("div", { class: "range" }, el("code", {}, text),
      el("button", { type: "button", onclick: () => DSA.copy(text, "the time range") }, "Copy"))];
  }

  function warnings(item) {
    if (!item.warnings.length) return [];
    return [el("h3", {}, "Warnings"), ...item.warnings.map((w) => el("p", { class: "note" }, el("code", {}, w.slug), " ", el("bdi", {}, w.what), " ", el("span", { class: "quiet" }, el("bdi", {}, w.cure))))];
  }

  function show(slug) {
    const item = data.cases[slug];
    drawer.replaceChildren(
      el("div", { class: "top-row" }, el("h2", {}, item.title), el("button", { type: "button", id: "drawer-close", title: "Close (Esc)", onclick: () => DSA.set({ case: null }) }, "Close")),
      el("code", { class: "slug" }, slug),
      item.timing === "host" ? el("p", { class: "note" }, "Timed by host ranges: the trace holds no GPU kernel.") : "",
      numbers(item), ...warnings(item), ...stages(item), ...iterations(item), ...kernels(item, slug), ...nsight(item));
    drawer.hidden = false;
    drawer.scrollTop = 0;
    drawer.setAttribute("aria-label", `Case ${slug}`);
  }

  const open = DSA.drawerOf(drawer, show);
  DSA.onState((state) => open(Object.hasOwn(data.cases, state.case ?? "") ? state.case : null));
  DSA.shortcuts.set("Escape", () => DSA.set({ case: null }));
})();
