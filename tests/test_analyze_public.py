"""Published recordings of real nsys: the numbers that were measured on them by other means."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import public_traces
import pytest
import trace_rows

from dsa_profiler import pipeline
from dsa_profiler.analysis import breakdown
from dsa_profiler.analysis.attribute import attribute, find_marks
from dsa_profiler.results import Results
from dsa_profiler.trace import reader

MFU = (
    # file, kernels, in ranges, ns, ns in ranges, the wrong sum of a join by id alone (in 10 us)
    (public_traces.MFU_BEFORE, 4_010, 3_986, 535_200_650, 516_689_349, 56_074),
    (public_traces.MFU_AFTER, 3_587, 3_577, 488_835_406, 488_014_833, 51_880),
)
CUDA = (*(row[0] for row in MFU), public_traces.GRAPH_MODE, public_traces.CLOVERLEAF)


def analyzed(name: str) -> Results:
    return pipeline.analyze(public_traces.trace(name))


def slugs(results: Results) -> set[str]:
    return {w.slug for w in results.warnings}


@pytest.mark.parametrize(("name", "kernels", "inside", "total", "inside_ns", "wrong"), MFU)
def test_two_processes_with_colliding_ids(
    name: str, kernels: int, inside: int, total: int, inside_ns: int, wrong: int
) -> None:
    results = analyzed(name)
    coverage = results.coverage
    assert (coverage.kernels, coverage.attributed) == (kernels, inside)
    assert (coverage.total_ns, coverage.attributed_ns) == (total, inside_ns)
    assert coverage.reasons == {"no_launch": kernels - inside}
    assert coverage.reasons_ns == {"no_launch": total - inside_ns}
    assert sum(r.total_ns for r in results.range_totals) == inside_ns
    assert round(coverage.attributed_ns / 1e4) != wrong
    assert results.trace.processes == 2
    assert "no-launch" in slugs(results)


@pytest.mark.parametrize("name", [row[0] for row in MFU])
def test_every_kernel_of_a_real_trace_is_where_brute_force_puts_it(name: str) -> None:
    trace = reader.read(public_traces.trace(name))
    found = attribute(trace, find_marks(trace))
    ranges, launches = trace.ranges, trace.launches
    usable = ranges.nests & (ranges.end > ranges.start)
    length = ranges.end - ranges.start
    for launch, row in zip(found.launch.tolist(), found.enclosing.tolist(), strict=True):
        if launch < 0:
            assert row < 0
            continue
        around = np.flatnonzero(
            usable
            & (ranges.thread == launches.thread[launch])
            & (ranges.start <= launches.start[launch])
            & (ranges.end >= launches.end[launch])
        )
        assert len(around)
        assert length[row] == length[around].min()
        assert row in around
    assert found.unnested_threads == 0


def test_a_graph_mode_capture_says_what_it_hides() -> None:
    results = analyzed(public_traces.GRAPH_MODE)
    (total,) = results.kernel_totals
    assert (total.calls, total.total_ns) == (3, 3_840)
    hidden = next(w for w in results.warnings if w.slug == "kernels-not-visible")
    assert hidden.what.startswith("2 CUDA graph launches")
    assert "--cuda-graph-trace=node" in hidden.cure
    assert sum(w.slug == "diagnostic" for w in results.warnings) == 3
    assert "no-ranges" in slugs(results)


def test_no_ranges_at_all_is_an_answer() -> None:
    results = analyzed(public_traces.CLOVERLEAF)
    coverage = results.coverage
    assert (coverage.kernels, coverage.total_ns) == (1_312, 294_404_540)
    assert coverage.reasons_ns == {"outside": 294_404_540}
    assert len(results.kernel_totals) == 102
    assert results.range_totals == ()
    assert "no-ranges" in slugs(results)


@pytest.mark.parametrize(
    ("name", "ranges", "open_ranges"),
    [
        (public_traces.NVTX_2022, 52, 2),
        (public_traces.NVTX_2023, 52, 2),
        (public_traces.DELAYED, 5, 1),
    ],
)
def test_ranges_without_a_gpu_are_an_answer_too(name: str, ranges: int, open_ranges: int) -> None:
    results = analyzed(name)
    assert results.trace.ranges == ranges
    assert (results.coverage.kernels, results.cases) == (0, ())
    told = {w.slug: w.what for w in results.warnings}
    assert told["ranges-truncated"].startswith(f"{open_ranges} ")
    assert "no-kernels" in told
    assert "ranges-not-nested" not in told


@pytest.mark.parametrize("name", public_traces.ALL)
def test_the_order_of_rows_changes_no_byte(name: str) -> None:
    trace = reader.read(public_traces.trace(name))
    expected, other = (
        json.dumps(breakdown.analyze(t).as_json()) for t in (trace, trace_rows.shuffled(trace))
    )
    assert other == expected


@pytest.mark.nsys
@pytest.mark.parametrize("name", CUDA)
def test_totals_are_those_of_nsys_stats(name: str, tmp_path: Path) -> None:
    """On a copy, since nsys writes into the file that it reads."""
    path = tmp_path / name
    shutil.copyfile(public_traces.trace(name), path)
    command = ["nsys", "stats", "--report", "gpukernsum", "--format", "csv", "--quiet", str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    theirs: dict[str, int] = {}
    for row in csv.DictReader(io.StringIO(out.lstrip())):
        theirs[row["Name"]] = theirs.get(row["Name"], 0) + int(row["Total Time (ns)"])
    ours = {k.name: k.total_ns for k in analyzed(name).kernel_totals}
    assert ours == theirs
