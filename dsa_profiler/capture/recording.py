"""One recording: a chunk of cases, one worker under one tracer, watched until it is over.

A worker that is silent for too long, or that the user gives up on, is ended alone: its profiler
then still writes what was collected, and every case that had finished keeps its trace.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dsa_profiler.capture import child, outcome, power
from dsa_profiler.capture.outcome import Event, Story
from dsa_profiler.capture.stop import Stop
from dsa_profiler.capture.torch_profiler import RAW
from dsa_profiler.capture.tracer import Tracer
from dsa_profiler.errors import EnvironmentFault, InputError
from dsa_profiler.model import Case
from dsa_profiler.session import Chunk, Session, write_atomic

Ending = Literal["well", "timeout", "stopped", "disk", "died", "lost"]
"""`lost`: its node went away with all that it had recorded."""
Finish = Callable[[Path, Path, Mapping[Case, int]], frozenset[Case]]
Tell = Callable[[Event], None]
WORKER = "dsa_profiler.workloads.worker"
TRACE = "trace.sqlite"
STOP = "stop"
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Limits:
    """Patience, in seconds and bytes.

    case_s      a case, from its start to its end
    ready_s     the worker, until it says it is ready
    wrap_up_s   the profiler, from the last case to its report
    grace_s     between asking a process to end and killing it
    disk_bytes  free space below which no case is begun
    """

    case_s: float = 600.0
    ready_s: float = 300.0
    wrap_up_s: float = 600.0
    grace_s: float = 5.0
    disk_bytes: int = 256 << 20


@dataclass(slots=True)
class Watched:
    """How a recording went: what the worker said, how it ended, and its exit status."""

    story: Story
    ending: Ending
    status: int
    arrived: frozenset[Case] = field(default_factory=frozenset)
    trouble: str = ""
    """Why the recording could not be used, where it could not."""


def prepare(
    folder: Path, session: Session, cases: tuple[Case, ...], tracer: Tracer, nvml: Any | None = None
) -> None:
    """Write what the worker is asked to do. Without NVML a load would be for nobody."""
    folder.mkdir(parents=True)
    order = _order(session, cases, tracer) | ({} if nvml else {"power_s": 0})
    write_atomic(folder / "chunk.json", json.dumps(order, indent=1) + "\n")


def _order(session: Session, cases: tuple[Case, ...], tracer: Tracer) -> dict[str, Any]:
    return {
        **session.settings,
        "workload": session.workload,
        "model": session.model.as_json(),
        "cases": [case.as_json() for case in cases],
        "tracer": tracer.name,
        "parent": os.getpid(),
        "outcome": outcome.FILE,
        "raw_trace": RAW,
    }


def watch(
    folder: Path,
    tracer: Tracer,
    stop: Stop,
    limits: Limits,
    tell: Tell,
    worker: str = WORKER,
    extra: Mapping[str, str] | None = None,
) -> Watched:
    """Run the worker of `folder` to its end, whatever that is; no process outlives the call."""
    folder = folder.resolve()  # nsys resolves a relative TMPDIR from another folder
    command = [sys.executable, "-m", worker, str(folder / "chunk.json")]
    environment = {**tracer.environment(folder), **(extra or {})}
    process = child.launch(tracer.command(command, folder), folder, environment)
    try:
        return _follow(process, folder, stop, limits, tell)
    finally:
        child.end(folder, limits.grace_s)
        process.wait()


def _follow(
    process: subprocess.Popen[bytes], folder: Path, stop: Stop, limits: Limits, tell: Tell
) -> Watched:
    story, tail = Story(), outcome.Tail(folder / outcome.FILE)
    ending: Ending = "well"
    since = asked = time.monotonic()
    while True:
        alive = process.poll() is None
        for event in tail.new():
            story.add(event)
            tell(event)
            if event["event"] != "beat":
                since = time.monotonic()
        if not alive:
            break
        now = time.monotonic()
        if stop.level or ending == "disk":
            (folder / STOP).touch()
        if ending == "well" and not story.bye and _disk_short(folder, limits):
            ending = "disk"
        if ending in ("well", "disk") and (reason := _reason(story, stop, now - since, limits)):
            ending, asked = reason, now
            _dismiss(story, folder, signal.SIGTERM)
        elif ending in ("timeout", "stopped"):
            if now - asked > limits.wrap_up_s or stop.level > 2:
                child.end(folder, limits.grace_s)
            elif now - asked > limits.grace_s:
                _dismiss(story, folder, signal.SIGKILL)
        time.sleep(POLL_S)
    if ending == "well" and not story.bye:
        ending = "died"
    return Watched(story, ending, process.returncode)


def _reason(story: Story, stop: Stop, silent_s: float, limits: Limits) -> Ending | None:
    """Why the worker must go now, if it must."""
    if stop.level > 1:
        return "stopped"
    if story.bye:
        return "timeout" if silent_s > limits.wrap_up_s else None
    if story.ready is None or story.running is None:
        return "timeout" if silent_s > limits.ready_s else None
    return "timeout" if silent_s > limits.case_s else None


def _dismiss(story: Story, folder: Path, number: signal.Signals) -> None:
    """End the worker and leave its profiler be; all of them while the worker has said nothing."""
    if story.worker is None or story.bye:
        for pid in child.members(folder):
            child.send(pid, folder, number)
    else:
        child.send(story.worker, folder, number)


def _disk_short(folder: Path, limits: Limits) -> bool:
    return shutil.disk_usage(folder).free < limits.disk_bytes // 2


def settle(folder: Path, watched: Watched, tracer: Tracer, finish: Finish) -> None:
    """Turn what was recorded into `trace.sqlite` and note which done cases are in it.

    A broken recording is trouble of this chunk alone; a profiler that records nothing, or a full
    disk, is trouble of the whole sweep and is raised. A recording that was cut short may have lost
    all its marks with the profiler's last buffer, and says nothing of the next one.
    """
    expected = {
        case: int(event.get("iterations", 1))
        for slug, event in watched.story.ended.items()
        if event.get("status") == "done" and (case := Case.from_slug(slug))
    }
    if not expected:
        return
    try:
        raw = tracer.collect(folder)
        if raw is None:
            watched.trouble = f"{tracer.name} left no recording: {child.log_tail(folder)}"
            return
        watched.arrived = finish(raw, folder / TRACE, expected)
    except InputError as error:
        watched.trouble = error.what
    except EnvironmentFault as error:
        if watched.ending == "well" and watched.status == 0:
            raise
        watched.trouble = error.what
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise disk_full(folder) from None


def disk_full(folder: Path) -> EnvironmentFault:
    return EnvironmentFault(
        "disk-full",
        f"the disk of {folder} is full; what was finished is kept",
        "free some space, then continue with run --resume",
    )


def tidy(folder: Path) -> None:
    """Remove what a recording leaves besides its order, outcome, trace and log."""
    for path in folder.iterdir():
        if path.name == "tmp":
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith((".", "raw", "part.", RAW, STOP)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def chunk_of(folder: Path, cases: tuple[Case, ...], story: Story) -> Chunk:
    trace = f"chunks/{folder.name}/{TRACE}" if (folder / TRACE).exists() else ""
    seen = power.summary(power.read(folder), story.ended.values())
    return Chunk(folder.name, cases, trace, seen.as_json() if seen else {})
