"""A session without what a clock had a say in: the same byte for byte however often it was killed.

Left out, by name:
  when it was recorded       created
  where a case was recorded  chunks, chunk: a kill cuts a recording in two
  times and their like       every *_ns and *_ms, latency, share, roofline_share, iteration spans
  memory of the process      peak_memory_bytes: what else the process held when the case ran
  the recordings as a whole  trace, coverage, duration: counted over all recordings, whole or cut
  the order of stages        slowest first
  doubts about times         the warnings in DOUBTS: of slow or uneven iterations
"""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

LEFT_OUT = {"created", "chunks", "chunk", "latency", "share", "roofline_share",
            "peak_memory_bytes", "trace", "coverage"}  # fmt: skip
DOUBTS = {"tracing-overhead", "first-iteration-slow", "outlier-iterations", "diagnostic"}
UNITS = ("_ns", "_ms")


def of(session: Path) -> str:
    """Manifest, tables and database of the session that stay when the clock's share is left out."""
    files = sorted(p for p in session.iterdir() if p.suffix in (".csv", ".txt"))
    out = {
        "manifest": _without(json.loads((session / "session.json").read_text("utf-8"))),
        "files": {path.name: _rows(path) for path in files},
        "database": _database(session / "analysis.sqlite"),
    }
    return json.dumps(out, indent=1)


def _timed(name: str) -> bool:
    return name in LEFT_OUT or name.endswith(UNITS)


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without(v) for k, v in value.items() if not _timed(k)}
    return [_without(v) for v in value] if isinstance(value, list) else value


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return [_without(row) for row in csv.DictReader(lines)]


def _database(path: Path) -> dict[str, list[dict[str, Any]]]:
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        names = [n for (n,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        tables = {n: [dict(row) for row in db.execute(f'SELECT * FROM "{n}"')] for n in names}
    return {name: [_without(row) for row in _kept(name, rows)] for name, rows in tables.items()}


def _kept(table: str, rows: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    if table in ("stages", "kernels"):
        return sorted(rows, key=lambda row: (row["case"], row["stage"]))
    if table == "meta":
        return (row for row in rows if not _timed(row["key"]))
    if table == "warnings":
        return ({**r, "id": 0} for r in rows if r["slug"] not in DOUBTS)
    return rows
