"""The shape of measured curves: latency along one axis with everything else fixed.

More work cannot take less time, and a smooth cost has no peaks. Where a table says otherwise it is
noise, a change of kernel, or data that only a benchmark sees; each is told apart by how many curves
share it at the same place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dsa_profiler.columns import MODULE_KEY

TOLERANCE = 0.10
"""A point is out of line when it differs by more than this; two campaigns of one machine differ by
up to 10 % in context at the 95th percentile."""
SHARED = 0.10
"""A place is told of by itself when at least this part of its curves share it."""
KNEE = 0.5
"""Change of the local exponent d log(latency) / d log(size) that makes a knee."""


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Rows of a table as curves: `latency[i, j]` of curve i at `x[j]`, NaN where not measured."""

    axis: str
    keys: pd.DataFrame
    x: Any
    latency: Any

    @classmethod
    def of(cls, frame: pd.DataFrame, axis: str) -> Curves:
        others = [c for c in MODULE_KEY if c != axis and c in frame.columns]
        wide = frame.pivot_table(
            index=others, columns=axis, values="latency", aggfunc="last", observed=True
        )
        return cls(axis, wide.index.to_frame(index=False), wide.columns.to_numpy(float),
                   wide.to_numpy(float))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """What happens at one value of an axis, over all curves that have it.

    curves, of   how many curves show it, of how many that were measured there
    excess_ms    median over those: latency above the line between its neighbours (spike), above
                 the next point (drop)
    ratio        median over those: latency over that of the larger neighbour (spike, drop), or the
                 change of the exponent (knee)
    worst        the key of the largest, as text; `worst_ms` its latency
    """

    axis: str
    at: int
    before: int
    after: int
    curves: int
    of: int
    excess_ms: float
    ratio: float
    worst: str
    worst_ms: float


def spikes(curves: Curves) -> list[Place]:
    """Points above both neighbours by more than `TOLERANCE`."""
    found = []
    for j in range(1, len(curves.x) - 1):
        left, here, right = (curves.latency[:, k] for k in (j - 1, j, j + 1))
        known = ~np.isnan(left + here + right)
        ratio = here / np.fmax(left, right)
        hit = known & (ratio > 1 + TOLERANCE)
        if hit.any():
            low, x, high = np.log(curves.x[j - 1 : j + 2])
            line = left + (x - low) / (high - low) * (right - left)
            found.append(_place(curves, j, hit, known, here - line, ratio))
    return found


def drops(curves: Curves) -> list[Place]:
    """Points whose larger neighbour is faster by more than `TOLERANCE`, spikes left out."""
    found = []
    for j in range(len(curves.x) - 1):
        here, after = curves.latency[:, j], curves.latency[:, j + 1]
        known = ~np.isnan(here + after)
        ratio = here / after
        before = curves.latency[:, j - 1] if j else np.full_like(here, np.nan)
        spike = here > (1 + TOLERANCE) * np.fmax(before, after)
        hit = known & (ratio > 1 + TOLERANCE) & ~(spike & ~np.isnan(before))
        if hit.any():
            found.append(_place(curves, j, hit, known, here - after, ratio))
    return found


def knees(curves: Curves) -> list[Place]:
    """Places where half of the curves bend upwards by more than `KNEE`, and do not come back."""
    found = []
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.diff(np.log(curves.latency), axis=1) / np.diff(np.log(curves.x))
    for j in range(1, exponent.shape[1]):
        bend = exponent[:, j] - exponent[:, j - 1]
        known = ~np.isnan(bend)
        stays = (
            exponent[:, j + 1] > exponent[:, j - 1] + KNEE / 2
            if j + 1 < exponent.shape[1]
            else np.full_like(known, True)
        )
        hit = known & (bend > KNEE) & stays
        if known.any() and hit.sum() * 2 > known.sum():
            found.append(_place(curves, j, hit, known, curves.latency[:, j], bend))
    return found


def _place(curves: Curves, j: int, hit: Any, known: Any, excess: Any, ratio: Any) -> Place:
    worst = int(np.flatnonzero(hit)[np.argmax(ratio[hit])])
    x = curves.x
    key = " ".join(f"{n}={v}" for n, v in curves.keys.iloc[worst].items() if n != "architecture")
    return Place(
        axis=curves.axis,
        at=int(x[j]),
        before=int(x[max(0, j - 1)]),
        after=int(x[min(len(x) - 1, j + 1)]),
        curves=int(hit.sum()),
        of=int(known.sum()),
        excess_ms=float(np.median(excess[hit])),
        ratio=float(np.median(ratio[hit])),
        worst=f"{key} {curves.axis}={int(x[j])}",
        worst_ms=float(curves.latency[worst, j]),
    )
