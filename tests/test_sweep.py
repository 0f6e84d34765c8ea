"""The sweep's laws, held with a stand-in worker and a stand-in tracer: real processes, no torch."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_power import FakeNvml

from dsa_profiler import session as sessions
from dsa_profiler.capture import child, sweep
from dsa_profiler.capture.outcome import Story
from dsa_profiler.capture.recording import Limits, Watched, settle
from dsa_profiler.capture.stop import Stop
from dsa_profiler.errors import EnvironmentFault, InputError, UsageError
from dsa_profiler.model import Case, load_model
from dsa_profiler.plan import Grid, build
from dsa_profiler.session import Session

HERE = Path(__file__).parent
QUICK = Limits(case_s=3, ready_s=20, wrap_up_s=20, grace_s=1, disk_bytes=1 << 20)


@dataclass(frozen=True)
class PlainTracer:
    """Records the slugs of the cases that the worker ended well, at its very end."""

    name: str = "plain"

    def command(self, worker, folder):
        return list(worker)

    def environment(self, folder):
        return {}

    def collect(self, folder):
        raw = folder / "trace.json.gz"
        return raw if raw.exists() else None


def finish(raw, target, expected):
    recorded = json.loads(raw.read_text("utf-8"))
    sessions.write_atomic(target, json.dumps(recorded))
    return frozenset(c for c in expected if c.slug in recorded)


@pytest.fixture(autouse=True)
def _findable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def new_session(folder, batches=(1, 2, 3, 4, 5), script=None, **settings) -> Session:
    plan = build([Grid("generation", batches, (64,))])
    session = Session(
        name="t", created="2026-01-01T00:00:00Z", workload="reference", tracer="plain",
        model=load_model("deepseek-v3.2"), plan=plan, environment={},
        settings={"warmup": 0, "iterations": 2, "seed": 0, "script": script or {}, **settings},
    )  # fmt: skip
    sessions.save(folder, session)
    return session


def record(folder, session, **kwargs) -> Session:
    kwargs = {"limits": QUICK, "worker": "capture_worker", **kwargs}
    return sweep.record(folder, session, PlainTracer(), finish, **kwargs)


def slug(batch: int) -> str:
    return Case("generation", batch, 64).slug


def statuses(session: Session) -> dict[int, str]:
    return {case.batch_size: o.status for case, o in session.outcomes.items()}


def litter(folder: Path) -> list[str]:
    """Files that a finished sweep should not leave."""
    wanted = {"session.json", "chunk.json", "outcome.jsonl", "trace.sqlite", "log.txt"}
    return [str(p) for p in folder.rglob("*") if p.is_file() and p.name not in wanted]


def test_every_case_of_a_calm_sweep_is_done_and_saved(tmp_path):
    session = record(tmp_path, new_session(tmp_path), chunk_cases=2)
    assert statuses(session) == dict.fromkeys((1, 2, 3, 4, 5), "done")
    assert sessions.load(tmp_path) == session
    assert len(session.chunks) == 3
    assert litter(tmp_path) == []
    assert child.members(tmp_path) == []


def test_a_done_case_is_never_run_again(tmp_path):
    first = record(tmp_path, new_session(tmp_path))
    again = record(tmp_path, sessions.load(tmp_path))
    assert again == first


def test_a_crash_costs_its_chunk_only_and_the_others_are_measured(tmp_path):
    session = record(tmp_path, new_session(tmp_path, script={slug(3): "crash"}))
    assert statuses(session) == {1: "done", 2: "done", 3: "failed", 4: "done", 5: "done"}
    detail = session.outcomes[Case("generation", 3, 64)].detail
    assert "exit status 17" in detail
    assert "about to crash" in detail


@pytest.mark.parametrize("chunk_cases", [1, 16])
def test_a_case_that_crashes_once_is_tried_again_alone(tmp_path, chunk_cases):
    session = new_session(tmp_path, script={slug(2): "flaky"})
    session = record(tmp_path, session, chunk_cases=chunk_cases)
    assert set(statuses(session).values()) == {"done"}


def test_a_crash_has_its_chunk_run_again_smaller_and_the_case_alone(tmp_path):
    """As after a poisoned CUDA context: nothing of the recording can be kept."""
    batches = tuple(range(1, 9))
    after = record(
        tmp_path, new_session(tmp_path, batches, script={slug(1): "flaky"}), chunk_cases=4
    )
    assert set(statuses(after).values()) == {"done"}
    chunks = [[case.batch_size for case in chunk.cases] for chunk in after.chunks]
    assert chunks[:2] == [[1, 2, 3, 4], [1]]
    assert len(chunks[2]) < 4


@pytest.mark.parametrize("fate", ["hang", "stuck"])
def test_a_hang_times_out_and_leaves_no_process(tmp_path, fate):
    began = time.monotonic()
    session = record(tmp_path, new_session(tmp_path, script={slug(2): fate}), chunk_cases=2)
    assert statuses(session) == {1: "done", 2: "timeout", 3: "done", 4: "done", 5: "done"}
    assert child.members(tmp_path) == []
    assert time.monotonic() - began < 60


def test_out_of_memory_and_failures_are_outcomes_not_ends(tmp_path):
    session = record(tmp_path, new_session(tmp_path, script={slug(1): "oom", slug(4): "fail"}))
    assert statuses(session) == {1: "oom", 2: "done", 3: "done", 4: "failed", 5: "done"}
    assert session.outcomes[Case("generation", 1, 64)].detail == "as ordered"


def test_retry_runs_what_failed_and_nothing_else(tmp_path):
    session = record(tmp_path, new_session(tmp_path, script={slug(4): "fail"}))
    healed = sessions.load(tmp_path)
    healed.settings["script"] = {}
    after = record(tmp_path, healed, retry=("failed",))
    assert set(statuses(after).values()) == {"done"}
    assert [c.cases for c in after.chunks[len(session.chunks) :]] == [(Case("generation", 4, 64),)]


def test_a_case_whose_marks_never_arrive_fails_and_ends(tmp_path):
    session = record(tmp_path, new_session(tmp_path, (1, 2), script={slug(2): "mute"}))
    assert statuses(session) == {1: "done", 2: "failed"}


def test_a_recording_that_cannot_be_read_is_tried_smaller_until_each_case_has_its_outcome(tmp_path):
    def broken(raw, target, expected):
        if any(c.batch_size == 3 for c in expected):
            raise InputError("trace-broken", "no trace at all", "")
        return finish(raw, target, expected)

    session = new_session(tmp_path)
    after = sweep.record(
        tmp_path, session, PlainTracer(), broken, limits=QUICK, worker="capture_worker"
    )
    assert statuses(after) == {1: "done", 2: "done", 3: "failed", 4: "done", 5: "done"}
    assert after.outcomes[Case("generation", 3, 64)].detail == "no trace at all"


@pytest.mark.parametrize("ending", ["well", "died", "stopped"])
def test_marks_lost_with_a_killed_recording_say_nothing_of_the_next_one(tmp_path, ending):
    def lost(raw, target, expected):
        raise EnvironmentFault("marks-lost", "no mark arrived", "install another nvtx")

    (tmp_path / "trace.json.gz").write_text("cut")
    ended = {slug(1): {"event": "end", "case": slug(1), "status": "done"}}
    watched = Watched(Story(ended=ended), ending, 0 if ending == "well" else -9)
    if ending == "well":
        with pytest.raises(EnvironmentFault, match="no mark arrived"):
            settle(tmp_path, watched, PlainTracer(), lost)
    else:
        settle(tmp_path, watched, PlainTracer(), lost)
        assert (watched.trouble, watched.arrived) == ("no mark arrived", frozenset())


def test_a_worker_that_refuses_is_told_in_its_own_two_lines(tmp_path):
    with pytest.raises(EnvironmentFault) as told:
        record(tmp_path, new_session(tmp_path, script={"*": "refuse"}))
    assert (told.value.what, told.value.cure) == ("this machine has no torch", "install it")


def test_the_first_stop_finishes_the_running_case_and_resume_does_the_rest(tmp_path):
    stop, seen = Stop(), []

    def tell(event):
        seen.append(event)
        if event["event"] == "end" and not stop.level:
            stop.ask()

    session = record(tmp_path, new_session(tmp_path, sleep_s=0.1), stop=stop, tell=tell)
    done = [c for c, o in session.outcomes.items() if o.status == "done"]
    assert 1 <= len(done) < 5
    after = record(tmp_path, sessions.load(tmp_path))
    assert set(statuses(after).values()) == {"done"}
    assert all(after.outcomes[c] == session.outcomes[c] for c in done)


def test_the_second_stop_ends_the_running_case_now(tmp_path):
    stop = Stop()

    def tell(event):
        if event["event"] == "start" and event["case"] == slug(2):
            threading.Timer(0.3, lambda: (stop.ask(), stop.ask())).start()

    session = record(
        tmp_path, new_session(tmp_path, script={slug(2): "hang"}), stop=stop, tell=tell
    )
    assert statuses(session)[2] == "interrupted"
    assert sweep.todo(session)[0].batch_size in (1, 2)
    assert child.members(tmp_path) == []


def test_a_session_is_not_continued_on_another_machine(tmp_path, monkeypatch):
    stop = Stop()
    monkeypatch.setenv("STAND_IN_GPU", "H200")
    first = record(
        tmp_path, new_session(tmp_path), chunk_cases=2, stop=stop,
        tell=lambda event: stop.ask() if event["event"] == "settle" else None,
    )  # fmt: skip
    monkeypatch.setenv("STAND_IN_GPU", "H100")
    with pytest.raises(UsageError, match="is of H200, this worker runs on H100"):
        record(tmp_path, sessions.load(tmp_path))
    assert sessions.load(tmp_path) == first
    monkeypatch.setenv("STAND_IN_GPU", "H200")
    after = record(tmp_path, sessions.load(tmp_path))
    assert set(statuses(after).values()) == {"done"}
    assert litter(tmp_path) == []


def test_several_slots_share_one_sweep_and_each_case_is_measured_once(tmp_path):
    slots = [sweep.Slot(f"gpu{n}", {"CUDA_VISIBLE_DEVICES": str(n)}) for n in range(3)]
    session = new_session(tmp_path, tuple(range(1, 13)), script={slug(5): "crash", slug(7): "oom"})
    seen = []
    after = record(
        tmp_path,
        session,
        places=slots,
        chunk_cases=3,
        cost=lambda c: c.batch_size,
        tell=seen.append,
    )
    assert len(after.outcomes) == 12
    assert {b for b, s in statuses(after).items() if s != "done"} == {5, 7}
    done = [e["case"] for e in seen if e["event"] == "end" and e["status"] == "done"]
    assert sessions.load(tmp_path) == after
    assert len(set(done)) == 10
    assert litter(tmp_path) == []
    assert child.members(tmp_path) == []


def test_a_fault_in_one_slot_ends_the_sweep_and_keeps_the_rest(tmp_path):
    def full(raw, target, expected):
        if any(c.batch_size == 4 for c in expected):
            raise EnvironmentFault("disk-full", "no room", "make some")
        return finish(raw, target, expected)

    session = new_session(tmp_path, tuple(range(1, 7)))
    with pytest.raises(EnvironmentFault, match="no room"):
        sweep.record(
            tmp_path, session, PlainTracer(), full, limits=QUICK, worker="capture_worker",
            places=[sweep.Slot("a"), sweep.Slot("b")], chunk_cases=2,
        )  # fmt: skip
    after = record(tmp_path, sessions.load(tmp_path))
    assert set(statuses(after).values()) == {"done"}
    assert litter(tmp_path) == []


def test_the_state_of_the_gpu_is_in_the_manifest(tmp_path):
    slots = [sweep.Slot("gpu0", gpu=0)]
    after = record(tmp_path, new_session(tmp_path), places=slots, nvml=FakeNvml())
    assert [c.gpu["throttled"] for c in after.chunks] == [["power cap"]]
    assert after.chunks[0].gpu["median_w"] == 700
    assert sessions.load(tmp_path) == after


def test_two_runs_on_one_session_are_refused(tmp_path):
    session = new_session(tmp_path)
    with sweep.locked(tmp_path), pytest.raises(UsageError, match="another run"):
        record(tmp_path, session)


PARENT = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
import test_sweep as t
from dsa_profiler import session as sessions
folder = Path({folder!r})
t.record(folder, sessions.load(folder), chunk_cases=2)
"""


def test_killed_parent_loses_nothing_that_finished(tmp_path):
    new_session(tmp_path, sleep_s=0.15)
    code = PARENT.format(here=str(HERE), folder=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while "end" not in _outcomes(tmp_path, "0002") and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    before = sessions.load(tmp_path)
    after = record(tmp_path, before)
    assert set(statuses(after).values()) == {"done"}
    assert before.chunks == after.chunks[: len(before.chunks)]
    adopted = json.loads((tmp_path / "chunks/0002/trace.sqlite").read_text("utf-8"))
    assert slug(3) in adopted
    assert litter(tmp_path) == []
    assert child.members(tmp_path) == []


def _outcomes(folder: Path, chunk: str) -> str:
    path = folder / "chunks" / chunk / "outcome.jsonl"
    return path.read_text("utf-8") if path.exists() else ""


def test_a_full_disk_is_named_before_a_case_is_begun(tmp_path):
    with pytest.raises(EnvironmentFault, match="full"):
        record(tmp_path, new_session(tmp_path), limits=Limits(disk_bytes=1 << 62))
    assert sessions.load(tmp_path).chunks == ()


def test_a_process_without_the_token_is_never_signalled(tmp_path):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert not child.send(bystander.pid, tmp_path, signal.SIGKILL)
        child.end(tmp_path)
        assert bystander.poll() is None
        assert os.getpid() not in child.members(tmp_path)
    finally:
        bystander.kill()
        bystander.wait()
