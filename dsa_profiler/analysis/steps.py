"""The steps of a server's trace: one forward pass over one batch, and what was in the batch.

Steps are found by the ranges that TensorRT-LLM, vLLM and SGLang put around them. One such range
belongs to one rank: it is keyed by its thread, never by its number alone. Where a server says
nothing, a step is one launch of a CUDA graph that holds attention kernels, else one period of the
sequence of kernels.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from dsa_profiler.columns import NULL, PROCESS_MASK, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dsa_profiler.columns import Bools, Ints

StepPhase = Literal["context", "generation", "mixed", "idle", "unknown"]
Origin = Literal["range", "graph launch", "period", "whole"]


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step says of itself; None where it is silent. Counts are of requests, not tokens.

    kv_tokens  keys summed over the batch's requests, where an annotation carries them.
    """

    context: int | None = None
    generation: int | None = None
    context_tokens: int | None = None
    generation_tokens: int | None = None
    kv_tokens: int | None = None

    @property
    def phase(self) -> StepPhase:
        if self.context is None or self.generation is None:
            return "unknown"
        if self.context and self.generation:
            return "mixed"
        return "context" if self.context else "generation" if self.generation else "idle"

    @property
    def size(self) -> int:
        return (self.context or 0) + (self.generation or 0)

    def __str__(self) -> str:
        if self.phase == "unknown":
            return "a batch that the trace does not tell"
        tokens = "" if self.context_tokens is None else f" of {self.context_tokens} tokens"
        return f"{self.context} context{tokens} + {self.generation} generation"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one rank: host time from `start` to `end` on `thread` (NULL: any thread)."""

    process: int
    thread: int
    start: int
    end: int
    batch: Batch
    number: int
    origin: Origin = "range"


def _trtllm(match: re.Match[str]) -> Batch:
    _, context, tokens, generation = match.groups()
    return Batch(int(context), int(generation), None if tokens is None else int(tokens))


def _vllm(match: re.Match[str]) -> Batch:
    context, context_detail, generation, detail = match.groups()
    keys = [re.search(r"sk(\d+)", text) for text in (context_detail, detail)]
    told = [int(k[1]) for k in keys if k]
    return Batch(
        int(context), int(generation), _tokens(context_detail), _tokens(detail),
        sum(told) if told else None,
    )  # fmt: skip


def _tokens(detail: str) -> int | None:
    match = re.match(r"(?:sq)?(\d+)", detail)
    return int(match[1]) if match else None


def _vllm_new_cached(match: re.Match[str]) -> Batch:
    return Batch(int(match[1]), int(match[2]))


def _sglang(match: re.Match[str]) -> Batch:
    mode, size, rest = match[1].lower(), int(match[2] or 0), match[3]
    tokens = re.search(r"\btoks=(\d+)", rest)
    if mode in ("decode", "target_verify"):
        return Batch(0, size)
    if mode in ("prefill", "extend"):
        return Batch(size, 0, int(tokens[1]) if tokens else None)
    if mode == "mixed":
        decode = re.search(r"\bdec=(\d+)", rest)
        generation = int(decode[1]) if decode else max(size - 1, 0)
        return Batch(max(size - generation, 1), generation)
    return Batch(0, 0)


PATTERNS: tuple[tuple[str, re.Pattern[str], Callable[[re.Match[str]], Batch]], ...] = (
    (
        "trtllm",
        re.compile(
            r"^\[Executor\] _forward_step (\d+): (\d+) ctx reqs, "
            r"(?:(\d+) ctx tokens, )?(\d+) gen reqs"
        ),
        _trtllm,
    ),
    (
        "vllm",
        re.compile(r"^execute_(?:\d+_)?context_(\d+)\(([^)]*)\)_generation_(\d+)\(([^)]*)\)"),
        _vllm,
    ),
    ("vllm", re.compile(r"^execute_new_(\d+)_cached_(\d+)"), _vllm_new_cached),
    ("sglang", re.compile(r"^step\[([A-Za-z_0-9]+)(?: bs=(\d+))?([^\]]*)\]"), _sglang),
)
"""Framework, pattern of the range's text, and how its groups become a Batch."""


def parse(text: str) -> tuple[str, Batch] | None:
    """The framework and the batch that a range's text tells, or None for any other range."""
    for framework, pattern, batch in PATTERNS:
        match = pattern.match(text)
        if match:
            return framework, batch(match)
    return None


def from_ranges(trace: Trace) -> tuple[str, list[Step]]:
    """The framework's name ("" when unknown) and its steps in (process, start) order.

    Ranges that the end of the collection cut off are left out: their kernels are incomplete. A
    step inside another on the same thread is part of that one.
    """
    told = {n: said for n, text in trace.strings.items() if (said := parse(text)) is not None}
    if not told:
        return "", []
    ranges = trace.ranges
    rows = np.flatnonzero(
        np.isin(ranges.text, np.fromiter(told, np.int64, len(told)))
        & ranges.nests & (ranges.end > ranges.start)
    )  # fmt: skip
    rows = rows[np.lexsort((-ranges.end[rows], ranges.start[rows], ranges.thread[rows]))]
    found: list[Step] = []
    frameworks: set[str] = set()
    thread, until = NULL, 0
    for row in rows.tolist():
        own, start, end = (int(c[row]) for c in (ranges.thread, ranges.start, ranges.end))
        if own == thread and start < until:
            continue
        thread, until = own, end
        if ranges.truncated[row]:
            continue
        framework, batch = told[int(ranges.text[row])]
        frameworks.add(framework)
        match = re.search(r"_forward_step (\d+)", trace.strings[int(ranges.text[row])])
        number = int(match[1]) if match else len(found)
        found.append(Step(own & PROCESS_MASK, own, start, end, batch, number))
    found.sort(key=lambda s: (s.process, s.start, s.thread))
    return "+".join(sorted(frameworks)), found


def assign(steps: Iterable[Step], process: Ints, thread: Ints, time: Ints) -> Ints:
    """The step (its place in `steps`) of each kernel, by the time and thread of its launch.

    thread  of the launch, NULL where the launch is not in the trace. A rank whose kernels are all
    launched from other threads than its steps is matched by time alone.
    """
    steps = list(steps)
    place = np.full(len(time), NULL, np.int64)
    for owner in sorted({s.process for s in steps}):
        numbers = np.array([n for n, s in enumerate(steps) if s.process == owner])
        mine = np.flatnonzero(process == owner)
        threads = np.array([steps[n].thread for n in numbers])
        for one in np.unique(threads).tolist():
            own = numbers[threads == one]
            starts = np.array([steps[n].start for n in own])
            ends = np.array([steps[n].end for n in own])
            at = np.searchsorted(starts, time[mine], "right") - 1
            inside = (at >= 0) & (time[mine] < ends[at])
            same: Bools = inside & (thread[mine] == one)
            hit = same if same.any() else inside
            free = place[mine] == NULL
            place[mine[hit & free]] = own[at[hit & free]]
    return place


def period(segments: list[int]) -> int:
    """How many segments a step holds: the shift under which the sequence repeats best.

    At least nine in ten segments must equal the one a period later, and three periods must be
    there; 0 when there is no such shift. Candidates are the distances between occurrences of the
    rarest segments, so this is linear in practice.
    """
    if len(segments) < 3:
        return 0
    values, inverse, counts = np.unique(segments, return_inverse=True, return_counts=True)
    candidates: set[int] = set()
    for value in np.argsort(counts, kind="stable")[:8].tolist():
        places = np.flatnonzero(inverse == value)
        if len(places) >= 2:
            candidates.update(np.diff(places).tolist())
    if len(values) == 1:
        return 1
    shares = {
        shift: float((inverse[shift:] == inverse[:-shift]).mean())
        for shift in sorted(candidates)
        if 3 * shift <= len(segments) + 1
    }
    best = max(shares, key=lambda shift: (shares[shift], -shift), default=0)
    return int(best) if best and shares[best] >= 0.9 else 0


def boundary(segments: list[int], lengths: list[int], size: int) -> int:
    """The first layer of a step: after the segment that is rarest, of those the longest.

    What follows a step's last layer (sampling, the next batch) follows no other layer.
    lengths  kernels in each segment.
    """
    counts = Counter(segments[:size])
    rarest = min(range(size), key=lambda n: (counts[segments[n]], -lengths[n], n))
    return rarest + 1
