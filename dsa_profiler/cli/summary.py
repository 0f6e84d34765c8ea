"""The cases of a sweep as one compact table: how long, how steady, what took the time."""

from __future__ import annotations

import sys
from collections import defaultdict

from rich.console import Console
from rich.table import Table

from dsa_profiler.errors import Warn
from dsa_profiler.results import CaseResult, Results
from dsa_profiler.session import Session

PIPE_WIDTH = 160


def show(results: Results, found: Session) -> None:
    """Print the table to stdout, then the cases without results, then each kind of warning once."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(highlight=False, markup=False, soft_wrap=False, width=width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("case", no_wrap=True, min_width=28)
    for name in ("median ms", "± ms", "busy", "roofline"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("top stages", no_wrap=True)
    for result in results.cases:
        table.add_row(*_row(result))
    console.print(table)
    for case, outcome in found.outcomes.items():
        if outcome.status != "done":
            print(f"{outcome.status}: {case.slug}  {outcome.detail}".rstrip())
    for line in warning_lines(results):
        print(line)


def warning_lines(results: Results) -> list[str]:
    """One line a kind of warning: the first of it, and how many cases have it too."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for warn in results.warnings:
        kinds[warn.slug].append(warn.what)
    for result in results.cases:
        for warn in result.warnings:
            kinds[warn.slug].append(_of(result, warn))
    more = {slug: len(told) - 1 for slug, told in kinds.items()}
    return [
        f"warning: {told[0]}" + (f" (and {more[slug]} more: {slug})" if more[slug] else "")
        for slug, told in sorted(kinds.items())
    ]


def _of(result: CaseResult, warn: Warn) -> str:
    return f"{result.case.slug}: {warn.what}"


def _row(result: CaseResult) -> tuple[str, ...]:
    span = result.span_ns
    busy = result.busy_ns / span.median if span.median else 0.0
    top = sorted(result.stages, key=lambda s: (-s.median_ns, s.stage))[:3]
    return (
        result.case.slug,
        f"{span.median / 1e6:,.3f}",
        f"{(span.p90 - span.p10) / 2e6:,.3f}",
        f"{busy:.0%}",
        "-" if (share := result.roofline_share()) is None else f"{share:.0%}",
        "  ".join(f"{s.stage} {s.share:.0%}" for s in top),
    )
