"""The page of a comparison, made from `compare --json`'s document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsa_profiler import __version__
from dsa_profiler.marks import GROUP_OF
from dsa_profiler.model import Case
from dsa_profiler.report import charts, render
from dsa_profiler.report.view import slice_id, slice_label

SCRIPTS = ("page.js", "compare.js")


def write(document: Mapping[str, Any], path: Path) -> Path:
    """Write the page; it holds every case, and needs no plotly."""
    shown = view(document)
    return render.page(
        "compare.html", path, data=shown.pop("data"), scripts=SCRIPTS, plotly=False, **shown
    )


def view(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says, as plain values."""
    changes = document["cases"]
    slices: dict[str, list[Mapping[str, Any]]] = {}
    for change in changes:
        slices.setdefault(slice_id(Case.from_slug(change["id"])), []).append(change)
    return {
        "title": f"{document['b']} against {document['a']}",
        "a": document["a"],
        "b": document["b"],
        "verdict": _verdict(document),
        "trust": _trust(document),
        "stages": [{**s, "text": ratio_text(s)} for s in document["stages"]],
        "slices": [_slice(rows) for rows in slices.values()],
        "only_a": document["only_a"],
        "only_b": document["only_b"],
        "warnings": [{**w, "cases": []} for w in document["warnings"]],
        "version": __version__,
        "data": {
            "schema": 1,
            "a": document["a"],
            "b": document["b"],
            "groups": GROUP_OF,
            "cases": {c["id"]: _case(c) for c in changes},
        },
    }


def ratio_text(item: Mapping[str, Any]) -> str:
    """1.042 [1.031, 1.055]; without brackets where there is no interval."""
    interval = f" [{item['low']:.3f}, {item['high']:.3f}]" if item["low"] is not None else ""
    return f"{item['ratio']:.3f}{interval}"


def _verdict(document: Mapping[str, Any]) -> dict[str, str]:
    gate = document.get("gate")
    slower = sum(c["verdict"] == "slower" for c in document["cases"])
    faster = sum(c["verdict"] == "faster" for c in document["cases"])
    text = f"{slower:,} slower, {faster:,} faster of {len(document['cases']):,} cases"
    if gate and gate["failed"]:
        limit = f"{100 * gate['fail_above']:g} %"
        return {"state": "bad", "text": f"Gate failed at {limit}: {text}"}
    return {"state": "fair" if slower else "good", "text": text}


def _trust(document: Mapping[str, Any]) -> list[dict[str, str]]:
    warnings = len(document["warnings"])
    return [
        {"name": "all cases, B / A", "value": ratio_text(document["total"]), "state": "good"},
        {"name": "noise of a case", "value": f"{100 * document['noise']:.1f}%", "state": "good"},
        {"name": "warnings", "value": f"{warnings}", "state": "fair" if warnings else "good"},
    ]


def _slice(changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    cases = [Case.from_slug(c["id"]) for c in changes]
    lengths = sorted({c.seq_len for c in cases})
    batches = sorted({c.batch_size for c in cases})
    place = {
        (case.batch_size, case.seq_len): (change["id"], f"{change['ratio']:.2f}",
                                          charts.ratio_level(change["ratio"]))
        for case, change in zip(cases, changes, strict=True)
    }  # fmt: skip
    return {
        "id": slice_id(cases[0]),
        "label": slice_label(cases[0]),
        "axis": "cached tokens" if cases[0].phase == "generation" else "new tokens",
        "batches": batches,
        "lengths": lengths,
        "grid": [[place.get((b, s)) for s in lengths] for b in batches],
        "rows": [
            {
                "id": change["id"],
                "batch": case.batch_size,
                "seq": case.seq_len,
                "a": f"{change['a_ns'] / 1e6:.4f}",
                "b": f"{change['b_ns'] / 1e6:.4f}",
                "ratio": change["ratio"],
                "text": ratio_text(change),
                "noise": f"{100 * change['noise']:.1f}%",
                "verdict": change["verdict"],
            }
            for case, change in zip(cases, changes, strict=True)
        ],
    }


def _case(change: Mapping[str, Any]) -> dict[str, Any]:
    case = Case.from_slug(change["id"])
    return {
        "title": f"batch {case.batch_size:,} × {case.seq_len:,} tokens",
        "text": ratio_text(change),
        "verdict": change["verdict"],
        "a": charts.ms(change["a_ns"]),
        "b": charts.ms(change["b_ns"]),
        "stages": [
            [s["stage"], charts.ms(s["a_ns"]), charts.ms(s["b_ns"]), s["ratio"],
             None if s["ratio"] is None else charts.ratio_level(s["ratio"]),
             None if s["ratio"] is None else ratio_text(s)]
            for s in change["stages"]
        ],
    }  # fmt: skip
