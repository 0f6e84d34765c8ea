"""The board: what is left of a sweep, who takes it, and the manifest that remembers.

Several slots (one a GPU, or a node's) take jobs from it and put them back done; it alone writes the
manifest. With one slot the cases keep the plan's order. With several the dearest go first, and a
job takes at most a share of what is left, so that all slots end at about the same time.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dsa_profiler import session as sessions
from dsa_profiler.capture.recording import TRACE, Watched, chunk_of, tidy
from dsa_profiler.capture.verdict import Attempts, judge, nothing_came
from dsa_profiler.errors import UsageError
from dsa_profiler.model import Case
from dsa_profiler.session import Outcome, Session

CHUNK_CASES = 32
CHUNK_SECONDS = 1200.0
CHUNK_BYTES = 256 << 20
QUICK_SAVE_S, SAVE_REST = 0.05, 100
JOB_S, START_S = 400.0, 10.0
"""A job takes at most 1 / slots of the predicted cost that is left and at most JOB_S of it, since a
lost node takes the whole job along; but as much as its own start in any case.
"""


@dataclass(slots=True)
class Sizes:
    """How many cases the next recording takes: what is lost at most, and what a trace may weigh."""

    most: int = CHUNK_CASES
    now: int = CHUNK_CASES

    def after(self, cases: int, good: bool, seconds: float, trace_bytes: int) -> None:
        """Halve after a recording that yielded nothing, took too long or weighs too much; grow back
        after a good one of full size. A case that crashed alone made nobody else's recording bad.
        """
        if not good or seconds > CHUNK_SECONDS or trace_bytes > CHUNK_BYTES:
            self.now = max(1, self.now // 2)
        elif cases >= self.now:
            self.now = min(self.most, self.now * 2)


@dataclass(frozen=True, slots=True)
class Job:
    """One recording to be made: its folder, and its cases."""

    place: Path
    cases: tuple[Case, ...]


class Board:
    """Safe to ask from several threads. `cost` predicts a case's seconds."""

    def __init__(
        self,
        folder: Path,
        session: Session,
        left: tuple[Case, ...],
        *,
        slots: int = 1,
        chunk_cases: int = CHUNK_CASES,
        cost: Callable[[Case], float] = lambda case: 1.0,
        halted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder, self.session = folder, session
        self._cost = {case: cost(case) for case in left}
        self._left = sorted(left, key=lambda c: -self._cost[c]) if slots > 1 else list(left)
        self._cost_left = sum(self._cost.values())
        self._troubled: list[Case] = []
        self._slots, self._halted = slots, halted
        self._sizes, self._attempts = Sizes(chunk_cases, chunk_cases), Attempts()
        self._running: set[Path] = set()
        self._changed = threading.Condition()
        self._next = _first_free(folder)
        self._unsaved: list[Path] = []
        self._rest_until = 0.0
        self.error: BaseException | None = None

    def take(self, wait: bool = True) -> Job | None:
        """The next job. Waits while others run, since what they fail at comes back; None at the
        end, after a stop, and after an error.
        """
        with self._changed:
            while wait and self._running and not (self._left or self._troubled or self._over()):
                self._changed.wait(0.1)
            if self._over() or not (self._left or self._troubled):
                return None
            cases = (self._troubled.pop(0),) if self._troubled else self._pack()
            self._cost_left -= sum(self._cost[case] for case in cases)
            place = self.folder / "chunks" / f"{self._next:04d}"
            self._next += 1
            self._running.add(place)
            return Job(place, cases)

    def put(self, job: Job, watched: Watched, seconds: float) -> None:
        """Judge a finished job, save the manifest, and hand back what must be run again."""
        with self._changed:
            if (other := _elsewhere(self.session, watched)) is not None:
                shutil.rmtree(job.place)
                raise other
            session = _described(self.session, watched)
            found = judge(job.cases, watched, job.place, self._attempts)
            if not found and len(job.cases) == 1 and self._stuck(watched):
                found = {job.cases[0]: nothing_came(watched, job.place)}
            self._keep(session, job, watched, found)
            self._sizes.after(len(job.cases), bool(found), seconds, _weight(job.place))
            again = [case for case in job.cases if case not in found]
            self._cost_left += sum(self._cost[case] for case in again)
            self._troubled += [case for case in again if self._attempts.crashes[case]]
            self._left[:0] = [case for case in again if not self._attempts.crashes[case]]
            self._running.discard(job.place)
            self._changed.notify_all()

    def adopt(self, job: Job, watched: Watched) -> bool:
        """Keep what a job of a killed run finished; False when that is nothing."""
        with self._changed:
            if _elsewhere(self.session, watched) is not None:
                return False
            found = judge(job.cases, watched, job.place, Attempts())
            if found:
                self._keep(_described(self.session, watched), job, watched, found)
                self._left = [case for case in self._left if case not in found]
            return bool(found)

    def fail(self, error: BaseException) -> None:
        """Note the first error that ends the sweep: no job is handed out any more."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def _over(self) -> bool:
        return self.error is not None or self._halted()

    def _stuck(self, watched: Watched) -> bool:
        """Whether a job of one case would yield nothing again, for ever."""
        alive = watched.story.ready is not None and watched.story.running is None
        return alive and watched.ending in ("well", "died") and not self._halted()

    def _pack(self) -> tuple[Case, ...]:
        """Cases of one head count, which share their weights."""
        share = self._cost_left / self._slots
        room = max(min(share, JOB_S), START_S) if self._slots > 1 else float("inf")
        heads, spent, chosen = self._left[0].num_heads, 0.0, list[int]()
        for index, case in enumerate(self._left):
            if len(chosen) == self._sizes.now:
                break
            if case.num_heads == heads:
                spent += self._cost[case]
                if chosen and spent > room:
                    break
                chosen.append(index)
        cases = tuple(self._left[index] for index in chosen)
        for index in reversed(chosen):
            del self._left[index]
        return cases

    def _keep(
        self, session: Session, job: Job, watched: Watched, found: dict[Case, Outcome]
    ) -> None:
        self.session = session.with_chunk(chunk_of(job.place, job.cases, watched.story), found)
        self._unsaved.append(job.place)
        if time.monotonic() >= self._rest_until:
            self._save()

    def save(self) -> None:
        """Write what is not yet written."""
        with self._changed:
            if self._unsaved:
                self._save()

    def _save(self) -> None:
        """The manifest first, the cleaning up after: a crash between the two leaves only litter.

        A large manifest takes a while to write, so it rests between two writes for some times as
        long. What is not in it yet still has its raw recording, and is adopted after a crash.
        """
        began = time.monotonic()
        sessions.save(self.folder, self.session)
        for place in self._unsaved:
            tidy(place)
        self._unsaved.clear()
        took = time.monotonic() - began
        self._rest_until = began + (SAVE_REST * took if took > QUICK_SAVE_S else 0.0)


def _described(session: Session, watched: Watched) -> Session:
    """The session with what its worker says of itself and its device, which it alone can see."""
    ready = watched.story.ready or {}
    if "device" not in ready:
        return session
    told = {"device": ready["device"], **(ready.get("environment") or {})}
    return replace(session, environment={**session.environment, **told})


def _elsewhere(session: Session, watched: Watched) -> UsageError | None:
    """A worker on another kind of machine than the session's would mix two in one table."""
    held = session.environment.get("device_name")
    found = ((watched.story.ready or {}).get("environment") or {}).get("device_name", held)
    if held in (None, found):
        return None
    return UsageError(
        "machine-changed",
        f"session {session.name} is of {held}, this worker runs on {found}",
        "continue it on such a machine; elsewhere start a new --name and compare the two",
    )


def _weight(place: Path) -> int:
    trace = place / TRACE
    return trace.stat().st_size if trace.exists() else 0


def _first_free(folder: Path) -> int:
    taken = [int(p.name) for p in (folder / "chunks").glob("*") if p.name.isdigit()]
    return max(taken, default=0) + 1
