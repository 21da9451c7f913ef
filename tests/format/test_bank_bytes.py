"""The bank's grid and its bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format.bank import (
    decode_bank,
    encode_bank,
    round_bank,
    short_float_codes,
    short_floats,
    short_floats_bits,
)
from gbnn_compress.types import Bank


@st.composite
def banks(draw: st.DrawFn) -> tuple[Bank, int]:
    """A bank with ascending, sometimes coincident means, and the exponent of its grid."""
    exponent = draw(st.integers(-30, 10))
    codes = draw(st.lists(st.floats(-1000, 1000), min_size=1, max_size=40))
    sigmas = draw(st.lists(st.floats(-20, 20), min_size=len(codes), max_size=len(codes)))
    return Bank(np.ldexp(np.sort(codes), exponent), np.array(sigmas)), exponent


@given(banks(), st.integers(0, 4))
@settings(max_examples=80, deadline=None)
def test_round_trip(data: tuple[Bank, int], n_tensors: int) -> None:
    bank = round_bank(data[0], exponent=data[1])
    scales = np.float32(2.0) ** np.arange(-n_tensors, 0).astype(np.float64)
    encoded = encode_bank(bank, exponent=data[1], scales=scales, relative_rmse=scales / 4)
    got, got_scales, got_errors = decode_bank(encoded, n_tensors=n_tensors)
    np.testing.assert_array_equal(got.means, bank.means)
    np.testing.assert_array_equal(got.log_sigmas, bank.log_sigmas)
    np.testing.assert_array_equal(got_scales, scales)
    np.testing.assert_array_equal(got_errors, scales / 4)


@given(banks())
@settings(max_examples=60, deadline=None)
def test_rounding_is_to_the_grid_ascending_and_idempotent(data: tuple[Bank, int]) -> None:
    bank, exponent = data
    rounded = round_bank(bank, exponent=exponent)
    codes = np.ldexp(rounded.means, -exponent)
    np.testing.assert_array_equal(codes, np.rint(codes))
    assert (np.diff(codes) >= 1).all()
    assert (np.abs(rounded.log_sigmas) <= 127 / 8).all()
    again = round_bank(rounded, exponent=exponent)
    np.testing.assert_array_equal(again.means, rounded.means)
    np.testing.assert_array_equal(again.log_sigmas, rounded.log_sigmas)


def test_means_far_apart_move_by_half_a_step_at_most() -> None:
    means = np.array([-3.3, -0.2, 0.0, 1.26, 8.9])
    rounded = round_bank(Bank(means, np.array([-1.0, 0.07, 0.0, 0.3, 40.0])), exponent=-2)
    np.testing.assert_array_equal(rounded.means, [-3.25, -0.25, 0.0, 1.25, 9.0])
    np.testing.assert_array_equal(rounded.log_sigmas, [-1.0, 0.125, 0.0, 0.25, 127 / 8])


def test_coincident_means_stay_apart_by_one_step() -> None:
    rounded = round_bank(Bank(np.full(4, 0.49), np.zeros(4)), exponent=0)
    np.testing.assert_array_equal(rounded.means, [0.0, 1.0, 2.0, 3.0])


def test_rounding_leaves_its_input() -> None:
    means = np.array([0.1, 0.1])
    round_bank(Bank(means, np.zeros(2)), exponent=0)
    np.testing.assert_array_equal(means, [0.1, 0.1])


@given(st.lists(st.floats(0, 1.7e308), max_size=20))
@settings(max_examples=100, deadline=None)
def test_scales_keep_five_bits_over_all_of_float64(numbers: list[float]) -> None:
    scales = np.array(numbers)
    encoded = encode_bank(Bank(np.zeros(1), np.zeros(1)), exponent=0, scales=scales, relative_rmse=scales[::-1])
    _, got, errors = decode_bank(encoded, n_tensors=len(scales))
    np.testing.assert_array_equal(errors, got[::-1])
    assert (got[scales == 0] == 0).all()
    np.testing.assert_allclose(got, scales, rtol=2**-5, atol=5e-324)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (0.0, 0),
        (1.0, 2048 << 4),
        (1.5, (2048 << 4) + 8),
        (31 / 16, (2048 << 4) + 15),
        (1.99, 2049 << 4),
        (0.75, (2047 << 4) + 8),
        (1 + 1 / 32, 2048 << 4),
        (1 + 3 / 32, (2048 << 4) + 2),
        (5e-324, 974 << 4),
    ],
)
def test_codes_of_short_floats(number: float, code: int) -> None:
    assert short_float_codes(np.array([number])).tolist() == [code]


@given(st.integers(974, 3071), st.integers(0, 15))
@settings(max_examples=100, deadline=None)
def test_every_short_float_of_float64_is_its_own_code(exponent: int, fraction: int) -> None:
    code = np.array([exponent << 4 | (fraction if exponent > 1024 else 0)])
    np.testing.assert_array_equal(short_float_codes(short_floats(code)), code)


def test_bytes_that_end_early_are_an_error() -> None:
    bank = round_bank(Bank(np.linspace(-2, 2, 20), np.linspace(-1, 1, 20)), exponent=-6)
    data = encode_bank(bank, exponent=-6, scales=np.ones(3), relative_rmse=np.ones(3))
    for length in range(len(data)):
        with pytest.raises(ArtifactError, match="damaged artifact"):
            decode_bank(data[:length], n_tensors=3)


def test_an_absurd_number_of_components_is_an_error() -> None:
    bits = f"{2048:012b}" + "0" * 24 + "1" + "0" * 32
    data = int(bits.ljust(80, "0"), 2).to_bytes(10, "big")
    with pytest.raises(ArtifactError, match="bank is too large"):
        decode_bank(data, n_tensors=1)


def test_a_scale_out_of_range_is_an_error() -> None:
    bank = round_bank(Bank(np.zeros(1), np.zeros(1)), exponent=0)
    data = encode_bank(bank, exponent=0, scales=np.ones(1), relative_rmse=np.ones(1))
    bits = "".join(f"{byte:08b}" for byte in data)[: 12 + 9 + 9 + 6 + 2]
    for step in (f"{'0' * 20}1{'1' * 20}", f"{'0' * 20}1{'0' * 19}1"):  # far up, and far down
        forged = bits + "0000" + step + "0" * 64
        with pytest.raises(ArtifactError, match="out of range"):
            decode_bank(int(forged[: len(forged) // 8 * 8], 2).to_bytes(len(forged) // 8, "big"), n_tensors=1)


def test_bits_of_scales_are_counted_as_they_will_be_written() -> None:
    scales = np.exp2(np.random.RandomState(0).normal(size=500))
    bank = Bank(np.zeros(1), np.zeros(1))
    without = len(encode_bank(bank, exponent=0, scales=np.ones(0), relative_rmse=np.ones(0)))
    both = len(encode_bank(bank, exponent=0, scales=scales, relative_rmse=scales))
    assert abs(8 * (both - without) - 2 * short_floats_bits(scales)) <= 16
