"""A sweep killed at a random moment loses nothing; the whole harness is `fault_harness.py`."""

import importlib.util
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import fault_harness
import pytest
import timeless


@pytest.fixture(scope="module")
def apart():
    """A process for each call: the nodes of a trial change the environment of theirs."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        yield lambda call, *words: pool.submit(call, *words).result()


@pytest.fixture(scope="module")
def calm(apart):
    """Moments come from the first quarter: a trial may run when the machine is far less busy."""
    found = apart(fault_harness.uninterrupted, "parent")
    return replace(found, seconds=found.seconds / 4)


@pytest.mark.nsys
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 2, 3])
def test_a_killed_sweep_ends_as_an_uninterrupted_one(apart, calm, seed):
    """Seed 0 kills the parent, 2 the worker, 3 a node, under real nsys and the reference workload.

    Every law of the harness is held, and what the session ends as is the same byte for byte but for
    what a clock had a say in, which `timeless` names.
    """
    on_nodes = fault_harness.target_of(seed) == "node"
    if (
        on_nodes
        and os.environ.get("DSA_REQUIRE_RAY") != "1"
        and not importlib.util.find_spec("ray")
    ):
        pytest.skip("the extra `ray` is not installed")
    report = apart(fault_harness.trial, seed, calm)
    assert report.faults == []
    assert report.hit


def test_what_is_left_out_of_the_comparison_is_the_clocks_alone():
    """A name that loses nothing is a name that hides something."""
    row = {"latency": 1, "span_ns": 1, "p10_ms": 1, "created": "", "share": 0.5}
    assert timeless._without(row) == {}
    kept = {"status": "done", "case": "c", "iterations": 3, "detail": "", "plan": ["c"]}
    assert timeless._without({**kept, "more": [row]}) == {**kept, "more": [{}]}


@pytest.mark.nsys
@pytest.mark.slow
@pytest.mark.timeout(14400)
def test_a_hundred_random_kills_lose_nothing():
    done = subprocess.run(
        [sys.executable, fault_harness.__file__, "-n", "100", "-j", "2"],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert done.returncode == 0
