"""What the user of `align` asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dsa_profiler.analysis.verdict import FAIL_ON, Tolerance


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for; the defaults ask nothing of the traces but to agree.

    case, phase, batch   which case of the standalone side, and which steps of the server.
    index_topk, layers   of the model; `layers` 0 when unknown.
    e2e_kv               the server's longest sequence, where known.
    min_steps            fewer steps make the verdict inconclusive.
    """

    case: str = ""
    phase: str = ""
    batch: int | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    fail_on: frozenset[str] = frozenset(FAIL_ON)
    min_steps: int = 2
    index_topk: int = 2048
    layers: int = 0
    architecture: str = ""
    era: str = ""
    e2e_kv: int | None = None
    tp: tuple[int | None, int | None] = (None, None)
    settings: Mapping[str, Any] = field(default_factory=dict)
