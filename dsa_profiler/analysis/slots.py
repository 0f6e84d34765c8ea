"""Slots: the places of a layer that both sides fill, with their times, and what only one side has.

A slot gathers its durations over all layers and steps of a side, so that a median stands on
thousands of kernels and p10 and p90 mean something.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.analysis.classify import by_order
from dsa_profiler.analysis.pairing import How, Item, Pairing, pair

if TYPE_CHECKING:
    from dsa_profiler.analysis.variants import Variant, Variants

    Durations = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A slot's durations on one side, in ns, and how many there are."""

    median: float
    p10: float
    p90: float
    n: int


@dataclass(frozen=True, slots=True)
class Slot:
    """One pair of kernels. `left` and `right` are places in the sides' modal layers."""

    stage: str
    how: How
    left: int
    right: int
    left_item: Item
    right_item: Item
    left_time: Quantiles
    right_time: Quantiles

    @property
    def ratio(self) -> float:
        return ratio(self.left_time.median, self.right_time.median)


@dataclass(frozen=True, slots=True)
class Lone:
    """A kernel that one side alone runs.

    where       (rank, layer) of the right side's layers that lack it, or that have it.
    everywhere  whether those are all of them.
    at_edge     whether only copies and fills lie between it and an end of its layer.
    """

    item: Item
    stage: str
    place: int
    where: tuple[tuple[int, int], ...]
    everywhere: bool
    at_edge: bool
    median_ns: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides, slot by slot. `missing` only the left one has, `extra` only the right one."""

    slots: tuple[Slot, ...]
    missing: tuple[Lone, ...]
    extra: tuple[Lone, ...]
    stages: tuple[tuple[str, float, float], ...]
    """(stage, left ns, right ns): medians over layers of the summed kernels of a stage."""


def ratio(left: float, right: float) -> float:
    """Left / right; two times of nothing are equal."""
    return left / right if right else (1.0 if not left else float("inf"))


def compare(left: Variants, right: Variants) -> Comparison:
    """Pair the modal layers of both sides, then every other judged layer with the other modal."""
    main = pair(left.modal.items, right.modal.items)
    left_stage, right_stage = _stages(left.modal.items, right.modal.items, main)
    lefts = _gather(left, right.modal.items, main, forward=True)
    rights = _gather(right, left.modal.items, main, forward=False)
    slots = tuple(
        Slot(
            left_stage[p.left], p.how, p.left, p.right,
            left.modal.items[p.left], right.modal.items[p.right],
            _quantiles(lefts[p.left]), _quantiles(rights[p.right]),
        )
        for p in main.pairs
    )  # fmt: skip
    names = dict.fromkeys((*left_stage, *right_stage))
    left_sums, right_sums = _sums(left.modal, left_stage), _sums(right.modal, right_stage)
    return Comparison(
        slots,
        _differences(left, right, left_stage, own_is_left=True),
        _differences(right, left, right_stage, own_is_left=False),
        tuple((s, left_sums.get(s, 0.0), right_sums.get(s, 0.0)) for s in names),
    )


def _gather(
    side: Variants, other: tuple[Item, ...], main: Pairing, forward: bool
) -> dict[int, Durations]:
    """Durations by place in the side's modal layer, from all its judged layers."""
    out: dict[int, list[Durations]] = defaultdict(list)
    for place, column in enumerate(side.modal.duration.T):
        out[place].append(column)
    to_modal = {
        (p.right if forward else p.left): (p.left if forward else p.right) for p in main.pairs
    }
    for variant in side.judged[1:]:
        found = pair(variant.items, other) if forward else pair(other, variant.items)
        duration = variant.duration
        for p in found.pairs:
            own, theirs = (p.left, p.right) if forward else (p.right, p.left)
            if theirs in to_modal:
                out[to_modal[theirs]].append(duration[:, own])
    return {place: np.concatenate(parts) for place, parts in out.items()}


def _quantiles(values: Durations) -> Quantiles:
    """Quantiles by linear interpolation, as numpy's; its own function costs twenty times more."""
    ordered = np.sort(values)

    def at(q: float) -> float:
        place = q * (len(ordered) - 1)
        low = int(place)
        below, above = int(ordered[low]), int(ordered[min(low + 1, len(ordered) - 1)])
        return below + (above - below) * (place - low)

    return Quantiles(at(0.5), at(0.1), at(0.9), len(ordered))


def _differences(
    own: Variants, other: Variants, stages: list[str], own_is_left: bool
) -> tuple[Lone, ...]:
    """What `own` runs and `other` does not, in any of their judged layers.

    A layer is held against the other side's layer of the same tokens where there is one: models
    have several kinds of layers.
    `where` lists layers of the right side: those that lack it, or those that have it.
    """
    found: dict[tuple[str, int], Lone] = {}

    def alone(mine: Variant, theirs: Variant) -> tuple[int, ...]:
        if own_is_left:
            return pair(mine.items, theirs.items).missing
        return pair(theirs.items, mine.items).extra

    total = {p for v in (other if own_is_left else own).judged for p in v.places}
    pairs = [(_nearest(v, own), v) for v in other.judged]
    pairs += [(v, _nearest(v, other)) for v in own.judged]
    for mine, theirs in pairs:
        seen: Counter[str] = Counter()
        for place in alone(mine, theirs):
            item = mine.items[place]
            name = item.word.name
            key = (name, seen[name])
            seen[name] += 1
            where = set((theirs if own_is_left else mine).places)
            edge = _at_edge(mine.items, place)
            if known := found.get(key):
                where.update(known.where)
                edge = edge and known.at_edge
            stage = stages[place] if mine is own.modal else item.stage
            found[key] = Lone(
                item, known.stage if known else stage, known.place if known else place,
                tuple(sorted(where)), where >= total, edge, item.median_ns,
            )  # fmt: skip
    return tuple(sorted(found.values(), key=lambda x: (x.place, x.item.word.name)))


def _at_edge(items: tuple[Item, ...], place: int) -> bool:
    kernels = [n for n, item in enumerate(items) if item.word.role != "memory"]
    return not kernels or not kernels[0] < place < kernels[-1]


def _nearest(variant: Variant, side: Variants) -> Variant:
    """The side's judged layer that is like this one, else its usual layer."""
    tokens = [i.token for i in variant.items]
    same = (v for v in side.judged if [i.token for i in v.items] == tokens)
    return next(same, side.modal)


def _stages(
    left: Sequence[Item], right: Sequence[Item], main: Pairing
) -> tuple[list[str], list[str]]:
    """The stage of every kernel: a mark's, a name's, its place's; a pair has one stage."""
    placed_left, placed_right = _placed(left), _placed(right)
    of_left, of_right = list(placed_left), list(placed_right)
    for p in main.pairs:
        a, b = left[p.left], right[p.right]
        known = (a.marked, b.marked, a.word.stage, b.word.stage, placed_left[p.left])
        stage = next(
            (s for s in (*known, placed_right[p.right]) if s and s != "unknown"), "unknown"
        )
        of_left[p.left] = of_right[p.right] = stage
    return of_left, of_right


def _placed(items: Sequence[Item]) -> list[str]:
    """Stages by mark or name, and where neither says, by order."""
    known = [None if i.stage == "unknown" else i.stage for i in items]
    by_place = by_order(known, [i.word.family for i in items])
    return [k or p or "unknown" for k, p in zip(known, by_place, strict=True)]


def _sums(variant: Variant, stages: list[str]) -> dict[str, float]:
    duration = variant.duration
    out: dict[str, float] = {}
    for stage in dict.fromkeys(stages):
        columns = [n for n, s in enumerate(stages) if s == stage]
        out[stage] = float(np.median(duration[:, columns].sum(axis=1)))
    return out
