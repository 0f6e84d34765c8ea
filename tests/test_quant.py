"""FP8: power-of-two scales, bounded error, and two byte layouts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsa_profiler.workloads import quant

E4M3_STEP = 2.0**-4
"""Half a unit in the last place of a normal e4m3 number, relative."""
E4M3_LEAST = 2.0**-10
"""Half of the smallest subnormal."""


@given(st.integers(0, 2**31), st.floats(-18, 18))
def test_error_is_bounded_and_scales_are_powers_of_two(seed: int, magnitude: float) -> None:
    rows = torch.randn(8, 128, generator=torch.Generator().manual_seed(seed)) * 2.0**magnitude
    values, scale = quant.quantise(rows)
    assert torch.all(torch.frexp(scale)[0] == 0.5)
    amax = rows.abs().amax(-1).clamp(min=quant.LEAST_AMAX)
    assert torch.all(amax <= quant.E4M3_MAX * scale)
    assert torch.all(amax > quant.E4M3_MAX * scale / 2)
    error = (quant.dequantise(values, scale) - rows).abs()
    assert torch.all(error <= torch.maximum(rows.abs() * E4M3_STEP, scale[:, None] * E4M3_LEAST))


@pytest.mark.parametrize("exponent", [-13, -1, 0, 1, 5])
def test_the_scale_is_exact_at_powers_of_two(exponent: int) -> None:
    """ceil(log2(x)) in floating point goes wrong exactly here."""
    edge = torch.tensor([[quant.E4M3_MAX * 2.0**exponent]])
    above = torch.nextafter(edge, torch.full_like(edge, torch.inf))
    assert quant.quantise(edge)[1].item() == 2.0**exponent
    assert quant.quantise(above)[1].item() == 2.0 ** (exponent + 1)


def test_zeros_and_nan() -> None:
    rows = torch.zeros(2, 128)
    rows[1, 3] = torch.nan
    back = quant.dequantise(*quant.quantise(rows))
    assert torch.all(back[0] == 0)
    assert back[1, 3].isnan()


def test_a_packed_row_has_656_bytes_in_this_order() -> None:
    latent, rope = torch.randn(3, 5, 512) * 10, torch.randn(3, 5, 64)
    packed = quant.pack_rows(latent, rope)
    assert packed.shape == (3, 5, quant.row_bytes(512, 64)) == (3, 5, 656)
    assert packed.dtype == torch.uint8
    assert packed.is_contiguous()
    token = packed[2, 4]
    for block in range(4):
        part = slice(128 * block, 128 * block + 128)
        values, scale = quant.quantise(latent[2, 4, part])
        assert torch.equal(token[part], values.view(torch.uint8))
        at = 512 + 4 * block
        assert token[at : at + 4].clone().view(torch.float32).item() == scale.item()
    assert torch.equal(token[528:].clone().view(torch.bfloat16), rope[2, 4].bfloat16())


def test_unpacking_gives_what_was_kept() -> None:
    latent, rope = torch.randn(7, 512), torch.randn(7, 64).bfloat16()
    back = quant.unpack_rows(quant.pack_rows(latent, rope), 512)
    blocks = quant.dequantise(*quant.quantise(latent.view(7, 4, 128))).view(7, 512)
    assert torch.equal(back[:, :512], blocks)
    assert torch.equal(back[:, 512:], rope.float())
    again = quant.unpack_rows(quant.pack_rows(back[:, :512], back[:, 512:]), 512)
    assert torch.equal(again, back), "packing what was unpacked loses nothing"


def test_a_page_holds_all_values_before_all_scales() -> None:
    values, scale = quant.quantise(torch.randn(3, 64, 128))
    packed = quant.pack_pages(values, scale)
    assert packed.shape == (3, 64, 1, 132)
    page = packed[1].reshape(-1)
    assert torch.equal(page[5 * 128 : 6 * 128], values[1, 5].view(torch.uint8))
    at = 64 * 128 + 4 * 5
    assert page[at : at + 4].clone().view(torch.float32).item() == scale[1, 5].item()
    back, back_scale = quant.unpack_pages(packed)
    assert torch.equal(back.view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(back_scale, scale)
