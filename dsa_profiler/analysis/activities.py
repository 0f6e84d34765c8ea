"""What ran in the measured iterations: GPU activities, or stage ranges where there is no GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.analysis import nesting
from dsa_profiler.analysis.attribute import Attribution, Marks, innermost
from dsa_profiler.analysis.cases import Activities
from dsa_profiler.analysis.iterations import Iterations
from dsa_profiler.analysis.launches import join
from dsa_profiler.analysis.stages import CODE, UNKNOWN, Staging
from dsa_profiler.columns import NULL, Trace

if TYPE_CHECKING:
    from dsa_profiler.columns import Ints

    Rows = np.ndarray[Any, np.dtype[np.int32]]

HIDDEN = "[graph launch: kernels not visible]"


def on_gpu(
    trace: Trace, attribution: Attribution, staging: Staging, iterations: Iterations
) -> Activities:
    """Kernels, memory operations and graph launches that a measured iteration launched.

    A graph launch stands for kernels the trace does not show: its time is real, its stage unknown.
    """
    kernels = trace.kernels
    table = np.append(iterations.of_range, np.int32(NULL))
    owner = table[attribution.iteration]
    rows = np.flatnonzero(owner >= 0)
    graphs, graph_owner = _graph_launches(trace, table)
    ids, inverse = np.unique(kernels.name[rows], return_inverse=True)
    names = sorted({trace.strings.get(n, "") for n in ids.tolist()})
    names.append(HIDDEN)
    place = {text: n for n, text in enumerate(names)}
    renamed = np.array([place[trace.strings.get(n, "")] for n in ids.tolist()], np.int64)[inverse]

    def both(of_kernels: Ints, of_graphs: Ints) -> Ints:
        return np.concatenate([of_kernels[rows], of_graphs[graphs]])

    launched = trace.graph_launches
    device = both(kernels.device, launched.device)
    process = both(kernels.process, launched.process)
    lanes = np.stack([process, device], axis=1)
    return Activities(
        iteration=np.concatenate([owner[rows], graph_owner]).astype(np.int64),
        lane=np.unique(lanes, axis=0, return_inverse=True)[1].reshape(-1),
        start=both(kernels.start, launched.start),
        end=both(kernels.end, launched.end),
        name=np.concatenate([renamed, np.full(len(graphs), len(names) - 1, np.int64)]),
        stage=np.concatenate(
            [staging.stage[rows].astype(np.int64), np.full(len(graphs), UNKNOWN, np.int64)]
        ),
        opaque=np.repeat(np.array([0, 1], np.int64), [len(rows), len(graphs)]),
        names=names,
        timing="gpu",
    )


def _graph_launches(trace: Trace, table: Rows) -> tuple[Ints, Ints]:
    """Rows of graph launches in a measured iteration, and that iteration."""
    found = trace.graph_launches
    launch, _ = join(trace.launches, found.process, found.correlation)
    ranges = trace.ranges
    index = nesting.build(ranges, np.flatnonzero(table[:-1] >= 0), trace.strings)
    rows = np.flatnonzero(launch >= 0)
    calls = launch[rows]
    launches = trace.launches
    inside = nesting.locate(
        index, launches.thread[calls], launches.start[calls], launches.end[calls]
    )
    hit = inside >= 0
    return rows[hit], table[inside[hit]].astype(np.int64)


def on_host(trace: Trace, marks: Marks, iterations: Iterations) -> Activities:
    """The stage ranges of the measured iterations as disjoint pieces: where stages nest, the outer
    one keeps what the inner one leaves. An iteration without stage marks is one unknown piece.
    """
    ranges = trace.ranges
    measured = np.flatnonzero(iterations.of_range >= 0)
    index = nesting.build(ranges, measured, trace.strings)
    whole = marks.stage[~ranges.truncated[marks.stage]]
    around = innermost(index, ranges, whole)
    stages, around = whole[around >= 0], around[around >= 0]
    bare = measured[~np.isin(measured, around)]
    owner = np.full(len(ranges), NULL, np.int64)
    owner[stages] = iterations.of_range[around]
    owner[bare] = iterations.of_range[bare]
    rows = nesting.build(ranges, np.concatenate([stages, bare]), trace.strings).rows
    code = {n: CODE[m.value] for n, m in marks.parsed.items() if m.kind == "stage"}
    columns = (ranges.thread, ranges.start, ranges.end)
    pieces = np.array(_pieces(*(c[rows].tolist() for c in columns)), np.int64).reshape(-1, 3)
    of = rows[pieces[:, 0]]
    stage = np.array([code.get(t, UNKNOWN) for t in ranges.text[of].tolist()], np.int64)
    empty = np.zeros(len(of), np.int64)
    return Activities(
        iteration=owner[of],
        lane=np.unique(ranges.thread[of], return_inverse=True)[1],
        start=pieces[:, 1],
        end=pieces[:, 2],
        name=empty,
        stage=stage,
        opaque=empty,
        names=("",),
        timing="host",
    )


def _pieces(thread: list[int], start: list[int], end: list[int]) -> list[tuple[int, int, int]]:
    """(range, start, end) of the stretches in which each range is the innermost of its thread."""
    out: list[tuple[int, int, int]] = []
    stack: list[int] = []
    reached = 0

    def close(until: int | None) -> None:
        nonlocal reached
        while stack and (until is None or end[stack[-1]] <= until):
            top = stack.pop()
            if end[top] > reached:
                out.append((top, reached, end[top]))
                reached = end[top]

    for place, since in enumerate(start):
        if place and thread[place] != thread[place - 1]:
            close(None)
        close(since)
        if stack and since > reached:
            out.append((stack[-1], reached, since))
        reached = since
        stack.append(place)
    close(None)
    return out
