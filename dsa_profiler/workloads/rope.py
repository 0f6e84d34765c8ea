"""Rotary embedding: YaRN's frequencies and the two layouts that a DSA layer mixes.

MLA rotates neighbouring pairs (interleaved), the indexer rotates the two halves of its first
dimensions (NeoX). Mixing them up changes which keys are selected and raises no error.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dsa_profiler.model import Rope


def frequencies(rope: Rope, dim: int, max_position: int) -> Tensor:
    """Angle per position of each of the `dim / 2` pairs, float64.

    With `factor` above 1 and `max_position` beyond the original length, YaRN (Peng et al., 2023,
    section 3.4): pairs that turn fewer than `beta_slow` times within the original length are
    stretched by `factor`, those above `beta_fast` turns are kept, a linear ramp lies between.
    """
    exponent = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    plain = rope.theta**-exponent
    if rope.factor <= 1 or max_position <= rope.original_max_position:
        return plain

    def pair_that_turns(turns: float) -> float:
        length = rope.original_max_position / (turns * 2 * math.pi)
        return dim * math.log(length) / (2 * math.log(rope.theta))

    low = max(math.floor(pair_that_turns(rope.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(rope.beta_slow)), dim - 1)
    pairs = torch.arange(dim // 2, dtype=torch.float64)
    stretched = ((pairs - low) / max(high - low, 1e-3)).clamp(0, 1)
    return plain * (1 - stretched) + plain / rope.factor * stretched


def table(rope: Rope, dim: int, max_position: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 … max_position - 1, [max_position, dim / 2] each."""
    positions = torch.arange(max_position, dtype=torch.float64)
    angles = positions[:, None] * frequencies(rope, dim, max_position)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaved: dimensions 2i and 2i + 1 make a pair. x [..., d], cos and sin [..., d / 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """NeoX: dimensions i and i + d / 2 make a pair. x [..., d], cos and sin [..., d / 2]."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
