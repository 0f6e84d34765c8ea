"""A sweep killed at a random moment loses nothing; the whole harness is `fault_harness.py`."""

import os
import subprocess
import sys

import fault_harness
import pytest


@pytest.mark.nsys
@pytest.mark.parametrize("seed", [1, 6])
def test_a_killed_sweep_ends_whole(seed):
    """Seed 1 kills the parent, seed 6 the worker, under real nsys and the reference workload."""
    report = fault_harness.trial(seed, longest_s=8.0)
    assert report.faults == []
    assert report.runs <= 2


@pytest.mark.nsys
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_random_kills_lose_nothing():
    done = subprocess.run(
        [sys.executable, fault_harness.__file__, "-n", "100"],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert done.returncode == 0
