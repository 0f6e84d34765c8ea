"""The doctor tries things and tells what it saw."""

from __future__ import annotations

import json
import sys

import pytest

from dsa_profiler.capture import doctor, nsys
from dsa_profiler.cli import main

NAMES = ["python", "gpu", "nvml", "torch", "nsys", "marks arrive", "workload", "tensorrt_llm",
         "kernels", "disk", "aiconfigurator"]  # fmt: skip


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without nsys, GPU and driver, whose workload chooser is not asked."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nsys, "INSTALL_FOLDERS", ())
    monkeypatch.setattr(doctor, "_torch", lambda: doctor.Check("torch", "absent", "not installed"))
    monkeypatch.setattr(doctor, "_workload", lambda: doctor.Check("workload", "ok", "reference"))
    return tmp_path


def script(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_what_is_absent_is_no_fault_and_has_a_cure(bare, capsys):
    assert main(["doctor", "--json"]) == 0
    told = {c["name"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert list(told) == NAMES
    assert (told["nsys"]["state"], told["marks arrive"]["state"]) == ("absent", "absent")
    assert all(c["cure"] for c in told.values() if c["name"] != "torch" and c["state"] != "ok")


def test_something_else_called_nsys_is_broken(bare, capsys):
    script(bare, "nsys", "echo I am a teapot")
    assert main(["doctor", "-q"]) == 3
    out = capsys.readouterr().out
    assert out.startswith("!! nsys")
    assert "I am a teapot" in out
    assert "cure: " in out
    assert len(out.splitlines()) == 2


def test_an_nsys_that_records_nothing_is_found_out(bare, monkeypatch):
    fake = script(bare, "nsys", "exit 7")
    found = nsys.Nsys(fake, "2025.3.1", "")
    check = doctor._arrives(found, lambda trace: pytest.fail("there is no trace"))
    assert check.state == "broken"
    assert "exit code 7" in check.what


def test_marks_that_are_lost_are_found_out(bare):
    raw = 'for a in "$@"; do case $a in --output=*) touch "${a#--output=}.nsys-rep";; esac; done'
    fake = script(bare, "nsys", raw)
    found = nsys.Nsys(fake, "2023.4.4", "")
    made = doctor._arrives(found, lambda trace: 0)
    assert made.state == "broken"


@pytest.mark.nsys
def test_a_real_recording_brings_its_mark(monkeypatch):
    pytest.importorskip("nvtx")
    from dsa_profiler.cli.doctor import _marked

    check = doctor._arrives(nsys.find(), _marked)
    assert check.state == "ok", check.what


def test_nvml_is_told_by_what_it_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert doctor._nvml().what == "nvidia-ml-py is not installed"
    monkeypatch.setattr(doctor.probe, "has_module", lambda name: name == "pynvml")
    assert doctor._nvml().what == "no driver that it can ask"
    monkeypatch.setattr(doctor.power, "nvml", lambda: object())
    assert doctor._nvml().state == "ok"


def test_colours_are_for_terminals_only(bare, capsys):
    assert main(["doctor"]) == 0
    assert "\033" not in capsys.readouterr().out


def test_the_parent_stays_light(bare):
    import subprocess

    code = "import sys, dsa_profiler.cli.doctor; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.strip() == "False"


def test_the_contract_of_an_absent_package_is_null(bare, capsys, monkeypatch):
    monkeypatch.setattr(doctor.probe, "has_module", lambda name: False)
    assert main(["doctor", "--contract"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "tensorrt_llm": None}
