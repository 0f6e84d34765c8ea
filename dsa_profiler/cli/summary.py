"""The cases of a sweep as one compact table: how long, how steady, what took the time."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from dsa_profiler.results import CaseResult, Results
from dsa_profiler.session import Session


def show(results: Results, found: Session) -> None:
    """Print the table to stdout, then the cases without results and the warnings, once each."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("case")
    for name in ("median ms", "p10-p90", "busy"):
        table.add_column(name, justify="right")
    table.add_column("top stages")
    for result in results.cases:
        table.add_row(*_row(result))
    console.print(table)
    for case, outcome in found.outcomes.items():
        if outcome.status != "done":
            console.print(f"{outcome.status}: {case.slug}  {outcome.detail}", markup=False)
    told = {w.what for c in results.cases for w in c.warnings} | {w.what for w in results.warnings}
    for what in sorted(told):
        console.print(f"warning: {what}", markup=False)


def _row(result: CaseResult) -> tuple[str, ...]:
    span = result.span_ns
    busy = result.busy_ns / span.median if span.median else 0.0
    top = sorted(result.stages, key=lambda s: (-s.median_ns, s.stage))[:3]
    return (
        result.case.slug,
        f"{span.median / 1e6:,.3f}",
        f"±{(span.p90 - span.p10) / 2 / span.median:.1%}" if span.median else "",
        f"{busy:.0%}",
        "  ".join(f"{s.stage} {s.share:.0%}" for s in top),
    )
