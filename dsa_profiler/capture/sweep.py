"""The sweep: chunks of cases, each recorded apart, the manifest saved after every one.

Laws: a case that is `done` is never run again; one that has no outcome is run; a case that killed
its worker is tried once more, alone, before it is called failed. The loop always ends: a chunk that
yields nothing is tried again at half its size, and a chunk of one always gets its outcome.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from dsa_profiler import session as sessions
from dsa_profiler.capture import child, outcome
from dsa_profiler.capture.recording import (
    STOP,
    TRACE,
    WORKER,
    Finish,
    Limits,
    Tell,
    Watched,
    chunk_of,
    disk_full,
    prepare,
    settle,
    tidy,
    watch,
)
from dsa_profiler.capture.stop import Stop
from dsa_profiler.capture.tracer import Tracer
from dsa_profiler.errors import EnvironmentFault, UsageError
from dsa_profiler.model import Case
from dsa_profiler.session import Outcome, Session

RETRYABLE = ("failed", "timeout", "oom")
CHUNK_CASES = 16
CHUNK_SECONDS = 600.0
CHUNK_BYTES = 256 << 20


@dataclass(slots=True)
class Sizes:
    """How many cases the next recording takes: what is lost at most, and what a trace may weigh."""

    most: int = CHUNK_CASES
    now: int = CHUNK_CASES

    def after(self, good: bool, seconds: float, trace_bytes: int) -> None:
        """Halve after trouble or a recording too long or too large; grow back after a good one."""
        if not good or seconds > CHUNK_SECONDS or trace_bytes > CHUNK_BYTES:
            self.now = max(1, self.now // 2)
        else:
            self.now = min(self.most, self.now * 2)


@dataclass(slots=True)
class Attempts:
    """What this run of the sweep has seen go wrong so far."""

    crashes: Counter[Case] = field(default_factory=Counter)
    never_ready: int = 0


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
    worker: str = WORKER,
) -> Session:
    """Run what is left of `session` in `folder`; returns the session as it is on disk at the end.

    `finish` turns a raw recording into `trace.sqlite` and returns the cases whose marks arrived.
    Raises UsageError while another run holds the session, EnvironmentFault where no recording can
    work; what was finished is saved before either.
    """
    limits, stop = limits or Limits(), stop or Stop()
    with locked(folder):
        session = adopt(folder, session, tracer, finish, limits, tell)
        left = todo(session, retry)
        sizes, attempts = Sizes(chunk_cases, chunk_cases), Attempts()
        while left and not stop.level:
            if shutil.disk_usage(folder).free < limits.disk_bytes:
                raise disk_full(folder)
            cases = _next(left, sizes.now, attempts.crashes)
            place = _free_place(folder)
            began = time.monotonic()
            prepare(place, session, cases, tracer)
            watched = watch(place, tracer, stop, limits, tell, worker)
            tell({"event": "settle", "chunk": place.name})
            settle(place, watched, tracer, finish)
            session = described(session, watched)
            found = judge(cases, watched, place, attempts)
            if not found and len(cases) == 1 and not stop.level:
                found = {cases[0]: Outcome("failed", place.name, _why(watched, place))}
            session = _keep(folder, session, place, cases, found)
            sizes.after(_good(watched), time.monotonic() - began, _weight(place))
            left = tuple(c for c in left if c not in found or found[c].status == "interrupted")
            if watched.ending == "disk":
                raise disk_full(folder)
    return session


def judge(
    cases: tuple[Case, ...], watched: Watched, place: Path, attempts: Attempts
) -> dict[Case, Outcome]:
    """The outcome of every case that has one after a recording; the others are run again.

    A case that ended well but is not in the trace is not done. The case that ran when the worker
    died gets a second chance, alone.
    """
    story, found = watched.story, {}
    if story.ready is None and watched.ending in ("died", "timeout"):
        attempts.never_ready += 1
        if attempts.never_ready > 1 or watched.status == 3:
            raise _cannot_begin(watched, place)
    for case in cases:
        event = story.ended.get(case.slug)
        if event is not None:
            if event["status"] != "done" or case in watched.arrived:
                found[case] = _outcome(event, place.name)
        elif story.running == case.slug:
            fate = _fate(case, watched, place, attempts)
            if fate is not None:
                found[case] = fate
    return found


def _fate(case: Case, watched: Watched, place: Path, attempts: Attempts) -> Outcome | None:
    """What becomes of the case that was running when the recording ended."""
    if watched.ending == "timeout":
        return Outcome("timeout", place.name, "no end within the time-out")
    if watched.ending == "stopped":
        return Outcome("interrupted", place.name, "stopped by the user")
    attempts.crashes[case] += 1
    if attempts.crashes[case] < 2:
        return None
    return Outcome("failed", place.name, _why(watched, place))


def _outcome(event: Mapping[str, object], place: str) -> Outcome:
    untraced, peak = event.get("untraced_ns"), event.get("peak_memory_bytes")
    return Outcome(
        status=event["status"],  # type: ignore[arg-type]
        chunk=place,
        detail=str(event.get("detail") or ""),
        untraced_ns=float(untraced) if isinstance(untraced, (int, float)) else None,
        peak_memory_bytes=peak if isinstance(peak, int) else None,
    )


def _why(watched: Watched, place: Path) -> str:
    if watched.trouble:
        return watched.trouble
    status = watched.status
    number = -status if status < 0 else status - 128 if status > 128 else 0
    how = f"signal {number}" if number else f"exit status {status}"
    return f"the worker died ({how}): {child.log_tail(place)}"


def _cannot_begin(watched: Watched, place: Path) -> EnvironmentFault:
    """The worker's own two lines where it said them, else the tail of its log."""
    lines = child.log_tail(place, 40).splitlines()
    for line, following in pairwise(lines):
        if line.startswith("error: ") and following.startswith("cure: "):
            return EnvironmentFault(
                "worker-refused", line.removeprefix("error: "), following.removeprefix("cure: ")
            )
    return EnvironmentFault(
        "worker-dead",
        f"the profiled process does not start: {_why(watched, place)}",
        f"read {place / child.LOG}",
    )


def _next(left: tuple[Case, ...], size: int, crashes: Counter[Case]) -> tuple[Case, ...]:
    """The next chunk: untroubled cases of one head count together, troubled ones last and alone.

    Cases of one head count share their weights.
    """
    calm = [case for case in left if not crashes[case]]
    if not calm:
        return left[:1]
    return tuple([c for c in calm if c.num_heads == calm[0].num_heads][:size])


def _keep(
    folder: Path, session: Session, place: Path, cases: tuple[Case, ...], found: dict[Case, Outcome]
) -> Session:
    """Save the manifest first, clean up after: a crash between the two only leaves litter."""
    session = session.with_chunk(chunk_of(place, cases), found)
    sessions.save(folder, session)
    tidy(place)
    return session


def described(session: Session, watched: Watched) -> Session:
    """The session with what its worker says of itself and its device, which it alone can see."""
    ready = watched.story.ready or {}
    if "device" not in ready:
        return session
    told = {"device": ready["device"], **(ready.get("environment") or {})}
    return replace(session, environment={**session.environment, **told})


def _good(watched: Watched) -> bool:
    return watched.ending == "well" and not watched.trouble


def _weight(place: Path) -> int:
    trace = place / TRACE
    return trace.stat().st_size if trace.exists() else 0


def _free_place(folder: Path) -> Path:
    taken = [int(p.name) for p in (folder / "chunks").glob("*") if p.name.isdigit()]
    return folder / "chunks" / f"{max(taken, default=0) + 1:04d}"


def adopt(
    folder: Path, session: Session, tracer: Tracer, finish: Finish, limits: Limits, tell: Tell
) -> Session:
    """Take in recordings that a killed run left: nothing finished is lost, nothing is left over.

    A worker that outlived its parent stops by itself after its case; it is waited for, then its
    recording is settled like any other. What cannot be used is removed.
    """
    known = {chunk.name for chunk in session.chunks}
    for place in sorted((folder / "chunks").glob("*")):
        if place.name in known:
            tidy(place)
            continue
        tell({"event": "adopt", "chunk": place.name})
        _wait_for_orphans(place, limits)
        watched = Watched(outcome.read(place), "stopped", 0)
        cases = tuple(Case.from_slug(slug) for slug in watched.story.ended)
        settle(place, watched, tracer, finish)
        found = judge(cases, watched, place, Attempts())
        if found:
            session = _keep(folder, session, place, cases, found)
        else:
            shutil.rmtree(place)
    for part in folder.glob(f".{sessions.MANIFEST}.*"):
        part.unlink()
    return session


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
