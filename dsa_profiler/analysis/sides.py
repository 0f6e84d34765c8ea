"""One side of an alignment: its layers, how they were found, and what is known of its setting.

A standalone recording says by its marks what one layer is. A server says at best what a step is;
its layers are found by marks, by the capture of its graphs, or by anchor kernels.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from dsa_profiler.analysis import layers as layering
from dsa_profiler.analysis import steps as stepping
from dsa_profiler.analysis.expected import Setting, phase_of
from dsa_profiler.analysis.layers import Layer, Template
from dsa_profiler.analysis.sequence import Recorded, Sequence
from dsa_profiler.analysis.steps import Batch, Step
from dsa_profiler.columns import NULL
from dsa_profiler.errors import Warn
from dsa_profiler.model import Case

if TYPE_CHECKING:
    from dsa_profiler.analysis.words import Words
    from dsa_profiler.columns import Ints

Method = Literal["marks", "graph_capture", "anchors"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The steps to compare with; None and "" ask for nothing.

    tokens  new tokens in a context step, where the trace tells them.
    """

    phase: str = ""
    batch: int | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, case: Case) -> Wanted:
        return cls(case.phase, case.batch_size, case.tokens if case.phase == "context" else None)

    def fits(self, batch: Batch) -> bool:
        if batch.phase == "unknown":
            return True
        if batch.phase in ("idle", "mixed") or (self.phase and batch.phase != self.phase):
            return False
        if self.batch is not None and batch.size != self.batch:
            return False
        told = self.tokens is not None and batch.context_tokens is not None
        return not told or batch.context_tokens == self.tokens

    def __str__(self) -> str:
        tokens = "" if self.tokens is None else f" of {self.tokens} tokens"
        batch = "" if self.batch is None else f" with batch {self.batch}"
        return f"{self.phase or 'any'} steps{batch}{tokens}"


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """Layers of every rank, in order.

    rotated      whether each layer runs from anchor to anchor, for want of surroundings.
    steps        that were compared, on the rank with most; `steps_found` counts all there were.
    batches      how often each batch occurred among all steps found.
    problems     what stands in the way of a verdict.
    """

    sequences: tuple[Sequence, ...]
    layers: tuple[Layer, ...]
    method: Method
    setting: Setting
    steps: int = 0
    steps_found: int = 0
    origin: str = ""
    anchor: str = ""
    rotated: bool = False
    batches: Counter[str] = field(default_factory=Counter)
    kv_tokens: tuple[int, ...] = ()
    problems: tuple[Warn, ...] = ()
    notes: tuple[Warn, ...] = ()


def from_iterations(recorded: Many[Recorded], case: Case, setting: Setting) -> Side:
    """One layer an iteration of a case."""
    sequences: list[Sequence] = []
    layers: list[Layer] = []
    steps = 0
    for one in recorded:
        for sequence in one.sequences:
            rank = len(sequences)
            sequences.append(sequence)
            rows = np.flatnonzero(sequence.iteration >= 0)
            numbers = sequence.iteration[rows]
            order = np.argsort(numbers, kind="stable")
            edges = np.flatnonzero(np.diff(numbers[order], prepend=NULL, append=NULL)).tolist()
            mine = [
                Layer(rank, n, 0, rows[order[low:high]])
                for low, high in itertools.pairwise(edges)
                if one.cases[n := int(numbers[order[low]])] == case
            ]
            layers += mine
            steps = max(steps, len(mine))
    return Side(
        tuple(sequences), tuple(layers), "marks", setting, steps, steps, "iteration",
        problems=() if layers else (no_kernels(recorded),),
    )  # fmt: skip


def from_server(
    recorded: Many[Recorded],
    words: Words,
    wanted: Wanted,
    setting: Setting,
    template: dict[str, Template],
    single: bool = False,
) -> Side:
    """The layers of the wanted steps of a server, or of a single layer without marks.

    template  by anchor stage: the other side's layer cut at that anchor; empty when it has none.
    single    one layer again and again is what was meant to be recorded.
    """
    sequences = tuple(s for one in recorded for s in one.sequences)
    steps, places, origin = _steps(recorded, words)
    found = [len(np.unique(p[p >= 0])) for p in places]
    chosen = np.array([wanted.fits(s.batch) for s in steps], np.bool_)
    places = [np.where(_pick(chosen, p), p, NULL) for p in places]
    batches = Counter(str(s.batch) for s in steps)
    method, anchor, layers = _layers(sequences, places, words, template)
    layers, periods = _periodic(sequences, layers, words, origin, single)
    if periods:
        origin, chosen = "period", np.ones(1, np.bool_)
    problems = _problems(recorded, sequences, steps, chosen, places, layers, wanted, batches)
    by_rank = Counter(r for r, _ in {(x.rank, x.step) for x in layers})
    kv = tuple(s.batch.kv_tokens or 0 for s, ok in zip(steps, chosen, strict=False) if ok)
    return Side(
        sequences, tuple(layers), method, setting,
        steps=max(by_rank.values(), default=0),
        steps_found=periods or max(found, default=0),
        origin=origin, anchor=anchor,
        rotated=bool(anchor) and _rotated(layers, sequences, words, anchor),
         batches=batches,
        kv_tokens=tuple(k for k in kv if k), problems=tuple(problems),
    )  # fmt: skip


def templates(side: Side, words: Words) -> dict[str, Template]:
    """A side that is known whole, as templates: its modal layer cut at each possible anchor."""
    modal = _modal(side.layers, side.sequences, words)
    if modal is None:
        return {}
    return {stage: layering.template_of(*modal, words, stage) for stage in layering.ANCHORS}


def _rotated(layers: Many[Layer], sequences: Many[Sequence], words: Words, anchor: str) -> bool:
    """Whether every layer begins at its anchor."""
    flags = layering.anchor_words(words, anchor)
    return all(flags[sequences[x.rank].word[x.rows[0]]] for x in layers)


def _modal(
    layers: Many[Layer], sequences: Many[Sequence], words: Words
) -> tuple[list[int], list[int]] | None:
    """Words and marked stages of the most frequent layer."""
    votes: Counter[bytes] = Counter()
    example: dict[bytes, Layer] = {}
    for layer in layers:
        key = sequences[layer.rank].word[layer.rows].tobytes()
        votes[key] += 1
        example.setdefault(key, layer)
    if not votes:
        return None

    def spelled(key: bytes) -> list[str]:
        x = example[key]
        return [words.all[w].name for w in sequences[x.rank].word[x.rows].tolist()]

    most = max(votes.values())
    one = example[
        min((k for k, n in votes.items() if n == most), key=lambda k: (len(k), spelled(k)))
    ]
    sequence = sequences[one.rank]
    return sequence.word[one.rows].tolist(), sequence.stage[one.rows].tolist()


def seen_phases(side: Side, words: Words) -> set[str]:
    """The phases that the kernels of a side's layers belong to, where a name tells."""
    used = {w for x in side.layers for w in side.sequences[x.rank].word[x.rows].tolist()}
    return {p for w in used if (p := phase_of(words.all[w].base))}


def no_kernels(recorded: Many[Recorded]) -> Warn:
    """Why there is nothing to compare."""
    if any(len(one.trace.graph_launches) for one in recorded):
        return Warn(
            "align-kernels-hidden",
            "whole-graph records hide the kernels: nsys recorded with --cuda-graph-trace=graph",
            "record again with --cuda-graph-trace=node",
        )
    if not any(len(s) for one in recorded for s in one.sequences):
        return Warn(
            "align-no-gpu",
            "the trace holds no GPU kernels",
            "record on a GPU with -t cuda,nvtx, nsys around the process that launches the kernels",
        )
    return Warn(
        "align-no-layers",
        "no kernel of the trace lies in what was to be compared",
        "check with `dsa-profiler analyze` what the trace holds",
    )


def _steps(recorded: Many[Recorded], words: Words) -> tuple[list[Step], list[Ints], str]:
    """All steps, the step of each kernel of each sequence, and how the steps were found."""
    steps: list[Step] = []
    places: list[Ints] = []
    for one in recorded:
        _, found = stepping.from_ranges(one.trace)
        for sequence in one.sequences:
            mine = [s for s in found if s.process == sequence.rank.process]
            place = stepping.assign(
                mine, np.full(len(sequence), sequence.rank.process), sequence.thread, sequence.time
            )
            places.append(np.where(place >= 0, place + len(steps), NULL))
            steps += mine
    if steps:
        return steps, places, "range"
    return _steps_by_graph([s for one in recorded for s in one.sequences], words)


def _steps_by_graph(sequences: Many[Sequence], words: Words) -> tuple[list[Step], list[Ints], str]:
    """Without ranges: a step is a graph launch that holds attention kernels; else all is one."""
    flags = np.array([w.stage in layering.ANCHORS for w in words.all] or [False], np.bool_)
    steps: list[Step] = []
    places: list[Ints] = []
    for sequence in sequences:
        place = np.full(len(sequence), NULL, np.int64)
        graph = sequence.in_graph & (sequence.launch >= 0)
        launches = np.unique(sequence.launch[graph & flags[sequence.word]])
        hit = graph & np.isin(sequence.launch, launches)
        place[hit] = np.searchsorted(launches, sequence.launch[hit]) + len(steps)
        steps += [
            Step(sequence.rank.process, NULL, 0, 0, Batch(), n, "graph launch")
            for n in range(len(launches))
        ]
        places.append(place)
    if steps:
        return steps, places, "graph launch"
    for n, sequence in enumerate(sequences):
        steps.append(Step(sequence.rank.process, NULL, 0, 0, Batch(), n, "whole"))
    return steps, [np.full(len(s), n, np.int64) for n, s in enumerate(sequences)], "whole"


def _pick(chosen: np.ndarray, place: Ints) -> np.ndarray:
    return np.r_[chosen, False][place] if len(place) else np.zeros(0, np.bool_)


def _layers(
    sequences: Many[Sequence], places: Many[Ints], words: Words, template: dict[str, Template]
) -> tuple[Method, str, list[Layer]]:
    marked = [(s.stage >= 0) & (p >= 0) for s, p in zip(sequences, places, strict=True)]
    if any(m.any() for m in marked):
        layers = [
            x
            for rank, (s, p) in enumerate(zip(sequences, places, strict=True))
            for x in layering.by_marks(s, rank, p)
        ]
        captured = any((s.captured & m).any() for s, m in zip(sequences, marked, strict=True))
        return ("graph_capture" if captured else "marks"), "", layers
    counts: dict[str, int] = {}
    for stage in layering.ANCHORS:
        flags = np.array(layering.anchor_words(words, stage) or [False], np.bool_)
        each: Counter[int] = Counter()
        for s, p in zip(sequences, places, strict=True):
            hit = p[(p >= 0) & flags[s.word]] if len(s) else p
            each.update(np.unique(hit, return_counts=True)[1].tolist())
        if each:
            counts[stage] = max(each, key=lambda c: (each[c], c))
    allowed = {
        stage for stage in layering.ANCHORS if not template or template[stage].anchors == 1
    } or set(layering.ANCHORS)
    anchor = layering.choose_anchor(counts, allowed)
    if not anchor:
        return "anchors", "", []

    def cut(by: Template | None) -> list[Layer]:
        return [
            x
            for rank, (s, p) in enumerate(zip(sequences, places, strict=True))
            for x in layering.by_anchors(s, rank, p, words, anchor, by)
        ]

    usual = _modal(cut(template.get(anchor)), sequences, words)
    again = layering.template_of(*usual, words, anchor) if usual else None
    return "anchors", anchor, cut(again) if again else []


def _periodic(
    sequences: Many[Sequence],
    layers: list[Layer],
    words: Words,
    origin: str,
    single: bool,
) -> tuple[list[Layer], int]:
    """Where a rank's whole trace was taken for one step: steps by the period of its layers.

    Returns the layers of complete steps and the number of steps; 0 where there is no period.
    """
    if origin != "whole":
        return layers, 0
    out: list[Layer] = []
    most = 0
    for rank, sequence in enumerate(sequences):
        mine = [x for x in layers if x.rank == rank]
        numbers = layering.segments(sequence, mine, words)
        size = stepping.period(numbers)
        if size < (1 if single else 2):
            continue
        lengths = np.diff([int(x.rows[0]) for x in mine]).tolist()
        first = stepping.boundary(numbers, lengths, size) % size
        for x in mine:
            step, index = divmod(x.index - first, size)
            if step >= 0 and first + (step + 1) * size <= len(mine):
                out.append(replace(x, step=step, index=index))
                most = max(most, step + 1)
    return (out, most) if most else (layers, 0)


def _problems(
    recorded: Many[Recorded],
    sequences: Many[Sequence],
    steps: Many[Step],
    chosen: np.ndarray,
    places: Many[Ints],
    layers: Many[Layer],
    wanted: Wanted,
    batches: Counter[str],
) -> list[Warn]:
    if not any(len(s) for s in sequences):
        return [no_kernels(recorded)]
    told = any(s.origin == "range" for s in steps)
    if told and not chosen.any():
        there = ", ".join(f"{n} x {b}" for b, n in batches.most_common(5))
        return [
            Warn(
                "align-wrong-batch",
                f"the server's trace has no {wanted}; it has {there}",
                "load the server with that batch, or give another --case",
            )
        ]
    if not layers:
        if any(len(one.trace.graph_launches) for one in recorded):
            return [no_kernels(recorded)]
        return [
            Warn(
                "align-no-anchors",
                "no attention kernel that could anchor a layer lies in the steps",
                "record the process that runs the model (nsys around every rank), with "
                "--cuda-graph-trace=node",
            )
        ]
    if steps and steps[0].origin == "whole" and not any(x.step for x in layers):
        return [
            Warn(
                "align-no-steps",
                "no steps: neither ranges of a known server nor a period in its kernels",
                "record NVTX as well (-t cuda,nvtx) and more than three steps",
            )
        ]
    return []
