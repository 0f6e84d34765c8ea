"""Which range encloses a moment: an index over push/pop ranges, one thread at a time.

Push/pop ranges of one thread form a tree, so the last range that started before a moment either
encloses it or has an ancestor that does. One binary search and a few steps up the parents answer
a query: O((N + K) log N), however many ranges there are.

A thread whose ranges do not nest (no real file had one) is swept with a stack instead: the answer
stays right, only slower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.analysis.coding import distinct, groups, order_by, ranks
from dsa_profiler.columns import NULL, Ranges

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints

    Rows = np.ndarray[Any, np.dtype[np.int32]]

DEEPEST = 256
"""Levels up to which stepping up the parents pays; a deeper thread is swept."""


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """Ranges sorted by (thread, start, longest first); `rows` says where each one came from.

    `bounds` delimits each thread's slice; `nested` says of each thread whether its ranges form a
    tree, and of such a thread `parent` gives positions in these arrays, or -1.
    """

    threads: Ints
    bounds: Ints
    rows: Rows
    start: Ints
    end: Ints
    parent: Rows
    nested: tuple[bool, ...]

    @property
    def unnested_threads(self) -> int:
        return self.nested.count(False)


def build(ranges: Ranges, rows: Ints, strings: Mapping[int, str]) -> Index:
    """Index the given rows of `ranges`. Start/end and zero-length ranges must not be among them.

    Two ranges over exactly the same time nest by their texts in `strings`, because the order of
    rows in a file must never change an answer.
    """
    thread = ranges.thread[rows]
    threads = distinct(thread)
    places = dict(groups(threads, thread))
    bounds = np.cumsum([0, *(len(p) for p in places.values())])
    by_thread = np.concatenate([*places.values(), np.empty(0, np.int64)])
    of: Rows = rows[by_thread].astype(np.int32)
    start, end = ranges.start[of], ranges.end[of]
    parent = np.full(len(of), NULL, np.int32)
    nested = []
    for low, high in pairwise(bounds.tolist()):
        mine = slice(low, high)
        order = _order(start[mine], end[mine], ranges.text, of[mine], strings)
        if order is not None:
            for column in (of, start, end):
                column[mine] = column[mine][order]
        above = _parents(start[mine], end[mine])
        nested.append(above is not None)
        if above is not None:
            parent[mine] = np.where(above >= 0, above + low, NULL)
    return Index(threads, bounds, of, start, end, parent, tuple(nested))


def locate(index: Index, thread: Ints, start: Ints, end: Ints) -> Rows:
    """For each query the row of the innermost range of its thread that encloses [start, end].

    A range encloses what it touches: range.start <= start and end <= range.end. NULL: none does.
    """
    found = np.full(len(thread), NULL, np.int32)
    for number, mine in groups(index.threads, thread):
        low, high = int(index.bounds[number]), int(index.bounds[number + 1])
        search = _climb if index.nested[number] else _sweep
        found[mine] = search(index, low, high, start[mine], end[mine])
    hit = found >= 0
    found[hit] = index.rows[found[hit]]
    return found


def _order(
    start: Ints, end: Ints, text: Ints, rows: Rows, strings: Mapping[int, str]
) -> Ints | None:
    """By start, longest first, then by text; None where the ranges stand in that order already."""
    if bool(np.all(start[1:] > start[:-1])):
        return None
    order = np.lexsort((-end, start))
    start, end = start[order], end[order]
    if not bool(np.any((start[1:] == start[:-1]) & (end[1:] == end[:-1]))):
        return order
    return order[np.lexsort((text_rank(text[rows[order]], strings), -end, start))]


def text_rank(text: Ints, strings: Mapping[int, str]) -> Ints:
    """Each text as its place among the sorted texts, which no order of rows changes."""
    ids = distinct(text)
    texts = [strings.get(n, "") for n in ids.tolist()]
    place = {found: number for number, found in enumerate(sorted(set(texts)))}
    return np.array([place[found] for found in texts], np.int64)[np.searchsorted(ids, text)]


def _parents(start: Ints, end: Ints) -> Rows | None:
    """Each range's parent in one thread, or None where the ranges are no (shallow) tree.

    The depth of a range is how many ranges started before it less how many ended by its start;
    its parent is the last range before it that is one level less deep.
    """
    place = np.arange(len(start))
    depth = place - ranks(np.sort(end, kind="stable"), start)
    if depth.min() < 0 or depth.max() > DEEPEST:
        return None
    parent = np.full(len(start), NULL, np.int32)
    order = order_by(depth, DEEPEST + 1)
    levels = np.split(order, np.searchsorted(depth[order], np.arange(1, int(depth.max()) + 1)))
    for above, level in pairwise(levels):
        before = ranks(above, level) - 1
        if before[0] < 0:
            return None
        parent[level] = above[before]
    inner = parent >= 0
    return parent if bool(np.all(end[parent[inner]] >= end[inner])) else None


def _climb(index: Index, low: int, high: int, start: Ints, end: Ints) -> Ints:
    """Positions of the innermost enclosing ranges in one thread's slice, -1 for none."""
    place = ranks(index.start[low:high], start) + (low - 1)
    place[place < low] = NULL
    todo = np.flatnonzero(place >= 0)
    todo = todo[index.end[place[todo]] < end[todo]]
    while len(todo):
        up = index.parent[place[todo]]
        place[todo] = up
        still = up >= 0
        todo, up = todo[still], up[still]
        todo = todo[index.end[up] < end[todo]]
    return place


def _sweep(index: Index, low: int, high: int, start: Ints, end: Ints) -> Ints:
    """As `_climb`, for ranges that overlap without nesting: the latest started one wins."""
    starts, ends = index.start[low:high].tolist(), index.end[low:high].tolist()
    found = np.full(len(start), NULL, np.int64)
    order = np.lexsort((end, start))
    queries = zip(order.tolist(), start[order].tolist(), end[order].tolist(), strict=True)
    open_ranges: list[int] = []
    entered = 0
    for query, since, until in queries:
        while entered < len(starts) and starts[entered] <= since:
            _drop_ended(open_ranges, ends, starts[entered])
            open_ranges.append(entered)
            entered += 1
        _drop_ended(open_ranges, ends, since)
        place = next((p for p in reversed(open_ranges) if ends[p] >= until), None)
        if place is not None:
            found[query] = place + low
    return found


def _drop_ended(open_ranges: list[int], ends: list[int], now: int) -> None:
    """Take off the ranges on top that nothing from `now` on can lie in."""
    while open_ranges and ends[open_ranges[-1]] < now:
        open_ranges.pop()
