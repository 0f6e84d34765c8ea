"""Big ids as small codes: the sorts and tables under every join of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.columns import NULL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dsa_profiler.columns import Ints

    Codes = np.ndarray[Any, np.dtype[np.int8]]

RADIX = 1 << 15
"""numpy sorts 16-bit keys in linear time, where the sort is stable."""
FEW = 24
"""Up to as many groups, one pass a group is faster than sorting by group."""


def distinct(values: Ints) -> Ints:
    """Sorted distinct values; for few values in many rows several times faster than np.unique."""
    if not len(values):
        return values
    ordered = np.sort(values)
    return ordered[np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])]


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


def look_up(table: Mapping[int, int], keys: Ints) -> Codes:
    """`table[key]` of every key, -1 where it has none; values fit in 8 bits."""
    if not table or not len(keys):
        return np.full(len(keys), NULL, np.int8)
    ids = np.array(sorted(table), np.int64)
    values = np.array([table[n] for n in ids.tolist()], np.int8)
    top = int(ids[-1])
    if int(ids[0]) >= 0 and top < 1 << 22:
        dense = np.full(top + 2, NULL, np.int8)
        dense[ids] = values
        # NULL (-1) falls on the last entry by itself; beyond the top there is nothing either
        return (
            dense[np.minimum(keys, top + 1)]
            if int(keys.min()) >= NULL
            else dense[np.where((keys >= 0) & (keys <= top), keys, top + 1)]
        )
    place = place_in(ids, keys)
    return np.where(place >= 0, values[place], np.int8(NULL))
