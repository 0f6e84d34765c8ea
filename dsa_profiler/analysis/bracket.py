"""How aiconfigurator's engine answers between and beyond the rows of a table.

Between two points of an axis a line on the raw latency; beyond the last one the speed of light with
the utilisation of that point: latency = SOL(query) * latency(edge) / SOL(edge). Knowing the rule
tells what a hole in a table costs before anybody serves from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dsa_profiler.analysis.systems import System
from dsa_profiler.columns import MODULE_KEY
from dsa_profiler.model import ModelShape

GEMM_BYTES = {"bfloat16": 2.0, "fp8_block": 1.0, "nvfp4": 0.5}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows as columns: new tokens, all keys that the last query sees, batch, local heads."""

    rows: Any
    keys: Any
    batch: Any
    heads: Any

    @classmethod
    def of(cls, frame: pd.DataFrame, phase: str) -> Sizes:
        rows = frame["isl"].to_numpy(np.float64)
        keys = rows + frame["step"].to_numpy(np.float64)
        rows = np.ones_like(rows) if phase == "generation" else rows
        return cls(rows, keys, frame["batch_size"].to_numpy(np.float64),
                   frame["num_heads"].to_numpy(np.float64))  # fmt: skip


def engine_sol(
    shape: ModelShape, system: System, at: Sizes, phase: str, gemm: str, kv: str = "bfloat16"
) -> Any:
    """ms: the engine's own speed of light, max(all arithmetic, all traffic), unlike our roofline.

    It counts useful work, logits over all keys for every query, and in context the KV once a head.
    Source: the formulas of aiconfigurator's DSA operations (0.10 in Python, 0.12 compiled).
    """
    s, latent = shape, shape.kv_lora_rank + shape.qk_rope_head_dim
    qk = s.qk_nope_head_dim + s.qk_rope_head_dim
    tokens, width = at.batch * at.rows, GEMM_BYTES[gemm]
    weights = (
        s.hidden_size * (s.q_lora_rank + latent + s.index_head_dim + s.index_n_heads)
        + s.q_lora_rank * (at.heads * qk + s.index_n_heads * s.index_head_dim)
        + at.heads * s.v_head_dim * s.hidden_size
    )
    absorbed = at.heads * s.kv_lora_rank * (s.qk_nope_head_dim + s.v_head_dim)
    context = phase == "context"
    selects = (at.keys > s.index_topk) | (not context)
    logits = 2 * tokens * s.index_n_heads * s.index_head_dim * at.keys * selects
    attention = 2 * at.heads * (latent + s.kv_lora_rank) * _pairs(at, s.index_topk)
    math = (
        2 * tokens * (weights + absorbed) / system.peak("fp8" if width < 2 else "bfloat16")
        + logits / system.fp8
        + attention / system.bfloat16
    )
    kept = np.minimum(at.keys, s.index_topk) * at.batch * latent * (1.0 if kv == "fp8" else 2.0)
    traffic = weights * width + at.batch * at.keys * (s.index_head_dim + 4) * selects
    traffic = traffic + kept * (at.heads if context else 1)
    traffic = traffic + (tokens * at.heads * qk * 4 if context else 0)
    return 1e3 * np.maximum(math, traffic / system.bandwidth)


def _pairs(at: Sizes, top_k: int) -> Any:
    """(query, selected key) pairs: each query sees min(its keys, top-k)."""
    before = at.keys - at.rows
    short = np.clip(top_k - before, 0, at.rows)
    return at.batch * (short * before + short * (short + 1) / 2 + (at.rows - short) * top_k)


def answer(
    table: pd.DataFrame, asked: pd.DataFrame, axis: str, sol: Any, sol_asked: Any
) -> pd.Series[float]:
    """What `table` answers at `asked`, whose rows it has at other values of `axis` only.

    `sol` and `sol_asked` are the engine's ms for the rows of both. NaN where the table has nothing
    on the axis for that key.
    """
    others = [c for c in MODULE_KEY if c != axis]
    known = table[[*others, axis, "latency"]].assign(_sol=np.asarray(sol, dtype=float))
    wanted = asked[[*others, axis]].assign(_row=np.arange(len(asked)), _want=np.asarray(sol_asked))
    pairs = wanted.merge(known, on=others, suffixes=("_asked", ""))
    pairs["_gap"] = pairs[axis] - pairs[f"{axis}_asked"]
    below = pairs[pairs["_gap"] < 0].sort_values("_gap").groupby("_row").last()
    above = pairs[pairs["_gap"] > 0].sort_values("_gap").groupby("_row").first()
    index = np.arange(len(asked))
    low, high = below.reindex(index), above.reindex(index)
    share = -low["_gap"] / (high["_gap"] - low["_gap"])
    inside = low["latency"] + share * (high["latency"] - low["latency"])
    edge = low.where(low["latency"].notna(), high)
    held = edge["latency"] * edge["_want"] / edge["_sol"]
    return inside.where(inside.notna(), held)
