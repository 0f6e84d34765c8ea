"""The sweep: chunks of cases, each recorded apart, the manifest saved after every one.

Laws: a case that is `done` is never run again; one that has no outcome is run; a case that killed
its worker is tried once more, alone, before it is called failed. The loop always ends: a chunk that
yields nothing is tried again at half its size, and a chunk of one always gets its outcome.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsa_profiler import session as sessions
from dsa_profiler.capture import child, outcome, power
from dsa_profiler.capture.board import CHUNK_CASES, Board, Job
from dsa_profiler.capture.recording import (
    STOP,
    WORKER,
    Finish,
    Limits,
    Tell,
    Watched,
    disk_full,
    prepare,
    settle,
    tidy,
    watch,
)
from dsa_profiler.capture.stop import Stop
from dsa_profiler.capture.tracer import Tracer
from dsa_profiler.errors import UsageError
from dsa_profiler.model import Case
from dsa_profiler.session import Session

RETRYABLE = ("failed", "timeout", "oom")


@dataclass(frozen=True, slots=True)
class Slot:
    """A place where one worker runs at a time: a GPU, chosen by its environment. `gpu` is what
    NVML calls it: its number in the order of the bus, or its UUID.
    """

    name: str = "local"
    environment: Mapping[str, str] = field(default_factory=dict)
    gpu: power.Device | None = None


@dataclass(frozen=True, slots=True)
class OnRay:
    """The GPUs of one kind on a Ray cluster instead of this machine (`cluster.slots`)."""

    ray: Any
    kind: str
    slots: int


Places = Sequence[Slot] | OnRay


@dataclass(frozen=True, slots=True)
class Means:
    """All that a recording needs beside its job."""

    tracer: Tracer
    finish: Finish
    limits: Limits
    stop: Stop
    tell: Tell
    worker: str
    nvml: Any | None = None


def todo(session: Session, retry: tuple[str, ...] = ()) -> tuple[Case, ...]:
    """Cases to run, in plan order: those without an outcome, the interrupted, those to retry."""
    again = {"interrupted", *retry}
    return tuple(
        case
        for case in session.plan.cases
        if case not in session.outcomes or session.outcomes[case].status in again
    )


def record(
    folder: Path,
    session: Session,
    tracer: Tracer,
    finish: Finish,
    *,
    limits: Limits | None = None,
    stop: Stop | None = None,
    tell: Tell = lambda event: None,
    retry: tuple[str, ...] = (),
    chunk_cases: int = CHUNK_CASES,
    places: Places = (Slot(),),
    cost: Callable[[Case], float] = lambda case: 1.0,
    worker: str = WORKER,
    nvml: Any | None = None,
) -> Session:
    """Run what is left of `session` in `folder`; returns the session as it is on disk at the end.

    `finish` turns a raw recording into `trace.sqlite` and returns the cases whose marks arrived.
    Raises UsageError while another run holds the session, EnvironmentFault where no recording can
    work; what was finished is saved before either. `nvml` samples the slots' GPUs meanwhile.
    """
    means = Means(tracer, finish, limits or Limits(), stop or Stop(), tell, worker, nvml)
    with locked(folder):
        board = Board(
            folder,
            session,
            todo(session, retry),
            slots=places.slots if isinstance(places, OnRay) else len(places),
            chunk_cases=chunk_cases,
            cost=cost,
            halted=lambda: means.stop.level > 0,
        )
        try:
            adopt(board, means)
            if isinstance(places, OnRay):
                from dsa_profiler.capture import cluster

                cluster.work(board, means, places)
            elif len(places) == 1:
                _work(board, places[0], means)
            else:
                _together([threading.Thread(target=_work, args=(board, p, means)) for p in places])
        finally:
            board.save()
        if board.error is not None:
            raise board.error
    return sessions.load(folder)


def _together(threads: list[threading.Thread]) -> None:
    """Run the slots. The main thread only waits, in short sips, so that signals reach it."""
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)


def _work(board: Board, slot: Slot, means: Means) -> None:
    """One slot: job after job until the board has no more."""
    try:
        while (job := board.take()) is not None:
            if shutil.disk_usage(board.folder).free < means.limits.disk_bytes:
                raise disk_full(board.folder)
            began = time.monotonic()
            watched = record_one(board.session, job, slot, means)
            board.put(job, watched, time.monotonic() - began)
            if watched.ending == "disk":
                raise disk_full(board.folder)
    except BaseException as error:
        board.fail(error)


def record_one(session: Session, job: Job, slot: Slot, means: Means) -> Watched:
    """Record a job in its place, on its slot's GPU, which is sampled meanwhile where NVML can."""
    binding = means.nvml if slot.gpu is not None else None
    prepare(job.place, session, job.cases, means.tracer, binding)
    with power.sampling(job.place, binding, slot.gpu or 0):
        watched = watch(
            job.place, means.tracer, means.stop, means.limits, means.tell, means.worker,
            slot.environment,
        )  # fmt: skip
    means.tell({"event": "settle", "chunk": job.place.name})
    settle(job.place, watched, means.tracer, means.finish)
    return watched


def adopt(board: Board, means: Means) -> None:
    """Take in recordings that a killed run left: nothing finished is lost, nothing is left over.

    A worker that outlived its parent stops by itself after its case; it is waited for, then its
    recording is settled like any other. What cannot be used is removed.
    """
    known = {chunk.name for chunk in board.session.chunks}
    for place in sorted((board.folder / "chunks").glob("*")):
        if place.name in known:
            tidy(place)
            continue
        means.tell({"event": "adopt", "chunk": place.name})
        _wait_for_orphans(place, means.limits)
        watched = Watched(outcome.read(place), "stopped", 0)
        settle(place, watched, means.tracer, means.finish)
        cases = tuple(Case.from_slug(slug) for slug in watched.story.ended)
        if not board.adopt(Job(place, cases), watched):
            shutil.rmtree(place)
    for part in board.folder.glob(f".{sessions.MANIFEST}.*"):
        part.unlink()


def _wait_for_orphans(place: Path, limits: Limits) -> None:
    deadline = time.monotonic() + limits.case_s
    while child.members(place) and time.monotonic() < deadline:
        (place / STOP).touch()
        time.sleep(0.1)
    child.end(place, limits.grace_s)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a session against a second run. The lock is the folder's own and leaves no file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UsageError(
            "session-busy",
            f"another run is recording into {folder}",
            "wait for it to end, or give another --name",
        ) from None
    try:
        yield
    finally:
        os.close(handle)
