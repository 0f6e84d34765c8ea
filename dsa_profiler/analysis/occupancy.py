"""How a device spent a stretch of time: busy, overlapped, idle.

Law: total - overlap + gap = span. Programmatic launch and several streams make kernels overlap, so
a sum of durations is no wall time; the union is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints


LONGEST = 1 << 62
"""Sums beyond this leave int64: such times are nonsense, but they shall not become wrong sums."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Nanoseconds. span: first start to last end; total: sum of durations; busy: union;
    overlap: time counted more than once; gap: time with nothing running.
    """

    span: int
    total: int
    busy: int
    overlap: int
    gap: int


def occupancy(start: Ints, end: Ints) -> Occupancy:
    """Occupancy of at least one interval, all of one device.

    Overlap and gap are each added up from the intervals, so the law is a check and not a
    definition.
    """
    if int(end.max()) - int(start.min()) > LONGEST // len(start):
        start, end = start.astype(object), end.astype(object)
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    reached = np.maximum.accumulate(end)
    before = reached[:-1]
    gap = int(np.maximum(start[1:] - before, 0).sum())
    overlap = int(np.maximum(np.minimum(end[1:], before) - start[1:], 0).sum())
    total = int((end - start).sum())
    span = int(reached[-1]) - int(start[0])
    if total - overlap + gap != span:
        raise AssertionError(f"sum {total} - overlap {overlap} + gap {gap} is not span {span}")
    return Occupancy(span, total, span - gap, overlap, gap)
