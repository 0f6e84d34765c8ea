"""What a lint looks at, rows of one architecture and phase, and what it says, a finding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from dsa_profiler.analysis import bracket, roofline
from dsa_profiler.analysis.roofline import Points
from dsa_profiler.analysis.systems import Gemm, System
from dsa_profiler.model import ModelShape
from dsa_profiler.results import CaseResult

Severity = Literal["error", "warning", "note"]
Cell = tuple[int, int, int, int]
TOP_K = 2048
_GEMMS: dict[str, Gemm] = {"bfloat16": "bfloat16", "fp8_block": "fp8", "nvfp4": "nvfp4"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about a table. `rows` is how many rows, or curves, it concerns."""

    slug: str
    severity: Severity
    what: str
    cure: str
    rows: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """Rows of one architecture and phase, with the machine and model that they are of."""

    frame: pd.DataFrame
    phase: str
    shape: ModelShape | None
    system: System | None
    kernels: Mapping[Cell, CaseResult]
    """Breakdowns by (num_heads, batch_size, isl, step), where there are any."""

    @property
    def name(self) -> str:
        return f"{self.shape.name if self.shape else 'unknown model'} {self.phase}"

    @property
    def top_k(self) -> int:
        return self.shape.index_topk if self.shape else TOP_K

    @property
    def sequence(self) -> str:
        """The column along which a sequence grows."""
        return "step" if self.phase == "generation" else "isl"

    def keys(self, at: Any, prefix: Any = 0) -> Any:
        """Keys that the last query sees at a value of the sequence axis."""
        return at + 1 if self.phase == "generation" else at + prefix

    def around_top_k(self) -> str:
        """Sequence lengths that show what happens where top-k begins to select."""
        k = self.top_k
        points = (k // 2, k - 8, k, k + 1, k + 52, 3 * k // 2, 2 * k + 1)
        return ",".join(str(p - (self.phase == "generation")) for p in points)


def cell(result: CaseResult) -> Cell:
    """The key of a measured case among the rows of its phase."""
    case = result.case
    generation = case.phase == "generation"
    isl, step = (1, case.seq_len) if generation else (case.seq_len, case.prefix)
    return case.num_heads, case.batch_size, isl, step


def engine_sol(shape: ModelShape, system: System, rows: pd.DataFrame, phase: str) -> Any:
    """The engine's speed of light in ms, for rows of whatever mix of types."""
    out = np.empty(len(rows))
    gemm = rows["gemm_type"].where(rows["gemm_type"].isin(list(bracket.GEMM_BYTES)), "fp8_block")
    for kind, kv, at in _groups(rows, gemm):
        sizes = bracket.Sizes.of(rows.iloc[at], phase)
        out[at] = bracket.engine_sol(shape, system, sizes, phase, kind, kv)
    return out


def least_ms(shape: ModelShape, system: System, rows: pd.DataFrame, phase: str) -> Any:
    """Ms that no kernel can beat, by our roofline: useful work only, data-sheet rates.

    Logits and top-k count only where there are more keys than top-k keeps; else a server leaves
    them out.
    """
    out = np.empty(len(rows))
    gemm = rows["gemm_type"].where(rows["gemm_type"].isin(list(_GEMMS)), "fp8_block")
    for kind, kv, at in _groups(rows, gemm):
        part = rows.iloc[at]
        seq, prefix = part["isl"], part["step"]
        if phase == "generation":
            seq, prefix = part["step"], 0 * part["step"]
        columns = (part["batch_size"], seq, prefix, part["num_heads"])
        points = Points(phase, *(c.to_numpy(np.float64) for c in columns))  # type: ignore[arg-type]
        selects = (points.before + points.rows) > shape.index_topk
        total = np.zeros(len(part))
        work = roofline.work(shape, points, system, _GEMMS[kind], kv)
        for stage, w in work.items():
            time = np.maximum(w.useful / system.peak(w.unit), w.bytes / system.bandwidth)
            total += np.where(selects | (stage not in ("mqa_logits", "topk")), time, 0.0)
        out[at] = 1e3 * total
    return out


def _groups(rows: pd.DataFrame, gemm: pd.Series[str]) -> Iterator[tuple[str, str, Any]]:
    """(gemm type, KV dtype, positions of their rows)."""
    kinds = gemm.astype(str) + "|" + rows["kv_cache_dtype"].astype(str)
    for name, at in rows.groupby(kinds).indices.items():
        kind, _, kv = str(name).partition("|")
        yield kind, kv, at
