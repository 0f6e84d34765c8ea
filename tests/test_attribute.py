"""Attribution against brute force, and what it must never do."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import trace_factory
import trace_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_rows import process

from dsa_profiler import marks
from dsa_profiler.analysis import graphs, nesting
from dsa_profiler.analysis.attribute import REASONS, attribute, find_marks
from dsa_profiler.analysis.launches import join
from dsa_profiler.columns import NULL, PROCESS_MASK, Trace

PROCESSES = (process(5), process(9), process(7, hw=0xFE))
THREADS = tuple(p | tid for p in PROCESSES for tid in (1, 2))
TEXTS = ("layer", "indexer", "attention")


def launch_of(trace: Trace, owner: int, correlation: int) -> tuple[int, ...] | None:
    """By definition: the earliest call of this process with this id."""
    calls = zip(*(c.tolist() for c in _fields(trace.launches)), strict=True)
    mine = [
        (start, end, thread)
        for start, end, thread, number in calls
        if thread & PROCESS_MASK == owner and number == correlation >= 0
    ]
    return min(mine, default=None)


def innermost_of(trace: Trace, start: int, end: int, thread: int) -> tuple[Any, ...] | None:
    """By definition: of the ranges around it the latest started, then the shortest."""
    around = [
        (since, -until, trace.strings[text])
        for since, until, owner, text, _, nests, _ in zip(
            *(c.tolist() for c in _fields(trace.ranges)), strict=True
        )
        if nests and until > since and owner == thread and since <= start and end <= until
    ]
    return max(around, default=None)


def _fields(table: Any) -> list[Any]:
    return [getattr(table, name) for name in type(table).__dataclass_fields__]


def check(trace: Trace) -> None:
    """Every kernel's launch, range and reason are what the definitions say."""
    found = attribute(trace, find_marks(trace))
    columns = (trace.kernels.process.tolist(), trace.kernels.correlation.tolist())
    for n, (owner, correlation) in enumerate(zip(*columns, strict=True)):
        launch = launch_of(trace, owner, correlation)
        row = int(found.launch[n])
        got = tuple(int(c[row]) for c in _fields(trace.launches)[:3]) if row >= 0 else None
        assert got == launch
        around = innermost_of(trace, *launch) if launch else None
        row = int(found.enclosing[n])
        assert _range(trace, row) == around
        reason = "" if around else ("outside" if launch else "no_launch")
        assert REASONS[found.reason[n]] == reason


def _range(trace: Trace, row: int) -> tuple[Any, ...] | None:
    ranges = trace.ranges
    if row < 0:
        return None
    return int(ranges.start[row]), -int(ranges.end[row]), trace.strings[int(ranges.text[row])]


@st.composite
def nested(draw: st.DrawFn, low: int, high: int, thread: int, depth: int) -> list[dict[str, Any]]:
    """Push/pop ranges of one thread: siblings may touch, children may fill their parent, some have
    no length.
    """
    out: list[dict[str, Any]] = []
    at = low
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(at, high))
        end = draw(st.integers(start, high))
        out.append(
            {"start": start, "end": end, "thread": thread, "text": draw(st.sampled_from(TEXTS))}
        )
        if depth and end > start:
            out += draw(nested(start, end, thread, depth - 1))
        at = end
    return out


@st.composite
def tree_traces(draw: st.DrawFn) -> Trace:
    ranges = [r for t in THREADS for r in draw(nested(0, 24, t, 3))]
    return draw(with_kernels(ranges))


@st.composite
def tangled_traces(draw: st.DrawFn) -> Trace:
    """Ranges that overlap as they please, start/end ranges among them."""
    moments = st.integers(0, 16)
    ranges = [
        {"start": a, "end": a + draw(st.integers(0, 8)), "thread": t, "text": text, "nests": nests}
        for a, t, text, nests in draw(
            st.lists(
                st.tuples(moments, st.sampled_from(THREADS), st.sampled_from(TEXTS), st.booleans()),
                max_size=14,
            )
        )
    ]
    return draw(with_kernels(ranges))


@st.composite
def with_kernels(draw: st.DrawFn, ranges: list[dict[str, Any]]) -> Trace:
    ids = st.sampled_from([NULL, 0, 1, 2, 3, 40, 1 << 33])
    launches = [
        (start, start + length, thread, number)
        for start, length, thread, number in draw(
            st.lists(
                st.tuples(st.integers(-1, 25), st.integers(0, 4), st.sampled_from(THREADS), ids),
                max_size=12,
            )
        )
    ]
    kernels = [
        {"start": n, "end": n + 1, "process": owner, "correlation": number}
        for n, (owner, number) in enumerate(
            draw(st.lists(st.tuples(st.sampled_from((*PROCESSES, process(77))), ids), max_size=12))
        )
    ]
    shuffle = draw(st.randoms(use_true_random=False)).shuffle
    for rows in (ranges, launches, kernels):
        shuffle(rows)
    return trace_rows.trace(kernels, launches, ranges)


@settings(max_examples=120, deadline=None)
@given(tree_traces())
def test_nested_ranges_are_attributed_as_brute_force_does(trace: Trace) -> None:
    check(trace)


@settings(max_examples=80, deadline=None)
@given(tangled_traces())
def test_ranges_that_do_not_nest_are_attributed_as_brute_force_does(trace: Trace) -> None:
    check(trace)


@settings(max_examples=40, deadline=None)
@given(tree_traces())
def test_nothing_depends_on_the_order_of_rows(trace: Trace) -> None:
    other = trace_rows.shuffled(trace)
    assert _summary(trace) == _summary(other)


def _summary(trace: Trace) -> list[Any]:
    found = attribute(trace, find_marks(trace))
    keys = zip(
        trace.kernels.start.tolist(),
        found.reason.tolist(),
        [_range(trace, r) for r in found.enclosing.tolist()],
        strict=True,
    )
    return sorted(keys)


def test_a_correlation_id_means_nothing_in_another_process() -> None:
    a, b = PROCESSES[:2]
    trace = trace_rows.trace(
        kernels=[{"process": a, "correlation": 1}, {"process": b, "correlation": 1}],
        launches=[(10, 11, a | 1, 1)],
        ranges=[{"start": 0, "end": 20, "thread": a | 1, "text": "a"}],
    )
    found = attribute(trace, find_marks(trace))
    assert found.launch.tolist() == [0, NULL]
    assert [REASONS[r] for r in found.reason] == ["", "no_launch"]


def test_a_range_of_another_thread_encloses_nothing() -> None:
    owner = PROCESSES[2]
    trace = trace_rows.trace(
        kernels=[{"process": owner, "correlation": 4}],
        launches=[(10, 11, owner | 2, 4)],
        ranges=[{"start": 0, "end": 20, "thread": owner | 1, "text": "a"}],
    )
    found = attribute(trace, find_marks(trace))
    assert [REASONS[r] for r in found.reason] == ["outside"]


def test_a_repeated_launch_counts_once_and_is_told() -> None:
    owner = PROCESSES[0]
    launches = [(30, 31, owner | 1, 4), (10, 11, owner | 1, 4), (20, 21, owner | 1, 5)]
    trace = trace_rows.trace([{"process": owner, "correlation": 4}], launches)
    found = attribute(trace, find_marks(trace))
    assert found.launch.tolist() == [1]
    assert found.duplicate_launches == 1


def test_ids_far_apart_are_joined_without_a_table_of_their_size() -> None:
    owner = PROCESSES[0]
    launches = [(n, n + 1, owner | 1, n << 50) for n in range(1, 2000)]
    trace = trace_rows.trace([], launches)
    wanted = np.array([1 << 50, 1999 << 50, 3, NULL, -(1 << 62)], np.int64)
    rows, repeats = join(trace.launches, np.full(5, owner), wanted)
    assert rows.tolist() == [0, 1998, NULL, NULL, NULL]
    assert repeats == 0


def test_threads_without_nesting_are_counted() -> None:
    thread = THREADS[0]
    crossing = [
        {"start": 0, "end": 10, "thread": thread, "text": "a"},
        {"start": 5, "end": 15, "thread": thread, "text": "b"},
        {"start": 0, "end": 10, "thread": THREADS[1], "text": "a"},
    ]
    trace = trace_rows.trace(ranges=crossing)
    assert attribute(trace, find_marks(trace)).unnested_threads == 1


def test_many_ranges_that_cross_are_no_quadratic_wait() -> None:
    owner, count = PROCESSES[0], 20_000
    ranges = [
        {"start": 2 * n, "end": 10 * count + 2 * n, "thread": owner | 1, "text": "a"}
        for n in range(count)
    ]
    launches = [(2 * n, 2 * n + 1, owner | 1, n) for n in range(count)]
    kernels = [{"process": owner, "correlation": n} for n in range(count)]
    trace = trace_rows.trace(kernels, launches, ranges)
    began = time.process_time()
    found = attribute(trace, find_marks(trace))
    assert time.process_time() - began < 3
    assert found.enclosing.tolist() == list(range(count))


@pytest.mark.parametrize("depth", [3, nesting.DEEPEST + 20])
def test_a_deep_nest_is_answered_at_every_level(depth: int) -> None:
    owner = PROCESSES[0]
    ranges = [
        {"start": n, "end": 10_000 - n, "thread": owner | 1, "text": f"{n}"} for n in range(depth)
    ]
    launches = [(9_000, 9_001, owner | 1, 1), (10_000 - depth, 10_001 - depth, owner | 1, 2)]
    kernels = [{"process": owner, "correlation": n} for n in (1, 2)]
    trace = trace_rows.trace(kernels, launches, ranges)
    found = attribute(trace, find_marks(trace))
    assert found.enclosing.tolist() == [depth - 1, depth - 1]


# ---------------------------------------------------------------- graphs


@pytest.mark.parametrize("hops", [1, 2, 5])
def test_a_replayed_kernel_takes_its_stage_from_the_capture_and_its_iteration_from_the_launch(
    hops: int,
) -> None:
    trace = trace_factory.dsa_trace(graph="node", hops=hops, iterations=2, warmup=1)
    found_marks = find_marks(trace)
    found = attribute(trace, found_marks)
    assert found.captured.all()
    parsed = [found_marks.parsed[int(trace.ranges.text[r])] for r in found.iteration]
    assert sorted({m.kind for m in parsed}) == ["iter", "warmup"]
    layer = list(trace_factory.LAYER)
    stages = [found_marks.parsed[int(trace.ranges.text[r])].value for r in found.stage]
    assert stages == layer * (len(stages) // len(layer))
    assert (found.enclosing == found.stage).all()


def test_a_graph_captured_before_the_collection_is_told_apart() -> None:
    owner = PROCESSES[0]
    trace = trace_rows.trace(
        kernels=[
            {"process": owner, "correlation": 1, "graph_node": 9},
            {"process": owner, "correlation": 2, "graph_node": 9},
        ],
        launches=[(10, 11, owner | 1, 1), (30, 31, owner | 1, 2)],
        ranges=[{"start": 0, "end": 20, "thread": owner | 1, "text": "step"}],
    )
    found = attribute(trace, find_marks(trace))
    assert [REASONS[r] for r in found.reason] == ["", "graph_only"]
    assert not found.captured.any()


def creations(nodes: list[tuple[int, int, int, int, int]], *wanted: int) -> list[int]:
    trace = trace_rows.trace(nodes=nodes)
    owner = np.full(len(wanted), PROCESSES[0])
    return graphs.creations(trace.graph_nodes, owner, np.array(wanted, np.int64)).tolist()


def test_a_chain_of_clones_ends_at_its_creation() -> None:
    thread = THREADS[0]
    chain = [(0, 1, thread, 100, NULL)]
    chain += [(n, n + 1, thread, 100 + n, 99 + n) for n in range(1, 40)]
    assert creations(chain, 139, 100, 101, 7) == [0, 0, 0, NULL]


def test_cycles_and_lost_roots_have_no_creation() -> None:
    thread = THREADS[0]
    nodes = [
        (0, 1, thread, 1, 2), (0, 1, thread, 2, 1),  # a circle
        (0, 1, thread, 3, 3),  # its own clone
        (0, 1, thread, 4, 1000),  # its original is not in the file
        (0, 1, thread, 5, 1),  # leads into the circle
    ]  # fmt: skip
    assert creations(nodes, 1, 2, 3, 4, 5) == [NULL] * 5


def test_a_node_created_and_cloned_follows_the_clone() -> None:
    thread = THREADS[0]
    nodes = [(5, 6, thread, 1, NULL), (8, 9, thread, 2, NULL), (9, 10, thread, 2, 1)]
    assert creations(nodes, 2) == [0]


def test_node_ids_of_two_processes_do_not_meet() -> None:
    nodes = [(5, 6, THREADS[2], 1, NULL)]
    assert creations(nodes, 1) == [NULL]


def test_only_marks_of_the_grammar_are_marks() -> None:
    texts = (marks.stage("topk"), "dsa:stage nothing", "dsa:iter x", marks.iteration(0), "layer")
    rows = [{"start": n, "end": n + 2, "text": text} for n, text in enumerate(texts)]
    found = find_marks(trace_rows.trace(ranges=rows))
    assert (found.stage.tolist(), found.iteration.tolist(), found.case.tolist()) == ([0], [3], [])
