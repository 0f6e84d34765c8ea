"""A DSA layer written a second time, naively: masked multi-head attention in numpy, float64.

Keys and values are materialised a head, nothing is absorbed, gathered, rotated by Hadamard or
quantised; rotary embedding is a complex product. It shares only the weights with the
code it judges.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dsa_profiler.model import ModelShape, Rope
from dsa_profiler.workloads.core import TorchCore
from dsa_profiler.workloads.instrument import unmarked
from dsa_profiler.workloads.reference import Layer, Weights

SMALL = ModelShape(
    name="small",
    architecture="DeepseekV32ForCausalLM",
    hidden_size=40,
    num_attention_heads=6,
    q_lora_rank=24,
    kv_lora_rank=32,
    qk_nope_head_dim=10,
    qk_rope_head_dim=8,
    v_head_dim=12,
    index_n_heads=5,
    index_head_dim=16,
    index_topk=8,
    num_hidden_layers=2,
    max_position_embeddings=64,
    rope=Rope(theta=100.0, factor=4.0, original_max_position=16, beta_fast=4.0),
)
torch.set_num_threads(1)  # tensors are small here, and threads would only wait for each other

CPU = torch.device("cpu")
F64 = torch.float64


def layer_of(shape: ModelShape = SMALL, heads: int = 3, dtype: torch.dtype = F64) -> Layer:
    """A layer whose weights are far from special: norms and biases random, scores well apart."""
    layer = Layer(shape, heads, dtype, CPU, seed=7)
    generator = torch.Generator().manual_seed(11)

    def jitter(weight: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(weight).uniform_(-0.5, 0.5, generator=generator)
        return weight + noise

    w = layer.weights
    wide = {
        name: getattr(w, name) * (10.0 if shape is SMALL else 1.0)
        for name in ("qkv_a", "q_b", "w_uk", "w_uv", "out", "index_q", "index_k", "index_w")
    }
    layer.weights = Weights(
        **wide,
        q_norm=jitter(w.q_norm),
        kv_norm=jitter(w.kv_norm),
        index_norm=jitter(w.index_norm),
        index_bias=jitter(w.index_bias),
    )
    return layer


def core_of(
    layer: Layer, batch: int, past: int, new: int, *, exact: bool = True, budget: int = 1 << 24
) -> TorchCore:
    core = TorchCore(
        layer.shape, batch, past, new, cache_dtype=layer.wide, wide=layer.wide, exact=exact
    )
    core.budget = budget
    return core


def with_past(core: TorchCore, source: TorchCore) -> TorchCore:
    """`core` with its past taken from the cache that another pass has written."""
    for name in ("rows", "keys", "key_scale"):
        getattr(core, name)[:, : core.past] = getattr(source, name)[:, : core.past]
    return core


def tokens(layer: Layer, batch: int, new: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = (batch, new, layer.shape.hidden_size)
    return torch.empty(size, dtype=layer.dtype).normal_(generator=generator)


def forward(layer: Layer, x: torch.Tensor, picks: torch.Tensor) -> tuple[Any, Any]:
    """Output [b, s, hidden] and index scores [b · s, s] (-inf above the diagonal).

    Every query attends to `picks` [b · s, width]: whether those are right is asked of the scores,
    because a set of best keys is not unique where scores tie (relu makes many an exact zero).
    """
    picks = picks.view(len(x), x.shape[1], -1)
    pairs = [_sequence(layer, one.double().numpy(), p) for one, p in zip(x, picks, strict=True)]
    out, scores = zip(*pairs, strict=True)
    return np.stack(out), np.concatenate(scores)


def _sequence(layer: Layer, x: Any, picks: torch.Tensor) -> tuple[Any, Any]:
    s = layer.shape
    w = {name: getattr(layer.weights, name).double().numpy() for name in Weights.__slots__}
    down = x @ w["qkv_a"].T
    q_a = _rms(down[:, : s.q_lora_rank], w["q_norm"], s.rms_norm_eps)
    latent = _rms(down[:, s.q_lora_rank :][:, : s.kv_lora_rank], w["kv_norm"], s.rms_norm_eps)
    angles = np.arange(len(x))[:, None] * _frequencies(s)
    k_rope = _turn(down[:, -s.qk_rope_head_dim :], angles, halves=False)
    scores = _index_scores(s, w, x, q_a, angles)
    allowed = np.zeros(scores.shape, dtype=bool)
    for row, chosen in zip(allowed, picks, strict=True):
        row[chosen[chosen >= 0].numpy()] = True

    width = s.qk_nope_head_dim + s.qk_rope_head_dim
    q = (q_a @ w["q_b"].T).reshape(len(x), layer.heads, width)
    heads = []
    for h in range(layer.heads):
        q_rope = _turn(q[:, h, s.qk_nope_head_dim :], angles, halves=False)
        key = np.concatenate((latent @ w["w_uk"][h].T, k_rope), 1)
        query = np.concatenate((q[:, h, : s.qk_nope_head_dim], q_rope), 1)
        logits = np.where(allowed, query @ key.T * _softmax_scale(s), -np.inf)
        weight = np.exp(logits - logits.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        heads.append(weight @ (latent @ w["w_uv"][h]))
    return np.concatenate(heads, 1) @ w["out"].T, scores


def _index_scores(s: ModelShape, w: Any, x: Any, q_a: Any, angles: Any) -> Any:
    d, halves = s.qk_rope_head_dim, not s.indexer_rope_interleave
    k = x @ w["index_k"].T
    k = (k - k.mean(1, keepdims=True)) / np.sqrt(k.var(1, keepdims=True) + 1e-6)
    k = k * w["index_norm"] + w["index_bias"]
    k = np.concatenate((_turn(k[:, :d], angles, halves), k[:, d:]), 1)
    q = (q_a @ w["index_q"].T).reshape(len(x), s.index_n_heads, s.index_head_dim)
    weight = x @ w["index_w"].T * s.index_n_heads**-0.5
    total = np.zeros((len(x), len(x)))
    for h in range(s.index_n_heads):
        turned = np.concatenate((_turn(q[:, h, :d], angles, halves), q[:, h, d:]), 1)
        total += weight[:, h, None] * np.maximum(turned @ k.T, 0) * s.index_head_dim**-0.5
    return np.where(np.tri(len(x), dtype=bool), total, -np.inf)


def _turn(x: Any, angles: Any, halves: bool) -> Any:
    d = x.shape[-1]
    pairs = x[..., : d // 2] + 1j * x[..., d // 2 :] if halves else x[..., ::2] + 1j * x[..., 1::2]
    turned = pairs * np.exp(1j * angles)
    if halves:
        return np.concatenate((turned.real, turned.imag), -1)
    return np.stack((turned.real, turned.imag), -1).reshape(x.shape)


def _rms(x: Any, weight: Any, eps: float) -> Any:
    return x / np.sqrt((x**2).mean(1, keepdims=True) + eps) * weight


def _softmax_scale(s: ModelShape) -> float:
    m = 1.0
    if s.rope.factor > 1 and s.max_position_embeddings > s.rope.original_max_position:
        m = 0.1 * s.rope.mscale * math.log(s.rope.factor) + 1
    return m * m / math.sqrt(s.qk_nope_head_dim + s.qk_rope_head_dim)


def _frequencies(s: ModelShape) -> Any:
    """YaRN, by wavelengths: a pair's turns within the original length decide how it is scaled."""
    rope, d = s.rope, s.qk_rope_head_dim
    plain = np.array([rope.theta ** (-2 * i / d) for i in range(d // 2)])
    if rope.factor <= 1 or s.max_position_embeddings <= rope.original_max_position:
        return plain

    def index(turns: float) -> float:
        """The (fractional) pair that makes so many turns: theta^(-2 i / d) L = 2 pi turns."""
        return d / 2 * math.log(rope.original_max_position / (2 * math.pi * turns), rope.theta)

    low, high = math.floor(index(rope.beta_fast)), math.ceil(index(rope.beta_slow))
    low, high = max(low, 0), min(high, d - 1)
    kept = [1 - min(max((i - low) / max(high - low, 1e-3), 0), 1) for i in range(d // 2)]
    return np.array([f * (r + (1 - r) / rope.factor) for f, r in zip(plain, kept, strict=True)])


def watched(layer: Layer, core: TorchCore, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A forward pass: its output, the scores and the picks it made, by row."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str, call: Any) -> Any:
        def kept(*arguments: Any) -> Any:
            seen[name] = call(*arguments)
            return seen[name]

        return kept

    core.logits, core.topk = keep("scores", core.logits), keep("picks", core.topk)  # type: ignore
    out = layer.forward(x, core, unmarked)
    del core.logits, core.topk
    return out, seen["scores"], seen["picks"]


def plain_rope(shape: ModelShape) -> ModelShape:
    return replace(shape, rope=Rope(theta=shape.rope.theta))


def distance(got: torch.Tensor, want: Any) -> float:
    """Relative error in the Frobenius norm; NaN anywhere makes it NaN, which is below nothing."""
    want = torch.as_tensor(want).double()
    return float((got.double() - want).norm() / want.norm())


def wrong_picks(picks: torch.Tensor, scores: Any, k: int, tolerance: float = 0.0) -> int:
    """Rows whose picks are not the k best by score threshold (a set, in whatever order).

    picks [rows, width], -1 for none; scores [rows, keys], -inf where a key must not be seen.
    """
    wrong = 0
    for row, score in zip(picks, torch.as_tensor(scores).double(), strict=True):
        chosen = row[row >= 0].long()
        visible = score[score > -torch.inf]
        want = min(k, int((score != -torch.inf).sum()))
        good = len(visible) == int((score != -torch.inf).sum())  # a NaN is neither
        good &= len(chosen) == want and len(chosen.unique()) == want
        if good:
            bar = visible.topk(want).values[-1] - tolerance * visible.abs().max()
            good = bool((score[chosen] >= bar).all())
        wrong += not good
    return wrong
