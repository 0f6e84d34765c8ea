"""Where a median over everything hides a part: ranks and layers that differ from the other side.

A rank is a server of its own to its users: one that is beyond tolerance fails. A layer that is, is
told: its neighbours speak for the layer that was measured.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dsa_profiler.analysis.slots import Comparison, ratio

if TYPE_CHECKING:
    from dsa_profiler.analysis.variants import Variant, Variants
    from dsa_profiler.analysis.verdict import Tolerance

LEAST = 3
"""Steps that a median of one layer needs to say anything."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stage of one rank, or of one layer over all ranks: its ns, and the other side's."""

    side: str
    unit: str
    number: int
    stage: str
    own_ns: float
    other_ns: float

    def __str__(self) -> str:
        left = self.side == "standalone"
        value = ratio(self.own_ns, self.other_ns) if left else ratio(self.other_ns, self.own_ns)
        return f"{self.stage} on {self.side} {self.unit} {self.number} {value:.2f}x"


def ranks(found: Comparison, left: Variants, right: Variants, limit: Tolerance) -> list[Part]:
    """Stages of single ranks beyond tolerance, on either side."""
    return _beyond(found, left, right, limit, "rank", 0)


def layers(found: Comparison, left: Variants, right: Variants, limit: Tolerance) -> list[Part]:
    """Stages of single layers beyond tolerance, on either side."""
    return _beyond(found, left, right, limit, "layer", 1)


def _beyond(
    found: Comparison, left: Variants, right: Variants, limit: Tolerance, unit: str, key: int
) -> list[Part]:
    out = []
    for side, variant in (("standalone", left.modal), ("e2e", right.modal)):
        groups = _groups(variant, key)
        for stage, columns, other in _stages(found, side):
            sums = variant.duration[:, columns].sum(axis=1)
            for number, rows in groups.items():
                own = float(np.median(sums[rows]))
                if not limit.agrees(stage, own, other):
                    out.append(Part(side, unit, number, stage, own, other))
    return out


def _groups(variant: Variant, key: int) -> dict[int, list[int]]:
    """Instances by rank or layer; nothing where all are in one group, or a group is too small."""
    groups: dict[int, list[int]] = defaultdict(list)
    for n, place in enumerate(variant.places):
        groups[place[key]].append(n)
    if len(groups) < 2:
        return {}
    return {number: rows for number, rows in sorted(groups.items()) if len(rows) >= LEAST}


def _stages(found: Comparison, side: str) -> list[tuple[str, list[int], float]]:
    """Stage, its paired columns in the side's modal layer, and the other side's time."""
    columns: dict[str, list[int]] = defaultdict(list)
    other: dict[str, float] = defaultdict(float)
    for s in found.slots:
        left = side == "standalone"
        columns[s.stage].append(s.left if left else s.right)
        other[s.stage] += (s.right_time if left else s.left_time).median
    return [(stage, places, other[stage]) for stage, places in columns.items()]
