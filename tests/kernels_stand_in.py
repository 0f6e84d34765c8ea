"""The Hopper kernels' calls in plain PyTorch, for machines without a GPU.

Each stand-in refuses what the real one refuses (types, shapes, strides, head counts, page layout)
and leaves NaN where the real one leaves garbage. The arithmetic is a third writing of the core,
from the bytes up: it shares the caches' layout with nobody but the packages' documentation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsa_profiler.workloads.kernels_source import Kernels

E4M3 = torch.float8_e4m3fn
NAN = float("nan")


def need(tensor: Tensor, dtype: torch.dtype, *shape: int | None) -> None:
    assert tensor.dtype == dtype, f"{tensor.dtype} is not {dtype}"
    assert tensor.dim() == len(shape), f"{list(tensor.shape)} has not {len(shape)} dimensions"
    for have, want in zip(tensor.shape, shape, strict=True):
        assert want is None or have == want, f"{list(tensor.shape)} is not {shape}"
    assert tensor.is_contiguous(), f"strides {tensor.stride()} are not contiguous"


def need_packed(tensor: Tensor) -> None:
    """Strides as the kernels read them: also of dimensions of one, and each within 32 bits."""
    usual = torch.empty(tensor.shape, dtype=torch.uint8, device="meta").stride()
    assert tensor.stride() == usual, f"strides {tensor.stride()} are not {usual}"
    assert max(usual) < 1 << 31, "Stride exceeds int32 limit"


def sparse_prefill(
    q: Tensor, kv: Tensor, indices: Tensor, sm_scale: float, d_v: int, sink: None, length: None,
    out: None,
) -> list[Tensor]:  # fmt: skip
    need(q, torch.bfloat16, None, None, 576)
    need(kv, torch.bfloat16, None, 1, 576)
    need(indices, torch.int32, len(q), 1, None)
    assert q.shape[1] in (64, 128)
    assert indices.shape[2] > 0
    assert indices.shape[2] % 128 == 0
    for tensor in (q, kv, indices):
        need_packed(tensor)
    assert d_v == 512
    result = _attend(q, kv[:, 0].float(), indices[:, 0], sm_scale)
    return [result, torch.empty(0), torch.empty(0)]


def sparse_decode(
    q: Tensor, kv: Tensor, indices: Tensor, length: None, sink: None, metadata: Any, splits: Any,
    extra_kv: None, extra_indices: None, extra_length: None, d_v: int, sm_scale: float, out: None,
) -> tuple[Any, ...]:  # fmt: skip
    batch, per = q.shape[:2]
    need(q, torch.bfloat16, None, None, None, 576)
    need(kv, torch.uint8, None, 64, 1, 656)
    need(indices, torch.int32, batch, per, None)
    assert q.shape[2] in (64, 128)
    assert indices.shape[2] % 64 == 0
    assert per <= 65535, "grid y"
    for tensor in (q, kv, indices):
        need_packed(tensor)
    assert (metadata is None) == (splits is None)
    parts = max(132 // per // (q.shape[2] // 64), 1)
    assert metadata is None or tuple(metadata.shape) == (parts, 8), "a plan of another shape"
    assert splits is None or tuple(splits.shape) == (batch + 1,), "a plan of another shape"
    pool = kv.view(-1, 656)
    blocks = [
        pool[:, 128 * i : 128 * i + 128].contiguous().view(E4M3).float()
        * pool[:, 512 + 4 * i : 516 + 4 * i].contiguous().view(torch.float32)
        for i in range(4)
    ]
    rope = pool[:, 528:].contiguous().view(torch.bfloat16).float()
    rows = torch.cat((*blocks, rope), 1)
    mixed = _attend(q.flatten(0, 1), rows, indices.flatten(0, 1), sm_scale)
    plan = [torch.zeros(s, dtype=torch.int32) for s in ((parts, 8), (batch + 1,))]
    return mixed.view(batch, per, -1, d_v), torch.empty(0), *plan


def _attend(q: Tensor, rows: Tensor, indices: Tensor, scale: float) -> Tensor:
    out = torch.full((*q.shape[:2], 512), NAN, dtype=torch.bfloat16)
    for t, (query, chosen) in enumerate(zip(q.float(), indices, strict=True)):
        picked = rows[chosen[(chosen >= 0) & (chosen < len(rows))].long()]
        weight = torch.softmax(query @ picked.T * scale, -1)
        out[t] = (weight @ picked[:, :512]).to(torch.bfloat16)
    return out


def mqa_logits(
    q: Tensor, kv: tuple[Tensor, Tensor], weights: Tensor, start: Tensor, end: Tensor,
    clean_logits: bool = True, max_seqlen_k: int = 0,
) -> Tensor:  # fmt: skip
    keys, scale = kv
    need(q, E4M3, None, None, 128)
    need(keys, E4M3, None, 128)
    need(scale, torch.float32, len(keys))
    need(weights, torch.float32, len(q), q.shape[1])
    need(start, torch.int32, len(q))
    need(end, torch.int32, len(q))
    assert q.shape[1] in (32, 64)
    assert not clean_logits
    assert torch.all(end <= len(keys))
    buffer = torch.full((len(q), -(-len(keys) // 256) * 256), NAN)
    for row, (a, b) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
        buffer[row, a:b] = _score(q[row], keys[a:b], weights[row]) * scale[a:b]
    return buffer[:, : len(keys)]


def paged_mqa_logits(
    q: Tensor, cache: Tensor, weights: Tensor, lengths: Tensor, table: Tensor, schedule: Tensor,
    max_context_len: int, clean_logits: bool = False, indices: None = None,
) -> Tensor:  # fmt: skip
    need(q, E4M3, None, 1, None, 128)
    need(cache, torch.uint8, None, 64, 1, 132)
    need(weights, torch.float32, len(q), q.shape[2])
    need(lengths, torch.int32, len(q), 1)
    need(table, torch.int32, len(q), None)
    need(schedule, torch.int32, 2)
    assert q.shape[2] in (32, 64)
    assert int(lengths.max()) <= max_context_len
    out = torch.full((len(q), max_context_len), NAN)
    for b, length in enumerate(lengths[:, 0].tolist()):
        for number, page in enumerate(table[b].tolist()):
            data = cache[page].reshape(-1)
            keys = data[: 64 * 128].view(64, 128).contiguous().view(E4M3)
            scale = data[64 * 128 :].contiguous().view(torch.float32)
            seen = min(64, length - 64 * number)
            at = slice(64 * number, 64 * number + seen)
            out[b, at] = (_score(q[b, 0], keys, weights[b]) * scale)[:seen]
    return out


def _score(q: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    return weights @ (q.float() @ keys.float().T).relu()


def paged_metadata(lengths: Tensor, page: int, sms: int) -> Tensor:
    need(lengths, torch.int32, None, 1)
    assert (page, sms) == (64, 132)
    return torch.zeros(2, dtype=torch.int32)


def topk_prefill(
    logits: Tensor, starts: Tensor, ends: Tensor, indices: Tensor, rows: int, stride0: int,
    stride1: int, k: int,
) -> None:  # fmt: skip
    assert logits.dtype == torch.float32
    assert (stride0, stride1) == logits.stride()
    assert rows == len(logits)
    need(starts, torch.int32, rows)
    need(ends, torch.int32, rows)
    need(indices, torch.int32, rows, k)
    for row, (a, b) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        _pick(logits[row, a:b], indices[row])


def topk_decode(
    logits: Tensor, next_n: int, lengths: Tensor, indices: Tensor, rows: int, stride0: int,
    stride1: int, k: int,
) -> None:  # fmt: skip
    assert next_n == 1
    need(lengths, torch.int32, rows)
    ends = lengths.clone()
    topk_prefill(logits, torch.zeros_like(ends), ends, indices, rows, stride0, stride1, k)


def _pick(scores: Tensor, out: Tensor) -> None:
    assert not scores.isnan().any(), "top-k over scores that nobody wrote"
    best = scores.topk(min(len(out), len(scores))).indices
    out.fill_(-1)
    out[: len(best)] = best.to(torch.int32)


def rms_norm(result: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> None:
    assert weight.dtype == x.dtype == result.dtype
    assert result.is_contiguous()
    wide = x.double()
    result.copy_(wide / (wide.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight)


def rotate(
    at: Tensor, q: Tensor, k: Tensor, size: int, table: Tensor, neox: bool, offset: int,
    inverse: bool,
) -> None:  # fmt: skip
    need(at, torch.int64, None, None)
    assert q.shape[:2] == at.shape == k.shape[:2]
    assert (q.dim(), k.dim(), q.shape[-1], k.shape[-1]) == (4, 3, size, size)
    assert q.dtype == k.dtype
    assert q.stride(-1) == k.stride(-1) == 1
    for rows in (q, k):  # tokens are counted through the batch
        assert rows.shape[0] == 1 or rows.stride(0) == rows.shape[1] * rows.stride(1)
    assert table.shape[1] + offset <= size
    assert (offset, inverse) == (0, False)
    half = table.shape[1] // 2
    first, second = (
        (slice(0, half), slice(half, 2 * half))
        if neox
        else (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
    )
    for rows, angle in ((q, table[at][:, :, None].double()), (k, table[at].double())):
        x, y = rows[..., first].double(), rows[..., second].double()
        cos, sin = angle[..., :half], angle[..., half:]
        rows[..., first] = (x * cos - y * sin).to(rows.dtype)
        rows[..., second] = (y * cos + x * sin).to(rows.dtype)


def group_quant(
    x: Tensor, values: Tensor, scale: Tensor, group: int, eps: float, low: float, high: float,
    ue8m0: bool, transposed: bool, aligned: bool,
) -> None:  # fmt: skip
    need(x, torch.bfloat16, None, group)
    need(values, E4M3, len(x), group)
    need(scale, torch.float32, len(x), 1)
    assert ue8m0
    amax = x.double().abs().amax(-1, keepdim=True).clamp(min=eps)
    scale.copy_((amax / high).log2().ceil().exp2())
    values.copy_((x.float() / scale).to(E4M3))


def quantise_and_cache(k: Tensor, cache: Tensor, slots: Tensor, block: int, kind: str) -> None:
    need(k, torch.bfloat16, None, 128)
    need(cache, torch.uint8, None, 64, 132)
    need(slots, torch.int64, len(k))
    assert (block, kind) == (128, "ue8m0")
    values, scale = torch.empty_like(k, dtype=E4M3), torch.empty(len(k), 1)
    group_quant(k, values, scale, 128, 1e-4, -448.0, 448.0, True, False, False)
    flat = cache.view(len(cache), -1)
    for row, slot in enumerate(slots.tolist()):
        page, inside = divmod(slot, 64)
        flat[page, 128 * inside : 128 * inside + 128] = values[row].view(torch.uint8)
        at = 64 * 128 + 4 * inside
        flat[page, at : at + 4] = scale[row].view(torch.uint8)


def gather_keys(
    cache: Tensor, keys: Tensor, scales: Tensor, table: Tensor, offsets: Tensor
) -> None:
    need(cache, torch.uint8, None, 64, 132)
    need(keys, E4M3, None, 128)
    need(scales, torch.uint8, len(keys), 4)
    need(table, torch.int32, len(offsets) - 1, None)
    need(offsets, torch.int32, len(table) + 1)
    assert int(offsets[-1]) == len(keys)
    flat = cache.view(len(cache), -1)
    for b, (a, z) in enumerate(zip(offsets.tolist(), offsets.tolist()[1:], strict=False)):
        for position in range(z - a):
            page, inside = int(table[b, position // 64]), position % 64
            row = flat[page, 128 * inside : 128 * inside + 128]
            keys.view(torch.uint8)[a + position] = row
            scales[a + position] = flat[page, 8192 + 4 * inside : 8196 + 4 * inside]


def cache_rows(
    latent: Tensor, rope: Tensor, cache: Tensor, slots: Tensor, kind: str, scale: Tensor
) -> None:
    assert latent.dtype == rope.dtype == torch.bfloat16
    assert latent.stride(-1) == rope.stride(-1) == 1
    need(slots, torch.int64, len(latent))
    need(scale, torch.float32, 1)
    if kind == "auto":
        need(cache, torch.bfloat16, None, 64, 576)
        cache.view(-1, 576)[slots] = torch.cat((latent, rope), -1)
        return
    assert kind == "fp8_ds_mla"
    need(cache, torch.uint8, None, 64, 656)
    blocks = latent.reshape(-1, 4, 128).float()
    factor = blocks.abs().amax(-1, keepdim=True) / 448  # any float32 scale is in the format
    pool = cache.view(-1, 656)
    pool[slots, :512] = (blocks / factor).to(E4M3).view(torch.uint8).view(-1, 512)
    pool[slots, 512:528] = factor.reshape(-1, 4).view(torch.uint8)
    pool[slots, 528:] = rope.contiguous().view(torch.uint8)


BARE = Kernels(
    sparse_prefill=sparse_prefill,
    sparse_decode=sparse_decode,
    topk_prefill=topk_prefill,
    topk_decode=topk_decode,
    mqa_logits=mqa_logits,
    paged_mqa_logits=paged_mqa_logits,
    paged_metadata=paged_metadata,
    num_sms=lambda: 132,
)
"""The kernels that have no stand-in in the product."""

EXTRAS: dict[str, Any] = {
    "rms_norm": rms_norm,
    "rotate": rotate,
    "quantise_and_cache": quantise_and_cache,
    "gather_keys": gather_keys,
    "cache_rows": cache_rows,
    "group_quant": group_quant,
}
