"""Ctrl-C by degrees: the first lets the running case finish, the second stops it now.

Both keep every finished case. SIGTERM and SIGHUP (a scheduler's pre-emption, a lost terminal)
count as Ctrl-C does.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """How often the user has asked to stop: 0 not at all, 1 after this case, 2 at once."""

    def __init__(self) -> None:
        self.level = 0

    def ask(self) -> None:
        self.level += 1


@contextmanager
def on_signals(stop: Stop, tell: Callable[[int], None] = lambda level: None) -> Iterator[Stop]:
    """Turn signals into `stop.ask()` inside the block. Works in the main thread only."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop.ask()
        tell(stop.level)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
