"""The progress of a sweep on stderr: what runs, how far, how long. Silent where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dsa_profiler.config import weight
from dsa_profiler.model import Case


class SweepProgress:
    """Feed it the sweep's events. The bar counts ended cases; the estimate counts their sizes."""

    def __init__(self, cases: Iterable[Case], quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._left = {case.slug: weight(case) for case in cases}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[ended]}/{task.fields[cases]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(
            "starting", total=sum(self._left.values()), ended=0, cases=len(self._left)
        )
        self._ended = 0

    def __enter__(self) -> SweepProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "start":
            self._bar.update(self._task, description=event["case"])
        elif kind == "end":
            self._ended += 1
            self._bar.update(
                self._task, advance=self._left.pop(event["case"], 0.0), ended=self._ended
            )
        elif kind in ("settle", "adopt"):
            self._bar.update(self._task, description=f"reading recording {event['chunk']}")
