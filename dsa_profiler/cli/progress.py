"""The progress of a sweep on stderr: what runs, how far, how long. Silent where nobody looks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dsa_profiler.model import Case


class Estimate:
    """How long a sweep takes yet, over all its workers.

    Work is counted in predicted seconds. A case is credited step by step, so that long ones do not
    stand still, and once whatever happens to it. What is left takes as long a predicted second as
    what was done, since the first case began: that corrects a prediction that is wrong throughout.
    """

    def __init__(
        self,
        costs: Mapping[Case, float],
        rounds: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._costs = {case.slug: cost for case, cost in costs.items()}
        self._steps = dict.fromkeys(self._costs, 0)
        self._rounds, self._clock = rounds, clock
        self._began: float | None = None
        self.whole, self.done, self.ended = sum(self._costs.values()), 0.0, 0

    def add(self, event: Mapping[str, Any]) -> None:
        """An event of any worker."""
        kind, slug = event["event"], event.get("case", "")
        if slug not in self._steps:
            return
        if self._began is None:
            self._began = self._clock()
        if kind == "beat" and self._steps[slug] < self._rounds:
            self._steps[slug] += 1
            self.done += self._costs[slug] / self._rounds
        elif kind == "end":
            self.done += self._costs[slug] * (1 - self._steps.pop(slug) / self._rounds)
            self.ended += 1

    @property
    def left_s(self) -> float | None:
        """None until something is done."""
        if self._began is None or not self.done:
            return None
        return (self._clock() - self._began) * (self.whole - self.done) / self.done


class SweepProgress:
    """Feed it the sweep's events. The bar counts predicted work, the figures ended cases."""

    def __init__(self, costs: Mapping[Case, float], rounds: int, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._estimate = Estimate(costs, rounds)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[ended]}/{task.fields[cases]}"),
            TimeElapsedColumn(),
            TextColumn("eta {task.fields[eta]}"),
            console=self.console,
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(
            "starting", total=self._estimate.whole, ended=0, cases=len(costs), eta="-"
        )

    def __enter__(self) -> SweepProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        self._estimate.add(event)
        told: dict[str, Any] = {}
        if event["event"] == "start":
            told = {"description": event["case"]}
        elif event["event"] in ("settle", "adopt"):
            told = {"description": f"reading recording {event['chunk']}"}
        found = self._estimate
        self._bar.update(
            self._task, completed=found.done, ended=found.ended, eta=clock(found.left_s), **told
        )


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds; `-` for what is not known."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
