from __future__ import annotations

import pytest
import torch

from lab.numerics import NUMERICS, NUMERICS_NAMES, round_fp8, round_int


def _weights() -> torch.Tensor:
    return torch.randn(32, 64, generator=torch.Generator().manual_seed(0))


def test_every_name_has_numerics() -> None:
    assert set(NUMERICS) == set(NUMERICS_NAMES)


@pytest.mark.parametrize(("bits", "group"), [(8, 64), (6, 16), (5, 16), (4, 16), (3, 16)])
def test_int_rounding_leaves_few_levels_and_errs_by_half_a_step(bits: int, group: int) -> None:
    weight = _weights()
    rounded = round_int(weight, bits=bits)
    grouped, original = rounded.view(32, -1, group), weight.view(32, -1, group)
    step = original.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((grouped - original).abs() <= step * 0.5001).all()
    assert max(len(row.unique()) for row in grouped.flatten(0, 1)) <= 2**bits - 1
    assert not torch.equal(rounded, weight)


def test_fp8_keeps_three_mantissa_bits_and_the_largest_value() -> None:
    x = _weights()
    rounded = round_fp8(x)
    scale = x.abs().amax(-1, keepdim=True) / 448
    normal = x.abs() >= scale * 2**-6  # below, float8_e4m3fn is subnormal
    assert ((rounded - x).abs()[normal] <= x.abs()[normal] * 2**-4 * 1.0001).all()
    torch.testing.assert_close(rounded.abs().amax(-1), x.abs().amax(-1))
    assert not torch.equal(rounded, x)


def test_rows_of_zeros_stay_zero() -> None:
    zeros = torch.zeros(4, 16)
    assert torch.equal(round_fp8(zeros), zeros)
    assert torch.equal(round_int(zeros, bits=4), zeros)
