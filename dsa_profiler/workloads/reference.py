"""One DSA attention layer in plain PyTorch, true to the model's dimensions: the oracle.

The arithmetic is that of DeepSeek-V3.2's published inference code: low-rank projections, a
lightning indexer that selects top-k keys for each query, and multi-head latent attention in its
absorbed form over the selected rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dsa_profiler.errors import UsageError
from dsa_profiler.model import Case, ModelShape
from dsa_profiler.workloads import quant, rope
from dsa_profiler.workloads.core import CACHE_DTYPES, Core, TorchCore, pieces
from dsa_profiler.workloads.instrument import StageMark
from dsa_profiler.workloads.seam import Step

WEIGHT_STD = 0.02
LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Weights:
    """A layer's weights. Projections are [out, in]; w_uk and w_uv are by head."""

    qkv_a: Tensor
    """[q_lora + kv_lora + rope, hidden]: both down-projections in one matrix"""
    q_norm: Tensor
    kv_norm: Tensor
    q_b: Tensor
    """[heads · (nope + rope), q_lora]"""
    w_uk: Tensor
    """[heads, nope, kv_lora]"""
    w_uv: Tensor
    """[heads, kv_lora, v]"""
    out: Tensor
    """[hidden, heads · v]"""
    index_q: Tensor
    """[index heads · index dim, q_lora]"""
    index_k: Tensor
    """[index dim, hidden]"""
    index_w: Tensor
    """[index heads, hidden]"""
    index_norm: Tensor
    index_bias: Tensor


def random_weights(
    shape: ModelShape, heads: int, dtype: torch.dtype, device: torch.device, seed: int
) -> Weights:
    """N(0, 0.02), norms at one and bias at zero. Near-constant weights would make every index score
    alike, the slow case of real top-k kernels.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        weight = torch.empty(size, dtype=dtype, device=device)
        return weight.normal_(0, WEIGHT_STD, generator=generator)

    def full(size: int, value: float) -> Tensor:
        return torch.full((size,), value, dtype=widened(dtype), device=device)

    s = shape
    return Weights(
        qkv_a=normal(s.q_lora_rank + s.kv_lora_rank + s.qk_rope_head_dim, s.hidden_size),
        q_norm=full(s.q_lora_rank, 1.0),
        kv_norm=full(s.kv_lora_rank, 1.0),
        q_b=normal(heads * (s.qk_nope_head_dim + s.qk_rope_head_dim), s.q_lora_rank),
        w_uk=normal(heads, s.qk_nope_head_dim, s.kv_lora_rank),
        w_uv=normal(heads, s.kv_lora_rank, s.v_head_dim),
        out=normal(s.hidden_size, heads * s.v_head_dim),
        index_q=normal(s.index_n_heads * s.index_head_dim, s.q_lora_rank),
        index_k=normal(s.index_head_dim, s.hidden_size),
        index_w=normal(s.index_n_heads, s.hidden_size),
        index_norm=full(s.index_head_dim, 1.0),
        index_bias=full(s.index_head_dim, 0.0),
    )


class Layer:
    """One layer with `heads` local heads. Norms, rotations and the core run in float32 at least."""

    def __init__(
        self, shape: ModelShape, heads: int, dtype: torch.dtype, device: torch.device, seed: int
    ) -> None:
        check_shape(shape)
        self.shape, self.heads, self.dtype, self.device = shape, heads, dtype, device
        self.wide = widened(dtype)
        self.weights = random_weights(shape, heads, dtype, device, seed)
        self.hadamard = quant.hadamard(shape.index_head_dim, self.wide, device)
        self.scale = shape.softmax_scale(shape.max_position_embeddings)
        cos, sin = rope.table(
            shape.rope, shape.qk_rope_head_dim, shape.max_position_embeddings, self.wide
        )
        self.cos, self.sin = cos.to(device), sin.to(device)

    def forward(self, x: Tensor, core: Core, mark: StageMark) -> Tensor:
        """New tokens x [b, n, hidden] after `core.past` cached ones -> [b, n, hidden].

        Every stage carries its mark once, in this order. Running it again writes the same cache
        positions, so a step can be repeated.
        """
        s, w = self.shape, self.weights
        with mark("qkv_a_proj"):
            sizes = [s.q_lora_rank, s.kv_lora_rank, s.qk_rope_head_dim]
            q_a, latent, k_rope = functional.linear(x, w.qkv_a).split_with_sizes(sizes, -1)
        with mark("qkv_a_norm"):
            q_a, latent = self.rms_norm(q_a, w.q_norm), self.rms_norm(latent, w.kv_norm)
        with mark("q_b_proj"):
            q = by_head(functional.linear(q_a, w.q_b), self.heads)
            q_nope, q_rope = q.split_with_sizes([s.qk_nope_head_dim, s.qk_rope_head_dim], -1)
        rows = self.select(x, q_a, core, mark)
        with mark("q_absorb"):
            q_latent = torch.einsum("bnhd,hdc->bnhc", q_nope, w.w_uk)
        with mark("rope_append"):
            q_rope, k_rope = self.rotate(q_rope, k_rope, core.past)
            q = torch.cat((q_latent, q_rope), -1)
            core.store_rows(latent, k_rope, core.past)
        with mark("sparse_attn"):
            mixed = core.attend(q, rows, self.scale)
        with mark("v_up_proj"):
            values = torch.einsum("bnhc,hcv->bnhv", mixed, w.w_uv)
        with mark("o_proj"):
            return functional.linear(values.flatten(-2), w.out)

    def select(self, x: Tensor, q_a: Tensor, core: Core, mark: StageMark) -> Tensor:
        """The indexer: rows of the cache's pool that each new token attends to, -1 padded."""
        s, w = self.shape, self.weights
        with mark("indexer_q_proj"):
            q = by_head(functional.linear(q_a, w.index_q), s.index_n_heads)
        with mark("indexer_k_proj"):
            k, weights = functional.linear(x, w.index_k), functional.linear(x, w.index_w)
        with mark("indexer_rope_norm"):
            q, k = self.index_rope_norm(q, k, core.past)
        with mark("indexer_quant"):
            q8, q_scale, k8, k_scale = core.quantise(q, k)
            weights = weights.to(self.wide) * q_scale * (s.index_n_heads * s.index_head_dim) ** -0.5
        with mark("indexer_cache"):
            core.store_keys(k8, k_scale, core.past)
        with mark("mqa_logits"):
            logits = core.logits(q8, weights)
        with mark("topk"):
            picks = core.topk(logits)
        with mark("index_convert"):
            return core.convert(picks)

    def index_rope_norm(self, q: Tensor, k: Tensor, past: int) -> tuple[Tensor, Tensor]:
        """LayerNorm of the key, rotation of the first dimensions of both, Hadamard of both."""
        w = self.weights
        k = functional.layer_norm(
            k.to(self.wide), k.shape[-1:], w.index_norm, w.index_bias, LAYER_NORM_EPS
        )
        q, k = self.rotate_index(q, k, past)
        return q.to(self.wide) @ self.hadamard, k.to(self.wide) @ self.hadamard

    def rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.to(self.wide)
        variance = wide.square().mean(-1, keepdim=True)
        return (wide * torch.rsqrt(variance + self.shape.rms_norm_eps) * weight).to(x.dtype)

    def rotate(self, q: Tensor, k: Tensor, past: int) -> tuple[Tensor, Tensor]:
        """Rope parts of queries [b, n, h, r] and keys [b, n, r]; they may be changed in place."""
        cos, sin = self.angles(past, k.shape[1])
        turned = rope.rotate_pairs(q.to(self.wide), cos[:, None], sin[:, None])
        return turned.to(q.dtype), rope.rotate_pairs(k.to(self.wide), cos, sin).to(k.dtype)

    def rotate_index(self, q: Tensor, k: Tensor, past: int) -> tuple[Tensor, Tensor]:
        """The same for the first dimensions of the indexer's, in its own layout, kept wide."""
        dim = self.shape.qk_rope_head_dim
        cos, sin = self.angles(past, k.shape[1])
        turn = rope.rotate_pairs if self.shape.indexer_rope_interleave else rope.rotate_halves

        def turned(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            head, tail = t[..., :dim], t[..., dim:]
            return torch.cat((turn(head, cos, sin), tail), -1)

        return turned(q.to(self.wide), cos[:, None], sin[:, None]), turned(k, cos, sin)

    def angles(self, past: int, new: int) -> tuple[Tensor, Tensor]:
        return self.cos[past : past + new], self.sin[past : past + new]


def fill(core: Core, layer: Layer, batch: int, generator: torch.Generator) -> None:
    """Random past tokens, distributed as the layer's own: unit latents, unit index keys, rope parts
    as wide as a projection makes them.
    """
    s = layer.shape
    for part in pieces(core.past, batch * (s.kv_lora_rank + s.index_head_dim), 1 << 26):
        size = (batch, part.stop - part.start)

        def normal(dim: int, std: float = 1.0, size: tuple[int, int] = size) -> Tensor:
            out = torch.empty(*size, dim, dtype=layer.wide, device=layer.device)
            return out.normal_(0, std, generator=generator)

        latent = normal(s.kv_lora_rank).to(layer.dtype)
        k_rope = normal(s.qk_rope_head_dim, WEIGHT_STD * s.hidden_size**0.5).to(layer.dtype)
        core.store_rows(latent, k_rope, part.start)
        keys = normal(s.index_head_dim)
        _, _, values, scale = core.quantise(keys[:, :, None], keys)
        core.store_keys(values, scale, part.start)


class Reference:
    """The workload: one set of weights a head count, fresh inputs and caches a case."""

    def __init__(self, model: ModelShape, device: torch.device, seed: int) -> None:
        self.model, self.device, self.seed = model, device, seed
        # On CPUs without bf16 arithmetic, bf16 products are several times slower than float32.
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.layer: Layer | None = None
        self.environment = {
            "compute_dtype": str(self.dtype).removeprefix("torch."),
            "weight_init": f"normal(0, {WEIGHT_STD})",
        }

    def prepare(self, case: Case) -> Step:
        layer = self.layer_of(case.num_heads)
        core, x = self.core_and_input(case, layer)
        return lambda mark: layer.forward(x, core, mark)

    def layer_of(self, heads: int) -> Layer:
        """The layer with that many heads; only the latest is kept, for they are large."""
        if self.layer is None or self.layer.heads != heads:
            self.layer = None
            self.layer = self.make_layer(heads)
        return self.layer

    def make_layer(self, heads: int) -> Layer:
        return Layer(self.model, heads, self.dtype, self.device, self.seed)

    def make_core(self, case: Case) -> Core:
        new = case.tokens // case.batch_size
        return TorchCore(
            self.model,
            case.batch_size,
            case.kv_len - new,
            new,
            cache_dtype=CACHE_DTYPES[case.dtype],
            device=self.device,
        )

    def core_and_input(self, case: Case, layer: Layer) -> tuple[Core, Tensor]:
        """The case's filled core and its input [b, n, hidden]; the same seed gives the same."""
        check_length(case, self.model)
        generator = torch.Generator(self.device).manual_seed(case_seed(case, self.seed))
        new = case.tokens // case.batch_size
        core = self.make_core(case)
        fill(core, layer, case.batch_size, generator)
        x = torch.empty(
            case.batch_size, new, self.model.hidden_size, dtype=self.dtype, device=self.device
        )
        return core, x.normal_(generator=generator)


def build(
    model: ModelShape, device: torch.device, seed: int, options: Mapping[str, Any]
) -> Reference:
    """The worker's entry. This workload has no options."""
    check_shape(model)
    return Reference(model, device, seed)


def case_seed(case: Case, seed: int) -> int:
    """A seed of its own for each case, the same on every machine."""
    return zlib.crc32(f"{seed} {case.slug}".encode())


def by_head(x: Tensor, heads: int) -> Tensor:
    """[..., heads · d] -> [..., heads, d]."""
    return x.view(*x.shape[:-1], heads, -1)


def widened(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_shape(shape: ModelShape) -> None:
    """Shapes that no DSA layer of this kind can have: named, before anything is allocated."""
    dim = shape.index_head_dim
    if dim & (dim - 1) or dim > quant.BLOCK:
        raise UsageError(
            "index-head-dim",
            f"index_head_dim = {dim} is not a power of two up to {quant.BLOCK}",
            "profile a model whose indexer has one FP8 block a head, as DeepSeek-V3.2 and GLM-5",
        )


def check_length(case: Case, shape: ModelShape) -> None:
    if case.kv_len > shape.max_position_embeddings:
        raise UsageError(
            "case-too-long",
            f"{case.slug} needs {case.kv_len:,} positions, "
            f"the model has {shape.max_position_embeddings:,}",
            "give shorter sequences",
        )
