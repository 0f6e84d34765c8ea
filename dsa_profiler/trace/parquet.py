"""Columns out of an nsys `parquetdir` export: one file a table, the same columns as in SQLite.

The fastest form to read, where one may choose: `nsys export --type parquetdir`. Global ids are
unsigned there and become the negative integers they are in SQLite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dsa_profiler.columns import NULL
from dsa_profiler.errors import InputError
from dsa_profiler.trace.sqlite import Block

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints

SUFFIX = ".parquet"


class Parquet:
    """One export folder, opened table by table."""

    def __init__(self, path: Path) -> None:
        if "mimalloc" in pa.supported_memory_backends():
            # The only one that takes huge pages: a column then costs 4 page faults, not 2,000
            pa.set_memory_pool(pa.mimalloc_memory_pool())
        self.path = path
        self._files = {f.name.removesuffix(SUFFIX): f for f in path.glob(f"*{SUFFIX}")}
        self._open: dict[str, Any] = {}

    def columns(self, table: str) -> tuple[str, ...]:
        """The columns the folder has; none for an absent table."""
        file = self._table(table)
        return tuple(file.schema_arrow.names) if file else ()

    def load(self, table: str, names: Sequence[str], text: str = "") -> Block:
        """Integer columns, absent ones as NULL, and the text column as indexes into `texts`.

        A column of another type counts as a column of rows that hold no integer.
        """
        have = self.columns(table)
        if not set(names) & set(have):
            none = np.empty(0, np.int64)
            return Block(dict.fromkeys(names, none), none)
        file = self._table(table)
        rows = file.metadata.num_rows
        with self._blame(table):
            for name in names:
                if name in have and not pa.types.is_integer(file.schema_arrow.field(name).type):
                    none = np.empty(0, np.int64)
                    return Block(dict.fromkeys(names, none), none, skipped=rows)
            same = {n: _same(file, n) if n in have else NULL for n in names}
            found = file.read(columns=[n for n in names if same[n] is None])
            columns = {
                n: _join([_ints(c) for c in found.column(n).chunks])
                if value is None
                else np.broadcast_to(np.int64(value), rows)
                for n, value in same.items()
            }
            if text not in have:
                return Block(columns, np.broadcast_to(np.int64(NULL), rows))
            index, texts = self._texts(table, text)
            return Block(columns, index, texts)

    def rows(self, table: str, names: Sequence[str]) -> list[tuple[Any, ...]]:
        """Rows of a small table as they are, absent columns as None."""
        have = [n for n in names if n in self.columns(table)]
        if not have:
            return []
        with self._blame(table):
            found = self._table(table).read(columns=have).to_pylist()
        return [tuple(row.get(n) for n in names) for row in found]

    def strings(self, table: str, used: set[int]) -> dict[int, str]:
        """The texts of the ids in `used`; ids the table lacks are absent."""
        rows = self.rows(table, ("id", "value"))
        return {i: value for i, value in rows if i in used and isinstance(value, str)}

    def _table(self, table: str) -> Any:
        if table not in self._files:
            return None
        if table not in self._open:
            with self._blame(table):
                self._open[table] = pq.ParquetFile(self._files[table], memory_map=True)
        return self._open[table]

    def _texts(self, table: str, name: str) -> tuple[Ints, list[str]]:
        """The text column as a dictionary: each distinct text is decoded once."""
        file = pq.ParquetFile(self._files[table], memory_map=True, read_dictionary=[name])
        column = file.read(columns=[name]).column(0).unify_dictionaries()
        if not column.num_chunks:
            return np.empty(0, np.int64), []
        texts = [str(t) for t in column.chunk(0).dictionary.to_pylist()]
        return _join([_ints(chunk.indices) for chunk in column.chunks]), texts

    @contextmanager
    def _blame(self, table: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError(
                "trace-broken",
                f"{self.path.name}/{table}{SUFFIX} cannot be read: {str(error).splitlines()[0]}",
                "export it again: nsys export --type parquetdir REPORT.nsys-rep",
            ) from None


def _same(file: Any, name: str) -> int | None:
    """The one value of every row, where the file's own statistics say that there is but one."""
    (place,) = [n for n in range(len(file.schema)) if file.schema.column(n).path == name]
    found: set[int] = set()
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        told = group.column(place).statistics
        if told is None or not told.has_null_count:
            return None
        if told.null_count == group.num_rows:
            found.add(NULL)
        elif told.null_count == 0 and told.has_min_max:
            found.update((told.min, told.max))
        else:
            return None
    if len(found) != 1:
        return None
    # What a large or negative number is depends on the column's type: left to `_ints`.
    (value,) = found
    return value if value == NULL or 0 <= value < 1 << 31 else None


def _ints(array: Any) -> Ints:
    """An integer array, NULL as -1; not through `to_numpy`, which would import pandas.

    Unsigned 64-bit ids become the signed ones of the same bits.
    """
    kind = array.type
    if array.null_count == len(array):
        return np.broadcast_to(np.int64(NULL), len(array))
    signed = pa.types.is_signed_integer(kind)
    dtype = np.dtype(f"{'i' if signed else 'u'}{kind.bit_width // 8}")
    validity, data = array.buffers()
    inside = slice(array.offset, array.offset + len(array))
    raw: np.ndarray[Any, Any] = np.frombuffer(data, dtype, array.offset + len(array))[inside]
    values = raw.view(np.int64) if dtype.itemsize == 8 else raw.astype(np.int64)
    if not array.null_count:
        return values
    valid = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")
    return np.where(valid[inside].view(np.bool_), values, NULL)


def _join(parts: list[Ints]) -> Ints:
    if not parts:
        return np.empty(0, np.int64)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
