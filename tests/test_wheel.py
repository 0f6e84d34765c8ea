"""The built wheel alone reads traces: no torch, no nvtx, no nsys, nothing of the source tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import trace_factory
from results_factory import disk_session

ROOT = Path(__file__).parents[1]
BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "nvtx", "pynvml", "connectorx", "rapidfuzz"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked, as an environment: extras blocked, the source tree out of reach."""
    place = tmp_path_factory.mktemp("wheel")
    isolation = ["--no-build-isolation"] if _setuptools() >= 77 else []
    source = place / "source"
    _copy(source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *isolation, "-w", place, source],
        check=True,
    )
    (built,) = place.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(place / "site")
    (place / "site" / "sitecustomize.py").write_text(BLOCK)
    return place / "site"


def _setuptools():
    """The major version at hand: what the build needs, or 0 for one that pip has to fetch."""
    try:
        return int(metadata.version("setuptools").partition(".")[0])
    except metadata.PackageNotFoundError:
        return 0


def _copy(target):
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "dsa_profiler", target / "dsa_profiler", ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, target / name)


@pytest.fixture
def session(tmp_path):
    return disk_session(tmp_path / "traces" / "mine", trace_factory.CASES)


def run(wheel, *arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(wheel), "PATH": "/nonexistent"}
    command = [sys.executable, "-m", "dsa_profiler", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)


def test_the_wheel_is_what_runs_and_extras_are_absent(wheel, tmp_path):
    code = "import dsa_profiler, importlib.util as u; print(dsa_profiler.__file__); import torch"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(wheel)},
    )  # fmt: skip
    assert done.stdout.startswith(str(wheel))
    assert "No module named 'torch'" in done.stderr


def test_a_session_is_analysed_reported_and_exported(wheel, session, tmp_path):
    done = run(wheel, "analyze", session, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["cases"]) == len(trace_factory.CASES)
    for arguments in (
        ("report", session, "-o", tmp_path / "index.html"),
        ("export", session, "--to", "all", "-o", tmp_path / "out"),
        ("compare", session, session, "-o", tmp_path / "compare.html"),
        ("bundle", session, "-o", tmp_path / "mine.tar.gz"),
        ("model", "deepseek-v3.2", "--roofline", "--system", "h200_sxm"),
        ("help", "marks-lost"),
        ("completion", "bash"),
    ):
        done = run(wheel, *arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr)
    assert (tmp_path / "index.html").stat().st_size > 1_000_000


def test_a_session_aligns_with_a_trace(wheel, session, tmp_path):
    trace = next(session.glob("chunks/*/trace.sqlite"))
    case = trace_factory.CASES[1].slug
    done = run(wheel, "align", session, trace, "--case", case, "--json", cwd=tmp_path)
    assert done.returncode in (0, 6), done.stderr
    assert json.loads(done.stdout)["verdict"] in ("pass", "fail", "inconclusive")


def test_what_needs_an_extra_says_which(wheel, tmp_path):
    done = run(wheel, "run", "--workload", "reference", "--output", tmp_path / "o", cwd=tmp_path)
    assert done.returncode == 3
    assert "pip install 'dsa-profiler[reference]'" in done.stderr
    assert not (tmp_path / "o").exists()
