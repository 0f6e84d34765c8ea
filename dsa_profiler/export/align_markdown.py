"""An alignment for people: plain text for the terminal, Markdown for a pull request.

Both are made from the document of `align --json`, so neither can say what it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsa_profiler import __version__
from dsa_profiler.export.markdown import escape, table

MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️"}
Document = Mapping[str, Any]


def summary(document: Document, top: int = 12) -> str:
    """Markdown: verdict, checks, differences, stages, the slots that lose most, reasons."""
    verdict = document["verdict"]
    case = document["settings"].get("case") or "the recorded layer"
    parts = [
        f"## {MARKS[verdict]} Alignment: {verdict}",
        f"`{case}` against the server: {server(document)}.",
        table(
            ("check", "status", "detail"),
            [
                (c["name"], f"{MARKS[c['status']]} {c['status']}", escape(c["detail"]))
                for c in document["checks"]
            ],
            left=3,
        ),
    ]
    parts += [
        f"**Inconclusive:** {escape(p['what'])}. {escape(p['cure'])}." for p in document["problems"]
    ]
    if document["differences"]:
        parts.append(_differences("Differences", document["differences"]))
    if document["stages"]:
        parts.append("### Stages\n\n" + table(*_stages(document)))
    if document["pairs"]:
        parts.append(_slots(document["pairs"], top))
    if document["explained"]:
        parts.append(_differences("Explained", document["explained"]))
    if slow := stragglers(document):
        parts.append(f"**Stragglers:** {escape(slow)}.")
    if document["reasons"]:
        lines = "\n".join(f"- {escape(r['text'])}" for r in document["reasons"])
        parts.append(f"### Known reasons that fit\n\n{lines}")
    if document["unknown_kernels"]:
        names = "\n".join(f"- {escape(n)}" for n in document["unknown_kernels"])
        parts.append(f"### Kernels of unknown stage\n\n{names}")
    parts.append(
        f"<sub>ratios are standalone / e2e, times medians in us; dsa_profiler {__version__}</sub>"
    )
    return "\n\n".join(parts) + "\n"


def text(document: Document, top: int = 10) -> str:
    """Plain text for a terminal."""
    out = [f"{document['verdict'].upper()}  {document['settings'].get('case', '')}".rstrip()]
    out.append(f"server: {server(document)}")
    out += [f"  {c['status']:<13} {c['name']}: {c['detail']}" for c in document["checks"]]
    if document["stages"]:
        header, rows, _ = _stages(document)
        out += ["", *_columns([header, *rows])]
    for title, key in (("differences", "differences"), ("explained", "explained")):
        if document[key]:
            out += ["", f"{title}:"]
            out += [
                f"  {d['kind']:<9} {d['stage']:<18} {d['kernel']} ({d['where']})"
                + (f": {d['why']}" if d["why"] else "")
                for d in document[key][:top]
            ]
            out += [f"  ... {len(document[key]) - top} more"] if len(document[key]) > top else []
    if slow := stragglers(document):
        out += ["", f"stragglers: {slow}"]
    if document["reasons"]:
        out += ["", "known reasons that fit:", *(f"  - {r['text']}" for r in document["reasons"])]
    if document["unknown_kernels"]:
        out += ["", "kernels of unknown stage:", *(f"  {n}" for n in document["unknown_kernels"])]
    return "\n".join(out) + "\n"


def server(document: Document) -> str:
    """One line on what was found in the server's trace."""
    e2e = document["e2e"]
    if not e2e.get("layers"):
        return f"{e2e['steps_found']} steps found, no layer to compare"
    ranks = f", {e2e['ranks']} ranks" if e2e["ranks"] > 1 else ""
    return (
        f"{e2e['steps']} of {e2e['steps_found']} steps{ranks}, {e2e['layers_per_step']} layers a "
        f"step, {e2e['dsa_layers']} of them DSA, found by {e2e['method']}"
    )


def stragglers(document: Document) -> str:
    """Ranks whose layers take longer than the median rank's."""
    return ", ".join(
        f"{r['rank']} ({r['to_median']:.2f}x of the median rank)"
        for r in document["ranks"]
        if r["straggler"]
    )


def _stages(document: Document) -> tuple[tuple[str, ...], list[tuple[str, ...]], int]:
    rows: list[tuple[str, ...]] = [
        (s["stage"], us(s["standalone_ns"]), us(s["e2e_ns"]), ratio(s["ratio"]))
        for s in document["stages"]
    ]
    totals = document["totals"]
    for name in ("sum", "union", "gap"):
        a, b = (totals[side][f"{name}_ns"] for side in ("standalone", "e2e"))
        rows.append((f"layer {name}", us(a), us(b), ratio(a / b if b else None)))
    return ("stage", "standalone us", "e2e us", "ratio"), rows, 1


def _slots(pairs: Sequence[Mapping[str, Any]], top: int) -> str:
    worst = sorted(pairs, key=lambda p: -abs(p["lost_ns"]))[:top]
    rows = [
        (
            p["stage"],
            escape(short(p["kernel"])),
            us(p["standalone_ns"]),
            us(p["e2e_ns"]),
            ratio(p["ratio"]),
        )
        for p in worst
    ]
    head = ("stage", "kernel", "standalone us", "e2e us", "ratio")
    return "### Kernels that differ most in time\n\n" + table(head, rows, left=2)


def _differences(title: str, found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (d["kind"], d["stage"], escape(d["kernel"]), d["where"], escape(d["why"])) for d in found
    ]
    return f"### {title}\n\n" + table(("what", "stage", "kernel", "where", "why"), rows, left=5)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(r[n]) for r in rows) for n in range(len(rows[0]))]
    return [
        "  "
        + r[0].ljust(widths[0])
        + "".join("  " + c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))
        for r in rows
    ]


def us(ns: float) -> str:
    return f"{ns / 1e3:,.2f}" if ns else "-"


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def short(name: str, most: int = 90) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
