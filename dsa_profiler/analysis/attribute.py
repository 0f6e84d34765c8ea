"""Each kernel's launch, the innermost range around it, its iteration and its stage mark.

Two traps are the reason for this module. A correlation id is unique only inside one process, so a
launch is joined by (process, correlation): joined by the id alone, a capture of two processes gives
more kernel time inside ranges than there is. And the kernels of a CUDA graph are launched all at
once, long after the code that queued them ran: the launch says which iteration, only the creation
of the graph's node says which stage.

Law: attributed + unattributed by reason = all kernels, in rows and in nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler import marks
from dsa_profiler.analysis import graphs, nesting
from dsa_profiler.analysis.coding import BLOCK, blocks
from dsa_profiler.analysis.launches import join
from dsa_profiler.columns import NULL, Launches, Ranges, Trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dsa_profiler.columns import Bools, Ints

    Rows = np.ndarray[Any, np.dtype[np.int32]]
    Codes = np.ndarray[Any, np.dtype[np.int8]]

REASONS = ("", "no_launch", "outside", "graph_only")
"""Why a kernel has no range: its launch is not in the file; it was launched outside every range;
or a graph replayed it, and neither the replay nor the creation of its node lies in a range."""


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """One entry a kernel (memory operations included); rows of the trace, NULL for none.

    launch     row of `launches`.
    enclosing  row of `ranges`: the innermost at the node's creation for a graph's kernel where the
               file has it, else the innermost at the launch.
    iteration  row of `ranges`: the `dsa:iter` or `dsa:warmup` around the launch.
    stage      row of `ranges`: the innermost `dsa:stage`, of the capture first, else of the launch.
    captured   whether `stage` was found where the graph's node was created.
    reason     index into REASONS; 0 where `enclosing` is set.
    """

    launch: Rows
    enclosing: Rows
    iteration: Rows
    stage: Rows
    captured: Bools
    reason: Codes
    duplicate_launches: int
    unnested_threads: int


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """The marks among a trace's nesting ranges: rows of `ranges` by kind, parsed texts by id."""

    parsed: Mapping[int, marks.Mark]
    case: Ints
    iteration: Ints
    stage: Ints


def attribute(trace: Trace, found: Marks) -> Attribution:
    """Attribute every kernel and memory operation of a trace."""
    kernels, launches, ranges = trace.kernels, trace.launches, trace.ranges
    launch, duplicates = join(launches, kernels.process, kernels.correlation)
    everything = nesting.build(ranges, _nesting(ranges), trace.strings)
    stages = nesting.build(ranges, found.stage, trace.strings)
    iterations = nesting.build(ranges, found.iteration, trace.strings)
    used = np.zeros(len(launches), np.bool_)
    used[launch[launch >= 0]] = True
    calls = np.flatnonzero(used).astype(np.int32)
    enclosing, iteration, stage = (
        _at_launch(index, launches, calls, launch) for index in (everything, iterations, stages)
    )
    captured = np.zeros(len(kernels), np.bool_)
    in_graph = np.flatnonzero(kernels.graph_node > 0)
    if len(in_graph):
        created = graphs.creations(
            trace.graph_nodes, kernels.process[in_graph], kernels.graph_node[in_graph]
        )
        _replace(enclosing, in_graph, _at_creation(everything, trace, created))
        marked = _replace(stage, in_graph, _at_creation(stages, trace, created))
        captured[marked] = True
    reason = np.full(len(kernels), 2, np.int8)
    reason[launch < 0] = 1
    reason[in_graph] = 3
    reason[enclosing >= 0] = 0
    return Attribution(
        launch, enclosing, iteration, stage, captured, reason, duplicates,
        everything.unnested_threads,
    )  # fmt: skip


def find_marks(trace: Trace) -> Marks:
    """Parse each distinct text once, and sort the rows of nesting ranges by the kind of mark."""
    parsed = {}
    for number, text in trace.strings.items():
        if text.startswith(marks.PREFIX):
            mark = marks.parse(text)
            if mark is not None:
                parsed[number] = mark
    ranges = trace.ranges
    usable = _nesting(ranges)

    def rows_of(*kinds: str) -> Ints:
        texts = np.array([n for n, m in parsed.items() if m.kind in kinds], np.int64)
        if not len(texts):
            return np.empty(0, np.int64)
        return usable[np.isin(ranges.text[usable], texts)]

    return Marks(parsed, rows_of("case"), rows_of("iter", "warmup"), rows_of("stage"))


def innermost(index: nesting.Index, ranges: Ranges, rows: Ints) -> Rows:
    """The innermost indexed range around each of the given ranges."""
    return nesting.locate(index, ranges.thread[rows], ranges.start[rows], ranges.end[rows])


def _nesting(ranges: Ranges) -> Ints:
    """Rows of ranges that can enclose something: push/pop ranges with a length."""
    return np.flatnonzero(ranges.nests & (ranges.end > ranges.start))


def _at_launch(index: nesting.Index, launches: Launches, calls: Rows, launch: Rows) -> Rows:
    """The innermost indexed range around each kernel's launch; `calls` are the launches in use."""
    if not len(index.rows):
        return np.broadcast_to(np.int32(NULL), len(launch))
    by_launch = np.full(len(launches) + 1, NULL, np.int32)  # its last entry is launch NULL's
    for part in blocks(len(calls), 4 * BLOCK):
        rows = calls[part]
        by_launch[rows] = nesting.locate(
            index, launches.thread[rows], launches.start[rows], launches.end[rows]
        )
    return by_launch[launch]


def _at_creation(index: nesting.Index, trace: Trace, created: Rows) -> Rows:
    nodes = trace.graph_nodes
    found = np.full(len(created), NULL, np.int32)
    known = np.flatnonzero(created >= 0)
    rows = created[known]
    found[known] = nesting.locate(index, nodes.thread[rows], nodes.start[rows], nodes.end[rows])
    return found


def _replace(column: Rows, rows: Ints, found: Rows) -> Ints:
    """Overwrite where something was found; returns the rows overwritten."""
    hit = found >= 0
    if hit.any():
        column[rows[hit]] = found[hit]
    return rows[hit]
