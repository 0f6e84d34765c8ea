"""The strings of a trace: one id per distinct string, its rank in sorted order.

While a file is being read, a column holds what the file says: an id of StringIds (>= 0), NULL, or
a plain text as `-2 - index` into the texts seen so far. `Names.finish` turns all of that, in
place, into the final ids; only strings that a column uses are ever fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from dsa_profiler.columns import NULL

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints

MISSING = "[name missing]"
"""What stands for an id that the string table does not have."""
NO_TEXT = "[no text]"
"""The text of a range that was pushed without one."""


class Names:
    """The name columns of one file on their way to final ids."""

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}
        self._columns: list[Ints] = []

    def plain(self, text: str) -> int:
        """The interim id of a text that stands in the row itself."""
        return -2 - self._texts.setdefault(text, len(self._texts))

    def plains(self, index: Ints, texts: Iterable[str]) -> Ints:
        """Interim ids of a column of indexes into `texts`; NULL stays NULL."""
        table = np.array([*(self.plain(t) for t in texts), NULL], np.int64)
        return np.take(table, index, mode="wrap")  # NULL is the last

    def ids(self, column: Ints) -> Ints:
        """A writable column of StringIds ids; anything below NULL is none and becomes NULL."""
        if not column.flags.writeable:
            column = column.copy()
        if len(column) and int(column.min()) < NULL:
            np.maximum(column, NULL, out=column)
        return column

    def add(self, column: Ints) -> None:
        """Register a column of interim ids for `finish`; one that is all NULL needs none."""
        if column.flags.writeable:
            self._columns.append(column)

    def finish(self, fetch: Callable[[set[int]], Mapping[int, str]]) -> dict[int, str]:
        """Rewrite all columns to final ids and return the strings by id, in order of id."""
        used = [distinct(c) for c in self._columns]
        interim = {int(i) for u in used for i in u}
        found = fetch({i for i in interim if i >= 0})
        plain = dict(zip(range(-2, -2 - len(self._texts), -1), self._texts, strict=True))
        text_of = {i: plain[i] if i < NULL else found.get(i, MISSING) for i in interim if i != NULL}
        final = {text: rank for rank, text in enumerate(sorted(set(text_of.values())))}
        id_of = {i: final[t] for i, t in text_of.items()}
        for column, values in zip(self._columns, used, strict=True):
            _rewrite(column, values, id_of)
        return {rank: text for text, rank in final.items()}


def distinct(column: Ints) -> Ints:
    """The distinct values, sorted; by a table of flags where they are dense."""
    if not len(column):
        return column
    low, high = int(column.min()), int(column.max())
    if high - low > 4 * len(column) + 65536:
        return np.unique(column)
    flags = np.zeros(high - low + 1, np.bool_)
    flags[column - low] = True
    return np.flatnonzero(flags).astype(np.int64) + low


def _rewrite(column: Ints, values: Ints, id_of: Mapping[int, int]) -> None:
    if not len(column):
        return
    final = np.array([id_of.get(int(v), NULL) for v in values], np.int64)
    low, high = int(values[0]), int(values[-1])
    if high - low > 4 * len(column) + 65536:
        column[:] = final[np.searchsorted(values, column)]
        return
    table = np.full(high - low + 1, NULL, np.int64)
    table[values - low] = final
    column -= low
    np.take(table, column, out=column)
