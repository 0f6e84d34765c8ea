"""The seam between the sweep and whatever records: nsys, torch.profiler, or a stand-in in tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class Tracer(Protocol):
    """Something that can record a worker into a folder."""

    @property
    def name(self) -> str:
        """`nsys` or `torch`: what the worker is told, and what the manifest says."""

    def command(self, worker: Sequence[str], folder: Path) -> list[str]:
        """The command that runs `worker` under the tracer, its files in `folder`."""

    def environment(self, folder: Path) -> dict[str, str]:
        """Variables for that command, beside the parent's own."""

    def collect(self, folder: Path) -> Path | None:
        """The recording, ready to be read as a trace; None when there is none to be had."""
