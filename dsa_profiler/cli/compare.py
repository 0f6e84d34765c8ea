"""Example:  dsa-profiler compare traces/before traces/after --fail-above 5%

Compare two sessions case by case: B / A with bootstrap intervals, and what is more than noise.
With --fail-above, leave with exit code 6 when a case is slower by more than that. Where A or B is
a table of module latencies (.parquet, .txt), the rows are compared by key instead, B / A.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dsa_profiler.cli import source, tables
from dsa_profiler.errors import Exit, GateFailed, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", type=Path, help="the baseline: a session or a trace")
    parser.add_argument("b", metavar="B", type=Path, help="what is compared with it")
    parser.add_argument(
        "--fail-above",
        type=_limit,
        metavar="PERCENT",
        help="exit 6 when a case is slower by more, beyond chance (5%% or 0.05)",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write a page")
    parser.add_argument("--markdown", action="store_true", help="Markdown for a pull request")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="most cases to list")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but the gate")


def run(args: argparse.Namespace) -> int:
    if args.a.suffix in tables.SUFFIXES or args.b.suffix in tables.SUFFIXES:
        return _compare_tables(args)
    document = _compare(args.a, args.b)
    limit = args.fail_above
    failed = [c["id"] for c in document["cases"] if limit is not None and _beyond(c, limit)]
    if limit is not None:
        document["gate"] = {"fail_above": limit, "failed": failed}
    if args.output:
        from dsa_profiler.report import compare_view

        compare_view.write(document, args.output)
    _print(document, args)
    if failed:
        raise GateFailed(
            "compare-slower",
            f"{len(failed)} of {len(document['cases'])} cases are slower by more than "
            f"{100 * limit:g} %, first {failed[0]}",
            "look at the stages that changed, or raise --fail-above",
        )
    return int(Exit.OK)


def _compare(a: Path, b: Path) -> dict[str, Any]:
    from dsa_profiler.analysis import compare

    with ExitStack() as stack:
        left = stack.enter_context(source.opened(a))
        right = stack.enter_context(source.opened(b))
        found = compare.compare(left.results, right.results, left.session, right.session)
    return found.as_json()


def _compare_tables(args: argparse.Namespace) -> int:
    """Rows by key, a phase at a time. One of the two may be a session."""
    from dsa_profiler.analysis import agreement, lint

    if args.fail_above is not None or args.output or args.markdown:
        raise UsageError(
            "compare-tables", "tables are compared without a gate, page or Markdown",
            "compare two sessions, or leave --fail-above, --output and --markdown out",
        )  # fmt: skip
    sides = [{t.phase: t for t in tables.read(path)} for path in (args.a, args.b)]
    phases = [phase for phase in sides[0] if phase in sides[1]]
    if not phases:
        raise UsageError(
            "compare-phases", f"{args.a.name} and {args.b.name} hold no phase in common",
            "compare context with context, generation with generation",
        )  # fmt: skip
    found = {
        phase: agreement.agree(lint.sound(sides[1][phase].frame), lint.sound(sides[0][phase].frame))
        for phase in phases
    }
    if args.json:
        print(json.dumps({"schema": 1, "tables": {p: f.as_json() for p, f in found.items()}}))
    elif not args.quiet:
        for phase, agrees in found.items():
            print("\n".join([f"{phase}:", *(f"  {x}" for x in tables.told(agrees, "B", "A"))]))
    return int(Exit.OK)


def _beyond(change: dict[str, Any], limit: float) -> bool:
    """Slower by more than `limit`, and not by chance as far as one can tell."""
    return bool(change["ratio"] > 1 + limit and (change["low"] is None or change["low"] > 1))


def _print(document: dict[str, Any], args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(document, indent=1))
    elif args.markdown:
        from dsa_profiler.export import markdown

        print(markdown.comparison(document, args.top), end="")
    elif not args.quiet:
        _table(document, args.top)
        if args.output:
            print(args.output)


def _table(document: dict[str, Any], top: int) -> None:
    from math import log

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    total = document["total"]
    console.print(
        f"[bold]{escape(document['b'])}[/] against [bold]{escape(document['a'])}[/]: "
        f"{_ratio(total)} over {total['cases']} cases, noise {100 * document['noise']:.1f} %"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("case", no_wrap=True)
    for name in ("A ms", "B ms", "B / A"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    changed = sorted(document["cases"], key=lambda c: (-abs(log(c["ratio"] or 1.0)), c["id"]))
    colours = {"slower": "red", "faster": "green", "unsure": "yellow", "same": "dim"}
    for change in changed[:top]:
        row = (f"{change['a_ns'] / 1e6:.4f}", f"{change['b_ns'] / 1e6:.4f}", escape(_ratio(change)))
        told = f"[{colours[change['verdict']]}]{change['verdict']}[/]"
        table.add_row(change["id"], *row, told)
    console.print(table)
    for warning in document["warnings"]:
        console.print(f"warning: {warning['what']}", markup=False)


def _ratio(item: dict[str, Any]) -> str:
    interval = f" [{item['low']:.3f}, {item['high']:.3f}]" if item["low"] is not None else ""
    return f"{item['ratio']:.3f}{interval}"


def _limit(text: str) -> float:
    """5% and 0.05 are the same limit."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no limit; write 5% or 0.05")
    return value
