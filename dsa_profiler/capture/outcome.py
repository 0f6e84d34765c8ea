"""What a worker says of itself: the events of `outcome.jsonl`, read while it grows.

A worker that dies leaves a file that is right up to its last whole line; half a line is not read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = dict[str, Any]
FILE = "outcome.jsonl"


class Tail:
    """The whole lines that were added since the last look. Lines that are no event are skipped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[Event]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                blob = file.read()
        except FileNotFoundError:
            return []
        whole = blob[: blob.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [event for line in whole.splitlines() if (event := _event(line)) is not None]


@dataclass(slots=True)
class Story:
    """The events of one recording, folded: what began, what ended and how."""

    ready: Event | None = None
    running: str | None = None
    ended: dict[str, Event] = field(default_factory=dict)
    bye: bool = False

    def add(self, event: Event) -> None:
        kind, case = event["event"], event.get("case", "")
        if kind == "ready":
            self.ready = event
        elif kind == "about" and self.ready is not None:
            environment = {**self.ready.get("environment", {}), **event["environment"]}
            self.ready = {**self.ready, "environment": environment}
        elif kind == "start":
            self.running = case
        elif kind == "end":
            self.ended[case] = event
            self.running = None
        elif kind == "bye":
            self.bye, self.running = True, None

    @property
    def worker(self) -> int | None:
        """The process id of the worker itself, once it has said it."""
        pid = (self.ready or {}).get("pid")
        return pid if isinstance(pid, int) else None


def read(folder: Path) -> Story:
    """The story of a recording that is over."""
    story = Story()
    for event in Tail(folder / FILE).new():
        story.add(event)
    return story


def _event(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
