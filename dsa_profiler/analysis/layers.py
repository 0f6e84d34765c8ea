"""The attention layers inside a step: which kernels belong to which layer.

With marks a layer is what they enclose. Without any, as in decode under a CUDA graph captured
before the window, one kernel that runs once a layer is the anchor; between two anchors lie the end
of one layer, the server's own work (experts, collectives, norms) and the beginning of the next. The
other side's layer says how far each reaches: what it has, in its order, from the anchor outwards,
never across a norm or a collective that it does not have.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dsa_profiler.analysis import lcs
from dsa_profiler.analysis.sequence import Sequence
from dsa_profiler.columns import NULL
from dsa_profiler.marks import STAGES

if TYPE_CHECKING:
    from dsa_profiler.analysis.words import Words
    from dsa_profiler.columns import Ints

ANCHORS = ("rope_append", "sparse_attn", "mqa_logits", "indexer_cache", "topk", "dense_attn")
"""Stages whose kernel runs once a layer, the surest first."""

REACH = 1500
"""Kernels on either side of an anchor that are looked at; a step's edges may hold far more."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One layer of one step: `rows` are entries of its rank's Sequence, in issue order.

    whole  False where the end of the step cuts a layer that is seen from anchor to anchor.
    """

    rank: int
    step: int
    index: int
    rows: Ints
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Template:
    """A layer that is known whole, as words: what comes before its anchor, and what after.

    anchors  how many kernels of the layer could be the anchor; only one makes a sure one.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    anchors: int


def anchor_words(words: Words, stage: str) -> list[bool]:
    """By word: whether it is the anchor kernel of a stage."""
    return [w.stage == stage and w.family != "clean_logits" for w in words.all]


def choose_anchor(counts: dict[str, int], allowed: set[str]) -> str:
    """The anchor stage: of those that run equally often, as most do, the surest. "" for none.

    counts  kernels a step by stage. A stage whose kernel is missing or doubled is outvoted, so
    that it shows up as a difference and not as another number of layers.
    """
    seen = {s: counts[s] for s in ANCHORS if counts.get(s) and s in allowed}
    if not seen:
        return ""
    votes = Counter(seen.values())
    most = max(votes.values())
    common = next(count for count in seen.values() if votes[count] == most)
    return next(s for s, count in seen.items() if count == common)


def by_marks(sequence: Sequence, rank: int, place: Ints) -> list[Layer]:
    """Layers as runs of marked kernels; each begins where the first stage is entered anew.

    place  the step of each kernel, NULL for none.
    """
    marked = np.flatnonzero((sequence.stage >= 0) & (place >= 0))
    out: list[Layer] = []
    for step in np.unique(place[marked]).tolist():
        rows = marked[place[marked] == step]
        first = sequence.stage[rows[0]]
        entry = sequence.stage[rows] == first
        begins = entry & np.r_[True, ~entry[:-1]]
        bounds = [*np.flatnonzero(begins).tolist(), len(rows)]
        mine = np.flatnonzero(place == step)
        for index, (low, high) in enumerate(itertools.pairwise(bounds)):
            inside = mine[(mine >= rows[low]) & (mine <= rows[high - 1])]
            out.append(Layer(rank, step, index, inside))
    return out


def by_anchors(
    sequence: Sequence, rank: int, place: Ints, words: Words, stage: str, template: Template | None
) -> list[Layer]:
    """Layers around the kernel of an anchor stage, cut by a template or, without one, by rule."""
    is_anchor = np.array(anchor_words(words, stage), np.bool_)[sequence.word]
    cutter = _Cutter(words, template)
    out: list[Layer] = []
    used = np.flatnonzero(place >= 0)
    used = used[np.argsort(place[used], kind="stable")]
    bounds = np.flatnonzero(np.diff(place[used], prepend=NULL, append=NULL)).tolist()
    for low, high in itertools.pairwise(bounds):
        rows = used[low:high]
        anchors = np.flatnonzero(is_anchor[rows])
        if not len(anchors):
            continue
        edges = [-1, *anchors.tolist(), len(rows)]
        cuts = [
            cutter.cut(sequence.word[rows[a + 1 : b]], n > 0, n < len(anchors))
            for n, (a, b) in enumerate(itertools.pairwise(edges))
        ]
        for n, at in enumerate(anchors.tolist()):
            before = rows[edges[n] + 1 : at][cuts[n][1]]
            after = rows[at + 1 : edges[n + 2]][cuts[n + 1][0]]
            whole = np.concatenate((before, rows[at : at + 1], after))
            last = n == len(anchors) - 1
            out.append(Layer(rank, int(place[rows[0]]), n, whole, not (last and cutter.rotated)))
    return out


def segments(sequence: Sequence, layers: list[Layer], words: Words) -> list[int]:
    """A number for the kernels from the beginning of each layer to that of the next.

    Equal numbers are equal sequences of tokens; the last layer's segment is left out.
    """
    tokens = words.tokens(sequence.word)
    known: dict[bytes, int] = {}
    begins = [int(x.rows[0]) for x in layers]
    return [
        known.setdefault(tokens[a:b].tobytes(), len(known)) for a, b in itertools.pairwise(begins)
    ]


class _Cutter:
    """Cuts the kernels between two anchors; like gaps are cut once."""

    def __init__(self, words: Words, template: Template | None) -> None:
        self.words = words
        self.template = template
        self.rotated = template is not None and not template.before
        self.known: dict[tuple[bytes, bool, bool], tuple[Ints, Ints]] = {}

    def cut(self, gap: Ints, after: bool, before: bool) -> tuple[Ints, Ints]:
        """Places in the gap that belong to the layer before it and to the layer after it.

        after, before  whether there is a layer on that side at all.
        """
        key = (gap.tobytes(), after, before)
        if key not in self.known:
            found = (
                _cut_by_rule(gap.tolist(), self.words, after, before)
                if self.template is None
                else _cut_by_template(gap.tolist(), self.words, self.template, after, before)
            )
            self.known[key] = (np.array(found[0], np.int64), np.array(found[1], np.int64))
        return self.known[key]


def _cut_by_rule(
    gap: list[int], words: Words, after: bool, before: bool
) -> tuple[list[int], list[int]]:
    """Without a template: up to the first norm or context kernel, and from the last context on.

    Where no context shows, everything from one anchor to the next counts as one layer.
    """
    roles = [words.all[w].role for w in gap]
    hard = [n for n, role in enumerate(roles) if role == "context"]
    if not hard:
        return (list(range(len(gap))), []) if after else ([], [])
    edges = [n for n, role in enumerate(roles) if role in ("context", "norm")]
    start = hard[-1] + 1
    while start < len(gap) and roles[start] in ("norm", "memory"):
        start += 1
    return (
        list(range(edges[0])) if after else [],
        list(range(start, len(gap))) if before else [],
    )


def _cut_by_template(
    gap: list[int], words: Words, template: Template, after: bool, before: bool
) -> tuple[list[int], list[int]]:
    if len(gap) > 2 * REACH:
        head, tail = gap[:REACH], gap[-REACH:]
        first, _ = _cut_by_template(head, words, template, after, False)
        _, second = _cut_by_template(tail, words, template, False, before)
        return first, [n + len(gap) - REACH for n in second]
    post = template.after if after else ()
    pre = template.before if before else ()
    end, start = _reach(gap, words, post, pre)
    first, second = list(range(end)), list(range(start, len(gap)))
    edges = _edges(gap, words, range(end, start))
    for n in range(end, start):
        if words.all[gap[n]].in_module and (post or pre):
            nearer_end = post and not any(e < n for e in edges)
            (first if nearer_end or not pre else second).append(n)
    return first, sorted(second)


def _edges(gap: list[int], words: Words, among: range) -> list[int]:
    return [n for n in among if words.all[gap[n]].role in ("norm", "context")]


def _match(
    gap: list[int], words: Words, post: tuple[int, ...], pre: tuple[int, ...]
) -> list[tuple[int, int]]:
    """The template's kernels in a gap, each as near to its own anchor as can be."""
    wanted = [words.token[w] for w in (*post, *pre)]
    there = set(wanted)
    tokens = [
        -1 if words.all[w].role == "context" and words.token[w] not in there else words.token[w]
        for w in gap
    ]
    size, template = len(gap), (*post, *pre)

    def likeness(i: int, j: int) -> float:
        near = (size - j if i < len(post) else j + 1) / size
        return 0.9 * near + 0.1 * (template[i] == gap[j])

    return lcs.weighted(wanted, tokens, likeness)


def _reach(
    gap: list[int], words: Words, post: tuple[int, ...], pre: tuple[int, ...]
) -> tuple[int, int]:
    """How far the earlier layer reaches into a gap (exclusive), and where the later one begins.

    It does not reach beyond a norm or context kernel that the template lacks, unless what lies
    beyond can only be attention's. Between two layers, kernels that touch one belong to it:
    the server's own work around attention begins and ends with a norm or a collective.
    """
    size, template = len(gap), (*post, *pre)
    matched = _match(gap, words, post, pre)
    taken = {j for _, j in matched}
    edges = {n for n in _edges(gap, words, range(size)) if n not in taken}
    sure = [(i, j) for i, j in matched if words.all[gap[j]].in_module]
    end = last = 0
    surely = max((j for i, j in sure if i < len(post)), default=-1)
    for i, j in matched:
        if i >= len(post) or (j > surely and any(end <= e < j for e in edges)):
            break
        end, last = j + 1, i + 1
    start, first = size, len(template)
    surely = min((j for i, j in sure if i >= len(post)), default=size)
    for i, j in reversed(matched):
        if i < len(post) or j < end or (j < surely and any(j < e < start for e in edges)):
            break
        start, first = j, i
    for _ in range(_firm(post[last:], words)):
        if end >= start or end in edges:
            break
        end += 1
    for _ in range(_firm(template[len(post) : first], words)):
        if start <= end or start - 1 in edges:
            break
        start -= 1
    if post and pre:
        while end < start and words.all[gap[end]].role in ("", "gemm"):
            end += 1
        while start > end and words.all[gap[start - 1]].role in ("", "gemm"):
            start -= 1
    return end, start


def _firm(rest: tuple[int, ...], words: Words) -> int:
    """How many of a template's kernels ought to have shown up; helpers come and go."""
    return sum(words.all[w].role not in ("gemm_helper", "memory") for w in rest)


def template_of(rows_words: list[int], stages: list[int], words: Words, stage: str) -> Template:
    """The template of a layer that is known whole: split at its anchor, wherever a mark or a name
    says that it is.
    """
    flags = anchor_words(words, stage)
    named = [n for n, w in enumerate(rows_words) if flags[w]]
    if not named:
        named = [n for n, s in enumerate(stages) if s != NULL and STAGES[s] == stage]
    at = named[0] if named else len(rows_words)
    return Template(tuple(rows_words[:at]), tuple(rows_words[at + 1 :]), len(named))
