"""Nodes by Ray: the same board, its jobs recorded on whatever node has a GPU free.

A job travels as its order and comes back as files, already finished into `trace.sqlite` where it
was recorded, so that raw reports never cross the network. What it says meanwhile comes over a wire,
which carries the user's stop back. A node that goes away is an ending like another: its cases go
elsewhere. All nodes of one session offer one kind of GPU (Ray's `accelerator_type:...`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from dsa_profiler.capture import guard, outcome, power
from dsa_profiler.capture.board import Board, Job
from dsa_profiler.capture.child import LOG
from dsa_profiler.capture.outcome import Event, Story
from dsa_profiler.capture.recording import TRACE, Watched
from dsa_profiler.capture.stop import Stop
from dsa_profiler.capture.sweep import Means, OnRay, Slot, record_one
from dsa_profiler.errors import EnvironmentFault, UsageError
from dsa_profiler.session import Session

BROUGHT = ("chunk.json", outcome.FILE, LOG, TRACE, power.FILE)
TALK_S = 0.5
KIND = "accelerator_type:"


class Brought(NamedTuple):
    """What a remote recording sends back: how it went, how long, and its files by name."""

    watched: Watched
    seconds: float
    files: dict[str, bytes]


class Wire:
    """An actor beside the driver. Jobs that are away say their events and hear the stop's level."""

    def __init__(self) -> None:
        self._said: list[tuple[str, list[Event]]] = []
        self._level = 0

    def say(self, place: str, events: list[Event]) -> int:
        self._said.append((place, events))
        return self._level

    def hear(self, level: int) -> list[tuple[str, list[Event]]]:
        """What was said since the last time, by the place of the job."""
        said, self._said, self._level = self._said, [], level
        return said


def connect(address: str) -> Any:
    """Ray, connected to the cluster at `address` (`auto`: the one this node belongs to)."""
    try:
        import ray
    except ImportError:
        raise EnvironmentFault(
            "ray-missing", "Ray is not installed here", "pip install 'dsa-profiler[ray]'"
        ) from None
    try:
        ray.init(
            address=address,
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EnvironmentFault(
            "ray-unreachable", f"no Ray cluster at {address}: {error}", "start one with `ray start`"
        ) from None
    return ray


def slots(ray: Any, kind: str = "all") -> OnRay:
    """Every GPU of one kind that the cluster has. `all` will do where there is one kind only, so
    that the tables of a session never mix two.
    """
    found: Counter[str] = Counter()
    for name, count in _nodes(ray).values():
        found[name] += count
    if not found:
        raise EnvironmentFault(
            "ray-no-gpus", "the Ray cluster has no GPU", "start its nodes with --num-gpus"
        )
    if kind == "all" and len(found) > 1:
        raise UsageError(
            "gpus-mixed",
            f"a session takes one kind of GPU, the Ray cluster has {' and '.join(sorted(found))}",
            f"name one: --gpus {min(found)}; run one session a kind, then compare them",
        )
    chosen = min(found) if kind == "all" else kind
    if chosen not in found:
        raise UsageError(
            "gpus-absent",
            f"--gpus {kind} on a Ray cluster of {', '.join(sorted(found))}",
            "name a kind that is there, or all",
        )
    return OnRay(ray, chosen, found[chosen])


def _nodes(ray: Any) -> dict[str, tuple[str, int]]:
    """The living nodes with GPUs: by id their kind, as Ray names it (else `GPU`), and how many."""
    found = {}
    for node in ray.nodes():
        offers = node["Resources"]
        if node["Alive"] and int(offers.get("GPU", 0)):
            kinds = [name.removeprefix(KIND) for name in offers if name.startswith(KIND)]
            found[node["NodeID"]] = min(kinds, default="GPU"), int(offers["GPU"])
    return found


def work(board: Board, means: Means, nodes: OnRay) -> None:
    """Keep the slots of `nodes` busy until the board has no more, then disconnect. An error ends
    the sweep.
    """
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # Ray's own words
            _drive(board, means, nodes)
    except BaseException as error:
        board.fail(error)
    finally:
        nodes.ray.shutdown()


def _drive(board: Board, means: Means, nodes: OnRay) -> None:
    """Every job is bound to a node. Left to itself, Ray would wait without end for a node that
    fell silent, and send it the next job too.
    """
    ray, wire = nodes.ray, _wire(nodes.ray)
    shipped = replace(means, stop=Stop(), tell=_mute, nvml=None)
    away: dict[Any, tuple[str, Job]] = {}
    begun: set[str] = set()
    while True:
        alive = {node: count for node, (kind, count) in _nodes(ray).items() if kind == nodes.kind}
        busy = Counter(node for node, _ in away.values())
        free = [node for node, count in alive.items() for _ in range(count - busy[node])]
        for node in free:
            if (job := board.take(wait=False)) is None:
                break
            away[_send(ray, node, board.session, job, shipped, wire)] = node, job
        if not away:
            if free or means.stop.level:
                return
            raise EnvironmentFault(
                "ray-no-gpus",
                f"no node with a GPU ({nodes.kind}) is left in the Ray cluster",
                "start its nodes again, then continue with run --resume",
            )
        ready, _ = ray.wait(list(away), timeout=0.2)
        for place, events in ray.get(wire.hear.remote(means.stop.level)):
            begun.add(place)
            for event in events:
                means.tell(event)
        for handle, (node, job) in list(away.items()):
            if handle in ready or node not in alive:
                del away[handle]  # what a node that is gone may still bring is not looked at
                home = _bring(ray, handle, job) if handle in ready else _unheard(job, "lost")
                board.put(job, *home)
            elif means.stop.level and job.place.name not in begun:
                ray.cancel(handle)  # it waits for a GPU that may never come


def _send(ray: Any, node: str, *order: Any) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    remote = ray.remote(_record).options(num_gpus=1, max_retries=0, scheduling_strategy=there)
    return remote.remote(*order)


def _wire(ray: Any) -> Any:
    """On the driver's own node, so that it is lost with the driver and not with a worker's node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return (
        ray.remote(Wire)
        .options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
        .remote()
    )


def _bring(ray: Any, handle: Any, job: Job) -> tuple[Watched, float]:
    """Unpack what came back. Whatever Ray lost with a node is one ending: `lost`."""
    try:
        brought: Brought = ray.get(handle)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if error.cause is not None else error from None
    except ray.exceptions.TaskCancelledError:
        return _unheard(job, "stopped")
    except ray.exceptions.RayError:
        return _unheard(job, "lost")
    job.place.mkdir(parents=True)
    for name, blob in brought.files.items():
        (job.place / name).write_bytes(blob)
    return brought.watched, brought.seconds


def _unheard(job: Job, ending: Literal["stopped", "lost"]) -> tuple[Watched, float]:
    """A job of which nothing came back. Its folder is its number, which is not given twice."""
    job.place.mkdir(parents=True)
    return Watched(Story(), ending, 137), 0.0


def _record(session: Session, job: Job, means: Means, wire: Any) -> Brought:
    """Runs on a node: one recording in a folder of its own, which is removed."""
    import ray

    began, mine = time.monotonic(), ray.get_gpu_ids()
    number = int(mine[0]) if mine and str(mine[0]).isdigit() else None
    slot = Slot("ray", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, number)  # NVML counts so too
    with (
        guard.folder("dsa-profiler-") as home,
        _on_the_wire(ray, wire, job.place.name) as (stop, tell),
    ):
        here = Job(home / "chunks" / job.place.name, job.cases)
        watched = record_one(
            session, here, slot, replace(means, stop=stop, tell=tell, nvml=power.nvml())
        )
        files = {n: (here.place / n).read_bytes() for n in BROUGHT if (here.place / n).exists()}
        return Brought(watched, time.monotonic() - began, files)


@contextmanager
def _on_the_wire(ray: Any, wire: Any, place: str) -> Iterator[tuple[Stop, Callable[[Event], None]]]:
    """A stop that follows the user's, and somebody to tell events to, until the block ends."""
    stop, said, over = Stop(), list[Event](), threading.Event()

    def exchange() -> None:
        batch = said[:]
        del said[: len(batch)]
        with suppress(ray.exceptions.RayError):  # a lost wire costs the progress, not the job
            stop.level = ray.get(wire.say.remote(place, batch))

    def talk() -> None:
        exchange()
        while not over.wait(TALK_S):
            exchange()

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    try:
        yield stop, said.append
    finally:
        over.set()
        thread.join()
        exchange()


def _mute(event: Event) -> None:
    """Stands in for the driver's `tell`, which cannot travel."""
