"""Example:  dsa-profiler lint dsa_generation_module_perf.parquet --against shipped.parquet

Look through a table of DSA module latencies (parquet, CSV), or the rows of a session, before
anybody serves from it: duplicates, NULLs, types, codec, units; spikes, knees and drops, with their
kernels where a session has them; head counts and points at top-k that are missing; spread.
--against says by key how far the table is from another. Exit 6 for what a reader trips over.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsa_profiler import session
from dsa_profiler.errors import Exit, InputError

if TYPE_CHECKING:
    import pandas as pd

    from dsa_profiler.analysis.agreement import Agreement
    from dsa_profiler.analysis.lint import Storage
    from dsa_profiler.analysis.subject import Finding
    from dsa_profiler.results import CaseResult

MARKS = {"error": "error  ", "warning": "warning", "note": "note   "}


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """One table to look through; `results` are the cases behind it, of a session."""

    name: str
    phase: str
    frame: pd.DataFrame
    storage: Storage | None = None
    results: tuple[CaseResult, ...] = ()


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

    references = {t.phase: t for path in args.against for t in _tables(path)}
    documents, errors = [], False
    for table in _tables(args.source):
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


def _tables(path: Path) -> Iterator[Table]:
    from dsa_profiler.analysis.lint import Storage
    from dsa_profiler.export import module_rows, module_tables

    if (path / session.MANIFEST).is_file():
        from dsa_profiler import pipeline

        results = pipeline.analyze(path)
        rows = module_rows.lint_rows(results, session.load(path))
        if not rows:
            raise InputError("cases-none", f"{path} has no measured case", "run the sweep first")
        for phase, frame in rows.items():
            yield Table(path.name, phase, frame, None, results.cases)
        return
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("dsa_*_perf.*") if p.suffix in (".parquet", ".txt"))
        if not files:
            raise InputError(
                "table-not-found", f"no DSA table in {path}", "give a table, a root or a session"
            )
    for file in files:
        table = module_tables.read(file)
        storage = Storage(table.types, table.codecs, table.nulls, table.half_rows)
        yield Table(str(file), table.phase, table.frame, storage)


def _print(table: Table, found: list[Finding], agrees: Agreement | None) -> None:
    print(f"{table.name}: {len(table.frame)} {table.phase} rows, {len(found) or 'no'} findings")
    for finding in found:
        print(f"  {MARKS[finding.severity]} {finding.slug}: {finding.what}")
        print(f"          cure: {finding.cure}")
    if agrees is None:
        return
    print(
        f"  against: {agrees.shared} keys in both, {agrees.only_ours} here alone, "
        f"{agrees.only_theirs} there alone"
    )
    if not agrees.shared:
        return
    low, p5, _, middle, _, p95, high = agrees.quantiles
    print(
        f"  latency here / there: median {middle:.3f}, p5 {p5:.3f}, p95 {p95:.3f}, "
        f"{low:.3f} to {high:.3f}; median difference {agrees.off:.1%}"
    )
    heads = ", ".join(f"{h}: {r:.3f} ({n})" for h, (r, n) in agrees.by_heads.items())
    print(f"  median by local heads: {heads}")
    for key, ours, theirs in agrees.worst:
        print(f"    {key}: {ours:.4g} ms here, {theirs:.4g} ms there")


def _document(table: Table, found: list[Finding], agrees: Agreement | None) -> dict[str, Any]:
    return {
        "table": table.name,
        "phase": table.phase,
        "rows": len(table.frame),
        "findings": [f.as_json() for f in found],
        "agreement": None if agrees is None else agrees.as_json(),
    }
