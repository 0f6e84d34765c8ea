"""A session as Markdown, made to be pasted into a pull request: maps, stages, warnings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log
from pathlib import Path
from statistics import median
from typing import Any

from dsa_profiler import __version__
from dsa_profiler.errors import InputError
from dsa_profiler.marks import STAGES
from dsa_profiler.model import Case
from dsa_profiler.results import CaseResult, Results
from dsa_profiler.session import Session, write_atomic


def write(results: Results, session: Session | None, path: Path) -> Path:
    """Write the summary; raises `InputError` when there is no case in it."""
    if not results.cases:
        raise InputError(
            "cases-none",
            "there is no measured case to export",
            "record a session with `dsa-profiler run`, or give a trace that holds dsa: marks",
        )
    write_atomic(path, summary(results, session))
    return path


def summary(results: Results, session: Session | None) -> str:
    """The whole document. Text from outside is escaped, so that no name breaks a table."""
    parts = [f"## {escape(session.name) if session else 'DSA trace'}", _head(results, session)]
    if any(c.timing == "host" for c in results.cases):
        parts.append(
            "**Timed on the host:** the trace holds no GPU kernel, so these rows describe the CPU."
        )
    for cases in _slices(results.cases):
        parts.append(_map(cases))
    parts.append(_stages(results.cases))
    warnings = _warnings(results)
    if warnings:
        parts.append("### Warnings\n\n" + "\n".join(warnings))
    parts.append(f"<sub>dsa_profiler {__version__}</sub>")
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose columns after the first `left` are right-aligned."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(r) + " |" for r in (header, rule, *rows))


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in one line: no markup, no table cell, no link."""
    flat = " ".join(text.split())
    return "".join("\\" + c if c in "\\`*_[]|~" else _ENTITIES.get(c, c) for c in flat)


_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def _head(results: Results, session: Session | None) -> str:
    gpus = ", ".join(dict.fromkeys(results.trace.gpus))
    where = gpus or (str(session.environment.get("cpu", "")) if session else "") or "no GPU"
    said = [f"{len(results.cases)} cases on {escape(where)}"]
    if session:
        said.append(f"{escape(session.model.name)}, workload {escape(session.workload)}")
    said.append(f"recorded by {escape(results.trace.producer)}")
    coverage = results.coverage
    if coverage.total_ns:
        said.append(
            f"{100 * coverage.attributed_ns / coverage.total_ns:.2f} % of kernel time known"
        )
    return " · ".join(said)


def _slices(cases: Iterable[CaseResult]) -> list[list[CaseResult]]:
    out: dict[tuple[str, int, str, int], list[CaseResult]] = {}
    for result in cases:
        case = result.case
        key = (case.phase, -case.num_heads, case.dtype, case.prefix)
        out.setdefault(key, []).append(result)
    return [out[key] for key in sorted(out)]


def _map(cases: Sequence[CaseResult]) -> str:
    first = cases[0].case
    lengths = sorted({c.case.seq_len for c in cases})
    batches = sorted({c.case.batch_size for c in cases})
    found = {(c.case.batch_size, c.case.seq_len): c.span_ns.median for c in cases}
    rows = [
        [str(b), *(f"{found[b, s] / 1e6:.3f}" if (b, s) in found else "" for s in lengths)]
        for b in batches
    ]
    axis = "cached tokens" if first.phase == "generation" else "new tokens"
    return f"### {_label(first)}\n\nMedian ms; batch down, {axis} across.\n\n" + table(
        ["batch", *(f"{s:,}" for s in lengths)], rows
    )


def _label(case: Case) -> str:
    prefix = f", {case.prefix:,} cached" if case.prefix else ""
    return f"{case.phase}, {case.num_heads} heads, {case.dtype}{prefix}"


def _stages(cases: Sequence[CaseResult]) -> str:
    """Each stage's share of kernel time: its median over the cases, and where it is largest."""
    rows = []
    for stage in STAGES:
        shares = [(s.share, c.case.slug) for c in cases for s in c.stages if s.stage == stage]
        if shares:
            top, where = max(shares)
            typical = median([share for share, _ in shares] + [0.0] * (len(cases) - len(shares)))
            rows.append([stage, f"`{where}`", f"{100 * typical:.1f} %", f"{100 * top:.1f} %"])
    head = ["stage", "largest in", "median share", "largest share"]
    return "### Stages\n\n" + table(head, rows, left=2)


def _warnings(results: Results) -> list[str]:
    out: dict[str, int] = {}
    for warning in [*results.warnings, *(w for c in results.cases for w in c.warnings)]:
        out[warning.slug] = out.get(warning.slug, 0) + 1
    texts = {w.slug: w.what for c in reversed(results.cases) for w in c.warnings}
    texts |= {w.slug: w.what for w in results.warnings}
    return [
        f"- `{slug}`{f' × {count}' if count > 1 else ''}: {escape(texts[slug])}"
        for slug, count in out.items()
    ]


def comparison(document: Mapping[str, Any], rows: int = 20) -> str:
    """`compare --json`'s document for a pull request: the verdict, stages, and the largest changes.

    The `rows` cases that changed most are listed; how many more changed is said.
    """
    a, b, total = escape(document["a"]), escape(document["b"]), document["total"]
    counts = {v: sum(c["verdict"] == v for c in document["cases"]) for v in VERDICTS}
    told = ", ".join(f"{n} {v}" for v, n in counts.items() if n)
    parts = [
        f"## {b} against {a}",
        f"{_ratio(total)} over {total['cases']} cases ({told}); above 1 is slower. "
        f"Noise of a case: {100 * document['noise']:.1f} %.",
    ]
    if gate := document.get("gate"):
        failed = len(gate["failed"])
        state = f"**failed**: {failed} cases" if failed else "passed: no case"
        parts.append(f"Gate {state} slower by more than {100 * gate['fail_above']:g} %.")
    stages = [[s["stage"], _ratio(s), str(s["cases"])] for s in document["stages"]]
    parts.append(table(["stage", "B / A", "cases"], stages))
    changed = [c for c in document["cases"] if c["verdict"] != "same"]
    changed.sort(key=lambda c: (-abs(log(c["ratio"] or 1.0)), c["id"]))
    if changed:
        body = [
            [f"`{c['id']}`", c["verdict"], f"{c['a_ns'] / 1e6:.4f}", f"{c['b_ns'] / 1e6:.4f}",
             _ratio(c), _blame(c)]
            for c in changed[:rows]
        ]  # fmt: skip
        parts.append(table(["case", "", "A ms", "B ms", "B / A", "most of it"], body, left=2))
        if len(changed) > rows:
            parts.append(f"{len(changed) - rows} more cases changed.")
    parts += [f"- `{w['slug']}`: {escape(w['what'])}" for w in document["warnings"]]
    return "\n\n".join(parts) + "\n"


VERDICTS = ("slower", "faster", "unsure", "same")


def _ratio(item: Mapping[str, Any]) -> str:
    interval = f" [{item['low']:.3f}, {item['high']:.3f}]" if item["low"] is not None else ""
    return f"{item['ratio']:.3f}{interval}"


def _blame(change: Mapping[str, Any]) -> str:
    """The stage that gained or lost most time, in ms."""
    stages = sorted(change["stages"], key=lambda s: (-abs(s["b_ns"] - s["a_ns"]), s["stage"]))
    if not stages:
        return ""
    return f"{stages[0]['stage']} {(stages[0]['b_ns'] - stages[0]['a_ns']) / 1e6:+.4f}"
