"""The layers of one side by their sequence of kernels: the usual one, and those that differ.

TensorRT-LLM's own tools stop when one iteration differs. Here each layer position votes over the
steps; what a position usually runs is judged, what happened in a minority of its steps is noted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.analysis.pairing import Item
from dsa_profiler.columns import NULL
from dsa_profiler.marks import STAGES

if TYPE_CHECKING:
    from collections.abc import Sequence as Many

    from dsa_profiler.analysis.layers import Layer
    from dsa_profiler.analysis.sequence import Sequence
    from dsa_profiler.analysis.words import Words
    from dsa_profiler.columns import Ints

    Times = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """All layers with one sequence of tokens.

    places    (rank, layer) of each instance; `steps` likewise.
    start, end, stream   [instances, kernels] ns on the trace's clock.
    """

    items: tuple[Item, ...]
    places: tuple[tuple[int, int], ...]
    steps: tuple[int, ...]
    start: Times
    end: Times
    stream: Times

    @property
    def duration(self) -> Times:
        return self.end - self.start

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True, slots=True, eq=False)
class Variants:
    """`judged` are what the layer positions usually run, the most frequent first; `rare` is how
    many layers ran something else.
    """

    judged: tuple[Variant, ...]
    rare: int
    total: int

    @property
    def modal(self) -> Variant:
        return self.judged[0]


def group(layers: Many[Layer], sequences: Many[Sequence], words: Words, staged: bool) -> Variants:
    """Group layers; at least one must be given.

    staged  tokens carry the marked stage: only where both sides have marks.
    """
    by_tokens: dict[bytes, list[Layer]] = defaultdict(list)
    tokens = [_tokens(s, words, staged) for s in sequences]
    votes: dict[tuple[int, int], Counter[bytes]] = defaultdict(Counter)
    for layer in [x for x in layers if x.whole] or layers:
        key = tokens[layer.rank][layer.rows].tobytes()
        by_tokens[key].append(layer)
        votes[layer.rank, layer.index][key] += 1
    order = {k: n for n, k in enumerate(sorted(by_tokens, key=lambda k: (-len(by_tokens[k]), k)))}
    judged = {min(v, key=lambda k: (-v[k], order[k])) for v in votes.values()}
    chosen = [
        _variant(by_tokens[k], sequences, tokens, words)
        for k in sorted(judged, key=order.__getitem__)
    ]
    whole = sum(len(v) for v in by_tokens.values())
    return Variants(tuple(chosen), whole - sum(len(v) for v in chosen), whole)


def _tokens(sequence: Sequence, words: Words, staged: bool) -> Ints:
    tokens = words.tokens(sequence.word)
    return tokens * (len(STAGES) + 1) + (sequence.stage + 1 if staged else 0)


def _variant(
    layers: list[Layer], sequences: Many[Sequence], tokens: list[Ints], words: Words
) -> Variant:
    layers = sorted(layers, key=lambda x: (x.rank, x.step, x.index))
    columns: dict[str, list[Ints]] = defaultdict(list)
    places: list[tuple[int, int]] = []
    for rank in sorted({x.rank for x in layers}):
        mine = [x for x in layers if x.rank == rank]
        rows = np.stack([x.rows for x in mine])
        for name in ("start", "end", "stream", "word", "stage"):
            columns[name].append(getattr(sequences[rank], name)[rows])
        places += [(rank, x.index) for x in mine]
    table = {name: np.concatenate(parts) for name, parts in columns.items()}
    token = tokens[layers[0].rank][layers[0].rows].tolist()
    medians = np.median(table["end"] - table["start"], axis=0).tolist()
    items = tuple(
        Item(
            words.all[_most_common(table["word"][:, n], words)],
            token[n],
            "" if (stage := int(table["stage"][0, n])) == NULL else STAGES[stage],
            medians[n],
        )
        for n in range(len(token))
    )
    return Variant(
        items, tuple(places), tuple(x.step for x in layers), table["start"], table["end"],
        table["stream"],
    )  # fmt: skip


def _most_common(column: Ints, words: Words) -> int:
    """The word that most instances have in one place; among equals the first by name."""
    first = int(column[0])
    if (column == first).all():
        return first
    values, counts = np.unique(column, return_counts=True)
    best = [int(v) for v in values[counts == counts.max()]]
    return min(best, key=lambda w: words.all[w].name)


@dataclass(frozen=True, slots=True)
class Time:
    """Medians over layers, in ns: sum of kernel times, union over streams, gap inside the span.

    sum - overlap + gap = span, where overlap = sum - union, holds for every layer. `pdl` is the
    share of layers in which two kernels of one stream overlap.
    """

    layers: int
    sum_ns: float
    union_ns: float
    gap_ns: float
    span_ns: float
    pdl: float = 0.0

    @property
    def overlap_ns(self) -> float:
        return self.sum_ns - self.union_ns


def times(variants: Many[Variant]) -> Time:
    """Sum, union, gap and span of every layer of some variants."""
    parts = [_layer_times(v) for v in variants if len(v.items)]
    total, union, span, pdl = (np.concatenate(c) for c in zip(*parts, strict=True))
    return Time(
        len(total), float(np.median(total)), float(np.median(union)),
        float(np.median(span - union)), float(np.median(span)), float(pdl.mean()),
    )  # fmt: skip


def _layer_times(variant: Variant) -> tuple[Times, Times, Times, Times]:
    total = variant.duration.sum(axis=1)
    order = np.argsort(variant.start, axis=1, kind="stable")
    start = np.take_along_axis(variant.start, order, axis=1)
    end = np.take_along_axis(variant.end, order, axis=1)
    stream = np.take_along_axis(variant.stream, order, axis=1)
    reach = np.maximum.accumulate(end, axis=1)
    before = np.concatenate((start[:, :1], reach[:, :-1]), axis=1)
    union = np.maximum(end - np.maximum(start, before), 0).sum(axis=1)
    same = (stream[:, 1:] == stream[:, :-1]) & (start[:, 1:] < end[:, :-1])
    return total, union, reach[:, -1] - start[:, 0], same.any(axis=1)
