"""Results of traces that state every number: laws, cases, totals, and what is said aloud."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import trace_factory
import trace_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_rows import process

from dsa_profiler import marks
from dsa_profiler.analysis import breakdown, totals
from dsa_profiler.analysis.occupancy import occupancy
from dsa_profiler.columns import Diagnostic, Trace
from dsa_profiler.model import Case
from dsa_profiler.results import CaseResult, Results

CASE = Case("generation", 2, 63)
OWNER = process(5)
THREAD = OWNER | 1


def text_of(results: Results) -> str:
    return json.dumps(results.as_json())


def slugs(results: Results | CaseResult) -> set[str]:
    return {w.slug for w in results.warnings}


# ---------------------------------------------------------------- the law of time

intervals = st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 30)), min_size=1, max_size=20)


@settings(max_examples=120, deadline=None)
@given(intervals)
def test_sum_less_overlap_plus_gap_is_span(rows: list[tuple[int, int]]) -> None:
    start = np.array([s for s, _ in rows])
    end = np.array([s + n for s, n in rows])
    spent = occupancy(start, end)
    moments = {t for s, n in rows for t in range(s, s + n)}
    assert spent.busy == len(moments)
    assert spent.span == end.max() - start.min()
    assert spent.total == sum(n for _, n in rows)
    assert spent.total - spent.overlap + spent.gap == spent.span
    assert spent.busy + spent.gap == spent.span


def test_the_law_holds_at_the_ends_of_the_clock() -> None:
    far = 1 << 62
    spent = occupancy(np.array([-far, -far, 5]), np.array([far, far, 9]))
    assert (spent.span, spent.overlap, spent.gap) == (2 * far, 2 * far + 4, 0)


# ---------------------------------------------------------------- a case by hand


def by_hand(
    rounds: int = 5, slow: dict[int, int] | None = None, device: int = 0, owner: int = OWNER
) -> tuple[list[dict[str, Any]], list[tuple[int, int, int, int]], list[dict[str, Any]]]:
    """One warm-up and some iterations of two stages: 100 + 40 ns of kernels, 20 ns between them.
    The last kernel runs after its iteration's range has ended, as kernels do.
    """
    thread = owner | 1
    kernels, launches = [], []
    ranges = [
        {
            "start": 0,
            "end": 10_000 * rounds + 9_999,
            "thread": thread,
            "text": marks.case(CASE.slug),
        }
    ]
    for n in range(rounds + 1):
        at = 10_000 * n + 100
        text = marks.iteration(n - 1) if n else marks.warmup(0)
        ranges += [
            {"start": at, "end": at + 60, "thread": thread, "text": text},
            {"start": at + 10, "end": at + 20, "thread": thread, "text": marks.stage("q_b_proj")},
            {"start": at + 30, "end": at + 40, "thread": thread, "text": marks.stage("topk")},
        ]
        launches += [(at + 12, at + 14, thread, 2 * n), (at + 32, at + 34, thread, 2 * n + 1)]
        more = (slow or {}).get(n - 1, 0)
        kernels += [
            {"start": at + 50, "end": at + 150 + more, "correlation": 2 * n, "name": "nvjet_a"},
            {"start": at + 170 + more, "end": at + 210 + more, "correlation": 2 * n + 1,
             "name": "vllm::topKPerRowDecode<512>(int)"},
        ]  # fmt: skip
    for kernel in kernels:
        kernel |= {"process": owner, "device": device}
    return kernels, launches, ranges


def test_a_case_in_numbers() -> None:
    results = breakdown.analyze(trace_rows.trace(*by_hand()))
    (case,) = results.cases
    assert case.case == CASE
    assert case.iterations == 5
    assert case.timing == "gpu"
    assert case.span_ns.median == case.span_ns.min == case.span_ns.max == 160
    assert (case.busy_ns, case.overlap_ns, case.gap_ns) == (140, 0, 20)
    assert [(s.stage, s.group, s.kernels_per_iteration, s.median_ns) for s in case.stages] == [
        ("q_b_proj", "projections", 1.0, 100.0),
        ("topk", "topk", 1.0, 40.0),
    ]
    assert sum(s.share for s in case.stages) == pytest.approx(1)
    assert [(k.name, k.stage, k.calls_per_iteration, k.median_ns) for k in case.kernels] == [
        ("nvjet_a", "q_b_proj", 1.0, 100.0),
        ("vllm::topKPerRowDecode<512>(int)", "topk", 1.0, 40.0),
    ]
    assert case.window_ns == (10_150, 50_310)
    assert case.iteration_spans_ns == (160,) * 5
    assert case.warnings == ()


def test_totals_count_the_warm_up_too() -> None:
    results = breakdown.analyze(trace_rows.trace(*by_hand()))
    assert [(k.name, k.stage, k.calls, k.total_ns) for k in results.kernel_totals] == [
        ("nvjet_a", "q_b_proj", 6, 600),
        ("vllm::topKPerRowDecode<512>(int)", "topk", 6, 240),
    ]
    assert [(r.range, r.kernel, r.calls, r.total_ns) for r in results.range_totals] == [
        ("dsa:stage q_b_proj", "nvjet_a", 6, 600),
        ("dsa:stage topk", "vllm::topKPerRowDecode<512>(int)", 6, 240),
    ]
    assert results.coverage.provenance == {"mark": 12}


def test_an_outlier_and_a_slow_start_are_told() -> None:
    results = breakdown.analyze(trace_rows.trace(*by_hand(8, slow={0: 200, 4: 90})))
    (case,) = results.cases
    assert slugs(case) == {"first-iteration-slow", "outlier-iterations"}
    assert case.span_ns.median == 160
    assert (case.span_ns.min, case.span_ns.max) == (160, 360)


def test_iterations_of_no_length_are_no_division_by_zero() -> None:
    kernels, launches, ranges = by_hand(8)
    for kernel in kernels[:-2]:
        kernel["end"] = kernel["start"] = 7
    (case,) = breakdown.analyze(trace_rows.trace(kernels, launches, ranges)).cases
    assert case.span_ns.median == 0


def test_of_several_gpus_the_slowest_speaks() -> None:
    one, other = by_hand(), by_hand(slow=dict.fromkeys(range(5), 7), device=1, owner=process(9))
    merged = [a + b for a, b in zip(one, other, strict=True)]
    (case,) = breakdown.analyze(trace_rows.trace(*merged)).cases
    assert case.iterations == 5
    assert case.span_ns.median == 167
    assert case.busy_ns - case.overlap_ns + case.gap_ns <= case.span_ns.median
    assert [s.median_ns for s in case.stages] == [107, 40]
    assert slugs(case) == {"several-devices"}


def test_iterations_cut_off_or_without_kernels_are_left_out_and_counted() -> None:
    kernels, launches, ranges = by_hand()
    last = max(n for n, r in enumerate(ranges) if r["text"] == marks.iteration(4))
    ranges[last]["truncated"] = True
    kernels = [k for k in kernels if k["correlation"] not in (4, 5)]
    results = breakdown.analyze(trace_rows.trace(kernels, launches, ranges))
    (case,) = results.cases
    assert case.iterations == 3
    assert slugs(case) == {"iterations-truncated", "iterations-empty"}
    assert "ranges-truncated" in slugs(results)


def test_a_case_without_a_whole_iteration_is_told_and_not_shown_as_zero() -> None:
    kernels, launches, ranges = by_hand(rounds=1)
    ranges = [r for r in ranges if not r["text"].startswith("dsa:iter")]
    results = breakdown.analyze(trace_rows.trace(kernels, launches, ranges))
    assert results.cases == ()
    assert "case-empty" in slugs(results)


def test_memory_operations_are_a_stage_and_no_kernels() -> None:
    kernels, launches, ranges = by_hand(rounds=2)
    for n in (1, 2):
        at = 10_000 * n + 100
        launches.append((at + 42, at + 43, THREAD, 100 + n))
        kernels.append(
            {"start": at + 400, "end": at + 500, "process": OWNER, "correlation": 100 + n,
             "name": "[memcpy DtoH]", "kind": 1}
        )  # fmt: skip
    results = breakdown.analyze(trace_rows.trace(kernels, launches, ranges))
    (case,) = results.cases
    assert {s.stage: s.median_ns for s in case.stages} == {
        "q_b_proj": 100, "memory": 100, "topk": 40,
    }  # fmt: skip
    assert case.span_ns.median == 450
    assert results.coverage.kernels == results.trace.kernels == 6
    assert all(k.name != "[memcpy DtoH]" for k in results.kernel_totals)


def test_streams_that_overlap() -> None:
    kernels, launches, ranges = by_hand(rounds=1)
    kernels[2] |= {"start": 10_150, "end": 10_250}
    kernels[3] |= {"start": 10_200, "end": 10_260}
    (case,) = breakdown.analyze(trace_rows.trace(kernels, launches, ranges)).cases
    assert (case.span_ns.median, case.busy_ns, case.overlap_ns, case.gap_ns) == (110, 110, 50, 0)


# ---------------------------------------------------------------- without a GPU


def test_stages_are_timed_by_their_host_ranges_where_there_is_no_gpu() -> None:
    _, _, ranges = by_hand(rounds=3)
    results = breakdown.analyze(trace_rows.trace(ranges=ranges))
    (case,) = results.cases
    assert case.timing == "host"
    assert slugs(case) == {"host-timing"}
    assert (case.span_ns.median, case.busy_ns, case.gap_ns) == (30, 20, 10)
    assert [(s.stage, s.median_ns) for s in case.stages] == [("q_b_proj", 10), ("topk", 10)]
    assert case.kernels == ()
    assert slugs(results) == set()


def test_of_nested_host_stages_the_outer_keeps_what_the_inner_leaves() -> None:
    ranges = [
        {"start": 0, "end": 100, "thread": THREAD, "text": marks.case(CASE.slug)},
        {"start": 1, "end": 90, "thread": THREAD, "text": marks.iteration(0)},
        {"start": 10, "end": 60, "thread": THREAD, "text": marks.stage("sparse_attn")},
        {"start": 20, "end": 30, "thread": THREAD, "text": marks.stage("topk")},
        {"start": 30, "end": 45, "thread": THREAD, "text": marks.stage("mqa_logits")},
    ]
    (case,) = breakdown.analyze(trace_rows.trace(ranges=ranges)).cases
    assert {s.stage: s.median_ns for s in case.stages} == {
        "sparse_attn": 25, "mqa_logits": 15, "topk": 10,
    }  # fmt: skip
    assert (case.busy_ns, case.overlap_ns, case.gap_ns) == (50, 0, 0)


def test_an_iteration_without_stage_marks_is_unknown_time() -> None:
    _, _, ranges = by_hand(rounds=2)
    ranges = [r for r in ranges if not r["text"].startswith("dsa:stage")]
    (case,) = breakdown.analyze(trace_rows.trace(ranges=ranges)).cases
    assert [(s.stage, s.median_ns) for s in case.stages] == [("unknown", 60)]


# ---------------------------------------------------------------- graphs


def test_a_graph_gives_the_same_stages_as_the_eager_layer() -> None:
    eager = breakdown.analyze(trace_factory.dsa_trace())
    graph = breakdown.analyze(trace_factory.dsa_trace(graph="node", hops=2))
    assert [c.case for c in eager.cases] == [c.case for c in graph.cases]
    for one, other in zip(eager.cases, graph.cases, strict=True):
        assert {s.stage for s in one.stages} == {s.stage for s in other.stages}
        assert other.iterations == 3
    assert set(eager.coverage.provenance) == {"mark"}
    assert set(graph.coverage.provenance) == {"capture"}


def test_a_whole_graph_capture_says_that_kernels_are_not_visible_and_never_zero() -> None:
    results = breakdown.analyze(trace_factory.dsa_trace(graph="graph"))
    assert "kernels-not-visible" in slugs(results)
    assert any("--cuda-graph-trace=node" in w.what for w in results.warnings)
    for case in results.cases:
        assert case.span_ns.min > 0
        assert [s.stage for s in case.stages] == ["unknown"]
        assert "kernels-not-visible" in slugs(case)
        assert case.timing == "gpu"


# ---------------------------------------------------------------- laws over whole traces


@pytest.mark.parametrize("graph", ["none", "node", "graph"])
@pytest.mark.parametrize("processes", [1, 3])
def test_the_same_rows_in_any_order_give_the_same_bytes(graph: str, processes: int) -> None:
    trace = trace_factory.dsa_trace(graph=graph, processes=processes)
    expected = text_of(breakdown.analyze(trace))
    for seed in range(3):
        assert text_of(breakdown.analyze(trace_rows.shuffled(trace, seed))) == expected


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_every_nanosecond_is_accounted_for(data: st.DataObject) -> None:
    count = st.integers(0, 12)
    numbers = st.integers(-1, 6)
    owner = st.sampled_from([OWNER, process(9)])
    kernels = [
        {"start": n, "end": n + data.draw(st.integers(0, 1 << 40)), "process": data.draw(owner),
         "correlation": data.draw(numbers), "graph_node": data.draw(st.sampled_from([-1, 3])),
         "name": data.draw(st.sampled_from(["a", "b", "topk_kernel(int)"])),
         "kind": data.draw(st.sampled_from([0, 0, 1]))}
        for n in range(data.draw(count))
    ]  # fmt: skip
    launches = [
        (n, n + 1, data.draw(owner) | 1, data.draw(numbers)) for n in range(data.draw(count))
    ]
    ranges = [
        {"start": n, "end": n + 3, "thread": data.draw(owner) | 1, "text": f"r{n % 2}"}
        for n in range(data.draw(count))
    ]
    found = breakdown.analyze(trace_rows.trace(kernels, launches, ranges))
    real = [k for k in kernels if k["kind"] == 0]
    total = sum(k["end"] - k["start"] for k in real)
    coverage = found.coverage
    assert coverage.kernels == len(real) == coverage.attributed + coverage.unattributed
    assert coverage.total_ns == total == coverage.attributed_ns + sum(coverage.reasons_ns.values())
    assert coverage.unattributed == sum(coverage.reasons.values())
    assert sum(coverage.provenance.values()) == coverage.attributed
    assert sum(k.total_ns for k in found.kernel_totals) == total
    assert sum(k.calls for k in found.kernel_totals) == len(real)
    assert sum(r.total_ns for r in found.range_totals) == coverage.attributed_ns
    assert sum(r.calls for r in found.range_totals) == coverage.attributed


def test_sums_beyond_what_a_float_holds_are_exact() -> None:
    kernels = [
        {"start": 0, "end": (1 << 61) + n, "process": OWNER, "correlation": 1} for n in (1, 3, 5, 7)
    ]
    ranges = [{"start": 0, "end": 9, "thread": THREAD, "text": "r"}]
    found = breakdown.analyze(trace_rows.trace(kernels, [(1, 2, THREAD, 1)], ranges))
    assert found.kernel_totals[0].total_ns == (1 << 63) + 16
    assert found.range_totals[0].total_ns == found.coverage.attributed_ns == (1 << 63) + 16


def test_more_possible_pairs_than_a_table_holds_are_summed_all_the_same() -> None:
    count = 1_100
    kernels, launches, ranges = [], [], []
    for n in range(count):
        ranges.append({"start": 10 * n, "end": 10 * n + 9, "thread": THREAD, "text": f"r{n}"})
        for nth in (2 * n, 2 * n + 1):
            launches.append((10 * n + 1, 10 * n + 2, THREAD, nth))
            kernels.append(
                {"start": 0, "end": nth, "process": OWNER, "correlation": nth, "name": f"k{n}"}
            )
    assert count * count > totals.PAIRS
    found = breakdown.analyze(trace_rows.trace(kernels, launches, ranges))
    assert [(r.range, r.kernel, r.calls, r.total_ns) for r in found.range_totals] == [
        (f"r{n}", f"k{n}", 2, 4 * n + 1) for n in reversed(range(count))
    ]


def test_totals_of_several_traces_are_those_of_one() -> None:
    trace = trace_factory.dsa_trace(processes=2)
    twice = breakdown.join([breakdown.part(trace), breakdown.part(trace)])
    once = breakdown.analyze(trace)
    assert [(k.name, k.calls, k.total_ns, k.median_ns) for k in twice.kernel_totals] == [
        (k.name, 2 * k.calls, 2 * k.total_ns, k.median_ns) for k in once.kernel_totals
    ]
    assert twice.coverage.total_ns == 2 * once.coverage.total_ns
    assert twice.warnings == once.warnings


# ---------------------------------------------------------------- what is said aloud


def noted(**info: Any) -> dict[str, str]:
    trace = trace_rows.trace(*by_hand())
    trace = replace(trace, info=replace(trace.info, **info))
    return {w.slug: w.what for w in breakdown.analyze(trace).warnings}


def test_diagnostics_become_warnings_by_severity() -> None:
    lost = "Number of incomplete CUPTI events dropped: 7"
    told = noted(diagnostics=(Diagnostic(2, lost), Diagnostic(1, "fine"), Diagnostic(4, "chatty")))
    assert told == {"diagnostic": lost}
    assert noted(diagnostics=(Diagnostic(3, lost), Diagnostic(3, lost)))["diagnostic"] == (
        f"{lost} (2 times)"
    )


def test_capture_in_graph_mode_is_told_even_where_no_graph_ran() -> None:
    assert "graph-mode" in noted(graph_mode="graph")
    assert noted(graph_mode="node") == {}


def test_lost_marks_and_unusable_rows_are_told() -> None:
    assert "marks-lost" in noted(domains_without_ranges=True)
    assert "3 rows" in noted(skipped_rows={"end before start": 3, "other": 0})["rows-skipped"]


def test_kernels_without_a_launch_are_counted_and_shown() -> None:
    kernels, launches, ranges = by_hand()
    found = breakdown.analyze(trace_rows.trace(kernels, launches[1:], ranges))
    assert found.coverage.reasons == {"no_launch": 1}
    assert found.coverage.reasons_ns == {"no_launch": 100}
    assert "no-launch" in slugs(found)


def test_no_rows_at_all_is_an_answer() -> None:
    found = breakdown.analyze(trace_rows.trace())
    assert found.coverage.kernels == 0
    assert slugs(found) == {"no-kernels", "no-ranges"}
    assert json.loads(text_of(found))["schema"] == 1


def test_marks_that_lead_nowhere_are_told() -> None:
    ranges = [
        {"start": 0, "end": 9, "thread": THREAD, "text": "dsa:case no-case-at-all"},
        {"start": 1, "end": 8, "thread": THREAD, "text": marks.iteration(0)},
    ]
    found = breakdown.analyze(trace_rows.trace(ranges=ranges))
    assert found.cases == ()
    assert "marks-astray" in slugs(found)


def test_order_places_gemms_in_an_unmarked_iteration() -> None:
    thread, kernels, launches = THREAD, [], []
    names = ["sparse_attn_fwd_kernel", "nvjet_a", "nvjet_b"]
    for n, name in enumerate(names):
        launches.append((110 + 10 * n, 112 + 10 * n, thread, n))
        # streams reorder starts: the order of launch decides
        kernels.append(
            {"start": 500 - 50 * n, "end": 520 - 50 * n, "process": OWNER, "correlation": n,
             "name": name}
        )  # fmt: skip
    ranges = [
        {"start": 0, "end": 300, "thread": thread, "text": marks.case(CASE.slug)},
        {"start": 100, "end": 200, "thread": thread, "text": marks.iteration(0)},
    ]
    found = breakdown.analyze(trace_rows.trace(kernels, launches, ranges))
    (case,) = found.cases
    assert {k.name: k.stage for k in case.kernels} == {
        "sparse_attn_fwd_kernel": "sparse_attn", "nvjet_a": "v_up_proj", "nvjet_b": "o_proj",
    }  # fmt: skip
    assert found.coverage.provenance == {"name": 1, "order": 2}


def test_unknown_kernels_are_named() -> None:
    kernels, launches, ranges = by_hand()
    bare = trace_rows.trace(kernels, launches, [r for r in ranges if "stage" not in r["text"]])
    found = breakdown.analyze(bare)
    assert found.coverage.unknown_kernels == ("nvjet_a",)
    assert found.coverage.provenance == {"none": 6, "name": 6}


# ---------------------------------------------------------------- any trace at all

GOOD = (
    trace_rows.trace(*by_hand()),
    trace_rows.trace(ranges=by_hand()[2]),
    trace_factory.dsa_trace(graph="node", processes=2, iterations=2),
    trace_factory.dsa_trace(graph="graph", iterations=2),
)
times = st.one_of(st.integers(0, 60_000), st.integers(-(1 << 62), 1 << 62))
lengths = st.one_of(st.integers(0, 20_000), st.integers(0, 1 << 50))
ids = st.one_of(st.integers(-1, 8), st.integers(-(1 << 63), (1 << 63) - 1))


@st.composite
def damaged_traces(draw: st.DrawFn) -> Trace:
    """Good traces with a few cells overwritten: whatever a reader may still hand on, with times up
    to 2^62, any ids, and names that are not in the table.
    """
    trace = draw(st.sampled_from(GOOD))
    tables = {
        name: {f: getattr(table, f).copy() for f in type(table).__dataclass_fields__}
        for name in ("kernels", "launches", "ranges", "graph_nodes", "graph_launches")
        if len(table := getattr(trace, name))
    }
    for _ in range(draw(st.integers(1, 6))):
        columns = tables[draw(st.sampled_from(sorted(tables)))]
        column = draw(st.sampled_from(sorted(columns)))
        row = draw(st.integers(0, len(columns[column]) - 1))
        if column in ("start", "end"):
            columns["start"][row] = draw(times)
            columns["end"][row] = columns["start"][row] + draw(lengths)
        elif column in ("nests", "truncated"):
            columns[column][row] = draw(st.booleans())
        elif column == "kind":
            columns[column][row] = draw(st.integers(0, 2))
        elif column == "process":
            columns[column][row] = draw(ids) & ~0xFFFFFF
        else:
            columns[column][row] = draw(ids)
    rebuilt = {name: type(getattr(trace, name))(**c) for name, c in tables.items()}
    return replace(trace, **rebuilt)


@settings(max_examples=60, deadline=None)
@given(damaged_traces())
def test_any_trace_has_results_and_keeps_the_laws(trace: Trace) -> None:
    found = breakdown.analyze(trace)
    coverage = found.coverage
    assert coverage.total_ns == coverage.attributed_ns + sum(coverage.reasons_ns.values())
    assert sum(k.total_ns for k in found.kernel_totals) == coverage.total_ns
    for case in found.cases:
        assert len(case.iteration_spans_ns) == case.iterations
    assert text_of(breakdown.analyze(trace_rows.shuffled(trace))) == text_of(found)
