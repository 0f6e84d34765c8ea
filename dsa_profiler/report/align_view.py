"""The page of an alignment, made from `align --json`'s document: two lanes, joined slot by slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsa_profiler import __version__
from dsa_profiler.report import render

SCRIPTS = ("page.js", "align.js")
STYLES = ("page.css", "align.css")
STATES = {"pass": "good", "fail": "bad", "inconclusive": "fair"}
SIDES = (("standalone", "standalone"), ("e2e", "server"))
WIDTH, ROW, JOIN = 1200.0, 22, 84
"""Pixels: a lane's width, the height of one stream's row, the space where slots are joined."""
CHECK_NAMES = {
    "kernel_names_match": "kernel names",
    "latency_within_tolerance": "latency",
    "no_missing_or_extra_kernels": "no missing or extra",
}


def write(document: Mapping[str, Any], path: Path) -> Path:
    """Write the page; it needs no plotly."""
    shown = view(document)
    return render.page(
        "align.html", path, data={}, scripts=SCRIPTS, styles=STYLES, plotly=False, **shown
    )


def view(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says, as plain values."""
    verdict = document["verdict"]
    case = document["settings"].get("case") or "recorded layer"
    return {
        "title": f"Alignment of {case}",
        "version": __version__,
        "subtitle": _server(document["e2e"]),
        "verdict": {"state": STATES[verdict], "text": verdict},
        "chips": [
            {
                "name": CHECK_NAMES.get(c["name"], c["name"]),
                "value": c["status"],
                "state": STATES[c["status"]],
                "detail": c["detail"],
            }
            for c in document["checks"]
        ],
        "problems": document["problems"],
        "differences": [_difference(d) for d in document["differences"]],
        "explained": [_difference(d) for d in document["explained"]],
        "reasons": document["reasons"],
        "picture": _picture(document["lanes"]),
        "rows": [_row(n, p) for n, p in enumerate(document["pairs"])],
        "stages": [_times(s["stage"], s["standalone_ns"], s["e2e_ns"]) for s in document["stages"]],
        "totals": _totals(document["totals"]),
        "ranks": [_rank(r) for r in document["ranks"]],
        "unknown": document["unknown_kernels"],
        "facts": _facts(document),
        "warnings": [{**n, "cases": []} for n in document["notes"]],
    }


def _server(e2e: Mapping[str, Any]) -> str:
    if not e2e.get("layers"):
        return f"{e2e['steps_found']} steps found in the server's trace, no layer to compare"
    return (
        f"{e2e['steps']} of {e2e['steps_found']} server steps, {e2e['layers_per_step']} layers a "
        f"step, {e2e['dsa_layers']} of them DSA, found by {e2e['method'].replace('_', ' ')}; "
        "ratios are standalone / e2e"
    )


def _difference(found: Mapping[str, Any]) -> dict[str, Any]:
    return {**found, "us": us(found["median_ns"])}


def _row(number: int, pair: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "slot": number,
        "stage": pair["stage"],
        "kernel": pair["kernel"],
        "other": "" if pair["how"] in ("matched", "moved") else pair["e2e_kernel"],
        "how": pair["how"],
        "a": us(pair["standalone_ns"]),
        "a_spread": _spread(pair["standalone"]),
        "b": us(pair["e2e_ns"]),
        "b_spread": _spread(pair["e2e"]),
        "ratio": ratio(pair["ratio"]),
        "lost": us(pair["lost_ns"]),
        "lost_ns": pair["lost_ns"],
        "a_window": window(pair["standalone_window"]),
        "b_window": window(pair["e2e_window"]),
    }


def _spread(found: Mapping[str, Any]) -> str:
    return f"p10 {us(found['p10_ns'])}, p90 {us(found['p90_ns'])}, n {found['n']:,}"


def _times(name: str, left: float, right: float) -> dict[str, Any]:
    return {
        "name": name,
        "a": us(left) if left else "–",
        "b": us(right) if right else "–",
        "ratio": ratio(left / right) if left and right else "–",
    }


def _totals(totals: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    if not totals:
        return []
    return [
        _times(f"{name}", totals["standalone"][f"{key}_ns"], totals["e2e"][f"{key}_ns"])
        for name, key in (
            ("sum of kernels", "sum"),
            ("union over streams", "union"),
            ("overlap", "overlap"),
            ("gaps", "gap"),
            ("span", "span"),
        )
    ]


def _rank(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "us": us(row["sum_ns"]), "ratio": f"{row['to_median']:.2f}"}


def _facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings, e2e = document["settings"], document["e2e"]
    rows = [("case", settings.get("case", "")), ("tolerance", f"{settings.get('tolerance', '')}")]
    for side in ("standalone", "e2e"):
        for key, value in settings.get(side, {}).items():
            rows.append((f"{side} {key}", str(value)))
    rows.append(("steps by", str(e2e.get("steps_by", ""))))
    rows += [(f"steps of {batch}", str(n)) for batch, n in e2e.get("batches", {}).items()]
    return [(name, value) for name, value in rows if value]


def _picture(lanes: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Boxes of both lanes and the bands between the slots, in pixels."""
    if not lanes:
        return None
    longest = max(k["start_ns"] + k["duration_ns"] for lane in lanes.values() for k in lane)
    scale = WIDTH / max(longest, 1)
    heights = {side: ROW * (1 + max(k["stream"] for k in lanes[side])) for side, _ in SIDES}
    tops = {"standalone": 18, "e2e": 18 + heights["standalone"] + JOIN}
    boxes = {side: [_box(k, scale, tops[side], side) for k in lanes[side]] for side, _ in SIDES}
    below = {b["slot"]: b for b in boxes["e2e"] if b["slot"] >= 0}
    bands = [_band(a, below[a["slot"]]) for a in boxes["standalone"] if a["slot"] in below]
    return {
        "width": WIDTH,
        "height": tops["e2e"] + heights["e2e"] + 22,
        "lanes": [
            {
                "name": name,
                "label_y": tops[side] - 6
                if side == "standalone"
                else tops[side] + heights[side] + 15,
                "boxes": boxes[side],
            }
            for side, name in SIDES
        ],
        "bands": bands,
        "span": us(longest),
    }


def _box(kernel: Mapping[str, Any], scale: float, top: int, side: str) -> dict[str, Any]:
    alone = {"standalone": "missing in the server", "e2e": "extra in the server"}[side]
    state = "" if kernel["slot"] >= 0 else f" ({alone})"
    return {
        "x": round(kernel["start_ns"] * scale, 2),
        "y": top + ROW * kernel["stream"],
        "w": round(max(kernel["duration_ns"] * scale, 1.0), 2),
        "stage": kernel["stage"],
        "slot": kernel["slot"],
        "title": f"{kernel['stage']}: {kernel['kernel']}, {us(kernel['duration_ns'])} us{state}",
    }


def _band(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    low, high = a["y"] + ROW - 3, b["y"]
    points = (
        (a["x"], low), (a["x"] + a["w"], low), (b["x"] + b["w"], high), (b["x"], high),
    )  # fmt: skip
    return {
        "slot": a["slot"],
        "stage": a["stage"],
        "points": " ".join(f"{x:g},{y:g}" for x, y in points),
    }


def us(ns: float) -> str:
    return f"{ns / 1e3:,.2f}"


def ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def window(times: Sequence[int]) -> str:
    """A time range as Nsight's timeline takes it: seconds with nine decimals."""
    return f"{times[0] / 1e9:.9f}s {times[1] / 1e9:.9f}s"
