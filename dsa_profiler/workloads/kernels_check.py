"""Each optional op against plain PyTorch, once, on a few rows: used only where it agrees.

A package's helper op may change its meaning between versions without a word. Being asked costs
milliseconds; what was settled stands in the environment of every session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dsa_profiler.workloads import quant, rope
from dsa_profiler.workloads.kernels_source import OPTIONAL, Kernels

FP8_ERROR = 5e-2
BF16_ERROR = 1e-2
LATENT, ROPE, DIM, PAGE = 512, 64, 128, quant.PAGE


def settled(kernels: Kernels, device: torch.device) -> Kernels:
    """The kernels with every optional op that is absent, raises or disagrees set to None."""
    about = dict(kernels.environment)
    kept: dict[str, Any] = {}
    generator = torch.Generator(device).manual_seed(0)
    for name in OPTIONAL:
        op = getattr(kernels, name)
        reason = "absent" if op is None else _disagreement(CHECKS[name], op, generator)
        kept[name] = None if reason else op
        about[f"op_{name}"] = f"torch ({reason})" if reason else "package"
    return replace(kernels, **kept, environment=about)


Check = Callable[[Callable[..., Any], torch.Generator], bool]


def _disagreement(check: Check, op: Callable[..., Any], generator: torch.Generator) -> str:
    try:
        return "" if check(op, generator) else "disagrees"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:120]


def close(got: Tensor, want: Tensor, limit: float) -> bool:
    """Relative error in the Frobenius norm within `limit`; NaN is close to nothing."""
    got, want = got.double(), want.double()
    return bool((got - want).norm() <= limit * want.norm())


def _normal(generator: torch.Generator, *size: int) -> Tensor:
    wide = torch.randn(size, generator=generator, device=generator.device)
    return wide.to(torch.bfloat16)


def _rms_norm(op: Callable[..., Any], generator: torch.Generator) -> bool:
    """On rows that are slices of longer ones, as the fused projection leaves them."""
    whole, weight = _normal(generator, 5, 2112), _normal(generator, 1536)
    x, out = whole[:, :1536], torch.full_like(whole[:, :1536].contiguous(), torch.nan)
    op(out, x, weight, 1e-6)
    wide = x.float()
    want = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * weight.float()
    return close(out, want, BF16_ERROR)


def _rotate(op: Callable[..., Any], generator: torch.Generator) -> bool:
    """Both layouts, in place, on parts of longer rows; what lies beside them stays as it was."""
    angles = torch.rand(9, ROPE // 2, generator=generator, device=generator.device) * 6
    table = torch.cat((angles.cos(), angles.sin()), -1)
    at = torch.arange(4, 7, device=generator.device).repeat(2, 1)
    for pairs, turn in ((True, rope.rotate_pairs), (False, rope.rotate_halves)):
        whole, keys = _normal(generator, 2, 3, 4, 192), _normal(generator, 2, 3, 192)
        part = slice(DIM, None) if pairs else slice(0, DIM)
        cos, sin = angles[4:7].cos(), angles[4:7].sin()
        want, want_keys = whole.clone(), keys.clone()
        turned = slice(part.start, part.start + ROPE)
        for rows, c, s in ((want, cos[:, None], sin[:, None]), (want_keys, cos, sin)):
            rows[..., turned] = turn(rows[..., turned].float(), c, s).to(rows.dtype)
        op(at, whole[..., part], keys[..., part], len(range(192)[part]), table, not pairs, 0, False)
        for got, wanted in ((whole, want), (keys, want_keys)):
            if not close(got, wanted, BF16_ERROR):
                return False
    return True


def _group_quant(op: Callable[..., Any], generator: torch.Generator) -> bool:
    x = _normal(generator, 6, DIM) * 3
    values, scale = torch.zeros_like(x, dtype=quant.E4M3), x.new_full((6, 1), torch.nan).float()
    limit = quant.E4M3_MAX
    op(x, values, scale, DIM, quant.LEAST_AMAX, -limit, limit, True, False, False)
    want = quant.quantise(x)[1]
    return torch.equal(scale[:, 0], want) and close(
        quant.dequantise(values, scale[:, 0]), x, FP8_ERROR
    )


def _slots(device: torch.device) -> Tensor:
    return torch.tensor([0, 1, 63, 64, 70, 190], device=device)


def _quantise_and_cache(op: Callable[..., Any], generator: torch.Generator) -> bool:
    keys, slots = _normal(generator, 6, DIM), _slots(generator.device)
    pages = torch.zeros(3, PAGE, DIM + 4, dtype=torch.uint8, device=generator.device)
    op(keys, pages, slots, DIM, "ue8m0")
    values, scale = quant.unpack_pages(pages[:, :, None])
    stored = quant.dequantise(values, scale).view(-1, DIM)
    return close(stored[slots], keys, FP8_ERROR) and torch.equal(
        scale.flatten()[slots], quant.quantise(keys)[1]
    )


def _gather_keys(op: Callable[..., Any], generator: torch.Generator) -> bool:
    """Two sequences of 70 tokens on pages out of order."""
    device, length = generator.device, 70
    values, scale = quant.quantise(_normal(generator, 4, PAGE, DIM))
    pages = quant.pack_pages(values, scale).view(4, PAGE, DIM + 4)
    table = torch.tensor([[2, 0], [3, 1]], dtype=torch.int32, device=device)
    offsets = torch.arange(3, dtype=torch.int32, device=device) * length
    keys = torch.zeros(2 * length, DIM, dtype=quant.E4M3, device=device)
    scales = torch.zeros(2 * length, 4, dtype=torch.uint8, device=device)
    op(pages, keys, scales, table, offsets)
    order = table.flatten().long()
    want = values.view(torch.uint8)[order].view(2, -1, DIM)[:, :length].reshape(-1, DIM)
    want_scale = scale[order].view(2, -1)[:, :length].reshape(-1)
    return torch.equal(keys.view(torch.uint8), want) and torch.equal(
        scales.view(torch.float32).flatten(), want_scale
    )


def _cache_rows(op: Callable[..., Any], generator: torch.Generator) -> bool:
    """Both cache types; one must not work by half."""
    latent, rope = _normal(generator, 6, LATENT), _normal(generator, 6, ROPE)
    device, slots = generator.device, _slots(generator.device)
    one = torch.ones(1, device=device)
    plain = torch.zeros(3, PAGE, LATENT + ROPE, dtype=torch.bfloat16, device=device)
    op(latent, rope, plain, slots, "auto", one)
    width = quant.row_bytes(LATENT, ROPE)
    packed = torch.zeros(3, PAGE, width, dtype=torch.uint8, device=device)
    op(latent, rope, packed, slots, "fp8_ds_mla", one)
    rows = torch.cat((latent, rope), -1)
    stored = quant.unpack_rows(packed.view(-1, width)[slots], LATENT)
    return torch.equal(plain.view(-1, LATENT + ROPE)[slots], rows) and close(
        stored, rows, FP8_ERROR
    )


CHECKS: dict[str, Check] = {
    "rms_norm": _rms_norm,
    "rotate": _rotate,
    "quantise_and_cache": _quantise_and_cache,
    "gather_keys": _gather_keys,
    "cache_rows": _cache_rows,
    "group_quant": _group_quant,
}
