"""The physics of a DSA layer as terms: what its latency is a sum of, with weights >= 0.

A term is a number a case has (its tokens, its waves over the SMs, ...); a form is the list of terms
that one stage, or the whole module, may be made of. The terms carry the knees that are known, so
that nothing has to be smeared over them:

    top-k           at most top-k keys: logits and top-k are skipped, attention cost is constant
    12,288 rows     prefill's top-k launches a second kernel; 12,288 columns: decode's takes another
    waves           Hopper's attention runs one block a (token, 64 heads) and SM: steps, not a slope
    head padding    16 heads cost what 64 do in that kernel, and 16 in the projections
    gathered rows   Blackwell's attention fetches every query's own keys: bytes, in tiles of keys
    small pools     there 9 to 63 heads and few keys in all take a kernel that fetches them twice
    small calls     up to 16 tokens the first projection has a kernel of its own
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dsa_profiler.analysis import roofline
from dsa_profiler.analysis.roofline import Points
from dsa_profiler.analysis.systems import Gemm, System
from dsa_profiler.errors import InputError
from dsa_profiler.marks import GROUP_OF
from dsa_profiler.model import ModelShape

TOP_K_STEP = 12_288
"""Rows (prefill) or columns (decode) at which the top-k kernel changes."""
SMALL_CALL = 16
"""Up to so many tokens the first projection has a kernel of its own (`fused_a_gemm`)."""
KEY_TILE = 128
"""Keys at a time in Blackwell's attention: a shorter row costs as much."""
SMALL_POOL, FEW_SEQUENCES, PAIRED_TILE = 2304, 32, 256
"""Up to so many keys in fewer sequences than that, or in one sequence of any length, 9 to 63 heads
run a kernel that fetches all rows a second time, in larger tiles. Alike in the tables of B200,
B300, GB200 and GB300, of DeepSeek-V3.2 and GLM-5; 2,560 keys run the other kernel.
"""
GATHER = 28.0
"""Bytes a ns at which one SM of SM90 collects rows of the cache: 16 bytes (one `cp.async`) a clock
of 1.75 GHz. An estimate, like the peak: the fit starts from it and is not held to it.
"""
FAR = 0.3
"""Rows weigh as their latency to this power (of equal relative errors): the far field matters."""
LOOSE = 0.01
"""Ridge on the terms that no floor stands behind. Where rows cannot tell two terms apart (64 and
128 heads say nothing about 16), the ones that follow from the roofline win. The equation that ties
Hopper's waves to the products, which double with the heads as they do, weighs the same.
"""

FORMS: dict[str, tuple[str, ...]] = {
    "projections": ("call", "heads", "tokens", "token_heads"),
    "indexer": ("call", "tokens"),
    "mqa_logits": ("call", "past_call", "pairs", "batch_keys"),
    "topk": ("call", "tokens", "past_call", "past_tokens", "pairs", "step_call", "step_tokens"),
    "sparse_attn": (
        "call", "waves", "gathered", "tokens", "tiles", "picked", "picked_heads",
        "past_tokens",
    ),
    "other": ("call", "tokens"),
}  # fmt: skip
FIRM = ("call", "dense", "waves", "gathered", "scoring_floor", "past_call", "wide_call")
MODULE = (
    *FIRM, "heads", "root_heads", "tokens", "token_heads", "tiles", "picked", "picked_heads",
    "past_tokens", "pairs", "batch_keys", "token_log", "step_call", "step_tokens",
)  # fmt: skip
"""The terms of a whole module, those with a floor behind them first."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What was measured: dimensions, GPU, and the precision of weights and KV cache."""

    shape: ModelShape
    system: System
    gemm: Gemm = "bfloat16"
    kv: str = "bfloat16"


def form_of(stage: str) -> tuple[str, ...]:
    """The terms of a stage."""
    return FORMS[GROUP_OF.get(stage, "other")]


def past(at: Points, top_k: int) -> Any:
    """1 where some query sees more than `top_k` keys, so that logits and top-k run; else 0."""
    return (at.before + at.rows > top_k) * 1.0


def table(form: tuple[str, ...], layer: Layer, at: Points) -> Any:
    """(cases, terms) matrix of the form's terms, in their natural units (floors in ns)."""
    shape, system = layer.shape, layer.system
    work = roofline.work(shape, at, system, layer.gemm, layer.kv)
    floors = {stage: roofline.time(w.executed, w, system) for stage, w in work.items()}
    tokens, keys = at.tokens, at.before + at.rows
    tiles = tokens * np.ceil(at.heads / system.head_tile)
    on = past(at, shape.index_topk)
    picked = at.selected(shape.index_topk)
    context = at.phase == "context"
    step = on * ((tokens if context else keys) > TOP_K_STEP)
    moved = 2e9 * tokens * _traffic(shape, system, at.heads) / system.bandwidth
    columns = {
        "call": np.ones_like(tokens),
        "heads": at.heads,
        "root_heads": np.sqrt(at.heads),  # products of few heads leave SMs idle
        "tokens": tokens,
        "token_heads": tokens * at.heads,
        "tiles": tiles,
        "waves": np.ceil(tiles / system.sm_count) * _wave(shape, system, layer.kv),
        "gathered": _gathered(shape, system, at, layer.kv, work["sparse_attn"].unit),
        "picked": picked,
        "picked_heads": picked * at.heads,
        "past_call": on,
        "past_tokens": on * tokens,
        "pairs": on * at.pairs,
        "batch_keys": at.batch * keys,
        "token_log": tokens * np.log2(keys + 1.0) * context,
        "step_call": step,
        "step_tokens": step * tokens,
        "dense": sum(floors[s] for s in roofline.projections(shape, 1)) + moved,
        "wide_call": (tokens > SMALL_CALL) * 1.0,
        "scoring_floor": on * (floors["mqa_logits"] + floors["topk"]),
    }
    return np.stack([columns[name] for name in form], axis=1)


def _wave(shape: ModelShape, system: System, kv: str) -> float:
    """Hopper's sparse attention, one block of a token and a tile of heads, in ns: an SM collects
    all top-k rows and multiplies them at its peak rate, one after the other. 0 on Blackwell.
    """
    flops = 2.0 * system.head_tile * (2 * shape.kv_lora_rank + shape.qk_rope_head_dim)
    peak = 1e-9 * system.peak("bfloat16") / system.sm_count
    row = roofline.row_bytes(shape, kv) / GATHER + flops / peak
    return shape.index_topk * row * system.executes_padding


def _gathered(shape: ModelShape, system: System, at: Points, kv: str, unit: str) -> Any:
    """Blackwell's sparse attention at the peak rates, in ns: arithmetic and the gathering of rows,
    which overlap in part (root of the sum of squares). Hopper's runs in waves instead: 0 here.
    """
    picked = at.selected(shape.index_topk, KEY_TILE)
    pool = at.batch * (at.before + at.rows)
    small = (at.batch == 1) | ((at.batch < FEW_SEQUENCES) & (pool <= SMALL_POOL))
    again = (at.phase == "context") * small * (at.heads > 8) * (at.heads < 64)
    fetched = picked + again * at.selected(shape.index_topk, PAIRED_TILE)
    moved = fetched * roofline.row_bytes(shape, kv) / system.bandwidth
    flops = 2.0 * at.heads * (2 * shape.kv_lora_rank + shape.qk_rope_head_dim) * picked
    return 1e9 * np.hypot(moved, flops / system.peak(unit)) * (not system.executes_padding)


def _traffic(shape: ModelShape, system: System, heads: Any) -> Any:
    """Bytes a token that unfused kernels move between the products: each writes what it makes and
    the next one reads it back (at about half the bandwidth: hence the factor 2 above). On SM90 a
    head count that is no multiple of the tile is filled up and copied first.
    """
    hidden, latent = shape.hidden_size, shape.kv_lora_rank + shape.qk_rope_head_dim
    index_q = shape.index_n_heads * shape.index_head_dim
    low_rank = shape.q_lora_rank + latent
    fixed = 12 * hidden + 10 * low_rank + 11 * index_q  # inputs, norms, and the indexer's queries
    q_head = shape.qk_nope_head_dim + shape.qk_rope_head_dim
    head = 2 * (2 * q_head + 4 * latent + 2 * shape.kv_lora_rank + 2 * shape.v_head_dim)
    padded = np.ceil(heads / system.head_tile) * system.head_tile
    fill = 2 * latent * np.where(padded > heads, 2 * padded + heads, 0)
    return fixed + head * heads + fill


def weigh(form: tuple[str, ...], matrix: Any, latency: Any) -> Any:
    """Non-negative weights of the terms: least relative error, and deaf to outliers.

    Rows are weighed down by Huber's rule on the logarithm of predicted over measured. Everything is
    relative, so that twice the latencies give twice the weights.
    """
    loose = np.array([0.0 if term in FIRM else LOOSE for term in form])
    weight = (latency / np.median(latency)) ** FAR / latency
    found = _nnls(*_tied(form, matrix * weight[:, None], latency * weight), loose)
    for _ in range(3):
        off = np.abs(np.log(np.maximum(matrix @ found, 1e-9 * latency) / latency))
        allowed = 2.0 * (1.4826 * np.median(off) + 1e-3)
        soft = weight * np.sqrt(np.minimum(1.0, allowed / np.maximum(off, 1e-12)))
        found = _nnls(*_tied(form, matrix * soft[:, None], latency * soft), loose)
    return found


def _tied(form: tuple[str, ...], matrix: Any, target: Any) -> tuple[Any, Any]:
    """The equations and one more, as weak as LOOSE: waves and products are off their estimates by
    the same factor. None more where nothing runs in waves, or the waves are a stage of their own.
    """
    if "dense" not in form or not matrix[:, form.index("waves")].any():
        return matrix, target
    dense, waves = form.index("dense"), form.index("waves")
    equal = np.zeros((1, len(form)))
    equal[0, [dense, waves]] = 1.0, -1.0
    equal *= np.sqrt(LOOSE * (matrix[:, dense] ** 2).sum())
    return np.concatenate([matrix, equal]), np.append(target, 0.0)


def _nnls(matrix: Any, target: Any, loose: Any) -> Any:
    """Least squares with weights >= 0 (Lawson and Hanson's active set, on normal equations).

    `loose` is a ridge a term, in the units of the terms' own norms.
    """
    size = np.sqrt((matrix * matrix).sum(axis=0))
    size[size == 0] = np.inf  # a term that no row has gets no weight
    scaled = matrix / size
    gram = scaled.T @ scaled + np.diag(1e-9 * len(target) + loose)
    goal = scaled.T @ target
    found = np.zeros(len(goal))
    free = np.zeros(len(goal), bool)
    for _ in range(6 * len(goal)):
        slope = np.where(free, -np.inf, goal - gram @ found)
        best = int(np.argmax(slope))
        if slope[best] <= 1e-10 * np.abs(goal).max():
            break
        free[best] = True
        while True:
            trial = np.zeros(len(goal))
            trial[free] = np.linalg.solve(gram[np.ix_(free, free)], goal[free])
            bad = free & (trial <= 0)
            if not bad.any():
                found = trial
                break
            ratio = found[bad] / np.maximum(found[bad] - trial[bad], 1e-300)
            found = found + ratio.min() * (trial - found)
            free &= found > 1e-14
            found[~free] = 0.0
    if not np.isfinite(found).all() or not found.any():
        raise InputError(
            "cost-model-degenerate",
            "no sum of the layer's terms fits these latencies",
            "give measured rows of one device that grow with batch or length",
        )
    return found / size
