"""Columns out of an nsys SQLite export.

The file is opened read-only and immutable: nothing is ever added to a user's file, no index and no
journal. Large tables are decoded from their pages (`pages`); what that declines is read by SQL,
which turns rows into integers (NULL is -1) and into columns chunk by chunk, so that memory stays
at the size of the columns.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from dsa_profiler.columns import NULL
from dsa_profiler.errors import InputError
from dsa_profiler.trace import pages

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints

MAGIC = b"SQLite format 3\x00"
CHUNK = 1 << 16
FAULTS = (sqlite3.Error, UnicodeError, OverflowError)
"""How sqlite3 fails on a damaged file: its own errors, and names in it that are no UTF-8."""
INTEGERS = ("INTEGER", "INT", "BIGINT")


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Columns of one table. `texts[i]` is what `text == i` says.

    `skipped` rows held something else than an integer where one belongs.
    """

    columns: dict[str, Ints]
    text: Ints
    texts: list[str] = field(default_factory=list)
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, name: str) -> Ints:
        return self.columns[name]


@dataclass(frozen=True, slots=True)
class _Table:
    """One table: its first page, its columns in order with their types, and its primary key."""

    root: int
    types: dict[str, str]
    keys: set[str]
    plain: bool

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.types)

    def place(self, names: Sequence[str], text: str) -> tuple[int, list[int], int | None]:
        """Where `pages.scan` finds the columns; declined where a record does not hold them so.

        A key column may be the rowid itself, a generated one is not stored, and values of other
        types are converted by SQLite as they are read.
        """
        stored = all(self.types[n] in INTEGERS for n in names) and not self.keys & {*names, text}
        if not (self.plain and stored and self.types.get(text, "TEXT") == "TEXT"):
            raise pages.Declined("columns")
        order = self.columns
        return self.root, [order.index(n) for n in names], order.index(text) if text else None


class Sqlite:
    """One open export. Its errors are `InputError`s: a broken file is the file's fault."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._blame():
            uri = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
            self._db = sqlite3.connect(uri, uri=True)
            self._db.text_factory = lambda raw: raw.decode("utf-8", "replace")
            # rootpage 0 is a virtual table, and a view may compute for ever
            found = self._db.execute(
                "SELECT name, rootpage FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
            ).fetchall()
            self._tables = {str(name): self._describe(str(name), root) for name, root in found}

    def close(self) -> None:
        self._db.close()

    def columns(self, table: str) -> tuple[str, ...]:
        """The columns the file has; none for an absent table."""
        found = self._tables.get(table)
        return found.columns if found else ()

    def load(self, table: str, names: Sequence[str], text: str = "") -> Block:
        """Integer columns, absent ones as NULL, and the text column as indexes into `texts`.

        A row with anything but integers or NULL in one of `names` is left out and counted.
        """
        have = [n for n in names if n in self.columns(table)]
        text = text if text in self.columns(table) else ""
        if not have:
            return _empty(names)
        try:
            scan = pages.scan(self.path, *self._tables[table].place(have, text))
        except (pages.Declined, OSError):
            return self._select(table, names, have, text)
        return _block(names, dict(zip(have, scan.columns, strict=True)), scan.text, scan.texts)

    def _select(self, table: str, names: Sequence[str], have: Sequence[str], text: str) -> Block:
        """`load` by SQL: slower, and what always works."""
        with self._blame():
            total = int(self._db.execute(f"SELECT count(*) FROM {_quote(table)}").fetchone()[0])
            cursor = self._db.execute(_select(table, have, text))
            texts: dict[str | None, int] = {None: NULL}
            filled, out = 0, np.empty((len(have) + 1, total), np.int64)
            while rows := list(islice(cursor, CHUNK)):
                block = np.fromiter(
                    ((*r[:-1], texts.setdefault(r[-1], len(texts) - 1)) for r in rows)
                    if text
                    else ((*r, NULL) for r in rows),
                    dtype=[(f"f{i}", np.int64) for i in range(len(have) + 1)],
                    count=len(rows),
                )
                for i, name in enumerate(block.dtype.names or ()):
                    out[i, filled : filled + len(rows)] = block[name]
                filled += len(rows)
        columns = dict(zip(have, out[:, :filled], strict=False))
        known = [t for t in texts if t is not None]
        return _block(names, columns, out[-1, :filled], known, total - filled)

    def rows(self, table: str, names: Sequence[str]) -> list[tuple[Any, ...]]:
        """Rows of a small table as they are, absent columns as None."""
        have = set(self.columns(table))
        if not have:
            return []
        columns = ", ".join(_quote(n) if n in have else "NULL" for n in names)
        with self._blame():
            return self._db.execute(f"SELECT {columns} FROM {_quote(table)}").fetchall()

    def strings(self, table: str, used: set[int]) -> dict[int, str]:
        """The texts of the ids in `used`; ids the table lacks are absent."""
        if not {"id", "value"} <= set(self.columns(table)):
            return {}
        with self._blame():
            rows = self._db.execute(
                f"SELECT id, value FROM {_quote(table)} WHERE typeof(value) = 'text'"
            )
            return {i: value for i, value in rows if i in used}

    def _describe(self, table: str, root: int) -> _Table:
        rows = self._db.execute(f"PRAGMA table_xinfo({_quote(table)})").fetchall()
        plain = all(row[6] == 0 for row in rows)
        return _Table(
            root,
            {str(r[1]): str(r[2]).upper() for r in rows if r[6] in (0, 2, 3)},
            {str(r[1]) for r in rows if r[5]},
            plain,
        )

    @contextmanager
    def _blame(self) -> Iterator[None]:
        try:
            yield
        except FAULTS as error:
            raise broken(self.path, str(error)) from None


def broken(path: Path, why: str) -> InputError:
    """The error of a file that says it is a trace and cannot be read as one."""
    return InputError(
        "trace-broken",
        f"{path.name} cannot be read as a trace: {why}",
        "export it again: nsys export --type sqlite --force-overwrite true REPORT.nsys-rep",
    )


def _empty(names: Sequence[str]) -> Block:
    none = np.empty(0, np.int64)
    return Block(dict.fromkeys(names, none), none)


def _block(
    names: Sequence[str], got: dict[str, Ints], text: Ints, texts: list[str], skipped: int = 0
) -> Block:
    absent = np.broadcast_to(np.int64(NULL), len(text))
    return Block({n: got.get(n, absent) for n in names}, text, texts, skipped)


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _select(table: str, names: Sequence[str], text: str) -> str:
    columns = [f"ifnull({_quote(n)}, {NULL})" for n in names]
    if text:
        columns.append(f"CASE typeof({_quote(text)}) WHEN 'text' THEN {_quote(text)} END")
    integers = " AND ".join(f"typeof({_quote(n)}) IN ('integer', 'null')" for n in names)
    return f"SELECT {', '.join(columns)} FROM {_quote(table)} WHERE {integers}"
