"""Ray, where it is installed: a local cluster of several nodes without GPUs, one of which dies."""

import contextlib
import threading
import time
from pathlib import Path

import pytest
import test_sweep as sweeps

from dsa_profiler import session as sessions
from dsa_profiler.capture import cluster, sweep
from dsa_profiler.errors import EnvironmentFault

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")


@pytest.fixture
def made_cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(sweeps.HERE))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def workers() -> int:
    """Living stand-in workers, of any node: all nodes of the cluster are on this machine."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += b"capture_worker" in path.read_bytes()
    return found


def test_a_sweep_on_several_nodes_survives_the_loss_of_one(made_cluster, tmp_path):
    session = sweeps.new_session(tmp_path, tuple(range(1, 9)), sleep_s=0.5)
    doomed = next(iter(made_cluster.worker_nodes))

    def lose_a_node():
        deadline = time.monotonic() + 120
        while workers() < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        made_cluster.remove_node(doomed, allow_graceful=False)

    loss = threading.Thread(target=lose_a_node)
    loss.start()
    ray_ = cluster.connect(made_cluster.address)
    after = sweep.record(
        tmp_path, session, sweeps.PlainTracer(), sweeps.finish, limits=sweeps.QUICK,
        worker="capture_worker", chunk_cases=2, nodes=sweep.OnRay(ray_, slots=2, gpus=0),
    )  # fmt: skip
    loss.join()
    assert set(sweeps.statuses(after).values()) == {"done"}
    assert len(after.outcomes) == 8
    assert [c.cases for c in after.chunks if not c.trace], "no job was lost with the node"
    assert sessions.load(tmp_path) == after
    assert sweeps.litter(tmp_path) == []


def test_a_cluster_without_gpus_is_named(made_cluster):
    with pytest.raises(EnvironmentFault, match="no GPU"):
        cluster.gpus(cluster.connect(made_cluster.address))
