"""The rows of an alignment: stages, slots, totals, ranks, lanes and unknown names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence as Many
from typing import Any

import numpy as np

from dsa_profiler.analysis.alignment import Lane, RankRow, finite
from dsa_profiler.analysis.sequence import Sequence
from dsa_profiler.analysis.slots import Comparison, Quantiles, Slot, ratio
from dsa_profiler.analysis.variants import Time, Variant, Variants
from dsa_profiler.marks import GROUP_OF, STAGES

STRAGGLER = 1.1
"""A rank this many times slower than the median rank is a straggler."""
DSA_STAGES = frozenset(s for s in STAGES if GROUP_OF[s] in ("indexer", "mqa_logits", "topk")) | {
    "sparse_attn",
    "sparse_attn_combine",
}
"""Stages that only a sparse layer has; `dense_attn` and the projections are MLA's too."""


def stage_rows(found: Comparison) -> tuple[dict[str, Any], ...]:
    """The contract's `stages`, in the order of marks.STAGES; null where a side has no such time."""
    rows = sorted(found.stages, key=lambda x: STAGES.index(x[0]))
    return tuple(
        {
            "stage": stage,
            "standalone_ns": left,
            "e2e_ns": right,
            "ratio": finite(ratio(left, right)) if left and right else None,
        }
        for stage, left, right in rows
    )


def pair_rows(found: Comparison, left: Variants, right: Variants) -> tuple[dict[str, Any], ...]:
    """The contract's `pairs`, with spreads, and the slot's time range in a typical layer."""
    a, b = _typical(left.modal), _typical(right.modal)
    return tuple(_pair_row(s, left.modal, right.modal, a, b) for s in found.slots)


def _pair_row(slot: Slot, left: Variant, right: Variant, a: int, b: int) -> dict[str, Any]:
    return {
        "stage": slot.stage,
        "kernel": slot.left_item.word.name,
        "standalone_ns": slot.left_time.median,
        "e2e_ns": slot.right_time.median,
        "ratio": finite(slot.ratio),
        "how": slot.how,
        "e2e_kernel": slot.right_item.word.name,
        "lost_ns": slot.right_time.median - slot.left_time.median,
        "standalone": _spread(slot.left_time),
        "e2e": _spread(slot.right_time),
        "standalone_window": [int(left.start[a, slot.left]), int(left.end[a, slot.left])],
        "e2e_window": [int(right.start[b, slot.right]), int(right.end[b, slot.right])],
    }


def _spread(q: Quantiles) -> dict[str, Any]:
    return {"p10_ns": q.p10, "p90_ns": q.p90, "n": q.n}


def _typical(variant: Variant) -> int:
    """The instance whose summed time is nearest the median, the earliest of those."""
    total = variant.duration.sum(axis=1)
    return int(np.argmin(np.abs(total - np.median(total))))


def totals(times: tuple[Time, Time]) -> dict[str, dict[str, float]]:
    """Sum, union, overlap, gap and span of a layer on both sides, compared apart."""
    out: dict[str, dict[str, float]] = {}
    for name, t in zip(("standalone", "e2e"), times, strict=True):
        out[name] = {
            "layers": t.layers,
            "sum_ns": t.sum_ns,
            "union_ns": t.union_ns,
            "overlap_ns": t.overlap_ns,
            "gap_ns": t.gap_ns,
            "span_ns": t.span_ns,
        }
    return out


def rank_rows(sequences: Many[Sequence], side: Variants) -> tuple[RankRow, ...]:
    """One row a rank, stragglers told."""
    sums: dict[int, list[float]] = defaultdict(list)
    for variant in side.judged:
        for (rank, _), total in zip(
            variant.places, variant.duration.sum(axis=1).tolist(), strict=True
        ):
            sums[rank].append(total)
    medians = {rank: float(np.median(v)) for rank, v in sorted(sums.items())}
    middle = float(np.median(list(medians.values())))
    return tuple(
        RankRow(
            sequences[rank].rank.label,
            len(sums[rank]),
            median,
            finite(ratio(median, middle)) or 0.0,
            ratio(median, middle) > STRAGGLER,
        )
        for rank, median in medians.items()
    )


def lanes(found: Comparison, left: Variants, right: Variants) -> dict[str, tuple[Lane, ...]]:
    """A typical layer of each side, kernel by kernel, for the page."""
    slot_of = (
        {s.left: n for n, s in enumerate(found.slots)},
        {s.right: n for n, s in enumerate(found.slots)},
    )
    stage_of = (
        {s.left: s.stage for s in found.slots},
        {s.right: s.stage for s in found.slots},
    )
    out = {}
    for n, (name, side) in enumerate((("standalone", left), ("e2e", right))):
        modal = side.modal
        one = _typical(modal)
        start, end, stream = modal.start[one], modal.end[one], modal.stream[one]
        streams = {s: k for k, s in enumerate(dict.fromkeys(stream.tolist()))}
        out[name] = tuple(
            Lane(
                item.word.name, stage_of[n].get(k, item.stage), int(start[k] - start.min()),
                int(end[k] - start[k]), streams[int(stream[k])], slot_of[n].get(k, -1),
            )
            for k, item in enumerate(modal.items)
        )  # fmt: skip
    return out


def mode(counts: Counter[tuple[int, int]]) -> int:
    """The most frequent count, of equals the largest; 0 where nothing was counted."""
    votes = Counter(counts.values())
    return min(votes, key=lambda c: (-votes[c], -c)) if votes else 0


def unknown_names(left: Variants, right: Variants, found: Comparison) -> tuple[str, ...]:
    """Every kernel whose stage nothing tells, in full."""
    told = {s.left_item.word.name for s in found.slots if s.stage != "unknown"} | {
        s.right_item.word.name for s in found.slots if s.stage != "unknown"
    }
    names = {
        i.word.name
        for side in (left, right)
        for v in side.judged
        for i in v.items
        if i.stage == "unknown" and i.word.role != "context"
    }
    return tuple(sorted(names - told))
