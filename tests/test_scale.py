"""GPUs of a node, shards of an array job, and their merge."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dsa_profiler import pipeline
from dsa_profiler import session as sessions
from dsa_profiler.capture.board import Board
from dsa_profiler.capture.outcome import Story
from dsa_profiler.capture.probe import Gpu
from dsa_profiler.capture.recording import Watched
from dsa_profiler.capture.slots import slots
from dsa_profiler.capture.verdict import LOSSES
from dsa_profiler.cli import main
from dsa_profiler.cli.merge import merge
from dsa_profiler.errors import UsageError
from dsa_profiler.model import load_model
from dsa_profiler.plan import Grid, build
from dsa_profiler.session import Chunk, Outcome, Session

H200, H100 = Gpu("NVIDIA H200", 90, "580.1", 143771), Gpu("NVIDIA H100", 90, "580.1", 81559)


def test_one_worker_takes_the_machine_as_it_is():
    assert [(s.environment, s.gpu) for s in slots("1", (H200, H200))] == [({}, 0)]
    assert [s.environment for s in slots("all", ())] == [{}]


def test_all_means_every_gpu_of_the_first_ones_kind(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = slots("all", (H200, H100, H200))
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in found] == ["0", "2"]


def test_hidden_gpus_stay_hidden(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    found = slots("0,1", (H200,) * 8)
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in found] == ["3", "5"]


@pytest.mark.parametrize("asked", ["0,1", "two", "9", "0,0", ""])
def test_gpus_that_are_absent_twice_or_mixed_are_refused(asked, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UsageError):
        slots(asked, (H200, H100))


def shard(root, name, batches, statuses, **change) -> Session:
    plan = build([Grid("generation", batches, (64,))])
    made = Session(
        name=name, created="2026-01-01T00:00:00Z", workload="reference", tracer="nsys",
        model=load_model("glm-5"), plan=plan, settings={"iterations": 5},
        environment={"cpu": "a", "tracer_choice": name},
        chunks=(Chunk("0001", plan.cases, "chunks/0001/trace.sqlite"),),
        outcomes={c: Outcome(s, "0001") for c, s in zip(plan.cases, statuses, strict=False)},
    )  # fmt: skip
    made = replace(made, **change)
    sessions.save(root / name, made)
    (root / name / "chunks/0001").mkdir(parents=True)
    (root / name / "chunks/0001/trace.sqlite").write_text(name, "utf-8")
    return made


def test_merged_shards_are_one_session(tmp_path, capsys):
    shard(tmp_path, "a", (1, 2), ("done", "oom"))
    shard(tmp_path, "b", (4, 8), ("done", "done"))
    code = main(["merge", "w", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path)])
    assert code == 5
    whole = sessions.load(tmp_path / "traces/w")
    assert [c.batch_size for c in whole.plan.cases] == [1, 2, 4, 8]
    assert [o.status for o in whole.outcomes.values()] == ["done", "oom", "done", "done"]
    for chunk, text in zip(whole.chunks, "ab", strict=True):
        assert (tmp_path / "traces/w" / chunk.trace).read_text("utf-8") == text
        assert {o.chunk for c, o in whole.outcomes.items() if c in chunk.cases} == {chunk.name}
    assert "3 of 4 cases done" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "traces").iterdir()] == ["w"]


def test_a_merge_is_told_as_json_and_keeps_what_a_chunk_knows(tmp_path, capsys):
    made = shard(tmp_path, "a", (1, 2), ("done", "done"))
    sampled = replace(made.chunks[0], gpu={"watts": 300.0})
    sessions.save(tmp_path / "a", replace(made, chunks=(sampled, *made.chunks[1:])))
    assert main(["merge", "w", str(tmp_path / "a"), "--output", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    place = str(tmp_path / "traces/w")
    assert told == {"schema": 1, "session": place, "cases": 2, "done": 2, "parts": 1}
    assert sessions.load(tmp_path / "traces/w").chunks[0].gpu == {"watts": 300.0}


def test_a_case_that_several_shards_did_keeps_the_first_done(tmp_path):
    parts = [shard(tmp_path, n, (1, 2), s) for n, s in (
        ("a", ("failed", "done")), ("b", ("done", "failed")))]  # fmt: skip
    outcomes = merge(parts, "w").outcomes.values()
    assert [(o.status, o.chunk) for o in outcomes] == [("done", "001-0001"), ("done", "000-0001")]


@pytest.mark.parametrize(
    "change",
    [{"tracer": "torch"}, {"workload": "kernels"}, {"settings": {"iterations": 9}},
     {"environment": {"cpu": "b"}}, {"model": load_model("deepseek-v3.2")},
     {"tool_version": "9.9"}],
)  # fmt: skip
def test_shards_that_differ_in_what_bears_on_the_numbers_are_refused(tmp_path, capsys, change):
    shard(tmp_path, "a", (1,), ("done",))
    shard(tmp_path, "b", (2,), ("done",), **change)
    code = main(["merge", "w", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path)])
    assert code == 4
    assert next(iter(change)).split(".")[0] in capsys.readouterr().err
    assert not (tmp_path / "traces").exists()


def test_the_array_job_is_a_script_that_bash_accepts_and_names_every_shard(capsys):
    flags = ["--preset", "standard", "--name", "my-sweep", "--option", "cuda_graph=true",
             "--num-heads", "128,64", "--output", "a folder"]  # fmt: skip
    assert main(["run", *flags, "--print-slurm", "8"]) == 0
    text = capsys.readouterr().out
    assert "#SBATCH --array=0-7" in text
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert checked.stderr == ""
    (line,) = (ln for ln in text.splitlines() if ln.startswith("dsa-profiler run"))
    words = shlex.split(line.removesuffix(" &"))
    assert words[words.index("--num-heads") + 1] == "128,64"
    assert words[words.index("--output") + 1] == "a folder"
    assert words[words.index("--shard") + 1] == "$shard/8"


def test_the_array_job_run_here_and_merged_is_the_whole_plan(tmp_path, monkeypatch, capsys):
    """As Slurm does it: the printed script a task, one of them requeued, then the line it names."""
    model = str(Path(__file__).parent / "capture_model")
    grid = ["--model", model, "--batch-sizes", "1,2", "--seq-lens", "8", "--mode", "generation",
            "--warmup", "1", "--iterations", "2", "--tracer", "torch"]  # fmt: skip
    out = str(tmp_path / "a folder")
    assert main(["run", *grid, "--name", "w", "--output", out, "--print-slurm", "2"]) == 0
    text = capsys.readouterr().out
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "dsa-profiler").write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m dsa_profiler "$@"\n', "utf-8"
    )
    (folder / "dsa-profiler").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for task in ("0", "1", "1"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        done = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (line,) = (ln for ln in text.splitlines() if "dsa-profiler merge" in ln)
    subprocess.run(["bash", "-c", line.lstrip("# ")], check=True, capture_output=True)
    whole = sessions.load(Path(out) / "traces/w")
    plan = build([Grid("generation", (1, 2), (8,), (4,))])
    assert sorted(whole.plan.cases) == sorted(plan.cases)
    assert [o.status for o in whole.outcomes.values()] == ["done", "done"]
    assert len(whole.chunks) == 2, "the requeued task measured again"
    assert {c.case for c in pipeline.analyze(Path(out) / "traces/w").cases} == set(plan.cases)


def test_a_large_sweep_with_faults_ends_whole_and_near_its_lower_bound(tmp_path):
    """The benchmark at a tenth of its size; `benchmarks/sweep_scale.py` runs all of it."""
    path = Path(__file__).parent.parent / "benchmarks/sweep_scale.py"
    spec = importlib.util.spec_from_file_location("sweep_scale", path)
    scale = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scale)
    got = scale.simulate(scale.cases_of(600), 6, 0, tmp_path)
    assert got["done"] == got["cases"] == 600
    assert got["makespan_s"] < 1.25 * got["lower_bound_s"]
    assert abs(got["eta_50%"]) < 0.2


def test_a_case_whose_node_is_lost_goes_elsewhere_and_not_for_ever(tmp_path):
    made = shard(tmp_path, "s", (1, 2), ())
    board = Board(tmp_path / "s", replace(made, chunks=()), made.plan.cases)
    for attempt in range(LOSSES):
        job = board.take()
        assert job.cases == made.plan.cases
        job.place.mkdir(parents=True)
        board.put(job, Watched(Story(), "lost", 137), 1.0)
        assert bool(board.session.outcomes) == (attempt == LOSSES - 1)
    assert board.take() is None
    assert {o.status for o in board.session.outcomes.values()} == {"failed"}
