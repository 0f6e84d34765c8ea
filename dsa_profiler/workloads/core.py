"""The core of a DSA layer: caches, index scores, top-k and gathered attention.

The projections around it are the same for everybody; the core is what differs between plain
PyTorch and the real kernels. `Core` is that seam, `TorchCore` the plain one and the oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from dsa_profiler.model import Dtype, ModelShape
from dsa_profiler.workloads import quant

CACHE_DTYPES: dict[Dtype, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "fp8": torch.uint8,
}


class Core(Protocol):
    """What a layer asks of its core, stage by stage. b sequences, n new tokens, h local heads.

    All sequences of a case have the same length: `past` cached tokens before the new ones.
    """

    past: int

    def quantise(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Indexer queries [b, n, hi, d] and keys [b, n, d] to (values, scale, values, scale)."""
        ...

    def store_keys(self, values: Tensor, scale: Tensor, at: int) -> None:
        """Indexer keys [b, n, d] and scales [b, n] into the cache from position `at` on."""
        ...

    def logits(self, q: Tensor, weights: Tensor) -> Any:
        """Index scores of q [b, n, hi, d] weighted by [b, n, hi], in whatever form `topk` takes."""
        ...

    def topk(self, logits: Any) -> Tensor:
        """Positions of each row's best keys in its own sequence, -1 where there is none."""
        ...

    def convert(self, picks: Tensor) -> Tensor:
        """Positions in a sequence to rows of the cache's pool; -1 stays."""
        ...

    def store_rows(self, latent: Tensor, rope: Tensor, at: int) -> None:
        """KV rows [b, n, c] and [b, n, r] (rotated) into the cache from position `at` on."""
        ...

    def attend(self, q: Tensor, rows: Tensor, scale: float) -> Tensor:
        """Absorbed queries [b, n, h, c + r] over the pool's `rows`: latents [b, n, h, c]."""
        ...


class TorchCore:
    """The core in plain PyTorch, computed in float32 (float64 in a float64 layer).

    Score and attention intermediates are made in blocks of `budget` elements, so that memory grows
    with the score matrix (4 bytes a query and key) and with nothing else. With `exact` the
    indexer's keys and queries stay as they are: the layer without its quantisation.
    """

    def __init__(
        self,
        shape: ModelShape,
        batch: int,
        past: int,
        new: int,
        *,
        cache_dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        wide: torch.dtype = torch.float32,
        exact: bool = False,
    ) -> None:
        self.past, self.capacity, self.wide, self.exact = past, past + new, wide, exact
        self.latent, self.width = shape.kv_lora_rank, shape.index_topk
        self.budget = 1 << 28 if torch.device(device).type == "cuda" else 1 << 24
        tokens = (batch, self.capacity)
        row = shape.kv_lora_rank + shape.qk_rope_head_dim
        if cache_dtype == torch.uint8:
            row = quant.row_bytes(shape.kv_lora_rank, shape.qk_rope_head_dim)
        self.rows = torch.empty(*tokens, row, dtype=cache_dtype, device=device)
        keys = wide if exact else quant.E4M3
        self.keys = torch.empty(*tokens, shape.index_head_dim, dtype=keys, device=device)
        self.key_scale = torch.empty(tokens, dtype=torch.float32, device=device)

    def quantise(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.exact:
            return q, torch.ones_like(q[..., 0]), k, torch.ones_like(k[..., 0])
        return *quant.quantise(q), *quant.quantise(k)

    def store_keys(self, values: Tensor, scale: Tensor, at: int) -> None:
        self.keys[:, at : at + values.shape[1]] = values
        self.key_scale[:, at : at + values.shape[1]] = scale

    def logits(self, q: Tensor, weights: Tensor) -> Tensor:
        """Σ_h w · relu(q · k) · scale_k, -inf where the key lies in the query's future."""
        batch, new, heads, _ = q.shape
        out = q.new_full((batch, new, self.capacity), -torch.inf, dtype=self.wide)
        for seqs, queries in blocks(batch, new, heads * self.capacity, self.budget):
            visible = self.past + queries.stop
            keys = self.keys[seqs, :visible].to(self.wide)
            part = q[seqs, queries].to(self.wide)
            scores = torch.matmul(part.flatten(1, 2), keys.mT).relu_()
            scores = scores.view(*part.shape[:3], visible)
            weighted = torch.matmul(weights[seqs, queries, None].to(self.wide), scores)[:, :, 0]
            out[seqs, queries, :visible] = weighted * self.key_scale[seqs, None, :visible]
        if new > 1:
            self._hide_future(out)
        return out.flatten(0, 1)

    def _hide_future(self, out: Tensor) -> None:
        key = torch.arange(self.capacity, device=out.device)
        for t in range(0, out.shape[1], 4096):
            block = out[:, t : t + 4096]
            query = torch.arange(t, t + block.shape[1], device=out.device) + self.past
            block.masked_fill_(key > query[:, None], -torch.inf)

    def topk(self, logits: Tensor) -> Tensor:
        """A set, in no order. A row with fewer keys than top-k gets them all, and -1 for the rest:
        a plain top-k would hand out masked keys there.
        """
        width = min(self.width, logits.shape[-1])
        values, picks = logits.topk(width, dim=-1, sorted=False)
        return picks.masked_fill_(values == -torch.inf, -1)

    def convert(self, picks: Tensor) -> Tensor:
        batch = self.rows.shape[0]
        first = torch.arange(batch, device=picks.device) * self.capacity
        rows = picks.view(batch, -1, picks.shape[-1]) + first[:, None, None]
        return rows.view_as(picks).masked_fill_(picks < 0, -1)

    def store_rows(self, latent: Tensor, rope: Tensor, at: int) -> None:
        fp8 = self.rows.dtype == torch.uint8
        rows = quant.pack_rows(latent, rope) if fp8 else torch.cat((latent, rope), -1)
        self.rows[:, at : at + latent.shape[1]] = rows

    def read_rows(self, index: Tensor) -> Tensor:
        """Rows of the pool in the wide dtype, [len(index), c + r]."""
        rows = self.rows.flatten(0, 1).index_select(0, index)
        fp8 = self.rows.dtype == torch.uint8
        return (quant.unpack_rows(rows, self.latent) if fp8 else rows).to(self.wide)

    def attend(self, q: Tensor, rows: Tensor, scale: float) -> Tensor:
        queries = q.flatten(0, 1)
        tokens, heads, dim = queries.shape
        out = q.new_empty(tokens, heads, self.latent)
        width = rows.shape[-1]
        for block in pieces(tokens, width * (dim + 2 * heads), self.budget):
            kv = self.read_rows(rows[block].clamp(min=0).flatten()).view(-1, width, dim)
            scores = torch.matmul(queries[block].to(self.wide), kv.mT).mul_(scale)
            scores.masked_fill_((rows[block] < 0)[:, None], -torch.inf)
            out[block] = torch.matmul(scores.softmax(-1), kv[..., : self.latent]).to(out.dtype)
        return out.view(*q.shape[:2], heads, self.latent)


def pieces(count: int, cost: int, budget: int) -> Iterator[slice]:
    """`count` things of `cost` elements each, in slices of at most `budget` elements (or one)."""
    step = max(1, budget // max(1, cost))
    return (slice(i, min(i + step, count)) for i in range(0, count, step))


def blocks(batch: int, new: int, cost: int, budget: int) -> Iterator[tuple[slice, slice]]:
    """Slices of sequences and of their queries; several sequences only with all their queries."""
    for seqs in pieces(batch, new * cost, budget):
        for queries in pieces(new, cost * (seqs.stop - seqs.start), budget):
            yield seqs, queries
