"""Rows and nanoseconds by code, added up exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints

EXACT = 1 << 53
"""Below this, a float64 sum of whole numbers is exact."""
LARGEST = 1 << 62
"""From here on sums leave int64 and are kept as Python's integers."""


@dataclass(slots=True, eq=False)
class Tally:
    """Sums over codes from 0 to below a width. `ns` must not be negative."""

    rows: Ints
    ns: np.ndarray[Any, Any]
    whole: float = 0.0

    @classmethod
    def of(cls, width: int) -> Tally:
        return cls(np.zeros(width, np.int64), np.zeros(width, np.int64))

    def add(self, code: Ints, ns: Ints) -> None:
        """Add a block of rows."""
        self.rows += np.bincount(code, minlength=len(self.rows))
        block = float(ns.sum(dtype=np.float64))
        self.whole += block
        if block < EXACT and self.whole < LARGEST:
            sums = np.bincount(code, weights=ns, minlength=len(self.ns))
            self.ns += sums.astype(np.int64)
            return
        if self.whole >= LARGEST:
            self.ns, ns = self.ns.astype(object), ns.astype(object)
        np.add.at(self.ns, code, ns)

    def items(self) -> Iterator[tuple[int, int, int]]:
        """(code, rows, ns) of every code that occurred."""
        used = np.flatnonzero(self.rows)
        columns = (used, self.rows[used], self.ns[used])
        return zip(*(c.tolist() for c in columns), strict=True)


def total(ns: Ints) -> int:
    """The exact sum of durations, however large."""
    return int(ns.sum()) if float(ns.sum(dtype=np.float64)) < LARGEST else sum(ns.tolist())
