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
from dsa_profiler.columns import NULL, PROCESS_MASK, Kernels, Launches, Ranges, Trace

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
    launch, duplicates = join_launches(kernels, launches)
    rank = text_rank(trace)
    nesting_rows = np.flatnonzero(ranges.nests & (ranges.end > ranges.start))
    everything = nesting.build(ranges, nesting_rows, rank)
    stages = nesting.build(ranges, found.stage, rank)
    iterations = nesting.build(ranges, found.iteration, rank)
    used = np.zeros(len(launches), np.bool_)
    used[launch[launch >= 0]] = True
    rows = np.flatnonzero(used).astype(np.int32)
    del used

    enclosing = _at_launch(everything, launches, rows, launch)
    iteration = _at_launch(iterations, launches, rows, launch)
    stage = _at_launch(stages, launches, rows, launch)
    captured = np.zeros(len(kernels), np.bool_)
    in_graph = np.flatnonzero(kernels.graph_node > 0)
    if len(in_graph):
        created = graphs.creations(
            trace.graph_nodes, kernels.process[in_graph], kernels.graph_node[in_graph]
        )
        _replace(enclosing, in_graph, _at_creation(everything, trace, created))
        marked = _replace(stage, in_graph, _at_creation(stages, trace, created))
        captured[marked] = True
    reason = np.where(launch < 0, 1, 2).astype(np.int8)
    reason[in_graph] = 3
    reason[enclosing >= 0] = 0
    return Attribution(
        launch, enclosing, iteration, stage, captured, reason, duplicates,
        everything.unnested_threads,
    )  # fmt: skip


def join_launches(kernels: Kernels, launches: Launches) -> tuple[Rows, int]:
    """Each kernel's launch row by (process, correlation), and how many launch rows are repeats.

    Of several launches with one key the earliest counts. Ids are dense in practice, so a table
    indexed by id is the fastest join; sparse ids are sorted first.
    """
    none = np.full(len(kernels), NULL, np.int32)
    rows = np.flatnonzero(launches.correlation >= 0)
    if not len(rows) or not len(kernels):
        return none, 0
    owner = launches.thread & PROCESS_MASK
    processes = np.unique(owner)
    low = int(launches.correlation[rows].min())
    width = int(launches.correlation[rows].max()) - low + 1
    if len(processes) * width > 8 * (len(rows) + len(kernels)) + 4096:
        return _join_sparse(kernels, launches, owner, rows)
    key = np.searchsorted(processes, owner[rows]) * width + (launches.correlation[rows] - low)
    del owner
    table = np.full(len(processes) * width, NULL, np.int32)
    table[key] = rows
    duplicates = len(rows) - int(np.count_nonzero(table >= 0))
    if duplicates:
        order = np.lexsort((launches.thread[rows], launches.end[rows], launches.start[rows]))[::-1]
        table[key[order]] = rows[order]
    del key
    process = np.searchsorted(processes, kernels.process)
    process[process == len(processes)] = 0
    known = processes[process] == kernels.process
    known &= (kernels.correlation >= low) & (kernels.correlation < low + width)
    process *= width
    process += kernels.correlation
    process -= low
    process[~known] = 0
    return np.where(known, table[process], NULL).astype(np.int32, copy=False), duplicates


def _join_sparse(kernels: Kernels, launches: Launches, owner: Ints, rows: Ints) -> tuple[Rows, int]:
    """The join where ids are too far apart for a table: by number of each distinct id."""
    ids = np.unique(launches.correlation[rows])
    processes = np.unique(owner)
    order = np.lexsort((launches.thread[rows], launches.end[rows], launches.start[rows]))
    rows = rows[order]
    key = np.searchsorted(processes, owner[rows]) * len(ids)
    key += np.searchsorted(ids, launches.correlation[rows])
    keys, first = np.unique(key, return_index=True)
    id_place = np.minimum(np.searchsorted(ids, kernels.correlation), len(ids) - 1)
    place = np.minimum(np.searchsorted(processes, kernels.process), len(processes) - 1)
    known = (ids[id_place] == kernels.correlation) & (processes[place] == kernels.process)
    wanted = place * len(ids) + id_place
    slot = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    known &= keys[slot] == wanted
    return np.where(known, rows[first[slot]], NULL).astype(np.int32), len(rows) - len(keys)


def find_marks(trace: Trace) -> Marks:
    """Parse each distinct text once, and sort the rows of nesting ranges by the kind of mark."""
    parsed = {}
    for number, text in trace.strings.items():
        if text.startswith(marks.PREFIX):
            mark = marks.parse(text)
            if mark is not None:
                parsed[number] = mark
    ranges = trace.ranges
    usable = ranges.nests & (ranges.end > ranges.start)

    def rows_of(*kinds: str) -> Ints:
        texts = np.array([n for n, m in parsed.items() if m.kind in kinds], np.int64)
        if not len(texts):
            return np.empty(0, np.int64)
        return np.flatnonzero(np.isin(ranges.text, texts) & usable)

    return Marks(parsed, rows_of("case"), rows_of("iter", "warmup"), rows_of("stage"))


def text_rank(trace: Trace) -> Ints:
    """Each range's text as its place among the sorted texts, which no order of rows changes."""
    ids = np.unique(trace.ranges.text)
    texts = [trace.strings.get(n, "") for n in ids.tolist()]
    place = {text: number for number, text in enumerate(sorted(set(texts)))}
    rank = np.array([place[text] for text in texts], np.int64)
    return rank[np.searchsorted(ids, trace.ranges.text)] if len(ids) else ids


def innermost(index: nesting.Index, ranges: Ranges, rows: Ints) -> Rows:
    """The innermost indexed range around each of the given ranges."""
    return nesting.locate(index, ranges.thread[rows], ranges.start[rows], ranges.end[rows])


def _at_launch(index: nesting.Index, launches: Launches, rows: Rows, launch: Rows) -> Rows:
    by_launch = np.full(len(launches) + 1, NULL, np.int32)
    if len(index.rows):
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
    column[rows[hit]] = found[hit]
    return rows[hit]
