"""Ray, where it is installed: a local cluster of several nodes without GPUs, some of which die."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import test_sweep as sweeps

from dsa_profiler import session as sessions
from dsa_profiler.capture import cluster, guard, sweep
from dsa_profiler.capture.child import TOKEN
from dsa_profiler.capture.stop import Stop
from dsa_profiler.errors import EnvironmentFault, UsageError

if os.environ.get("DSA_REQUIRE_RAY") != "1" and importlib.util.find_spec("ray") is None:
    pytest.skip("the extra `ray` is not installed", allow_module_level=True)


QUICK_TO_NOTICE = {"health_check_timeout_ms": 3000, "health_check_failure_threshold": 3,
                   "health_check_period_ms": 1000}  # fmt: skip
"""A tenth of the minute after which Ray calls a silent node dead (docs/reliability.md)."""


@pytest.fixture(scope="module")
def nodes():
    """A head without GPUs, two nodes that say they hold an H200, one that says H100."""
    import ray
    from ray.cluster_utils import Cluster

    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(
            prefix="dsa-ray-", dir="/tmp", ignore_cleanup_errors=True
        ) as home,
    ):  # pytest's own folders are too deep for the sockets of Ray
        patch.setenv("PYTHONPATH", str(sweeps.HERE))
        patch.setenv("TMPDIR", home)
        patch.setattr(tempfile, "tempdir", None)
        made = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": QUICK_TO_NOTICE}
        )
        for kind in ("H200", "H200", "H100"):
            add(made, kind)
        made.wait_for_nodes()
        yield made
        ray.shutdown()
        made.shutdown()


def add(made, kind):
    return made.add_node(
        num_cpus=1, num_gpus=1, resources={cluster.KIND + kind: 1}, env_vars={"STAND_IN_GPU": kind}
    )


@pytest.fixture
def ray(nodes):
    """Ray, connected; whatever a test did, no process and no folder of a job stays on any node."""
    yield cluster.connect(nodes.address)
    deadline = time.monotonic() + 10
    while (left := leftovers()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def leftovers() -> list[str]:
    """Folders of jobs, and processes that carry one in their environment."""
    homes = os.fsencode(f"{os.environ['TMPDIR']}/dsa-profiler-")
    found = [str(p) for p in Path(os.environ["TMPDIR"]).glob("dsa-profiler-*")]
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if TOKEN.encode() + b"=" + homes in path.read_bytes():
                found.append(str(path))
    return found


def record(folder, session, places, **more):
    more = {"limits": sweeps.QUICK, "chunk_cases": 2, **more}
    return sweep.record(
        folder, session, sweeps.PlainTracer(), sweeps.finish, worker="capture_worker",
        places=places, **more,
    )  # fmt: skip


def when(condition, act):
    """Do `act` on a thread as soon as `condition` holds."""

    def watch():
        deadline = time.monotonic() + 120
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_two_kinds_of_gpu_are_kept_apart(nodes, ray, tmp_path):
    with pytest.raises(UsageError, match="H100 and H200") as told:
        cluster.slots(ray)
    assert "--gpus H100" in told.value.cure
    with pytest.raises(UsageError, match="--gpus B200"):
        cluster.slots(ray, "B200")
    found = {}
    for kind, many in (("H200", 2), ("H100", 1)):
        places = cluster.slots(cluster.connect(nodes.address), kind)
        assert places.slots == many
        session = sweeps.new_session(tmp_path / kind, sleep_s=0.05)
        found[kind] = record(tmp_path / kind, session, places)
        assert found[kind].environment["device_name"] == kind
        assert set(sweeps.statuses(found[kind]).values()) == {"done"}


def test_a_node_lost_in_the_middle_of_a_case_costs_nothing_but_its_time(nodes, ray, tmp_path):
    session = sweeps.new_session(tmp_path, tuple(range(1, 9)), sleep_s=0.5)
    mine = ray.get_runtime_context().get_node_id()
    others = {n for n, (kind, _) in cluster._nodes(ray).items() if kind == "H200" and n != mine}
    (doomed, *_), started = [n for n in nodes.worker_nodes if n.node_id in others], []
    losing = when(lambda: len(started) >= 2, lambda: kill(doomed))

    def tell(event):
        if event["event"] == "start":
            started.append(event["case"])

    after = record(tmp_path, session, cluster.slots(ray, "H200"), tell=tell)
    losing.join()
    nodes.remove_node(doomed, False)
    add(nodes, "H200")
    nodes.wait_for_nodes()
    assert_each_once(tmp_path, after, 8)


def test_a_node_that_falls_silent_is_lost_and_what_it_may_still_bring_is_not_looked_at(
    nodes, ray, tmp_path
):
    """All its processes stand still: the connections stay open and Ray says nothing of its task."""
    session = sweeps.new_session(tmp_path, (1, 2, 3, 4), sleep_s=0.5)
    still, other, started, standing = add(nodes, "B200"), add(nodes, "B200"), [], []
    nodes.wait_for_nodes()

    def stand_still():
        standing.extend(processes(still))
        for pid in standing:
            os.kill(pid, signal.SIGSTOP)

    stopping = when(lambda: len(started) >= 2, stand_still)
    after = record(
        tmp_path, session, cluster.slots(ray, "B200"),
        tell=lambda event: started.append(event["case"]) if event["event"] == "start" else None,
    )  # fmt: skip
    stopping.join()
    for pid in standing:
        os.kill(pid, signal.SIGCONT)
    for node in (still, other):
        nodes.remove_node(node, False)
    assert_each_once(tmp_path, after, 4)


def assert_each_once(folder, after, cases):
    """A job was lost, and every case is done and in one trace alone."""
    assert set(sweeps.statuses(after).values()) == {"done"}
    assert [c.cases for c in after.chunks if not c.trace], "no job was lost with the node"
    seen = Counter()
    for chunk in after.chunks:
        if chunk.trace:
            seen.update(json.loads((folder / chunk.trace).read_text("utf-8")))
    assert set(seen.values()) == {1}, "a case was measured twice"
    assert len(seen) == len(after.outcomes) == cases
    assert sessions.load(folder) == after
    assert sweeps.litter(folder) == []


def kill(node):
    for pid in processes(node):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes(node) -> list[int]:
    """Of a node of the test cluster: its raylet and all below it."""
    found = [held.process.pid for of in node.all_processes.values() for held in of]
    for pid in found:
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        found += [int(child) for path in tasks for child in path.read_text("ascii").split()]
    return found


def test_kinds_that_ray_does_not_tell_apart_are_refused_by_what_the_worker_finds(
    nodes, ray, tmp_path
):
    unnamed = [nodes.add_node(num_gpus=1, env_vars={"STAND_IN_GPU": k}) for k in ("A", "B")]
    nodes.wait_for_nodes()
    session = sweeps.new_session(tmp_path, tuple(range(1, 9)), sleep_s=0.2)
    with pytest.raises(UsageError, match="this worker runs on"):
        record(tmp_path, session, cluster.slots(ray, "GPU"), chunk_cases=1)
    kept = sessions.load(tmp_path)
    kind = kept.environment["device_name"]
    nodes.remove_node(unnamed["BA".index(kind)], False)
    after = record(tmp_path, kept, cluster.slots(cluster.connect(nodes.address), "GPU"))
    assert set(sweeps.statuses(after).values()) == {"done"}
    nodes.remove_node(unnamed["AB".index(kind)], False)
    assert after.environment["device_name"] == kind
    assert sweeps.litter(tmp_path) == []


@pytest.mark.parametrize("often", [1, 2])
def test_the_stop_reaches_the_nodes_and_what_they_finished_comes_home(ray, tmp_path, often):
    stop, started = Stop(), []

    def tell(event):
        if event["event"] == "start":
            started.append(event["case"])

    hang = {sweeps.slug(4): "hang"} if often == 2 else {}
    session = sweeps.new_session(tmp_path, (1, 2, 3, 4), script=hang, sleep_s=0.7)
    asking = when(lambda: len(started) >= often * 2, lambda: [stop.ask() for _ in range(often)])
    after = record(
        tmp_path, session, cluster.slots(ray, "H100"), chunk_cases=4, stop=stop, tell=tell
    )
    asking.join()
    told = sweeps.statuses(after)
    if often == 1:
        assert set(told.values()) == {"done"}
        assert 1 <= len(told) < 4
    else:
        assert told.get(4) == "interrupted"
    assert sweeps.litter(tmp_path) == []


def test_a_job_that_waits_for_a_gpu_is_called_off_by_the_stop(ray, tmp_path):
    places, stop = cluster.slots(ray, "H100"), Stop()
    held = ray.remote(lambda: time.sleep(600)).options(
        num_gpus=1, resources={cluster.KIND + "H100": 1}
    )
    waited = held.remote()
    stopping = threading.Timer(2, stop.ask)
    stopping.start()
    after = record(tmp_path, sweeps.new_session(tmp_path), places, stop=stop)
    stopping.join()
    assert after.outcomes == {}
    del waited


def test_a_worker_that_refuses_is_told_in_its_own_two_lines(ray, tmp_path):
    session = sweeps.new_session(tmp_path, script={"*": "refuse"})
    with pytest.raises(EnvironmentFault) as told:
        record(tmp_path, session, cluster.slots(ray, "H100"))
    assert (told.value.what, told.value.cure) == ("this machine has no torch", "install it")


def test_a_guarded_folder_goes_with_its_owner_however_that_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    code = (
        "from dsa_profiler.capture import guard\nwith guard.folder('x-') as f: print(f, flush=True)"
    )
    calm = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    killed = subprocess.Popen(
        [sys.executable, "-c", f"{code}; input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    home = Path(killed.stdout.readline().decode().strip())
    assert home.is_dir()
    killed.kill()
    killed.communicate()
    deadline = time.monotonic() + 30
    while home.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not home.exists()
    assert not Path(calm.stdout.strip()).exists()


def test_a_guard_that_makes_no_folder_removes_none(tmp_path, monkeypatch):
    (tmp_path / "mine").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvironmentFault, match="temporary folder"), guard.folder("absent/x-"):
        pass
    assert (tmp_path / "mine").exists()


def test_a_cluster_without_gpus_is_named():
    class Bare:
        @staticmethod
        def nodes():
            return [{"Alive": True, "Resources": {"CPU": 4.0}}]

    with pytest.raises(EnvironmentFault, match="no GPU"):
        cluster.slots(Bare)
