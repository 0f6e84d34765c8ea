"""The core of a DSA layer on the Hopper kernels: their layouts, their paddings, their calls.

Pages hold 64 tokens. A sequence's pages lie one after another and a case's sequences have one
length, so the row of a token in the pool is `sequence · capacity + position`, paged or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from dsa_profiler.errors import UsageError
from dsa_profiler.model import Case, ModelShape
from dsa_profiler.workloads import quant
from dsa_profiler.workloads.core import pieces
from dsa_profiler.workloads.kernels_source import Kernels

LATENT, ROPE, INDEX_DIM = 512, 64, 128
"""The one geometry that these kernels are compiled for."""

SCORES_PER_CHUNK = 1 << 27
"""Elements of one logits buffer (512 MiB), as servers bound it."""

QUERIES_PER_CALL = 8192
"""Context tokens of one FP8 attention, as servers bound a step. The kernel takes no more than
2³¹ / (heads · 576), 29,127 of 128 heads: it counts a batch entry's elements in 32 bits.
"""


def padded_heads(heads: int) -> int:
    """FlashMLA computes 64 or 128 heads; servers pad smaller counts, and so it is measured."""
    if heads > 128:
        raise UsageError(
            "heads-unsupported",
            f"{heads} local heads: FlashMLA's sparse kernels take up to 128",
            "give head counts of one GPU of a tensor-parallel group, e.g. 128, 64 or 16",
        )
    return 64 if heads <= 64 else 128


def check_model(shape: ModelShape) -> None:
    """A model whose geometry no kernel was compiled for is refused before anything is built."""
    wanted = {
        "kv_lora_rank": (LATENT,),
        "qk_rope_head_dim": (ROPE,),
        "index_head_dim": (INDEX_DIM,),
        "index_n_heads": (32, 64),
        "index_topk": (2048,),
    }
    for name, values in wanted.items():
        if getattr(shape, name) not in values:
            raise UsageError(
                "model-unsupported",
                f"{name} = {getattr(shape, name)}: the kernels are compiled for "
                + " or ".join(map(str, values)),
                "use --workload reference for other shapes",
            )


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Sequences whose context scores share one buffer: keys side by side, each query with its own
    range of columns. `keys` and `scale` are dense copies, for the dense kernel reads no pages.
    """

    seqs: slice
    keys: Tensor
    scale: Tensor
    offsets: Tensor
    starts: Tensor
    ends: Tensor


class HopperCore:
    """`core.Core` on the kernels. All buffers are made once, so that a step can be a CUDA graph."""

    def __init__(
        self,
        kernels: Kernels,
        shape: ModelShape,
        case: Case,
        device: torch.device,
        max_seq_len: int = 0,
    ) -> None:
        if case.dtype == "float32":
            raise UsageError(
                "dtype-unsupported",
                "the kernels know no float32 KV cache",
                "give --dtypes bfloat16 or fp8",
            )
        self.kernels, self.case, self.device = kernels, case, device
        self.new = case.tokens // case.batch_size
        self.past = case.kv_len - self.new
        self.width, self.heads = shape.index_topk, case.num_heads
        pages = -(-case.kv_len // quant.PAGE)
        self.capacity = pages * quant.PAGE
        self.columns = max(self.capacity, -(-max_seq_len // quant.PAGE) * quant.PAGE)
        self._make_caches(pages)
        rows = torch.arange(case.batch_size, device=device)
        self.first = rows * self.capacity
        self.own_slots = self._slots(self.past, self.new)
        token_first = self.first.repeat_interleave(self.new).to(torch.int32)
        self.token_first = token_first[:, None]
        self.picks = torch.full((case.tokens, self.width), -1, dtype=torch.int32, device=device)
        self.lengths = torch.full(
            (case.batch_size, 1), case.kv_len, dtype=torch.int32, device=device
        )
        self.queries = torch.zeros(
            case.tokens,
            padded_heads(case.num_heads),
            LATENT + ROPE,
            dtype=torch.bfloat16,
            device=device,
        )
        self.one = torch.ones(1, dtype=torch.float32, device=device)
        self.plans: dict[int, tuple[Tensor, Tensor]] = {}
        self.chunks: list[Chunk] = []
        if case.phase == "context":
            self.chunks = [self._chunk(seqs) for seqs in self._groups()]
        else:
            # A server makes the schedule once a step, for all its layers.
            self.schedule = kernels.paged_metadata(self.lengths, quant.PAGE, kernels.num_sms())

    def _make_caches(self, pages: int) -> None:
        total = self.case.batch_size * pages
        self.table = torch.arange(total, dtype=torch.int32, device=self.device)
        self.table = self.table.view(self.case.batch_size, pages)
        self.key_pages = torch.zeros(
            total, quant.PAGE, 1, INDEX_DIM + 4, dtype=torch.uint8, device=self.device
        )
        fp8 = self.case.dtype == "fp8"
        self.rows = torch.zeros(
            total,
            quant.PAGE,
            1,
            quant.row_bytes(LATENT, ROPE) if fp8 else LATENT + ROPE,
            dtype=torch.uint8 if fp8 else torch.bfloat16,
            device=self.device,
        )

    def _groups(self) -> list[slice]:
        """Sequences a logits buffer: g of them need (g · new) · (g · keys) elements."""
        most = isqrt(max(1, SCORES_PER_CHUNK // (self.new * self.case.kv_len)))
        return list(pieces(self.case.batch_size, 1, max(1, most)))

    def _chunk(self, seqs: slice) -> Chunk:
        count, keys = seqs.stop - seqs.start, self.case.kv_len
        local = torch.arange(count, dtype=torch.int32, device=self.device) * keys
        starts = local.repeat_interleave(self.new)
        seen = torch.arange(1, self.new + 1, dtype=torch.int32, device=self.device) + self.past
        return Chunk(
            seqs=seqs,
            keys=torch.zeros(count * keys, INDEX_DIM, dtype=quant.E4M3, device=self.device),
            scale=torch.zeros(count * keys, 4, dtype=torch.uint8, device=self.device),
            offsets=torch.arange(count + 1, dtype=torch.int32, device=self.device) * keys,
            starts=starts,
            ends=starts + seen.repeat(count),
        )

    def slots(self, at: int, count: int) -> Tensor:
        """Pool rows of `count` tokens from position `at` on, of every sequence: int64 [b · n]."""
        if at == self.past:
            return self.own_slots
        return self._slots(at, count)

    def _slots(self, at: int, count: int) -> Tensor:
        return (self.first[:, None] + at + torch.arange(count, device=self.device)).flatten()

    def quantise(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries are quantised here. Keys stay bfloat16, with a scale that nobody reads, where
        the package quantises them while it stores them.
        """
        values, scale = self._quantise_queries(q)
        if self.kernels.quantise_and_cache is not None:
            return values, scale, k.to(torch.bfloat16), self.one
        return values, scale, *quant.quantise(k)

    def _quantise_queries(self, q: Tensor) -> tuple[Tensor, Tensor]:
        op = self.kernels.group_quant
        if op is None:
            return quant.quantise(q)
        flat = q.to(torch.bfloat16).reshape(-1, INDEX_DIM)
        values = torch.empty_like(flat, dtype=quant.E4M3)
        scale = torch.empty(len(flat), 1, dtype=torch.float32, device=q.device)
        limit = quant.E4M3_MAX
        op(flat, values, scale, INDEX_DIM, quant.LEAST_AMAX, -limit, limit, True, False, False)
        return values.view(q.shape), scale.view(q.shape[:-1])

    def store_keys(self, values: Tensor, scale: Tensor, at: int) -> None:
        if self.kernels.quantise_and_cache is not None:
            flat = values.reshape(-1, INDEX_DIM)
            slots = self.slots(at, values.shape[1])
            pages = self.key_pages.view(-1, quant.PAGE, INDEX_DIM + 4)
            self.kernels.quantise_and_cache(flat, pages, slots, INDEX_DIM, "ue8m0")
        else:
            self._store_keys(values, scale, at)
        if at == self.past:  # the step's own tokens: a context reads all keys densely
            for chunk in self.chunks:
                self._gather(chunk)

    def _store_keys(self, values: Tensor, scale: Tensor, at: int) -> None:
        slots = self.slots(at, values.shape[1])
        page, inside = slots // quant.PAGE, slots % quant.PAGE
        flat = self.key_pages.view(len(self.key_pages), -1)
        edge = quant.PAGE * INDEX_DIM
        by_token = flat[:, :edge].view(-1, quant.PAGE, INDEX_DIM)
        by_token[page, inside] = values.reshape(-1, INDEX_DIM).view(torch.uint8)
        scales = flat[:, edge:].view(-1, quant.PAGE, 4)
        scales[page, inside] = scale.reshape(-1, 1).view(torch.uint8)

    def _gather(self, chunk: Chunk) -> None:
        """Keys of the chunk's sequences out of their pages, one sequence after another."""
        if self.kernels.gather_keys is not None:
            pages = self.key_pages.view(-1, quant.PAGE, INDEX_DIM + 4)
            self.kernels.gather_keys(
                pages, chunk.keys, chunk.scale, self.table[chunk.seqs], chunk.offsets
            )
            return
        count, keys = chunk.seqs.stop - chunk.seqs.start, self.case.kv_len
        pages = self.key_pages[self.table[chunk.seqs].flatten().long()]
        values, scale = quant.unpack_pages(pages)
        values = values.view(torch.uint8).view(count, -1, INDEX_DIM)[:, :keys]
        chunk.keys.view(torch.uint8).copy_(values.reshape(-1, INDEX_DIM))
        chunk.scale.view(torch.float32).copy_(scale.view(count, -1)[:, :keys].reshape(-1, 1))

    def logits(self, q: Tensor, weights: Tensor) -> list[Tensor]:
        """Generation: one paged buffer [b, columns]. Context: a dense one for each chunk. Columns
        outside a query's range hold garbage: top-k is given the range.
        """
        weights = weights.float()
        if self.case.phase == "generation":
            scores: Tensor = self.kernels.paged_mqa_logits(
                q, self.key_pages, weights.flatten(0, 1), self.lengths, self.table, self.schedule,
                self.columns, clean_logits=False,
            )  # fmt: skip
            return [scores]
        return [
            self.kernels.mqa_logits(
                q[c.seqs].flatten(0, 1), (c.keys, c.scale.view(torch.float32).flatten()),
                weights[c.seqs].flatten(0, 1), c.starts, c.ends, clean_logits=False,
            )
            for c in self.chunks
        ]  # fmt: skip

    def topk(self, logits: list[Tensor]) -> Tensor:
        """int32 [tokens, top-k], positions in the query's own sequence, padded with -1."""
        if self.case.phase == "generation":
            (scores,) = logits
            self.kernels.topk_decode(
                scores, 1, self.lengths.view(-1), self.picks, len(scores), *scores.stride(),
                self.width,
            )  # fmt: skip
            return self.picks
        for chunk, scores in zip(self.chunks, logits, strict=True):
            part = self.picks[chunk.seqs.start * self.new : chunk.seqs.stop * self.new]
            self.kernels.topk_prefill(
                scores, chunk.starts, chunk.ends, part, len(part), *scores.stride(), self.width
            )
        return self.picks

    def convert(self, picks: Tensor) -> Tensor:
        return torch.where(picks >= 0, picks + self.token_first, picks)

    def store_rows(self, latent: Tensor, rope: Tensor, at: int) -> None:
        fp8 = self.case.dtype == "fp8"
        if self.kernels.cache_rows is not None:
            self.kernels.cache_rows(
                latent.reshape(-1, LATENT), rope.reshape(-1, ROPE), self.rows.squeeze(2),
                self.slots(at, latent.shape[1]), "fp8_ds_mla" if fp8 else "auto", self.one,
            )  # fmt: skip
            return
        rows = quant.pack_rows(latent, rope) if fp8 else torch.cat((latent, rope), -1)
        pool = self.rows.view(self.case.batch_size, self.capacity, -1)
        pool[:, at : at + latent.shape[1]] = rows.to(pool.dtype)

    def attend(self, q: Tensor, rows: Tensor, scale: float) -> Tensor:
        """bf16 KV by the prefill kernel, one query a row; fp8 KV by the decode kernel. Heads up to
        64 or 128 are zeros that are computed like the others: what padding costs is in the time.
        """
        flat = q.flatten(0, 1)
        if self.heads < self.queries.shape[1]:
            self.queries[:, : self.heads] = flat
            flat = self.queries
        flat = flat.to(torch.bfloat16).contiguous()
        if self.case.dtype == "fp8":
            mixed = self._attend_fp8(flat, rows, scale)
        else:
            pool = self.rows.view(-1, 1, LATENT + ROPE)
            mixed = self.kernels.sparse_prefill(
                flat, pool, rows[:, None], scale, LATENT, None, None, None
            )[0]
        out: Tensor = mixed[:, : self.heads]
        return out.view(*q.shape[:2], self.heads, LATENT).to(q.dtype)

    def _attend_fp8(self, q: Tensor, rows: Tensor, scale: float) -> Tensor:
        """Generation: a sequence a batch entry. Context: its queries as one entry, for rows are
        numbered through the pool, in as many calls as it takes.
        """
        if self.case.phase == "generation":
            return self._decode(q[:, None], rows[:, None], scale)
        cut = pieces(len(q), 1, QUERIES_PER_CALL)
        # Cut first: q[None] has the stride of the whole, which the kernel refuses unread.
        parts = [self._decode(q[part][None], rows[part][None], scale) for part in cut]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, q: Tensor, rows: Tensor, scale: float) -> Tensor:
        """From q [batch, queries, heads, 576] to [batch · queries, heads, 512]. The schedule is
        made at the first call of a shape, a warm-up's, and used again.
        """
        plan = self.plans.get(q.shape[1], (None, None))
        mixed, _, *made = self.kernels.sparse_decode(
            q, self.rows, rows, None, None, *plan, None, None, None, LATENT, scale, None
        )
        self.plans[q.shape[1]] = (made[0], made[1])
        out: Tensor = mixed
        return out.flatten(0, 1)
