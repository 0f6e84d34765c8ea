"""What became of each case of a recording, from what its worker said and how it ended."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from dsa_profiler.capture import child, power
from dsa_profiler.capture.recording import Watched
from dsa_profiler.errors import EnvironmentFault
from dsa_profiler.model import Case
from dsa_profiler.session import Outcome

LOSSES = 3
"""A node's loss is no case's fault, but a case that takes three with it is not tried again."""


@dataclass(slots=True)
class Attempts:
    """What this run of the sweep has seen go wrong so far."""

    crashes: Counter[Case] = field(default_factory=Counter)
    losses: Counter[Case] = field(default_factory=Counter)
    never_ready: int = 0


def judge(
    cases: tuple[Case, ...], watched: Watched, place: Path, attempts: Attempts
) -> dict[Case, Outcome]:
    """The outcome of every case that has one after a recording; the others are run again.

    A case that ended well but is not in the trace is not done. The case that ran when the worker
    died gets a second chance, alone.
    """
    story, found = watched.story, {}
    if watched.ending == "lost":
        attempts.losses.update(cases)
        told = f"its node was lost {LOSSES} times"
        return {
            c: Outcome("failed", place.name, told) for c in cases if attempts.losses[c] >= LOSSES
        }
    if story.ready is None and watched.ending in ("died", "timeout"):
        attempts.never_ready += 1
        if attempts.never_ready > 1 or watched.status == 3:
            raise _cannot_begin(watched, place)
    samples = power.read(place)
    for case in cases:
        event = story.ended.get(case.slug)
        if event is not None:
            if event["status"] != "done" or case in watched.arrived:
                state = power.state(samples, event)
                found[case] = replace(_outcome(event, place.name), gpu=state)
        elif story.running == case.slug:
            fate = _fate(case, watched, place, attempts)
            if fate is not None:
                found[case] = fate
    return found


def nothing_came(watched: Watched, place: Path) -> Outcome:
    """The outcome of a case that was recorded alone and still has none."""
    return Outcome("failed", place.name, _why(watched, place))


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
    """The worker's own two lines where it said them, a driver that does not fit, else the log."""
    lines = child.log_tail(place, 40).splitlines()
    for line, following in pairwise(lines):
        if line.startswith("error: ") and following.startswith("cure: "):
            return EnvironmentFault(
                "worker-refused", line.removeprefix("error: "), following.removeprefix("cure: ")
            )
    for line in lines:
        if re.search(r"driver.*(too old|insufficient|mismatch)", line, re.IGNORECASE):
            return EnvironmentFault(
                "driver-mismatch",
                f"the GPU's driver does not fit: {line[:200]}",
                "use a torch built for this driver's CUDA, or update the driver",
            )
    return EnvironmentFault(
        "worker-dead",
        f"the profiled process does not start: {_why(watched, place)}",
        f"read {place / child.LOG}",
    )
