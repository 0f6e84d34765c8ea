"""FP8 as DSA uses it: e4m3 values, scales that are powers of two, and two packed byte layouts.

Everything here is layout and arithmetic on plain tensors, the same on CPU and CUDA.
"""

from __future__ import annotations

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
LEAST_AMAX = 1e-4
BLOCK = 128
"""Values that share one scale."""

PAGE = 64
"""Tokens of a cache page."""


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 values and one float32 power-of-two scale a row: x ≈ values · scale. x [..., d <= 128].

    scale = 2^ceil(log2(max(amax, 1e-4) / 448)) (ue8m0), so nothing ever saturates. The exponent is
    taken from the float's own bits: ceil(log2) in floating point is off by one near powers of two.
    """
    ratio = x.detach().abs().amax(-1).float().clamp(min=LEAST_AMAX) / E4M3_MAX
    mantissa, exponent = torch.frexp(ratio)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    scale = torch.ldexp(torch.ones_like(ratio), exponent)
    scale = torch.where(ratio.isfinite(), scale, ratio)
    values: Tensor = (x.float() / scale[..., None]).to(E4M3)
    return values, scale


def dequantise(values: Tensor, scale: Tensor) -> Tensor:
    """What `quantise` kept of its argument, float32."""
    wide: Tensor = values.float()
    return wide * scale[..., None]


def hadamard(dim: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The orthonormal, symmetric Hadamard matrix (Sylvester), [dim, dim]; dim is a power of two.

    It spreads outliers over a row before quantisation and leaves inner products as they are.
    """
    if dim < 1 or dim & (dim - 1):
        raise ValueError(f"a Hadamard matrix needs a power of two, not {dim}")
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < dim:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)), 0)
    scaled: Tensor = matrix * dim**-0.5
    return scaled.to(device, dtype)


def row_bytes(latent: int, rope: int) -> int:
    """Bytes of an fp8 KV row: 656 for 512 | 64."""
    return latent + 4 * (latent // BLOCK) + 2 * rope


def pack_rows(latent: Tensor, rope: Tensor) -> Tensor:
    """KV rows as bytes: e4m3 latent, its float32 scales (one per 128), bfloat16 rope.

    latent [..., c] with c a multiple of 128, rope [..., r] -> uint8 [..., c + 4 (c / 128) + 2 r].
    """
    values, scale = quantise(_blocks(latent))
    parts = (values.flatten(-2), scale, rope.to(torch.bfloat16))
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], -1)


def unpack_rows(packed: Tensor, latent: int) -> Tensor:
    """What a kernel reads out of `pack_rows`: [..., latent + rope], float32."""
    end = latent + 4 * (latent // BLOCK)
    values = packed[..., :latent].contiguous().view(E4M3)
    scale = packed[..., latent:end].contiguous().view(torch.float32)
    rope = packed[..., end:].contiguous().view(torch.bfloat16).float()
    return torch.cat((dequantise(_blocks(values), scale).flatten(-2), rope), -1)


def _blocks(x: Tensor) -> Tensor:
    """[..., c] -> [..., c / 128, 128]."""
    return x.view(*x.shape[:-1], -1, BLOCK)


def pack_pages(values: Tensor, scale: Tensor) -> Tensor:
    """Indexer keys by page: all e4m3 bytes of the page first, then all its float32 scales.

    values e4m3 [pages, 64, d], scale float32 [pages, 64] -> uint8 [pages, 64, 1, d + 4]. The last
    two dimensions are a fiction of the kernels' interface: a token's bytes do not lie together.
    """
    pages, page, dim = values.shape
    parts = (values.reshape(pages, -1), scale.reshape(pages, -1))
    packed = torch.cat([part.contiguous().view(torch.uint8) for part in parts], -1)
    return packed.view(pages, page, 1, dim + 4)


def unpack_pages(packed: Tensor) -> tuple[Tensor, Tensor]:
    """`pack_pages` undone: e4m3 [pages, 64, d] and float32 scales [pages, 64]."""
    pages, page, _, width = packed.shape
    flat = packed.reshape(pages, -1)
    dim = width - 4
    values = flat[:, : page * dim].contiguous().view(E4M3).view(pages, page, dim)
    return values, flat[:, page * dim :].contiguous().view(torch.float32)
