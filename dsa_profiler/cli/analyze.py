"""Example:  dsa-profiler analyze traces/mysweep --case generation-b64-s4095-h128-bfloat16

Per-kernel and per-stage times of a trace: an nsys .sqlite, .nsys-rep, .qdstrm or parquetdir, a
torch.profiler .json or .json.gz, or a session's folder. Tables go to stdout, warnings to stderr;
--json prints everything as one document.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dsa_profiler.cli import source
from dsa_profiler.errors import Exit, UsageError, Warn

if TYPE_CHECKING:
    from rich.console import Console

    from dsa_profiler.results import CaseResult, Results
    from dsa_profiler.session import GpuState

REASONS = {
    "no_launch": "without a launch in the trace",
    "outside": "launched outside every range",
    "graph_only": "of CUDA graphs, in no range",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source.add_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--top", type=int, default=15, metavar="N", help="rows a table, 0 for all")
    parser.add_argument("--case", metavar="SLUG", help="this case alone, with its kernels")
    parser.add_argument("-q", "--quiet", action="store_true", help="no warnings on stderr")


def run(args: argparse.Namespace) -> int:
    if args.top < 0:
        raise UsageError("top-negative", f"--top {args.top} is below 0", "give 0 for all rows")
    with source.opened(args.source) as opened:
        results = opened.results
    if args.case is not None:
        results = replace(results, cases=(_pick(results, args.case),))
    if args.json:
        print(json.dumps(results.as_json(), indent=1))  # one write: unbuffered streams are slow
    else:
        _show(results, args.top or None, args.case is not None)
    if not args.quiet and not args.json:
        _show_warnings(results)
    return int(Exit.OK)


def _pick(results: Results, slug: str) -> CaseResult:
    import difflib

    by_slug = {case.case.slug: case for case in results.cases}
    if slug not in by_slug:
        near = difflib.get_close_matches(slug, by_slug, n=1)
        raise UsageError(
            "case-unknown",
            f"no case {slug!r} in this trace ({len(by_slug)} cases)",
            f"did you mean {near[0]}?" if near else "leave --case away to see them all",
        )
    return by_slug[slug]


def _show(results: Results, top: int | None, one_case: bool) -> None:
    from rich.console import Console

    wide = Console(highlight=False)
    console = wide if wide.is_terminal else Console(highlight=False, width=120)
    _show_trace(console, results)
    for case in results.cases if one_case else ():
        _show_case(console, case, top)
    if one_case:
        return
    if results.cases:
        _show_cases(console, results)
    elif results.kernel_totals:
        _show_totals(console, results, top)


def _show_trace(console: Console, results: Results) -> None:
    trace, coverage = results.trace, results.coverage
    gpus = ", ".join(dict.fromkeys(trace.gpus)) or "no GPU named"
    _line(console, f"{trace.producer}, schema {trace.schema_version}; {gpus}")
    _line(
        console,
        f"{trace.kernels:,} kernels, {trace.launches:,} API calls, {trace.ranges:,} ranges, "
        f"{trace.processes} processes, {trace.duration_ns / 1e6:,.1f} ms",
    )
    if not coverage.kernels:
        return
    share = coverage.attributed_ns / coverage.total_ns if coverage.total_ns else 0.0
    _line(
        console,
        f"kernel time {coverage.total_ns / 1e6:,.3f} ms, inside ranges "
        f"{coverage.attributed_ns / 1e6:,.3f} ms ({share:.1%})",
    )
    for reason, count in coverage.reasons.items():
        spent = coverage.reasons_ns[reason] / 1e6
        _line(console, f"  {count:,} kernels, {spent:,.3f} ms: {REASONS.get(reason, reason)}")


def _show_cases(console: Console, results: Results) -> None:
    rows = []
    for case in results.cases:
        span = case.span_ns
        stages = "  ".join(f"{s.stage} {s.share:.0%}" for s in case.stages[:3])
        rows.append(
            (
                case.case.slug,
                f"{case.iterations}",
                f"{span.median / 1e6:,.3f}",
                f"{span.p10 / 1e6:,.3f}",
                f"{span.p90 / 1e6:,.3f}",
                f"{case.gap_ns / 1e6:,.3f}",
                _floor_ms(case.floor.floor_ns if case.floor else None),
                f"{'host: ' if case.timing == 'host' else ''}{stages}",
            )
        )
    columns = ("case", "n", "median ms", "p10", "p90", "gap", "floor", "top stages")
    _table(console, columns, rows, left=(0, 7))


def _show_case(console: Console, case: CaseResult, top: int | None) -> None:
    span = case.span_ns
    _line(
        console,
        f"{case.case.slug}: {span.median / 1e6:,.3f} ms "
        f"(p10 {span.p10 / 1e6:,.3f}, p90 {span.p90 / 1e6:,.3f}, {case.iterations} iterations, "
        f"{case.timing} times); busy {case.busy_ns / 1e6:,.3f}, "
        f"overlap {case.overlap_ns / 1e6:,.3f}, gap {case.gap_ns / 1e6:,.3f}",
    )
    if case.gpu is not None:
        _line(console, _gpu(case.gpu))
    stages = [
        (
            s.stage,
            s.group,
            f"{s.kernels_per_iteration:g}",
            f"{s.median_ns / 1e6:,.4f}",
            f"{s.share:.1%}",
            _floor_ms(case.floor.stage_ns(s.stage) if case.floor else None),
            _roofline(case.roofline_share(s.stage)),
        )
        for s in case.stages
    ]
    header = ("stage", "group", "kernels", "median ms", "share", "floor ms", "roofline")
    _table(console, header, stages, left=(0, 1))
    kernels = [
        (
            k.stage,
            f"{k.calls_per_iteration:g}",
            f"{k.median_ns / 1e6:,.4f}",
            f"{k.p10_ns / 1e6:,.4f}",
            f"{k.p90_ns / 1e6:,.4f}",
            _short(k.name),
        )
        for k in case.kernels[:top]
    ]
    if kernels:
        columns = ("stage", "calls", "median ms", "p10", "p90", "kernel")
        _table(console, columns, kernels, left=(0, 5))
    _more(console, len(case.kernels) - len(kernels))


def _gpu(state: GpuState) -> str:
    """Clocks of the timed iterations, and power where it was measured."""
    low, mean, high = state.sm_mhz
    told = [f"SM clock {mean:,.0f} MHz ({low:,} to {high:,})", f"{state.celsius} °C"]
    if state.power_w is not None:
        told.append(f"{state.power_w:,.0f} W under load")
    if state.idle_w is not None:
        told.append(f"{state.idle_w:,.0f} W idle")
    if state.energy_mj is not None:
        told.append(f"{state.energy_mj:,.1f} mJ an iteration")
    return ", ".join(told)


def _floor_ms(ns: float | None) -> str:
    """The roofline's floor; "-" where there is none (no known GPU, or a stage free at best)."""
    return "-" if ns is None else f"{ns / 1e6:,.4f}"


def _roofline(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _show_totals(console: Console, results: Results, top: int | None) -> None:
    rows = [
        (
            f"{k.total_ns / 1e6:,.3f}",
            f"{k.calls:,}",
            f"{k.median_ns / 1e6:,.4f}",
            k.stage,
            _short(k.name),
        )
        for k in results.kernel_totals[:top]
    ]
    _table(console, ("total ms", "calls", "median ms", "stage", "kernel"), rows, left=(3, 4))
    _more(console, len(results.kernel_totals) - len(rows))


def _short(name: str) -> str:
    """A kernel's name without return type and parameters."""
    from dsa_profiler.analysis import names

    return names.parse(name).canonical


def _more(console: Console, count: int) -> None:
    if count > 0:
        _line(console, f"... {count} more (--top 0 shows all)")


def _table(
    console: Console,
    columns: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    left: tuple[int, ...],
) -> None:
    """A table of plain text: kernel names hold brackets that are no markup.

    Only the last column is ever cut; numbers stay whole however narrow the terminal is.
    """
    from rich.table import Table
    from rich.text import Text

    taken = sum(max(len(r[n]) for r in (columns, *rows)) + 2 for n in range(len(columns) - 1))
    room = max(24, console.width - taken)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(
            name, justify="left" if number in left else "right", no_wrap=True, overflow="ellipsis"
        )
    for row in rows:
        last = row[-1] if len(row[-1]) <= room else row[-1][: room - 1] + "…"
        table.add_row(*(Text(cell) for cell in (*row[:-1], last)))
    console.print()
    console.print(table)


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _show_warnings(results: Results) -> None:
    for warning in results.warnings:
        _warn(warning, "")
    told: dict[tuple[str, str], list[str]] = {}
    for case in results.cases:
        for warning in case.warnings:
            told.setdefault((warning.what, warning.cure), []).append(case.case.slug)
    for (what, cure), slugs in told.items():
        where = slugs[0] if len(slugs) == 1 else f"{len(slugs)} cases"
        _warn(Warn("", what, cure), f"{where}: ")


def _warn(warning: Warn, where: str) -> None:
    print(f"warning: {where}{warning.what}", file=sys.stderr)
    if warning.cure:
        print(f"   cure: {warning.cure}", file=sys.stderr)
