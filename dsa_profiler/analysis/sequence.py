"""The GPU activities of one side of an alignment, in issue order, rank by rank.

Issue order is (launch, place in its graph): the order in which the host asked for the work. The
start of a kernel is no order to align by, since concurrent streams shuffle it from one step to the
next. A kernel whose launch is not in the file is placed by its own start.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dsa_profiler import marks
from dsa_profiler.analysis import graphs
from dsa_profiler.analysis.attribute import Attribution, attribute, find_marks
from dsa_profiler.analysis.iterations import iterations
from dsa_profiler.columns import NULL, Trace

if TYPE_CHECKING:
    from dsa_profiler.analysis.words import Words
    from dsa_profiler.columns import Bools, Ints
    from dsa_profiler.model import Case

STAGE_NUMBER = {name: number for number, name in enumerate(marks.STAGES)}


@dataclass(frozen=True, slots=True)
class Rank:
    """One process on one device of one file; `label` is what people call it."""

    file: int
    process: int
    device: int
    label: str


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """Kernels and memory operations of one rank in issue order, one entry each.

    word      id in the alignment's Words, the same number for the same name on both sides.
    stage     number in marks.STAGES by an enclosing mark, NULL where no mark says.
    captured  whether that mark was found where the graph's node was created.
    span      row of `ranges` of the innermost `dsa:stage` mark, NULL for none.
    iteration number of the measured iteration (Recorded.cases), NULL for none.
    launch    row of `launches`, NULL where the file lacks it; `time` and `thread` are its own.
    """

    rank: Rank
    start: Ints
    end: Ints
    stream: Ints
    word: Ints
    stage: Ints
    captured: Bools
    span: Ints
    iteration: Ints
    launch: Ints
    time: Ints
    thread: Ints
    in_graph: Bools

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A trace as sequences, one a rank in (process, device) order.

    cases  of each measured iteration; empty in a trace without marks.
    """

    trace: Trace
    sequences: tuple[Sequence, ...]
    cases: tuple[Case, ...]


def build(trace: Trace, words: Words, file: int = 0) -> Recorded:
    """Put a trace's GPU activities in issue order. `file` tells ranks of several files apart."""
    kernels, launches = trace.kernels, trace.launches
    marked = find_marks(trace)
    measured = iterations(trace, marked)
    found = attribute(trace, marked)
    iteration = np.r_[measured.of_range, NULL][found.iteration].astype(np.int64)
    known = found.launch >= 0
    place = np.maximum(found.launch, 0)
    if len(launches):
        time = np.where(known, launches.start[place], kernels.start)
        thread = np.where(known, launches.thread[place], NULL)
    else:
        time, thread = kernels.start, np.full(len(kernels), NULL, np.int64)
    word = words.of(trace, kernels.name)
    stage = _stages(trace, found)
    order = np.lexsort(
        (words.rank(word), kernels.stream, kernels.end, kernels.start, _node_order(trace),
         time, kernels.device, kernels.process)
    )  # fmt: skip
    process, device = kernels.process[order], kernels.device[order]
    new = np.flatnonzero((np.diff(process) != 0) | (np.diff(device) != 0)) + 1
    bounds = [0, *new.tolist(), len(order)] if len(order) else [0]
    several = len(bounds) > 2
    out: list[Sequence] = []
    for low, high in itertools.pairwise(bounds):
        rows = order[low:high]
        rank = _rank(int(process[low]), int(device[low]), file, several)
        out.append(
            Sequence(
                rank, kernels.start[rows], kernels.end[rows], kernels.stream[rows], word[rows],
                stage[rows], found.captured[rows], found.stage[rows].astype(np.int64),
                iteration[rows], found.launch[rows].astype(np.int64),
                time[rows], thread[rows], kernels.graph_node[rows] > 0,
            )
        )  # fmt: skip
    return Recorded(trace, tuple(out), measured.case)


def _rank(process: int, device: int, file: int, several: bool) -> Rank:
    pid = (process >> 24) & 0xFFFFFF
    label = f"file {file}" if not several else f"file {file} pid {pid} gpu {device}"
    return Rank(file, process, device, label)


def _stages(trace: Trace, found: Attribution) -> Ints:
    """The number of each kernel's marked stage, NULL for none."""
    stage = np.full(len(found.stage), NULL, np.int64)
    rows = np.flatnonzero(found.stage >= 0)
    if len(rows):
        texts = trace.ranges.text[found.stage[rows]]
        ids, inverse = np.unique(texts, return_inverse=True)
        parsed = [marks.parse(trace.strings[n]) for n in ids.tolist()]
        stage[rows] = np.array([STAGE_NUMBER[m.value] if m else NULL for m in parsed])[inverse]
    return stage


def _node_order(trace: Trace) -> Ints:
    """Order inside a graph: the creation of the node where the file has it, else the node's id,
    which grows in the order of capture.
    """
    kernels = trace.kernels
    order = np.maximum(kernels.graph_node, 0)
    if not len(trace.graph_nodes):
        return order
    rows = np.flatnonzero(kernels.graph_node > 0)
    created = graphs.creations(trace.graph_nodes, kernels.process[rows], kernels.graph_node[rows])
    if len(created) and (created >= 0).all():
        order = order.copy()
        order[rows] = trace.graph_nodes.start[created]
    return order
