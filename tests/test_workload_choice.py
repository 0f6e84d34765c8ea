"""What `auto` becomes, and that it says why."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dsa_profiler.capture import workload
from dsa_profiler.errors import EnvironmentFault
from dsa_profiler.workloads import choose


def _refuse(what: str):
    def ask(options):
        raise EnvironmentFault("x", what, "y")

    return ask


def _crash(options):
    raise ImportError("cannot load\nsecond line")


def test_the_first_whose_probe_passes_is_taken(monkeypatch) -> None:
    asked = {"trtllm": _refuse("not installed"), "kernels": lambda options: None}
    monkeypatch.setattr(choose, "ASKED", asked)
    name, why = choose.choose({})
    assert name == "kernels"
    assert why == "trtllm: not installed; kernels: its probe passed"


def test_the_reference_is_left_when_all_refuse(monkeypatch) -> None:
    monkeypatch.setattr(choose, "ASKED", {"trtllm": _crash, "kernels": _refuse("no GPU")})
    assert choose.choose({}) == (
        "reference",
        "trtllm: ImportError: cannot load; kernels: no GPU",
    )


def test_the_chooser_answers_in_one_line_of_json() -> None:
    command = [sys.executable, "-m", workload.CHOOSER, json.dumps({"kernels_path": "/nowhere"})]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["workload"] in ("reference", "kernels", "trtllm")
    assert "trtllm: " in answer["why"]


def test_without_cuda_nobody_is_asked(monkeypatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("asked"))
    assert workload.choose(False, {}) == ("reference", "no CUDA device")


@pytest.mark.parametrize("chooser", ["dsa_profiler.nowhere", "json.tool"])
def test_a_chooser_that_dies_leaves_the_reference(monkeypatch, chooser: str) -> None:
    monkeypatch.setattr(workload, "CHOOSER", chooser)
    name, why = workload.choose(True, {})
    assert name == "reference"
    assert why.startswith("asking for a better one failed")
