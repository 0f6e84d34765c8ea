"""`analyze` from file to document: the verb, a session, and nsys' own sums."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trace_factory

from dsa_profiler import pipeline, session
from dsa_profiler.capture import child, nsys
from dsa_profiler.cli import main
from dsa_profiler.errors import Exit, InputError
from dsa_profiler.model import Case, load_model
from dsa_profiler.plan import Plan
from dsa_profiler.results import KernelTotal
from dsa_profiler.session import Chunk, Outcome, Session
from dsa_profiler.trace import writer

CASES = (*trace_factory.CASES, Case("generation", 8, 127))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "a.sqlite"
    writer.write(trace_factory.dsa_trace(processes=2), path)
    return path


# ---------------------------------------------------------------- the verb


def test_json_is_one_document_of_the_contract(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", str(trace), "--json"]) == Exit.OK
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert told.err == ""
    assert document["schema"] == 1
    assert set(document["trace"]) >= {
        "producer", "schema_version", "gpus", "processes", "kernels", "launches", "ranges",
        "duration_ns",
    }  # fmt: skip
    assert set(document["coverage"]) >= {"kernels", "attributed", "unattributed", "unknown_kernels"}
    assert set(document["kernel_totals"][0]) == {
        "name",
        "stage",
        "calls",
        "total_ns",
        "min_ns",
        "median_ns",
        "max_ns",
    }
    assert set(document["range_totals"][0]) == {"range", "kernel", "calls", "total_ns"}
    case = document["cases"][0]
    assert set(case) >= {
        "id", "phase", "batch_size", "seq_len", "num_heads", "dtype", "iterations", "span_ns",
        "busy_ns", "overlap_ns", "gap_ns", "stages", "kernels", "warnings",
    }  # fmt: skip
    assert set(case["span_ns"]) == {"median", "p10", "p90", "min", "max"}
    assert set(case["stages"][0]) == {
        "stage",
        "group",
        "kernels_per_iteration",
        "median_ns",
        "share",
    }
    assert set(case["kernels"][0]) == {
        "name",
        "stage",
        "calls_per_iteration",
        "median_ns",
        "p10_ns",
        "p90_ns",
    }


def test_tables_go_to_stdout_and_warnings_to_stderr(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", str(trace)]) == Exit.OK
    told = capsys.readouterr()
    for case in trace_factory.CASES:
        assert case.slug in told.out
    assert "warning" not in told.out
    assert "warning: 2 cases: 2 GPUs share each iteration" in told.err
    assert main(["analyze", str(trace), "-q"]) == Exit.OK
    assert capsys.readouterr().err == ""


def test_one_case_is_shown_with_its_kernels(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slug = trace_factory.CASES[1].slug
    assert main(["analyze", str(trace), "--case", slug, "--top", "3", "-q"]) == Exit.OK
    told = capsys.readouterr().out
    assert "sm90::fwd::sparse_attn_fwd_kernel<sm90::fwd::KernelTemplate<576,false" in told
    assert "... 5 more" in told
    assert trace_factory.CASES[0].slug not in told
    assert main(["analyze", str(trace), "--case", slug, "--json"]) == Exit.OK
    assert [c["id"] for c in json.loads(capsys.readouterr().out)["cases"]] == [slug]


def test_a_trace_without_marks_shows_its_kernels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = trace_factory.Program()
    program.thread().launch("void f<[lambda() (instance 1)]>(int)", 5_000)
    writer.write(program.trace(), tmp_path / "b.sqlite")
    assert main(["analyze", str(tmp_path / "b.sqlite")]) == Exit.OK
    told = capsys.readouterr()
    assert "f<{lambda()#1}>" in told.out
    assert "no NVTX ranges" in told.err


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["nowhere.sqlite"], Exit.BAD_INPUT, "no such file"),
        (["TRACE", "--case", "generation-b64-s4096-h128-bfloat16"], Exit.USAGE, "no case"),
        (["TRACE", "--top", "-1"], Exit.USAGE, "below 0"),
        ([], Exit.USAGE, "required"),
    ],
)
def test_bad_input_is_two_lines(
    trace: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: Exit,
    what: str,
) -> None:
    assert main(["analyze", *(str(trace) if a == "TRACE" else a for a in arguments)]) == code
    told = capsys.readouterr()
    assert told.out == ""
    lines = told.err.splitlines()
    assert [lines[0].startswith("error: "), lines[1].startswith(" cure: ")] == [True, True]
    assert len(lines) == 2
    assert what in lines[0]


def test_a_file_that_is_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.sqlite"
    path.write_text("select 1")
    assert main(["analyze", str(path), "--json"]) == Exit.BAD_INPUT
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------- a session


def make_session(folder: Path, outcomes: dict[Case, Outcome], chunks: int = 2) -> Session:
    """A recorded session: chunk 1 has the first two cases, chunk 2 the last two."""
    parts = []
    for number, cases in enumerate((CASES[:2], CASES[1:])[:chunks], 1):
        name = f"chunks/{number:04}/trace.sqlite"
        writer.write(trace_factory.dsa_trace(cases, seed=number), folder / name)
        parts.append(Chunk(f"{number:04}", cases, name))
    made = Session(
        name="s",
        created="2026-01-01T00:00:00Z",
        workload="reference",
        tracer="nsys",
        model=load_model("deepseek-v3.2"),
        plan=Plan(CASES[::-1]),
        settings={},
        environment={},
        chunks=tuple(parts),
        outcomes=outcomes,
    )
    session.save(folder, made)
    return made


DONE = {
    CASES[0]: Outcome("done", "0001"),
    CASES[1]: Outcome("done", "0002"),
    CASES[2]: Outcome("done", "0002"),
}


def test_a_session_is_all_its_chunks_in_the_order_of_the_plan(tmp_path: Path) -> None:
    make_session(tmp_path, DONE)
    results = pipeline.analyze(tmp_path)
    chunks = [pipeline.analyze(tmp_path / f"chunks/000{n}/trace.sqlite") for n in (1, 2)]
    assert [c.case for c in results.cases] == list(CASES[::-1])
    # the case recorded twice counts from the chunk that its outcome names
    chosen = replace(results.cases[1], floor=None)
    assert chosen == chunks[1].cases[0]
    assert chosen != chunks[0].cases[1]
    assert results.trace.kernels == sum(c.trace.kernels for c in chunks)
    assert results.coverage.total_ns == sum(c.coverage.total_ns for c in chunks)
    total = {k.name: k for k in results.kernel_totals}
    for name in total:
        mine = [k for c in chunks for k in c.kernel_totals if k.name == name]
        assert total[name].total_ns == sum(k.total_ns for k in mine)
        assert total[name].max_ns == max(k.max_ns for k in mine)


def test_what_did_not_finish_is_told_and_left_out(tmp_path: Path) -> None:
    outcomes = {CASES[0]: Outcome("oom", "0001", "out of memory"), CASES[1]: DONE[CASES[1]]}
    make_session(tmp_path, outcomes)
    results = pipeline.analyze(tmp_path)
    assert [c.case for c in results.cases] == [CASES[1]]
    told = {w.slug: w.what for w in results.warnings}
    assert told["case-oom"] == f"{CASES[0].slug}: oom (out of memory)"
    assert told["cases-pending"].startswith("1 cases")


def test_tracing_overhead_is_told_beyond_three_percent(tmp_path: Path) -> None:
    make_session(tmp_path, DONE)
    spans = {c.case: c.span_ns.median for c in pipeline.analyze(tmp_path).cases}
    factors = dict(zip(CASES, (1.0, 1 / 1.02, 1 / 1.05), strict=True))
    outcomes = {
        case: replace(outcome, untraced_ns=spans[case] * factors[case])
        for case, outcome in DONE.items()
    }
    make_session(tmp_path, outcomes)
    told = {c.case: [w.slug for w in c.warnings] for c in pipeline.analyze(tmp_path).cases}
    assert told == {CASES[0]: [], CASES[1]: [], CASES[2]: ["tracing-overhead"]}


def test_a_chunk_that_cannot_be_read_takes_only_its_own_cases(tmp_path: Path) -> None:
    make_session(tmp_path, DONE)
    (tmp_path / "chunks/0001/trace.sqlite").write_bytes(b"nothing")
    results = pipeline.analyze(tmp_path)
    assert [c.case for c in results.cases] == [CASES[2], CASES[1]]
    assert "chunk-unreadable" in {w.slug for w in results.warnings}


def test_a_session_without_a_trace_is_an_error(tmp_path: Path) -> None:
    make_session(tmp_path, {}, chunks=0)
    with pytest.raises(InputError, match="no trace that can be read"):
        pipeline.analyze(tmp_path)


# ---------------------------------------------------------------- nsys agrees


def stats(path: Path) -> dict[str, tuple[int, int, int, int]]:
    """(calls, total, min, max) by kernel name, as `nsys stats` adds them up."""
    command = ["nsys", "stats", "--report", "gpukernsum", "--format", "csv", "--quiet", str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found: dict[str, tuple[int, int, int, int]] = {}
    for row in csv.DictReader(io.StringIO(out.lstrip())):
        calls, total, low, high = (
            int(row[c]) for c in ("Instances", "Total Time (ns)", "Min (ns)", "Max (ns)")
        )
        had = found.get(row["Name"], (0, 0, low, high))
        found[row["Name"]] = (
            had[0] + calls, had[1] + total, min(had[2], low), max(had[3], high),
        )  # fmt: skip
    return found


def summed(rows: tuple[KernelTotal, ...]) -> dict[str, tuple[int, int, int, int]]:
    return {k.name: (k.calls, k.total_ns, k.min_ns, k.max_ns) for k in rows}


@pytest.mark.nsys
@pytest.mark.parametrize("graph", ["none", "node"])
def test_totals_are_those_of_nsys_stats(tmp_path: Path, graph: str) -> None:
    path = trace_factory.export(
        trace_factory.dsa_trace(graph=graph, processes=2), tmp_path / "a.sqlite", "3.0.0"
    )
    assert summed(pipeline.analyze(path).kernel_totals) == stats(path)


PROGRAM = """
import nvtx
from dsa_profiler import marks
from dsa_profiler.model import Case
def inside(text):
    return nvtx.annotate(text, domain="dsa")
with inside(marks.case(Case("generation", 1, 7).slug)):
    for n in range(3):
        with inside(marks.iteration(n)):
            for stage in ("q_b_proj", "topk"):
                with inside(marks.stage(stage)):
                    sum(range(10_000))
"""


@pytest.mark.nsys
def test_a_report_is_converted_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracer = nsys.NsysTracer(nsys.find(), cuda=False)
    recording = tmp_path / "recording"
    recording.mkdir()
    command = tracer.command([sys.executable, "-c", PROGRAM], recording)
    try:
        child.launch(command, recording, tracer.environment(recording)).wait(120)
    finally:
        child.end(recording)
    report = recording / "raw.nsys-rep"
    assert report.exists(), (recording / child.LOG).read_text()
    before = sorted(p.name for p in recording.iterdir())
    assert main(["analyze", str(report), "--json"]) == Exit.OK
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert (case["timing"], case["iterations"]) == ("host", 3)
    assert {s["stage"] for s in case["stages"]} == {"q_b_proj", "topk"}
    assert sorted(p.name for p in recording.iterdir()) == before
