"""The published traces: what was measured on them holds for what is read from them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import public_traces as public
import pytest

from dsa_profiler.columns import NULL, PROCESS_MASK, Gpu, Trace
from dsa_profiler.trace.reader import read

FIXTURES = Path(__file__).parents[1] / "traces" / "fixtures"


def kernels_ns(trace: Trace) -> tuple[int, int]:
    only = trace.kernels.kind == 0
    return int(only.sum()), int((trace.kernels.end - trace.kernels.start)[only].sum())


@pytest.mark.parametrize(
    ("name", "kernels", "total", "launches", "ranges", "schema"),
    [
        (public.MFU_BEFORE, 4010, 535_200_650, 7466, 19118, "3.25.0"),
        (public.MFU_AFTER, 3587, 488_835_406, 6682, 17113, "3.25.0"),
        (public.GRAPH_MODE, 3, 3_840, 33, 0, "3.24.0"),
        (public.CLOVERLEAF, 1312, 294_404_540, 3048, 0, "3.13.2"),
        (public.NVTX_2022, 0, 0, 0, 52, "3.0.0"),
        (public.NVTX_2023, 0, 0, 0, 52, "3.7.2"),
        (public.DELAYED, 0, 0, 0, 5, "3.7.2"),
    ],
)
def test_rows_and_totals(
    name: str, kernels: int, total: int, launches: int, ranges: int, schema: str
) -> None:
    trace = read(public.trace(name))
    assert kernels_ns(trace) == (kernels, total)
    assert (len(trace.launches), len(trace.ranges)) == (launches, ranges)
    assert trace.info.schema_version == schema
    assert trace.info.skipped_rows == {}


def test_two_processes_and_their_colliding_correlation_ids() -> None:
    trace = read(public.trace(public.MFU_BEFORE))
    kernels = trace.kernels
    processes = sorted(set(kernels.process.tolist()))
    only = kernels.kind == 0
    assert sorted(Counter(kernels.process[only].tolist()).values()) == [1993, 2017]
    calls = trace.launches.thread & PROCESS_MASK
    ids = [set(trace.launches.correlation[calls == p].tolist()) - {NULL} for p in processes]
    assert len(ids[0] & ids[1]) == 264
    assert (kernels.kind == 1).sum() == 1020
    assert (kernels.kind == 2).sum() == 269
    assert trace.info.graph_mode == "graph"


def test_texts_come_from_the_row_or_from_the_string_table() -> None:
    trace = read(public.trace(public.MFU_BEFORE))
    texts = {trace.strings[i] for i in set(trace.ranges.text.tolist())}
    assert any(t.startswith("aten::") for t in texts)
    assert any("nccl" in t.lower() for t in texts)
    assert len({trace.strings[i] for i in trace.kernels.name[trace.kernels.kind == 0]}) == 27


def test_graph_mode_hides_kernels_and_says_so() -> None:
    trace = read(public.trace(public.GRAPH_MODE))
    graphs = trace.graph_launches
    assert sorted((graphs.end - graphs.start).tolist()) == [1376, 1728]
    assert sorted(graphs.correlation.tolist()) == [141, 142]
    assert set(graphs.correlation.tolist()) <= set(trace.launches.correlation.tolist())
    assert trace.info.graph_mode == "graph"
    assert len(trace.graph_nodes) == 0, "CUDA_GRAPH_EVENTS holds whole graphs here"
    assert Counter(d.severity for d in trace.info.diagnostics)[2] == 3
    assert trace.info.gpus == (Gpu("NVIDIA GeForce RTX 3060", 86, 28),)


def test_no_ranges_at_all_is_an_answer() -> None:
    trace = read(public.trace(public.CLOVERLEAF))
    assert len(trace.ranges) == 0
    assert not trace.info.domains_without_ranges
    assert trace.info.gpus[0] == Gpu("NVIDIA A100-SXM4-80GB", 80, 108)
    assert max(len(s) for s in trace.strings.values()) == 608
    assert len(set(trace.kernels.name[trace.kernels.kind == 0].tolist())) == 102


@pytest.mark.parametrize("name", [public.NVTX_2022, public.NVTX_2023])
def test_what_nests_and_what_does_not(name: str) -> None:
    trace = read(public.trace(name))
    ranges = trace.ranges
    text = np.array([trace.strings[i] for i in ranges.text.tolist()])
    assert int(ranges.nests.sum()) == 47
    assert set(text[~ranges.nests]) == {
        "A", "B", "startend_same", "startend_cross", "open_start_never_ended",
    }  # fmt: skip
    assert set(text[ranges.truncated]) == {"open_start_never_ended", "open_push_never_popped"}
    assert (ranges.end[ranges.truncated] == trace.info.duration_ns).all()
    assert Counter(text.tolist())["indexer"] == 9
    domains = {trace.strings[i] if i != NULL else None for i in ranges.domain.tolist()}
    assert domains == {None, "dsa"}


def test_a_window_cuts_off_its_last_range() -> None:
    trace = read(public.trace(public.DELAYED))
    lasts = (trace.ranges.end - trace.ranges.start)[~trace.ranges.truncated]
    assert int(trace.ranges.truncated.sum()) == 1
    assert lasts.tolist() == pytest.approx([200.15e6, 200.18e6, 200.59e6, 200.17e6], abs=5e3)


@pytest.mark.parametrize("name", ["nsys-2022.4-nvtx", "nsys-2023.4-nvtx"])
def test_recorded_fixtures(name: str) -> None:
    trace = read(FIXTURES / f"{name}.sqlite")
    text = np.array([trace.strings[i] for i in trace.ranges.text.tolist()])
    counts = Counter(text.tolist())
    assert counts["dsa:stage topk"] == 5
    assert counts["dsa:iter 0"] == 2
    assert set(text[trace.ranges.truncated]) == {"left open"}
    assert set(text[~trace.ranges.nests]) == {"interleaved A", "interleaved B"}
    assert len(set(trace.ranges.thread.tolist())) == 2


def test_a_shifted_clock_is_taken_back() -> None:
    plain = read(FIXTURES / "nsys-2023.4-nvtx.sqlite")
    shifted = read(FIXTURES / "nsys-2023.4-nvtx-normalized.sqlite")
    np.testing.assert_array_equal(plain.ranges.start, shifted.ranges.start)
    np.testing.assert_array_equal(plain.ranges.truncated, shifted.ranges.truncated)
    assert plain.info.duration_ns == shifted.info.duration_ns


def test_a_recorded_chrome_trace() -> None:
    trace = read(FIXTURES / "torch-2.13-cpu.json.gz")
    text = Counter(trace.strings[i] for i in trace.ranges.text.tolist())
    assert text["dsa:stage topk"] == 3
    assert text["dsa:case context-b1-s64-h8-bfloat16"] == 1
    assert len(trace.kernels) == 0
    assert trace.ranges.nests.all()
