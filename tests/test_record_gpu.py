"""The unattended recording: its plan, its time limit, and a rehearsal on a CPU."""

from __future__ import annotations

import io
import json
import lzma
import secrets
import shlex
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from reference_oracle import SMALL

from dsa_profiler import cli
from dsa_profiler.model import Case
from dsa_profiler.session import Outcome

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "record_gpu.py"
sys.path.insert(0, str(SCRIPT.parent))
import record_gpu  # noqa: E402

COUNTS = {
    "smoke": 8,
    "anchors": 24,
    "generation": 181,
    "context": 110,
    "anchors-graph": 24,
    "anchors-fp8": 24,
    "generation-graph": 181,
}


@pytest.fixture
def args(tmp_path: Path):
    return record_gpu.parser().parse_args(["--output", str(tmp_path), "--device", "cpu"])


@pytest.mark.parametrize("name", list(COUNTS))
def test_every_run_is_a_plan_that_the_command_line_knows(args, capsys, name: str) -> None:
    (step,) = [s for s in record_gpu.plan(args, "torch") if s.name == name]
    assert step.command[1:3] == ("-m", "dsa_profiler")
    assert cli.main([*step.command[3:], "--dry-run", "--json"]) == 0
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert len(cases) == COUNTS[name]
    if name == "anchors":
        assert "generation-b64-s2048-h16-bfloat16" in cases
        assert {case.rsplit("-", 2)[1] for case in cases} == {"h16", "h64", "h128"}
    if name == "anchors-fp8":
        assert all(case.endswith("-fp8") for case in cases)


def test_the_stand_in_runs_under_nsys_where_nsys_records(args) -> None:
    plain, traced = record_gpu.stand_in(args, "torch"), record_gpu.stand_in(args, "nsys")
    assert plain.command[0] == sys.executable
    assert traced.command[:2] == ("nsys", "profile")
    assert traced.command[-len(plain.command) :][:2] == plain.command[:2]
    assert "--capture-range=cudaProfilerApi" in traced.command


def test_a_step_is_interrupted_at_the_end_of_its_time(tmp_path: Path) -> None:
    code = "import time\ntry:\n time.sleep(60)\nexcept KeyboardInterrupt:\n raise SystemExit(130)"
    began = time.monotonic()
    done = record_gpu.perform(
        record_gpu.Step("sleep", (sys.executable, "-c", code)), tmp_path, limit_s=2.0
    )
    assert time.monotonic() - began < 30
    assert done.status == 130
    assert "interrupted" in done.note
    absent = record_gpu.perform(record_gpu.Step("absent", ("/nowhere/x",)), tmp_path, 1.0)
    assert absent.status == 127


def test_a_step_finds_this_checkout_wherever_it_is_begun(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "import dsa_profiler, sys; sys.exit(not dsa_profiler.__file__.startswith(sys.argv[1]))"
    command = (sys.executable, "-S", "-c", code, str(SCRIPT.parents[1]))
    assert record_gpu.perform(record_gpu.Step("where", command), tmp_path, 60.0).status == 0


def test_steps_without_time_are_left_out_and_said_so(args, monkeypatch) -> None:
    monkeypatch.setattr(record_gpu, "perform", lambda *a: pytest.fail("begun"))
    args.minutes, args.tracer = 0.0, "torch"
    assert {d.status for d in record_gpu.record(args)} == {None}
    summary = json.loads((args.output / "record.json").read_text())
    assert [d["note"] for d in summary["steps"]] == ["no time"] * 8


def test_the_kernels_are_proven_where_there_is_a_gpu_alone(args) -> None:
    assert record_gpu.proof(args) == []
    args.device = "cuda"
    (step,) = record_gpu.proof(args)
    assert step.command[-1].endswith("test_kernels_gpu.py")
    names = [s.name for s in record_gpu.plan(args, "torch")]
    assert names[:3] == ["smoke", "anchors", "proof"]


def test_the_tests_learn_where_the_kernels_are(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "import os, sys; sys.exit(os.environ['DSA_KERNELS_PATH'] != sys.argv[1])"
    step = record_gpu.Step("where", (sys.executable, "-c", code, str(tmp_path / "k")))
    assert record_gpu.perform(step, tmp_path, 60.0, "k").status == 0


def unpacked(folder: Path, into: Path) -> None:
    """What `cat recording.tar.xz.* | xz -dc | tar xi` does."""
    data = b"".join(p.read_bytes() for p in sorted(folder.glob("recording.tar.xz.*")))
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(data)), ignore_zeros=True) as archive:
        archive.extractall(into, filter="data")


def test_every_finished_step_is_packed_in_parts_of_a_size(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(record_gpu, "PART_BYTES", 3000)
    monkeypatch.setattr(record_gpu, "PARTS", 4)
    made, parts = tmp_path / "made", tmp_path / "parts"
    stream = record_gpu.Stream(parts)
    for number, size in enumerate((100, 5000, 20_000, 200)):
        (made / f"traces/{number}").mkdir(parents=True)
        (made / f"traces/{number}/trace").write_bytes(secrets.token_bytes(size))
        (made / "record.json").write_text(str(number))
        stream.append(made, ["record.json", "absent", f"traces/{number}"])
    sizes = [p.stat().st_size for p in sorted(parts.iterdir())]
    assert sizes[:-1] == [3000] * (len(sizes) - 1)
    assert sizes == stream.sizes
    unpacked(parts, tmp_path / "back")
    assert (tmp_path / "back/record.json").read_text() == "3"
    assert sorted(p.name for p in (tmp_path / "back/traces").iterdir()) == ["0", "1", "3"]
    for name in ("0", "1", "3"):
        back = tmp_path / "back/traces" / name / "trace"
        assert back.read_bytes() == (made / "traces" / name / "trace").read_bytes()


def test_the_table_tells_every_step_and_the_knee(tmp_path: Path, monkeypatch) -> None:
    def outcomes(output: Path, name: str) -> dict:
        cases = [Case("generation", 64, kv - 1, h) for kv in (2048, 2049) for h in (16, 128)]
        ends = [Outcome("done", untraced_ns=1e5 + 1e3 * n) for n in range(3)] + [Outcome("oom")]
        return dict(zip(cases, ends, strict=True)) if name == "anchors" else {}

    monkeypatch.setattr(record_gpu, "outcomes", outcomes)
    steps = [record_gpu.Done("anchors", 0, 12.3), record_gpu.Done("context", None, 0.0, "no time")]
    assert record_gpu.table(tmp_path, steps).splitlines() == [
        "step               exit       s  cases",
        "anchors               0    12.3  3 done, 1 oom",
        "context               -     0.0   no time",
        "",
        "anchors, untraced µs; keys, then heads [16, 128]",
        "  2048     100.0     101.0",
        "  2049     102.0         -",
    ]


def config(folder: Path) -> Path:
    """A Hugging Face config of a small model that the reference can run."""
    shape = replace(SMALL, rope=type(SMALL.rope)(), max_position_embeddings=4096).as_json()
    path = folder / "config.json"
    path.write_text(json.dumps({**shape, "architectures": [shape["architecture"]]}))
    return path


@pytest.mark.slow
def test_the_stand_in_shows_its_steps_and_says_what_it_is(tmp_path: Path) -> None:
    command = shlex.split("--workload reference --batch 2 --kv 40 --heads 2 --layers 3 --steps 2")
    target = tmp_path / "raw.json.gz"
    script = SCRIPT.with_name("server_stand_in.py")
    done = subprocess.run(
        [sys.executable, str(script), *command, "--device", "cpu", "--model",
         str(config(tmp_path)), "-o", str(target)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "stand-in" in json.loads(done.stdout)["what"]
    from dsa_profiler.trace import reader

    texts = list(reader.read(target).strings.values())
    assert "[Executor] _forward_step 1: 0 ctx reqs, 2 gen reqs" in texts


@pytest.mark.slow
def test_a_rehearsal_on_a_cpu_leaves_a_session_and_a_summary(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--output", str(tmp_path / "out"), "--device", "cpu",
         "--workload", "reference", "--model", str(config(tmp_path)), "--tracer", "torch",
         "--only", "smoke", "--pack", str(tmp_path / "parts")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "traces" / "smoke" / "session.json").exists()
    summary = json.loads((tmp_path / "out" / "record.json").read_text())
    assert [s["status"] for s in summary["steps"]] == [0]
    unpacked(tmp_path / "parts", tmp_path / "back")
    assert (tmp_path / "back" / "traces" / "smoke" / "session.json").exists()
    assert (tmp_path / "back" / "logs" / "smoke.log").exists()
    assert "smoke                 0" in done.stdout
