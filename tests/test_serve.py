"""Recording a server: the command, the script, and a stand-in under real nsys on loopback."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dsa_profiler.analysis import steps
from dsa_profiler.capture import child, serve
from dsa_profiler.cli import main
from dsa_profiler.model import Case
from dsa_profiler.trace import reader

STAND_IN = Path(__file__).with_name("serve_stand_in.py")
CASE = Case("generation", 64, 4095)
SLUG = "generation-b3-s600-h128-bfloat16"


def recording(**changes: Any) -> serve.Recording:
    url = "http://127.0.0.1:8000"
    plain: dict[str, Any] = {
        "server": ("trtllm-serve", "/m"), "url": url, "window": serve.Window(132, 182),
        "launcher": "mpirun",
    }  # fmt: skip
    return serve.Recording(**{**plain, **changes})


def line(**changes: Any) -> list[str]:
    return serve.command(recording(**changes), "out", "nsys", lambda _: True)


def test_the_window_of_steps_opens_the_collection_and_cpu_sampling_is_off() -> None:
    found = line()
    assert found[:2] == ["nsys", "profile"]
    assert {
        "--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--cuda-graph-trace=node",
        "--sample=none", "--cpuctxsw=none", "--trace=cuda,nvtx", "--discard-environment=true",
    } <= set(found)  # fmt: skip
    assert not any("system-wide" in word for word in found)
    assert found[-2:] == ["trtllm-serve", "/m"]
    assert serve.environment(recording())["TLLM_PROFILE_START_STOP"] == "132-182"


@pytest.mark.parametrize("launcher", ["mpirun", "srun"])
def test_nsys_wraps_every_rank_behind_the_launcher(launcher: str) -> None:
    found = line(ranks=8, launcher=launcher)
    assert found[0] == launcher
    assert found.index(launcher) < found.index("nsys") < found.index("trtllm-llmapi-launch")
    assert f"--output=out/e2e_rank%q{{{serve.RANK_VARIABLE[launcher]}}}" in found


def test_options_that_this_nsys_lacks_are_left_out() -> None:
    found = serve.command(recording(), "out", "nsys", lambda _: False)
    assert not any(w.startswith(("--discard", "--cuda-event-trace")) for w in found)


def test_the_load_meets_the_case_in_the_middle_of_the_window() -> None:
    load, window = serve.plan(CASE, 50, 8192)
    prefill = -(-64 * 4095 // 8192)
    assert load.batch == 64
    middle = (window.first + window.last) // 2
    assert load.prompt_tokens + middle - prefill == 4095
    assert load.output_tokens > window.last - prefill, "the load outlasts the window"


def test_a_context_load_prefills_again_and_again() -> None:
    load, window = serve.plan(Case("context", 4, 4096), 50, 8192)
    assert (load.batch, load.prompt_tokens, load.output_tokens) == (4, 4096, 1)
    assert load.rounds > window.last, "each round is one step at least"
    command = serve.server_command("m", "http://h:1", 1, Case("context", 4, 4096), load, 8192, ())
    assert command[command.index("--max_num_tokens") + 1] == "16384", "one step holds the case"
    assert command[command.index("--max_seq_len") + 1] == "4097"


def test_print_shows_a_job_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["serve", "--model", "/models/a b", "--case", CASE.slug, "--tp", "8", "--print"]
    assert main(asked) == 0
    script = capsys.readouterr().out
    assert script.startswith("#!/bin/bash\n#SBATCH")
    assert "--ntasks=8" in script
    assert "'/models/a b'" in script
    assert "dsa-profiler scrub" in script
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["bash", "-n", "job.sh"], check=True)


@pytest.mark.parametrize(
    ("arguments", "slug", "code"),
    [
        (["--model", "m"], "no case", 2),
        (["--case", CASE.slug], "no model", 2),
        (["--case", "nonsense", "--model", "m"], "not a case", 2),
        (["--case", "context-b1-s64-p64-h128-bfloat16", "--model", "m"], "cached prefix", 2),
        (["--case", CASE.slug, "--model", "m", "--window", "9-3"], "no range", 2),
        (["--case", CASE.slug, "--server", "no-such-server x"], "not on the PATH", 3),
        (["--attach", "http://127.0.0.1:1"], "the load in full", 2),
    ],
)
def test_bad_requests_are_two_lines(
    arguments: list[str], slug: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert slug in said[0]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def stand_in(port: int, *more: str) -> str:
    return shlex.join([sys.executable, str(STAND_IN), str(port), *more])


def served(tmp_path: Path, *more: str, server: str | None = None, port: int | None = None) -> int:
    port = port or free_port()
    return main(
        ["serve", "--case", SLUG, "--server", server or stand_in(port), "--port", str(port),
         "--whole", "--trace", "nvtx", "--output-tokens", "4", "-o", str(tmp_path / "e2e"),
         "--timeout", "60", *more]
    )  # fmt: skip


@pytest.mark.nsys
def test_a_server_is_recorded_scrubbed_and_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_TOKEN", "s3cr3t-of-the-server")
    assert served(tmp_path) == 0
    folder = tmp_path / "e2e"
    trace = folder / "e2e_rank0.sqlite"
    assert capsys.readouterr().out.split() == [str(trace)]
    assert sorted(p.name for p in folder.iterdir()) == ["e2e_rank0.sqlite", "log.txt"]
    framework, found = steps.from_ranges(reader.read(trace))
    assert framework == "trtllm"
    assert len(found) == 3 * (1 + 4), "three requests at once, four tokens each"
    assert {s.batch.phase for s in found} == {"context", "generation"}
    assert b"s3cr3t-of-the-server" not in trace.read_bytes()
    assert child.members(folder) == []
    assert main(["align", str(trace), str(folder), "-q"]) == 6, "no GPU: inconclusive"


@pytest.mark.nsys
def test_a_server_that_dies_is_told_with_its_last_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    assert served(tmp_path, server=stand_in(port, "die"), port=port) == 3
    assert "no such checkpoint" in capsys.readouterr().err
    assert child.members(tmp_path / "e2e") == []


@pytest.mark.nsys
def test_a_refused_load_ends_the_server_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_REFUSES", "1")
    assert served(tmp_path) == 3
    assert "422" in capsys.readouterr().err
    assert child.members(tmp_path / "e2e") == []


def test_attach_sends_the_load_alone(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    running = subprocess.Popen(
        [sys.executable, str(STAND_IN), str(port)], env={**os.environ}, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if serve.answers(url):
                break
            assert running.poll() is None
            time.sleep(0.05)
        asked = ["serve", "--attach", url, "--batch", "5", "--prompt-tokens", "7"]
        assert main([*asked, "--output-tokens", "1", "--rounds", "2"]) == 0
        import json
        import urllib.request

        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            assert json.load(answer)["requests"] == 10
    finally:
        running.terminate()
        running.wait(10)
