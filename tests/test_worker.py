"""The profiled child: its protocol, what it records, and what a fault does to the rest."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_oracle import SMALL

from dsa_profiler import marks
from dsa_profiler.errors import InputError
from dsa_profiler.model import Case
from dsa_profiler.workloads import bench, measure, worker
from dsa_profiler.workloads.order import read_order

MODEL = replace(SMALL, kv_lora_rank=128)
CONTEXT = Case("context", 2, 5, 3, "float32", prefix=4)
GENERATION = Case("generation", 3, 20, 3, "fp8")
TOO_LONG = Case("generation", 1, 64, 3)
TOO_LARGE = Case("generation", 1 << 40, 20, 3)
WARMUP, ITERATIONS = 1, 3


def order(folder: Path, *cases: Case, **more: Any) -> Path:
    path = folder / "chunk.json"
    data = {
        "workload": "reference",
        "model": MODEL.as_json(),
        "cases": [case.as_json() for case in cases],
        "warmup": WARMUP,
        "iterations": ITERATIONS,
        "seed": 0,
        "device": "cpu",
        "parent": os.getpid(),
        "tracer": "none",
        "outcome": "outcome.jsonl",
        "raw_trace": "trace.json.gz",
        **more,
    }
    path.write_text(json.dumps(data))
    return path


def start(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dsa_profiler.workloads.worker", str(path)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # small tensors: threads only wait
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=one_thread)


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "outcome.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One run under torch.profiler: two good cases around one too long and one too large."""
    folder = tmp_path_factory.mktemp("recorded")
    child = start(order(folder, CONTEXT, TOO_LONG, TOO_LARGE, GENERATION, tracer="torch"))
    _, said = child.communicate(timeout=120)
    assert child.returncode == 0, said
    return folder, said


def test_events_tell_the_whole_story(recorded) -> None:
    folder, _ = recorded
    said = events(folder)
    assert [e["event"] for e in said if e["event"] in ("ready", "bye")] == ["ready", "bye"]
    assert said[0]["event"] == "ready"
    assert said[0]["device"] == "cpu"
    assert said[0]["environment"]["torch"] == torch.__version__
    assert said[0]["environment"]["compute_dtype"] == "float32"
    assert said[-1] == {"event": "bye"}
    ends = {e["case"]: e for e in said if e["event"] == "end"}
    assert list(ends) == [TOO_LONG.slug, TOO_LARGE.slug, CONTEXT.slug, GENERATION.slug]
    for case in (CONTEXT, GENERATION):
        end = ends[case.slug]
        assert end["status"] == "done"
        assert end["iterations"] == ITERATIONS
        assert 0 < end["untraced_ns"] < 10e9
        assert end["peak_memory_bytes"] > 1 << 20
        beats = [e for e in said if e["event"] == "beat" and e["case"] == case.slug]
        assert len(beats) == 2 * (WARMUP + ITERATIONS), "an untraced pass and a traced one"


def test_a_fault_belongs_to_its_case_in_one_line(recorded) -> None:
    folder, stderr = recorded
    ends = {e["case"]: e for e in events(folder) if e["event"] == "end"}
    assert ends[TOO_LONG.slug]["status"] == "failed"
    assert "needs 65 positions" in ends[TOO_LONG.slug]["detail"]
    assert ends[TOO_LARGE.slug]["status"] == "oom"
    for slug in (TOO_LONG.slug, TOO_LARGE.slug):
        assert "\n" not in ends[slug]["detail"]
        assert ends[slug]["untraced_ns"] is None
    assert "Traceback" in stderr, "the parent's log keeps the whole story"


def test_the_trace_holds_every_mark_of_every_good_case(recorded) -> None:
    folder, _ = recorded
    with gzip.open(folder / "trace.json.gz", "rt") as file:
        rows = json.load(file)["traceEvents"]
    found = sorted(
        (float(e["ts"]), -float(e["dur"]), e["name"])
        for e in rows
        if e.get("cat") == "user_annotation" and marks.parse(e["name"])
    )
    want = []
    for case in (CONTEXT, GENERATION):
        want.append(marks.case(case.slug))
        rounds = [marks.warmup(n) for n in range(WARMUP)]
        rounds += [marks.iteration(n) for n in range(ITERATIONS)]
        for text in rounds:
            want += [text, *(marks.stage(s) for s in _stages())]
    assert [name for _, _, name in found] == want
    assert not list(folder.glob("part.*"))


def test_without_a_tracer_there_are_times_and_no_trace(tmp_path: Path) -> None:
    worker.run(read_order(order(tmp_path, GENERATION)))
    assert events(tmp_path)[-2]["status"] == "done"
    assert events(tmp_path)[-2]["untraced_ns"] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chunk.json", "outcome.jsonl"]


@pytest.mark.parametrize("how", ["stop file", "parent gone"])
def test_it_stops_between_cases_when_told(tmp_path: Path, how: str) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    path = order(tmp_path, GENERATION, **({"parent": gone.pid} if how == "parent gone" else {}))
    if how == "stop file":
        (tmp_path / "stop").touch()
    worker.run(read_order(path))
    assert [e["event"] for e in events(tmp_path)] == ["ready", "bye"]


def test_asked_to_go_it_still_writes_what_the_tracer_saw(tmp_path: Path) -> None:
    many = [replace(CONTEXT, seq_len=n) for n in range(5, 17)]
    path = order(tmp_path, *many, iterations=10, tracer="torch")
    child = start(path)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(e["event"] == "end" for e in events(tmp_path)):
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM
    text = gzip.decompress((tmp_path / "trace.json.gz").read_bytes()).decode()
    assert marks.case(CONTEXT.slug) in text
    assert "bye" not in [e["event"] for e in events(tmp_path)]


def test_output_with_nan_is_no_measurement(tmp_path: Path, monkeypatch) -> None:
    _fake(monkeypatch, lambda mark: torch.tensor([1.0, torch.nan]))
    worker.run(read_order(order(tmp_path, GENERATION, workload="fake")))
    end = events(tmp_path)[-2]
    assert (end["status"], end["untraced_ns"]) == ("failed", None)
    assert "NaN" in end["detail"]


def test_a_fault_in_the_traced_pass_ends_the_case_too(tmp_path: Path, monkeypatch) -> None:
    def step(mark):
        with mark("topk"):
            if mark is not measure.unmarked:
                raise RuntimeError("first line\nsecond line")
        return torch.ones(1)

    _fake(monkeypatch, step)
    worker.run(read_order(order(tmp_path, GENERATION, workload="fake", tracer="torch")))
    end = events(tmp_path)[-2]
    assert (end["status"], end["detail"]) == ("failed", "RuntimeError: first line")


def test_a_fault_that_takes_the_context_along_ends_no_other_case(tmp_path, monkeypatch) -> None:
    """As CUDA does after an illegal access: the fault comes again from every call that waits."""
    poisoned: list[str] = []

    def step(mark):
        if len(events(tmp_path)) > 8 and not poisoned:  # in the second case
            poisoned.append("CUDA error: an illegal memory access was encountered")
        if poisoned:
            raise RuntimeError(poisoned[0])
        return torch.ones(1)

    def synchronise(device):
        if poisoned:
            raise RuntimeError(poisoned[0])

    _fake(monkeypatch, step)
    monkeypatch.setattr(measure, "synchronise", synchronise)
    cases = GENERATION, replace(GENERATION, batch_size=4), replace(GENERATION, batch_size=5)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        worker.run(read_order(order(tmp_path, *cases, workload="fake", tracer="torch")))
    said = [(e["event"], e.get("case")) for e in events(tmp_path) if e["event"] != "beat"]
    assert said == [("ready", None), *(("start", c.slug) for c in cases[:2])]


@pytest.mark.parametrize(
    ("error", "oom"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: an illegal memory access"), False),
        (ValueError("CUDA out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_faults(error: Exception, oom: bool) -> None:
    assert measure.is_out_of_memory(error) is oom
    assert bench.one_line(error).endswith("a GPU with more memory") is oom


@pytest.mark.parametrize(
    ("change", "what"),
    [({"workload": "magic"}, "unknown workload 'magic'"), ({"device": "cuda"}, "sees no CUDA")],
)
def test_what_cannot_begin_is_two_lines_and_exit_3(
    tmp_path: Path, capsys, monkeypatch, change: dict[str, str], what: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _main(order(tmp_path, GENERATION, **change)) == 3
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert what in first
    assert second.startswith(" cure: ")
    assert events(tmp_path) == []


def test_a_missing_torch_is_two_lines_and_exit_3(tmp_path: Path, capsys, monkeypatch) -> None:
    path = order(tmp_path, GENERATION)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert _main(path) == 3
    first, second = capsys.readouterr().err.splitlines()
    assert "torch cannot be loaded" in first
    assert "dsa-profiler[reference]" in second


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"workload": 3}'])
def test_a_broken_order_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "chunk.json").write_text(text)
    with pytest.raises(InputError, match="cannot read"):
        read_order(tmp_path / "chunk.json")


def test_the_peak_is_the_cases_own() -> None:
    device = torch.device("cpu")
    measure.reset_peak(device)
    low = measure.peak_bytes(device)
    block = torch.ones(1 << 26)
    high = measure.peak_bytes(device)
    del block
    measure.reset_peak(device)
    after = measure.peak_bytes(device)
    assert low is not None
    assert high is not None
    assert after is not None
    assert high - low > 200 << 20
    assert high - after > 200 << 20


def _main(path: Path) -> int:
    """`main` sets a signal handler of its own; the test's process gets its own back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return worker.main([str(path)])
    finally:
        signal.signal(signal.SIGTERM, before)


def _fake(monkeypatch, step) -> None:
    workload = types.SimpleNamespace(environment={}, prepare=lambda case: step)
    module = types.ModuleType("fake_workload")
    module.build = lambda *arguments: workload
    monkeypatch.setitem(sys.modules, "fake_workload", module)
    monkeypatch.setitem(worker.WORKLOADS, "fake", "fake_workload")


def _stages() -> list[str]:
    from test_reference import STAGES

    return STAGES
