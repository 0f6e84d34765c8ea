"""The tracer `torch`: the worker records itself with torch.profiler, as a Kineto trace.

It works where nsys does not (no nsys, no right to run it, a machine without its importer). The
recording becomes the same nsys schema as any other; only one CUPTI client fits in a process, so it
never runs together with nsys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RAW = "trace.json.gz"


@dataclass(frozen=True, slots=True)
class TorchTracer:
    """The worker alone; it writes `trace.json.gz` at its end, all or nothing."""

    name: str = "torch"

    def command(self, worker: Sequence[str], folder: Path) -> list[str]:
        return list(worker)

    def environment(self, folder: Path) -> dict[str, str]:
        return {}

    def collect(self, folder: Path) -> Path | None:
        raw = folder / RAW
        return raw if raw.exists() and raw.stat().st_size else None
