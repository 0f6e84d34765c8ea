"""Nodes by Ray: the same board, its jobs recorded on whatever node has a GPU free.

A job travels as its order and comes back as files, already finished into `trace.sqlite` where it
was recorded, so that raw reports never cross the network. A node that goes away is an ending like
another: its cases go elsewhere. All nodes of one session must offer one kind of GPU; `resources`
picks it on a mixed cluster (Ray's `accelerator_type:...`).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dsa_profiler.capture import outcome
from dsa_profiler.capture.board import Board, Job
from dsa_profiler.capture.child import LOG
from dsa_profiler.capture.outcome import Story
from dsa_profiler.capture.recording import TRACE, Watched, prepare, settle, watch
from dsa_profiler.capture.stop import Stop
from dsa_profiler.capture.sweep import Means, OnRay
from dsa_profiler.errors import EnvironmentFault
from dsa_profiler.model import Case
from dsa_profiler.session import Session

BROUGHT = ("chunk.json", outcome.FILE, LOG, TRACE)


class Brought(NamedTuple):
    """What a remote recording sends back: how it went, and its files by name."""

    watched: Watched
    files: dict[str, bytes]


def connect(address: str) -> Any:
    """Ray, connected to the cluster at `address` (`auto`: the one this node belongs to)."""
    try:
        import ray
    except ImportError:
        raise EnvironmentFault(
            "ray-missing", "Ray is not installed here", "pip install 'dsa-profiler[ray]'"
        ) from None
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EnvironmentFault(
            "ray-unreachable", f"no Ray cluster at {address}: {error}", "start one with `ray start`"
        ) from None
    return ray


def gpus(ray: Any) -> int:
    """How many GPUs the cluster has: one job at a time on each."""
    found = int(ray.cluster_resources().get("GPU", 0))
    if not found:
        raise EnvironmentFault(
            "ray-no-gpus", "the Ray cluster has no GPU", "start its nodes with --num-gpus"
        )
    return found


def work(board: Board, means: Means, nodes: OnRay) -> None:
    """Keep the slots of `nodes` busy until the board has no more. An error ends the sweep.

    The first Ctrl-C lets the jobs that are away come home, the second calls them off.
    """
    ray = nodes.ray
    remote = ray.remote(_record).options(
        num_gpus=nodes.gpus,
        resources=dict(nodes.resources) or None,
        max_retries=0,
        scheduling_strategy="SPREAD",
    )
    away: dict[Any, tuple[Job, float]] = {}
    shipped = replace(means, stop=Stop(), tell=_silent, nvml=None)
    try:
        while True:
            while len(away) < nodes.slots and (job := board.take(wait=False)) is not None:
                began = time.monotonic()
                away[remote.remote(board.session, job.place.name, job.cases, shipped)] = job, began
            if not away:
                return
            if means.stop.level > 1:
                for handle in away:
                    ray.cancel(handle, force=True)
            ready, _ = ray.wait(list(away), timeout=0.2)
            for handle in ready:
                job, began = away.pop(handle)
                watched = _bring(ray, handle, job)
                for event in watched.story.ended.values():
                    means.tell(event)
                board.put(job, watched, time.monotonic() - began)
    except BaseException as error:
        board.fail(error)


def _bring(ray: Any, handle: Any, job: Job) -> Watched:
    """Unpack what came back. Whatever Ray lost with a node is one ending: `lost`."""
    job.place.mkdir(parents=True, exist_ok=True)
    try:
        brought: Brought = ray.get(handle)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if error.cause is not None else error from None
    except ray.exceptions.RayError:
        return Watched(Story(), "lost", 137)
    for name, blob in brought.files.items():
        (job.place / name).write_bytes(blob)
    return brought.watched


def _record(session: Session, name: str, cases: tuple[Case, ...], means: Means) -> Brought:
    """Runs on a node: one recording in a folder of its own, which is removed."""
    home = Path(tempfile.mkdtemp(prefix="dsa-profiler-"))
    try:
        place = home / "chunks" / name
        prepare(place, session, cases, means.tracer)
        watched = watch(place, means.tracer, means.stop, means.limits, means.tell, means.worker)
        settle(place, watched, means.tracer, means.finish)
        files = {n: (place / n).read_bytes() for n in BROUGHT if (place / n).exists()}
        return Brought(watched, files)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _silent(event: dict[str, Any]) -> None:
    """Events of a remote worker are told when its job comes back."""
