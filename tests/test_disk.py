"""A small disk, really filled: what is finished stays, and the sweep goes on once there is room."""

import subprocess

import pytest
import test_sweep as sweeps

from dsa_profiler import session as sessions
from dsa_profiler.capture import sweep
from dsa_profiler.capture.recording import Limits
from dsa_profiler.capture.stop import Stop
from dsa_profiler.errors import EnvironmentFault

SIZE = 3 << 20


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_ends_the_sweep_by_name_and_resume_goes_on(small_disk, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(sweeps.HERE))
    ballast = small_disk / "ballast"

    def heavy(raw, target, expected):
        ballast.write_bytes(b"x" * (SIZE - (1 << 20)))  # fills in the middle of a recording
        with sessions.replacing(target) as part:
            part.write_bytes(b"x" * (2 << 20))
        raise AssertionError("the disk took more than it holds")

    folder = small_disk / "s"
    folder.mkdir()
    session = sweeps.new_session(folder)
    limits = Limits(case_s=5, ready_s=20, grace_s=1, disk_bytes=64 << 10)
    stop = Stop()

    def tell(event):
        if event["event"] == "settle":
            stop.ask()

    first = sweeps.record(folder, session, chunk_cases=2, limits=limits, stop=stop, tell=tell)
    assert list(sweeps.statuses(first).values()) == ["done", "done"]
    with pytest.raises(EnvironmentFault, match="is full"):
        sweep.record(
            folder, first, sweeps.PlainTracer(), heavy, limits=limits, worker="capture_worker"
        )
    assert sessions.load(folder) == first
    ballast.unlink()
    after = sweeps.record(folder, sessions.load(folder), limits=limits)
    assert set(sweeps.statuses(after).values()) == {"done"}
    assert all(after.outcomes[c] == o for c, o in first.outcomes.items())
    assert sweeps.litter(folder) == []
