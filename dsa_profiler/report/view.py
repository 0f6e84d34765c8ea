"""Results -> what the page says, as plain values: no HTML, no file, no clock.

`session_view` is the page's whole content. Its `data` goes into the page as JSON for the scripts;
the rest fills the tables that read without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import floor, log, log10
from statistics import median
from typing import Any

from dsa_profiler import __version__
from dsa_profiler.marks import GROUP_OF, STAGES
from dsa_profiler.model import Case
from dsa_profiler.report import charts
from dsa_profiler.report.charts import Line, ms
from dsa_profiler.results import CaseResult, Results
from dsa_profiler.session import Session

METRICS = {
    "latency": "Median latency in ms, on a logarithmic scale",
    "spread": "Spread of the iterations: (p90 - p10) / median",
    "roofline": "Share of the hardware's floor: floor / measured",
}
TOTALS_SHOWN = 200


def session_view(
    results: Results, session: Session | None, lines: Sequence[Line] = ()
) -> dict[str, Any]:
    """Everything on the page of a session, or of a bare trace where `session` is None."""
    lines = (*floors(results), *lines)
    slices = [_slice(cases) for cases in _by_slice(results.cases).values()]
    return {
        "title": session.name if session else "trace",
        "subtitle": subtitle(results, session),
        "verdict": verdict(results, session),
        "trust": trust(results, session),
        "host_timed": any(c.timing == "host" for c in results.cases),
        "device": device(results, session),
        "slices": slices,
        "metrics": {k: v for k, v in METRICS.items() if any(k in s["metrics"] for s in slices)},
        "warnings": warnings(results),
        "outcomes": outcomes(session),
        "environment": environment(results, session),
        "totals": totals(results),
        "totals_left_out": max(0, len(results.kernel_totals) - TOTALS_SHOWN),
        "stages": [{"stage": s, "group": GROUP_OF[s]} for s in STAGES],
        "version": __version__,
        "data": data(results, session, slices, lines),
    }


def floors(results: Results) -> tuple[Line, ...]:
    """The roofline floors that the results carry, a line a system."""
    known = [c.floor for c in results.cases if c.floor]
    return tuple(
        Line(
            f"floor {system}",
            "floor",
            {f.case.slug: f.floor_ns for f in known if f.system == system},
        )
        for system in sorted({f.system for f in known})
    )


def slice_id(case: Case) -> str:
    """What is fixed in one heat map: all of a case but its batch and its sequence."""
    prefix = f"-p{case.prefix}" if case.prefix else ""
    return f"{case.phase}{prefix}-h{case.num_heads}-{case.dtype}"


def slice_label(case: Case) -> str:
    prefix = f", {case.prefix:,} cached" if case.prefix else ""
    return f"{case.phase}, {case.num_heads} heads, {case.dtype}{prefix}"


def _by_slice(cases: Iterable[CaseResult]) -> dict[str, list[CaseResult]]:
    """Slices in order: context before generation, then heads down, dtype and prefix."""
    out: dict[str, list[CaseResult]] = {}
    for result in sorted(
        cases,
        key=lambda c: (c.case.phase, -c.case.num_heads, c.case.dtype, c.case.prefix,
                       c.case.batch_size, c.case.seq_len),
    ):  # fmt: skip
        out.setdefault(slice_id(result.case), []).append(result)
    return out


def _slice(cases: Sequence[CaseResult]) -> dict[str, Any]:
    first = cases[0].case
    measures = {c.case.slug: _measures(c) for c in cases}
    lengths = sorted({c.case.seq_len for c in cases})
    batches = sorted({c.case.batch_size for c in cases})
    place = {(c.case.batch_size, c.case.seq_len): c.case.slug for c in cases}
    levels = _levels(measures)
    return {
        "id": slice_id(first),
        "label": slice_label(first),
        "axis": "cached tokens" if first.phase == "generation" else "new tokens",
        "batches": batches,
        "lengths": lengths,
        "metrics": [m for m in METRICS if any(m in v for v in measures.values())],
        "grid": [[place.get((b, s)) for s in lengths] for b in batches],
        "cells": {
            slug: {m: [_text(m, v), levels[slug][m]] for m, v in values.items()}
            for slug, values in measures.items()
        },
        "rows": [_row(c) for c in cases],
        "cases": [c.case.slug for c in cases],
    }


def _measures(result: CaseResult) -> dict[str, float]:
    span, share = result.span_ns, result.roofline_share()
    out = {"latency": span.median, "spread": (span.p90 - span.p10) / (span.median or 1.0)}
    return out if share is None else {**out, "roofline": share}


def _levels(measures: dict[str, dict[str, float]]) -> dict[str, dict[str, int]]:
    """The ramp's step per case and metric: latency by its logarithm, shares from 0 to their top."""
    every = [max(v["latency"], 1.0) for v in measures.values()]
    low, high = log(min(every)), log(max(every))
    top = max(0.05, *(v["spread"] for v in measures.values()))
    return {
        slug: {
            "latency": charts.level(log(max(v["latency"], 1.0)), low, high),
            "spread": charts.level(v["spread"], 0.0, top),
            **({"roofline": charts.level(v["roofline"], 0.0, 1.0)} if "roofline" in v else {}),
        }
        for slug, v in measures.items()
    }


def _text(metric: str, value: float) -> str:
    return short_ms(value) if metric == "latency" else f"{100 * value:.1f}%"


def short_ms(ns: float) -> str:
    """Milliseconds to three figures, never in exponents: 0.00412, 0.330, 41.2, 1234."""
    value = ns / 1e6
    if value >= 100:
        return f"{value:.0f}"
    if value <= 0:
        return "0"
    return f"{value:.{min(6, max(0, 2 - floor(log10(value))))}f}"


def _row(result: CaseResult) -> dict[str, Any]:
    """One line of the case table; `bars` is the stacked bar that needs no script."""
    case = result.case
    whole = sum(s.median_ns for s in result.stages) or 1.0
    ordered = sorted(result.stages, key=lambda s: STAGES.index(s.stage))
    top = max(result.stages, key=lambda s: s.median_ns, default=None)
    return {
        "id": case.slug,
        "batch": case.batch_size,
        "seq": case.seq_len,
        "median": f"{result.span_ns.median / 1e6:.4f}",
        "spread": _text("spread", _measures(result)["spread"]),
        "gap": f"{100 * result.gap_ns / (result.span_ns.median or 1.0):.1f}%",
        "roofline": "" if (share := result.roofline_share()) is None else f"{100 * share:.1f}%",
        "top": f"{top.stage} {100 * top.median_ns / whole:.0f}%" if top else "",
        "bars": [(s.stage, round(100 * s.median_ns / whole, 2)) for s in ordered if s.median_ns],
        "warnings": len(result.warnings),
    }


def verdict(results: Results, session: Session | None) -> dict[str, str]:
    """The header's sentence: what was measured, and whether something is missing."""
    count = len(results.cases)
    planned = len(session.plan.cases) if session else count
    lost = [o for o in session.outcomes.values() if o.status != "done"] if session else []
    if not count:
        return {"state": "bad", "text": "No case was measured"}
    if count == planned and not lost:
        return {"state": "good", "text": f"{_count(count, 'case')} measured"}
    text = f"{count:,} of {_count(planned, 'case')} measured"
    if lost:
        text += f", {len(lost):,} failed"
    return {"state": "fair", "text": text}


def trust(results: Results, session: Session | None) -> list[dict[str, str]]:
    """How far to believe the numbers: attribution, unknown kernels, tracer, overhead, warnings."""
    coverage = results.coverage
    out = []
    if coverage.kernels:
        whole, known = (
            (coverage.total_ns, coverage.attributed_ns)
            if coverage.total_ns
            else (coverage.kernels, coverage.attributed)
        )
        share = known / whole
        out.append(_chip("kernel time attributed", f"{100 * share:.2f}%", share >= 0.99))
    unknown = len(coverage.unknown_kernels)
    out.append(_chip("unknown kernels", f"{unknown:,}", unknown == 0))
    out.append(_chip("recorded by", results.trace.producer or "unknown", True))
    overhead = _overhead(results, session)
    if overhead is not None:
        out.append(
            _chip("traced against untraced", f"{100 * overhead:+.1f}%", abs(overhead) < 0.03)
        )
    count = len(warnings(results))
    out.append(_chip("warnings", f"{count:,}", count == 0))
    return out


def _overhead(results: Results, session: Session | None) -> float | None:
    """Median over cases of traced span / untraced time - 1; None where nothing was compared."""
    outcomes = session.outcomes if session else {}
    ratios = [
        c.span_ns.median / untraced - 1
        for c in results.cases
        if c.case in outcomes and (untraced := outcomes[c.case].untraced_ns)
    ]
    return median(ratios) if ratios else None


def _chip(name: str, value: str, good: bool) -> dict[str, str]:
    return {"name": name, "value": value, "state": "good" if good else "fair"}


def warnings(results: Results) -> list[dict[str, Any]]:
    """Warnings of the trace, then of cases: the same warning is said once, with its cases."""
    out: dict[tuple[str, str, str], dict[str, Any]] = {}
    for scope, warning in [
        *(("", w) for w in results.warnings),
        *((c.case.slug, w) for c in results.cases for w in c.warnings),
    ]:
        key = (warning.slug, warning.what if not scope else "", warning.cure)
        entry = out.setdefault(key, {**warning.as_json(), "cases": []})
        if scope:
            entry["cases"].append(scope)
        if warning.what != entry["what"]:
            entry["first"] = True
    return list(out.values())


def outcomes(session: Session | None) -> list[dict[str, str]]:
    """Cases that were planned and not measured, with the reason."""
    if session is None:
        return []
    lost = [
        {"id": case.slug, "status": outcome.status, "detail": outcome.detail}
        for case, outcome in session.outcomes.items()
        if outcome.status != "done"
    ]
    pending = [{"id": c.slug, "status": "pending", "detail": ""} for c in session.pending()]
    skipped = [
        {"id": s.case.slug, "status": "skipped", "detail": s.reason} for s in session.plan.skipped
    ]
    return lost + pending + skipped


def subtitle(results: Results, session: Session | None) -> str:
    where = device(results, session)
    return f"{session.workload} · {session.model.name} · {where}" if session else where


def device(results: Results, session: Session | None) -> str:
    """The machine in a few words: the GPU's name, or the CPU's where no GPU was in the trace."""
    if results.trace.gpus:
        return ", ".join(dict.fromkeys(results.trace.gpus))
    return str((session.environment.get("cpu") if session else None) or "no GPU in the trace")


def environment(results: Results, session: Session | None) -> list[tuple[str, str]]:
    """Names and values, in the session's order; nested values in one line."""
    rows: list[tuple[str, Any]] = []
    if session:
        shape = session.model
        rows += [
            ("session", session.name),
            ("recorded", session.created),
            ("model", f"{shape.name} ({shape.architecture})"),
            ("workload", session.workload),
            ("tracer", session.tracer),
            *session.environment.items(),
            *session.settings.items(),
        ]
    trace = results.trace
    rows += [
        ("trace", f"{trace.producer}, schema {trace.schema_version}"),
        ("kernels", f"{trace.kernels:,}"),
        ("launches", f"{trace.launches:,}"),
        ("ranges", f"{trace.ranges:,}"),
        ("duration", f"{trace.duration_ns / 1e9:.2f} s"),
        ("dsa_profiler", __version__),
    ]
    told = [(str(name), _plain(value)) for name, value in rows if value not in (None, "", [], {})]
    return list(dict.fromkeys(told))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(_plain(v) for v in value)
    return str(value)


def totals(results: Results) -> list[dict[str, Any]]:
    """The kernels that cost most over the whole trace, most expensive first."""
    whole = sum(k.total_ns for k in results.kernel_totals) or 1
    return [
        {
            "name": k.name,
            "stage": k.stage,
            "calls": f"{k.calls:,}",
            "total": f"{k.total_ns / 1e6:.3f}",
            "share": f"{100 * k.total_ns / whole:.1f}%",
            "median": f"{k.median_ns / 1e3:.2f}",
        }
        for k in results.kernel_totals[:TOTALS_SHOWN]
    ]


def data(
    results: Results,
    session: Session | None,
    slices: Sequence[dict[str, Any]],
    lines: Sequence[Line],
) -> dict[str, Any]:
    """What the scripts need, as JSON. Kernel names stand once, in `names`."""
    names = sorted({k.name for c in results.cases for k in c.kernels})
    index = {name: i for i, name in enumerate(names)}
    by_slug = {c.case.slug: c for c in results.cases}
    return {
        "schema": 1,
        "names": names,
        "colours": charts.STAGE_COLOURS,
        "groups": GROUP_OF,
        "metrics": METRICS,
        "topk": session.model.index_topk if session else None,
        "cases": {slug: case_data(c, index, session, lines) for slug, c in by_slug.items()},
        "slices": [
            {
                "id": s["id"],
                "axis": s["axis"],
                "metrics": s["metrics"],
                "cases": s["cases"],
                "cells": s["cells"],
                "stacks": charts.stacks([by_slug[slug] for slug in s["cases"]]),
                "curves": charts.curves([by_slug[slug] for slug in s["cases"]], lines),
            }
            for s in slices
        ],
    }


def case_data(
    result: CaseResult, index: dict[str, int], session: Session | None, lines: Sequence[Line]
) -> dict[str, Any]:
    """One case for the drawer; times in ms but the window, which is ns on the trace's clock."""
    case, span, floor = result.case, result.span_ns, result.floor
    outcome = session.outcomes.get(case) if session else None
    return {
        "title": f"batch {case.batch_size:,} × {case.seq_len:,} tokens",
        "slice": slice_id(case),
        "label": slice_label(case),
        "timing": result.timing,
        "span": [ms(v) for v in (span.median, span.p10, span.p90, span.min, span.max)],
        "busy": ms(result.busy_ns),
        "overlap": ms(result.overlap_ns),
        "gap": ms(result.gap_ns),
        "untraced": ms(outcome.untraced_ns) if outcome and outcome.untraced_ns else None,
        "gpu": gpu_facts(result),
        "lines": [[li.name, li.kind, ms(li.ns[case.slug])] for li in lines if case.slug in li.ns],
        "stages": [[s.stage, ms(s.median_ns), round(s.share, 5), s.kernels_per_iteration,
                    ms(least) if floor and (least := floor.stage_ns(s.stage)) else None]
                   for s in sorted(result.stages, key=lambda s: STAGES.index(s.stage))],
        "kernels": [[index[k.name], k.stage, k.calls_per_iteration, ms(k.median_ns), ms(k.p10_ns),
                     ms(k.p90_ns)] for k in result.kernels],
        "iterations": [ms(i) for i in result.iteration_spans_ns],
        "window": list(result.window_ns),
        "warnings": [w.as_json() for w in result.warnings],
    }  # fmt: skip


def gpu_facts(result: CaseResult) -> list[tuple[str, float, str]]:
    """What NVML saw of a case: name, value, unit."""
    state = result.gpu
    if state is None:
        return []
    facts = [
        ("power", state.power_w, "W"),
        ("idle", state.idle_w, "W"),
        ("energy", state.energy_mj, "mJ"),
        ("above idle", state.energy_above_idle_mj, "mJ"),
        ("SM clock", state.sm_mhz[1], "MHz"),
    ]
    return [(name, value, unit) for name, value, unit in facts if value is not None]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
