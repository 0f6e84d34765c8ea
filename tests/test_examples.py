"""The examples run as they stand, on a session as `run` leaves it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import trace_factory
from results_factory import cases_of, disk_session, floored, results, session

from dsa_profiler.export import store

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, argument):
    command = [sys.executable, str(EXAMPLES / name), str(argument)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_every_example_is_run_here():
    assert {p.name for p in EXAMPLES.glob("*.py")} == {
        "where_does_the_time_go.py",
        "slowest_against_the_floor.py",
    }


def test_where_does_the_time_go(tmp_path):
    told = run("where_does_the_time_go.py", disk_session(tmp_path / "s", trace_factory.CASES))
    assert [line.partition(":")[0] for line in told.splitlines()] == [
        c.slug for c in trace_factory.CASES
    ]


def test_slowest_against_the_floor(tmp_path):
    cases = cases_of()
    found = floored(results(cases), session(cases))
    told = run("slowest_against_the_floor.py", store.write(found, session(cases), tmp_path / "a"))
    assert len(told.splitlines()) == 10
    bare = store.write(results(cases), session(cases), tmp_path / "b")
    assert run("slowest_against_the_floor.py", bare).startswith("no floors")
