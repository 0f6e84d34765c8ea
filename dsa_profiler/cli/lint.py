"""Example:  dsa-profiler lint dsa_generation_module_perf.parquet --against shipped.parquet

Look through a table of DSA module latencies (parquet, CSV), or the rows of a session, before
anybody serves from it: duplicates, NULLs, types, codec, units; spikes, knees and drops, with their
kernels where a session has them; head counts and points at top-k that are missing; spread.
--against says by key how far the table is from another. Exit 6 for what a reader trips over.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsa_profiler.cli import tables
from dsa_profiler.errors import Exit

if TYPE_CHECKING:
    from dsa_profiler.analysis.agreement import Agreement
    from dsa_profiler.analysis.subject import Finding
    from dsa_profiler.cli.tables import Table

MARKS = {"error": "error  ", "warning": "warning", "note": "note   "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="TABLE|SESSION|ROOT", type=Path,
        help="a parquet or CSV table, a session's folder, or what export --root wrote",
    )  # fmt: skip
    parser.add_argument(
        "--against", metavar="TABLE", type=Path, action="append", default=[],
        help="rows to compare with, of the same machine; one a phase",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    from dsa_profiler.analysis import agreement, lint

    references = {t.phase: t for path in args.against for t in tables.read(path)}
    documents, errors = [], False
    for table in tables.read(args.source):
        reference = references.get(table.phase)
        near = None if reference is None else reference.frame
        found = lint.lint(table.frame, table.phase, table.storage, near, table.results)
        errors = errors or any(f.severity == "error" for f in found)
        agrees = None
        if near is not None:
            agrees = agreement.agree(lint.sound(table.frame), lint.sound(near))
        if args.json:
            documents.append(_document(table, found, agrees))
        else:
            _print(table, found, agrees)
    if args.json:
        print(json.dumps({"schema": 1, "tables": documents}, indent=1))
    return int(Exit.GATE if errors else Exit.OK)


def _print(table: Table, found: list[Finding], agrees: Agreement | None) -> None:
    print(f"{table.name}: {len(table.frame)} {table.phase} rows, {len(found) or 'no'} findings")
    for finding in found:
        print(f"  {MARKS[finding.severity]} {finding.slug}: {finding.what}")
        print(f"          cure: {finding.cure}")
    if agrees is not None:
        print("\n".join(f"  {line}" for line in tables.told(agrees, "here", "there")))


def _document(table: Table, found: list[Finding], agrees: Agreement | None) -> dict[str, Any]:
    return {
        "table": table.name,
        "phase": table.phase,
        "rows": len(table.frame),
        "findings": [f.as_json() for f in found],
        "agreement": None if agrees is None else agrees.as_json(),
    }
