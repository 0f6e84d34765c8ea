"use strict";
/* The two plotly charts, drawn from the series that report.charts computed. */
DSA.charts = (() => {
  const { data, state } = DSA;
  const curveStops = ["#2a6fb5", "#7b4fb0", "#c2417c", "#e0663a", "#e6a100"];
  const config = { displayModeBar: false, responsive: true };

  /* plotly.js lies in the page as base64 of gzip. Its hash is in the policy, so it may run. */
  async function unpack() {
    const packed = document.getElementById("plotly");
    const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = DSA.el("script");
    script.textContent = await new Response(stream).text();
    packed.remove();
    document.head.append(script);
  }

  function mix(stops, t) {
    const at = Math.min(Math.floor(t * (stops.length - 1)), stops.length - 2);
    const part = t * (stops.length - 1) - at;
    const channel = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
    const rgb = [0, 1, 2].map((i) => Math.round(channel(stops[at], i) * (1 - part) + channel(stops[at + 1], i) * part));
    return `rgb(${rgb.join(",")})`;
  }

  /* Colours that light-dark() resolved, as plotly wants them. */
  function theme() {
    const probe = DSA.el("span");
    document.body.append(probe);
    const read = (name) => {
      probe.style.color = `var(--${name})`;
      return getComputedStyle(probe).color;
    };
    const colours = { bg: read("bg"), ink: read("ink"), soft: read("soft"), line: read("line") };
    probe.remove();
    return colours;
  }

  /* Ticks of a logarithmic axis: the values themselves where they are few, else 1-2-5 or decades. */
  function ticks(values, few) {
    const known = [...new Set(values)].filter((v) => v > 0).sort((a, b) => a - b);
    const [low, high] = [known[0] ?? 1, known.at(-1) ?? 1];
    if (few && known.length <= 9) return known;
    const steps = high / low > 300 ? [1] : [1, 2, 5];
    const out = [];
    for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.ceil(Math.log10(high)); power += 1) {
      out.push(...steps.map((step) => Number((step * 10 ** power).toPrecision(1))));
    }
    return out;
  }

  function logarithmic(values, few, title) {
    const tickvals = ticks(values, few);
    return { type: "log", title: { text: title }, tickvals, ticktext: tickvals.map((v) => v.toLocaleString("en", { maximumFractionDigits: 9 })) };
  }

  function layout(colours, more) {
    const axis = { gridcolor: colours.line, linecolor: colours.line, zeroline: false, tickfont: { color: colours.soft }, title: { standoff: 10, font: { color: colours.soft } }, fixedrange: true };
    const merge = (a, b) => ({ ...a, ...b, title: { ...a.title, ...b.title } });
    return {
      ...more,
      xaxis: merge(axis, more.xaxis),
      yaxis: merge(axis, more.yaxis),
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colours.ink },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 62, r: 16, t: 10, b: 52 },
      hoverlabel: { bgcolor: colours.bg, bordercolor: colours.line, font: { color: colours.ink, size: 12.5 } },
      dragmode: false,
    };
  }

  function draw(id, traces, shape, cases) {
    const node = document.getElementById(id);
    Plotly.react(node, traces, shape, config);
    node.removeAllListeners?.("plotly_click");
    node.on("plotly_click", (event) => {
      const point = event.points[0];
      DSA.set({ case: cases ? cases[point.pointNumber] : point.customdata });
    });
  }

  function stages(slice) {
    const fixed = state.fix === "seq_len" ? "seq_len" : "batch_size";
    const stacks = slice.stacks[fixed];
    const values = Object.keys(stacks).map(Number).sort((a, b) => a - b);
    const longest = values.reduce((best, v) => (stacks[v].x.length > stacks[best].x.length ? v : best), values[0]);
    const at = Object.hasOwn(stacks, state.at ?? "") ? Number(state.at) : longest;
    const { x, cases, stages: series } = stacks[at];
    const colours = theme();
    const share = state.share === "1";
    const labels = x.map((v) => v.toLocaleString("en"));
    const traces = Object.entries(series).map(([stage, y]) => ({
      type: "bar", name: stage, x: labels, y,
      marker: { color: data.colours[stage], line: { color: colours.bg, width: 0.6 }, pattern: stage === "unknown" ? { shape: "/", size: 5, fgcolor: data.colours[stage], bgcolor: "rgba(0,0,0,0)" } : {} },
      customdata: y.map((v, i) => v / (Object.values(series).reduce((sum, s) => sum + s[i], 0) || 1)),
      hovertemplate: `<b>${stage}</b>  ${share ? "" : "%{y:.4~g} ms, "}%{customdata:.1%}<extra></extra>`,
    }));
    const along = fixed === "batch_size" ? slice.axis : "batch";
    draw("plot-stages", traces, layout(theme(), {
      barmode: "stack", barnorm: share ? "percent" : "", bargap: 0.28, showlegend: false, hovermode: "closest",
      xaxis: { type: "category", title: { text: along } },
      yaxis: share ? { title: { text: "share of kernel time" }, ticksuffix: "%", range: [0, 100] } : { title: { text: "ms per iteration" }, rangemode: "tozero" },
    }), cases);
    return { values, at, fixed, present: Object.keys(series) };
  }

  function latency(slice) {
    const batches = [...new Set(slice.curves.map((c) => c.batch))];
    const colours = theme();
    const colourOf = (batch) => mix(curveStops, batches.length > 1 ? batches.indexOf(batch) / (batches.length - 1) : 0);
    const dashes = { floor: "dot", prediction: "dash", shipped: "dashdot" };
    const traces = [];
    for (const curve of slice.curves) {
      const colour = colourOf(curve.batch);
      const group = `batch ${curve.batch.toLocaleString("en")}`;
      if (curve.kind === "measured") {
        traces.push({
          type: "scatter", mode: "lines", x: [...curve.x, ...curve.x.toReversed()], y: [...curve.high, ...curve.low.toReversed()],
          fill: "toself", fillcolor: colour, opacity: 0.18, line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: group,
        });
      }
      const first = !traces.some((t) => t.name === curve.name && t.showlegend);
      traces.push({
        type: "scatter", mode: curve.kind === "measured" ? "lines+markers" : "lines", x: curve.x, y: curve.y,
        name: curve.kind === "measured" ? group : curve.name, legendgroup: group,
        showlegend: curve.kind === "measured" || first, legendrank: curve.kind === "measured" ? 1000 : 2000,
        line: { color: colour, width: curve.kind === "measured" ? 2 : 1.3, dash: dashes[curve.kind] }, marker: { size: 5 }, opacity: curve.kind === "measured" ? 1 : 0.75,
        customdata: curve.cases, meta: curve.name,
        hovertemplate: `${group}, %{x:,} tokens<br><b>%{y:.4~g} ms</b> %{meta}<extra></extra>`,
      });
    }
    const shapes = [], annotations = [];
    const lengths = slice.curves.flatMap((c) => c.x);
    const knee = data.topk;
    if (knee && Math.min(...lengths) < knee && knee < Math.max(...lengths)) {
      shapes.push({ type: "line", xref: "x", yref: "paper", x0: knee, x1: knee, y0: 0, y1: 1, line: { color: colours.soft, width: 1, dash: "dot" } });
      annotations.push({ xref: "x", yref: "paper", x: Math.log10(knee), y: 1, text: `top-k ${knee.toLocaleString("en")}`, showarrow: false, xanchor: "left", yanchor: "top", xshift: 5, font: { color: colours.soft, size: 11.5 } });
    }
    draw("plot-latency", traces, layout(colours, {
      hovermode: "closest", shapes, annotations,
      legend: { font: { color: colours.soft }, traceorder: "normal", itemsizing: "constant", bgcolor: "rgba(0,0,0,0)" },
      xaxis: logarithmic(lengths, true, slice.axis),
      yaxis: logarithmic(slice.curves.flatMap((c) => c.y), false, "ms"),
    }));
  }

  return { stages, latency, ready: unpack() };
})();
