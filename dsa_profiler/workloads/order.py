"""What a worker is asked to do: `chunk.json`, read and checked before torch is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsa_profiler.errors import InputError
from dsa_profiler.model import Case, ModelShape
from dsa_profiler.workloads.instrument import Tracer
from dsa_profiler.workloads.settle import Goal

STOP = "stop"


@dataclass(frozen=True, slots=True)
class Order:
    """`chunk.json`: what this process is asked to do. Paths lie beside it."""

    folder: Path
    workload: str
    model: ModelShape
    cases: tuple[Case, ...]
    tracer: Tracer
    warmup: int = 2
    iterations: int = 5
    seed: int = 0
    goal: Goal | None = None
    power_s: float = 0.0
    """How long each case is repeated without a pause, so that its power can be told; 0: not."""
    device: str = "auto"
    parent: int = 0
    outcome: str = "outcome.jsonl"
    raw_trace: str = "trace.json.gz"
    options: Mapping[str, Any] = field(default_factory=dict)
    """The workload's own, by name; `cuda_graph` is the worker's: generation steps as a graph."""

    @property
    def told_to_stop(self) -> bool:
        """The parent asks for the end, or is no more."""
        return (self.folder / STOP).exists() or not _lives(self.parent)


def read_order(path: Path) -> Order:
    try:
        data = json.loads(path.read_text("utf-8"))
        known = {name: data[name] for name in Order.__slots__ if name in data}
        known["model"] = ModelShape.from_json(data["model"])
        known["goal"] = Goal(**data["goal"]) if data.get("goal") else None
        known["cases"] = tuple(Case(**case) for case in data["cases"])
        return Order(folder=path.parent, **known)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "chunk-unreadable", f"cannot read {path}: {error}", "the worker is started by `run`"
        ) from None


def _lives(pid: int) -> bool:
    """Whether that process exists; 0 stands for nobody to ask."""
    if pid <= 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
