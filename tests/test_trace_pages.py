"""Columns from pages equal columns from SQL, or the pages are declined."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsa_profiler.trace import pages, sqlite

EDGES = [0, 1, -1, 127, -128, 128, 32767, -32768, 1 << 23, -(1 << 23), 1 << 31, 1 << 47,
         -(1 << 47), (1 << 63) - 1, -(1 << 63), None]  # fmt: skip
INTS = st.sampled_from(EDGES) | st.integers(-(1 << 63), (1 << 63) - 1)
TEXTS = st.none() | st.text(max_size=20) | st.sampled_from(["x" * 57, "y" * 58, "z" * 300])


def make(path: Path, rows: Sequence[tuple[Any, ...]], page_size: int = 4096) -> Path:
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA page_size = {page_size}")
        db.execute("CREATE TABLE t (a INTEGER, text TEXT, b INTEGER, c INTEGER)")
        db.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
        db.commit()
    return path


def both_ways(path: Path) -> tuple[list[Any], list[Any]]:
    source = sqlite.Sqlite(path)
    names = ["a", "c", "b"]
    fast, sure = source.load("t", names, "text"), source._select("t", names, names, "text")
    source.close()
    return tuple(  # type: ignore[return-value]
        [
            (*row, None if t < 0 else block.texts[t])
            for *row, t in zip(
                *(block[n].tolist() for n in names), block.text.tolist(), strict=True
            )
        ]
        for block in (fast, sure)
    )


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(INTS, TEXTS, INTS, INTS), max_size=60),
    repeat=st.integers(1, 40),
    page_size=st.sampled_from([512, 4096, 65536]),
)
def test_pages_say_what_sql_says(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[Any, ...]],
    repeat: int,
    page_size: int,
) -> None:
    path = make(tmp_path_factory.mktemp("pages") / "t.sqlite", rows * repeat, page_size)
    fast, sure = both_ways(path)
    assert fast == sure
    assert len(fast) == len(rows) * repeat


def test_a_table_of_many_pages_is_read_without_sql(tmp_path: Path) -> None:
    rows = [(i, f"text {i % 700}", -i, None) for i in range(60_000)]
    path = make(tmp_path / "t.sqlite", rows)
    with closing(sqlite3.connect(path)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master").fetchone()
    scan = pages.scan(path, root, [0, 2, 3], 1)
    assert scan.columns[0].tolist() == list(range(60_000))
    assert set(scan.columns[2].tolist()) == {-1}
    assert [scan.texts[i] for i in scan.text.tolist()] == [r[1] for r in rows]
    assert len(scan.texts) == 700


def test_rowids_with_gaps_and_of_any_size(tmp_path: Path) -> None:
    path = make(tmp_path / "t.sqlite", [])
    with closing(sqlite3.connect(path)) as db:
        for rowid in (-5, 0, 127, 128, 1 << 20, 1 << 41):
            db.execute("INSERT INTO t (rowid, a, text) VALUES (?, 7, 'x')", (rowid,))
        db.commit()
    fast, sure = both_ways(path)
    assert fast == sure
    assert len(fast) == 6


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO t VALUES (1, zeroblob(9000), 3, 4)",
        "INSERT INTO t VALUES (1, 'x', 3.5, 4)",
        "INSERT INTO t VALUES (1, 'x', 'three', 4)",
        "ALTER TABLE t ADD COLUMN d INTEGER DEFAULT 9",
        "INSERT INTO t (rowid, a) VALUES (9223372036854775807, 1)",
    ],
)
def test_what_is_declined_is_read_by_sql(tmp_path: Path, statement: str) -> None:
    path = make(tmp_path / "t.sqlite", [(i, "x", i, i) for i in range(500)])
    with closing(sqlite3.connect(path)) as db:
        db.execute(statement)
        db.commit()
    fast, sure = both_ways(path)
    assert fast == sure
    assert len(fast) >= 500


def test_columns_added_later_have_their_default(tmp_path: Path) -> None:
    path = make(tmp_path / "t.sqlite", [(1, "x", 2, 3)])
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE t ADD COLUMN d INTEGER DEFAULT 9")
        db.commit()
    source = sqlite.Sqlite(path)
    assert source.load("t", ["d"])["d"].tolist() == [9]


@pytest.mark.parametrize(
    "ddl",
    [
        "CREATE TABLE t (a INTEGER PRIMARY KEY, b INTEGER)",
        "CREATE TABLE t (a INTEGER PRIMARY KEY, b INTEGER) WITHOUT ROWID",
        "CREATE TABLE t (a INTEGER, b INTEGER GENERATED ALWAYS AS (a + 1) VIRTUAL)",
        "CREATE TABLE t (b INTEGER GENERATED ALWAYS AS (a + 1) STORED, a INTEGER)",
        "CREATE TABLE t (a REAL, b INTEGER)",
    ],
)
def test_tables_whose_records_hold_something_else(tmp_path: Path, ddl: str) -> None:
    path = tmp_path / "t.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute(ddl)
        db.executemany("INSERT INTO t (a) VALUES (?)", [(i,) for i in range(1, 100)])
        db.commit()
    source = sqlite.Sqlite(path)
    block, sure = source.load("t", ["a", "b"]), source._select("t", ["a", "b"], ["a", "b"], "")
    assert block["a"].tolist() == sure["a"].tolist()
    assert block["b"].tolist() == sure["b"].tolist()
    assert block.skipped == sure.skipped
