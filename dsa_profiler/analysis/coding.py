"""Big ids as small codes: the sorts and tables under every join of this package.

Long columns are taken in blocks: temporaries then stay in the processor's cache, and five million
kernels need no more memory beside their columns than one million.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.columns import NULL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dsa_profiler.columns import Ints

    Codes = np.ndarray[Any, np.dtype[np.int8]]

BLOCK = 1 << 18
RADIX = 1 << 15
"""numpy sorts 16-bit keys in linear time, where the sort is stable."""
FEW = 24
"""Up to as many groups, one pass a group is faster than sorting by group."""
TABLE = 1 << 22
"""Ids over a smaller range than this are numbered by a table, others by binary search."""


def blocks(count: int, size: int = BLOCK) -> Iterator[slice]:
    """Slices that cover `count` rows."""
    for low in range(0, count, size):
        yield slice(low, min(low + size, count))


def distinct(values: Ints) -> Ints:
    """Sorted distinct values; for few values in many rows several times faster than np.unique."""
    if not len(values):
        return values
    low, high = int(values.min()), int(values.max())
    if high - low < TABLE:
        seen = np.zeros(high - low + 1, np.bool_)
        for part in blocks(len(values)):
            seen[values[part] - low] = True
        return np.flatnonzero(seen) + low
    parts = [_runs(np.sort(values[part])) for part in blocks(len(values))]
    return parts[0] if len(parts) == 1 else _runs(np.sort(np.concatenate(parts)))


def _runs(ordered: Ints) -> Ints:
    return ordered[np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])]


@dataclass(frozen=True, slots=True, eq=False)
class Numbering:
    """Sorted ids numbered from 0. `of` numbers values that all are among them."""

    ids: Ints
    table: Ints | None

    @classmethod
    def over(cls, ids: Ints) -> Numbering:
        if not len(ids) or int(ids[-1]) - int(ids[0]) >= TABLE:
            return cls(ids, None)
        table = np.zeros(int(ids[-1]) - int(ids[0]) + 1, np.int64)
        table[ids - ids[0]] = np.arange(len(ids))
        return cls(ids, table)

    def of(self, values: Ints) -> Ints:
        if self.table is None:
            return np.searchsorted(self.ids, values)
        numbers: Ints = self.table[values - self.ids[0]]
        return numbers


def order_by(code: Ints, count: int) -> Ints:
    """Stable order by a code from 0 to below `count`."""
    return np.argsort(code.astype(np.int16) if count <= RADIX else code, kind="stable")


def groups(known: Ints, values: Ints) -> Iterator[tuple[int, Ints]]:
    """For each of the sorted `known` that occurs in `values` its number and its rows, ascending."""
    if len(known) <= FEW:
        for number, value in enumerate(known.tolist()):
            rows = np.flatnonzero(values == value)
            if len(rows):
                yield number, rows
        return
    code = place_in(known, values) + 1
    order = order_by(code, len(known) + 1)
    bounds = np.searchsorted(code[order], np.arange(1, len(known) + 2))
    for number in np.flatnonzero(bounds[1:] > bounds[:-1]).tolist():
        yield number, order[bounds[number] : bounds[number + 1]]


def place_in(known: Ints, values: Ints) -> Ints:
    """Place of each value among the sorted `known`, which must not be empty; NULL where absent."""
    place = np.searchsorted(known, values)
    place[place == len(known)] = 0
    place[known[place] != values] = NULL
    return place


def ranks(known: Ints, values: Ints) -> Ints:
    """How many of the sorted `known` are at most each value: np.searchsorted(..., "right").

    Where the values are almost in order too, as times are, merging both is three times faster.
    """
    if len(values) < len(known) // 8:
        return np.searchsorted(known, values, "right")
    order = np.argsort(np.concatenate([known, values]), kind="stable")
    place = np.flatnonzero(order >= len(known))
    out = np.empty(len(values), np.int64)
    out[order[place] - len(known)] = place - np.arange(len(values))
    return out


def look_up(table: Mapping[int, int], keys: Ints) -> Codes:
    """`table[key]` of every key, -1 where it has none; values fit in 8 bits."""
    out = np.full(len(keys), NULL, np.int8)
    if not table:
        return out
    ids = np.array(sorted(table), np.int64)
    values = np.array([*(table[n] for n in ids.tolist()), NULL], np.int8)
    for part in blocks(len(keys)):
        out[part] = values[place_in(ids, keys[part])]
    return out
