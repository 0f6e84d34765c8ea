"""The speed of light of a DSA layer: FLOPs and bytes by stage, and the time no kernel can beat.

    floor = sum over stages of max(flops / peak, bytes / bandwidth)

A lower bound, not an estimate: it adds the stages up (they depend on each other), but counts each
activation once, in the stage that has to read or write most of it (the absorbed query and the
latent output belong to sparse attention), as if everything else were fused. Norms, RoPE,
quantisation and cache writes are therefore free in it. Launches are a term of their own.

`useful` is what the model asks for; `executed` adds what the kernels do besides: head tiles that
are padded and, on SM90, key slots past the end of a short row.

Counts (per sequence; s new tokens after p cached ones, H local heads, weights once a call):
    projections      2 x parameters FLOP a token
    mqa_logits       2 Hi Di FLOP a (query, key) pair, s p + s(s+1)/2 pairs: quadratic
    topk             4 bytes read a pair, 4 bytes written a selected slot
    sparse_attn      2 H ((c + r) + c) FLOP a (query, selected key), min(keys, top-k) keys a query
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dsa_profiler.analysis.systems import Gemm, System
from dsa_profiler.model import Case, Dtype, ModelShape, Phase
from dsa_profiler.results import Floor, Results, StageFloor

WEIGHT_BYTES: dict[str, float] = {"bfloat16": 2.0, "fp8": 1.0, "nvfp4": 0.5625}
"""Bytes a weight: block scales are left out for fp8 (1/32,768 part), in for nvfp4 (1 in 16)."""

LAUNCHES: dict[str, int] = {
    "qkv_a_proj": 1, "qkv_a_norm": 3, "q_b_proj": 1, "indexer_q_proj": 1, "indexer_k_proj": 1,
    "indexer_rope_norm": 2, "indexer_quant": 3, "indexer_cache": 1, "mqa_logits": 1, "topk": 1,
    "index_convert": 1, "rope_append": 1, "q_absorb": 2, "sparse_attn": 1, "v_up_proj": 1,
    "o_proj": 1,
}  # fmt: skip
"""Kernels of an eager BF16 layer as TensorRT-LLM launches them; context clears logits besides."""


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs and bytes of one stage; scalars or arrays, one entry a case. `unit` names the peak."""

    unit: str
    useful: Any
    executed: Any
    bytes: Any


@dataclass(frozen=True, slots=True)
class Points:
    """Cases as columns (float64, one entry a case), all of one phase."""

    phase: Phase
    batch: Any
    seq: Any
    prefix: Any
    heads: Any

    @classmethod
    def of(cls, case: Case) -> Points:
        numbers = (case.batch_size, case.seq_len, case.prefix, case.num_heads)
        return cls(case.phase, *map(np.float64, numbers))

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, which: Any) -> Points:
        """The cases of a mask, index or slice."""
        return Points(
            self.phase, self.batch[which], self.seq[which], self.prefix[which], self.heads[which]
        )

    def case(self, index: int, dtype: Dtype = "bfloat16") -> Case:
        """One entry as a case."""
        batch, seq, heads, prefix = (
            int(c[index]) for c in (self.batch, self.seq, self.heads, self.prefix)
        )
        return Case(self.phase, batch, seq, heads, dtype, prefix)

    @property
    def rows(self) -> Any:
        """New tokens a sequence."""
        return self.seq if self.phase == "context" else np.ones_like(self.seq)

    @property
    def before(self) -> Any:
        """Cached tokens before the first new one."""
        return self.prefix if self.phase == "context" else self.seq + self.prefix

    @property
    def tokens(self) -> Any:
        return self.batch * self.rows

    @property
    def pairs(self) -> Any:
        """Causal (query, key) pairs of the call, all sequences together."""
        return self.batch * (self.rows * self.before + self.rows * (self.rows + 1) / 2)

    def selected(self, top_k: int, tile: int = 1) -> Any:
        """(query, selected key) pairs: the sum over queries of min(keys it sees, top-k), each
        filled up to whole tiles of keys.
        """
        short = np.clip(top_k - self.before, 0, self.rows)
        below = _stairs(self.before + short, tile) - _stairs(self.before, tile)
        return self.batch * (below + (self.rows - short) * top_k)


def _stairs(count: Any, tile: int) -> Any:
    """1 + 2 + ... + `count`, each number rounded up to a multiple of `tile`."""
    whole, rest = np.divmod(count, tile)
    return tile * (whole + 1) * (tile * whole / 2 + rest)


def projections(shape: ModelShape, heads: Any) -> dict[str, tuple[Any, Any]]:
    """(parameters, activation elements a token) of the seven products."""
    q_head = shape.qk_nope_head_dim + shape.qk_rope_head_dim
    latent = shape.kv_lora_rank + shape.qk_rope_head_dim
    hidden, index_q = shape.hidden_size, shape.index_n_heads * shape.index_head_dim
    return {
        "qkv_a_proj": (hidden * (shape.q_lora_rank + latent), hidden + shape.q_lora_rank + latent),
        "q_b_proj": (shape.q_lora_rank * heads * q_head, heads * q_head),
        "indexer_q_proj": (shape.q_lora_rank * index_q, index_q),
        "indexer_k_proj": (
            hidden * (shape.index_head_dim + shape.index_n_heads),
            shape.index_head_dim + shape.index_n_heads,
        ),
        "q_absorb": (heads * shape.qk_nope_head_dim * shape.kv_lora_rank, 0),
        "v_up_proj": (heads * shape.v_head_dim * shape.kv_lora_rank, 0),
        "o_proj": (heads * shape.v_head_dim * hidden, heads * shape.v_head_dim + hidden),
    }


def work(
    shape: ModelShape, at: Points, system: System, gemm: Gemm = "bfloat16", kv: str = "bfloat16"
) -> dict[str, Work]:
    """FLOPs and bytes of every stage that has any, for all of `at` at once."""
    out: dict[str, Work] = {}
    for stage, (parameters, activations) in projections(shape, at.heads).items():
        batched = stage in ("q_absorb", "v_up_proj")  # kept in bfloat16 by every implementation
        dtype = "bfloat16" if batched else gemm
        flops = 2.0 * parameters * at.tokens
        moved = parameters * WEIGHT_BYTES[dtype] + 2.0 * activations * at.tokens
        out[stage] = Work(dtype, flops, flops, moved)
    out["mqa_logits"] = _logits(shape, at)
    out["topk"] = Work(
        "fp8", 0.0 * at.pairs, 0.0 * at.pairs, 4.0 * (at.pairs + at.tokens * shape.index_topk)
    )
    out["sparse_attn"] = _attention(shape, at, system, kv)
    return out


def _logits(shape: ModelShape, at: Points) -> Work:
    flops = 2.0 * shape.index_n_heads * shape.index_head_dim * at.pairs
    query = shape.index_n_heads * (shape.index_head_dim + 4)
    keys = at.batch * (at.before + at.rows) * (shape.index_head_dim + 4)
    return Work("fp8", flops, flops, query * at.tokens + keys + 4.0 * at.pairs)


def _attention(shape: ModelShape, at: Points, system: System, kv: str) -> Work:
    latent = shape.kv_lora_rank + shape.qk_rope_head_dim
    per_pair = 2.0 * (latent + shape.kv_lora_rank)
    selected = at.selected(shape.index_topk)
    slots = at.tokens * shape.index_topk if system.executes_padding else selected
    tiles = np.ceil(at.heads / system.head_tile) * system.head_tile
    row = row_bytes(shape, kv)
    # In prefill neighbouring queries share keys in L2: each row is read once at best.
    rows = at.batch * (at.before + at.rows) if at.phase == "context" else selected
    moved = at.tokens * (2.0 * at.heads * (latent + shape.kv_lora_rank) + 4.0 * shape.index_topk)
    unit = "fp8" if kv == "fp8" and system.fp8_attention else "bfloat16"
    return Work(unit, per_pair * at.heads * selected, per_pair * tiles * slots, moved + row * rows)


def row_bytes(shape: ModelShape, kv: str) -> int:
    """Bytes of one token in the KV cache; FP8 rows carry 4 scales and a bfloat16 RoPE part."""
    latent = shape.kv_lora_rank + shape.qk_rope_head_dim
    if kv == "fp8":
        return latent + 16 + shape.qk_rope_head_dim
    return (4 if kv == "float32" else 2) * latent


def floor(shape: ModelShape, case: Case, system: System, gemm: Gemm = "bfloat16") -> Floor:
    """The floor of one case by stage. `case.dtype` is the KV cache's, `gemm` the weights'."""
    stages = tuple(
        StageFloor(
            stage=stage,
            flops_useful=float(w.useful),
            flops_executed=float(w.executed),
            bytes=float(w.bytes),
            useful_ns=float(time(w.useful, w, system)),
            floor_ns=float(time(w.executed, w, system)),
            bound="compute" if w.executed / system.peak(w.unit) > w.bytes / system.bandwidth
            else "memory",
            launches=LAUNCHES[stage],
        )
        for stage, w in work(shape, Points.of(case), system, gemm, case.dtype).items()
    )  # fmt: skip
    launches = sum(LAUNCHES.values()) + (case.phase == "context")
    return Floor(case, system.name, stages, launches, launches * system.launch_ns)


def time(flops: Any, w: Work, system: System) -> Any:
    """ns: the slower of arithmetic and traffic."""
    return 1e9 * np.maximum(flops / system.peak(w.unit), w.bytes / system.bandwidth)


def attach(results: Results, shape: ModelShape, system: System, gemm: Gemm = "bfloat16") -> Results:
    """The same results, each case timed on the GPU with its floor. Host times have none."""
    cases = tuple(
        replace(c, floor=floor(shape, c.case, system, gemm)) if c.timing == "gpu" else c
        for c in results.cases
    )
    return replace(results, cases=cases)
