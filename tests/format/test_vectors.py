"""Unshared values on their grids, or bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.checkpoint.arrays import bit_patterns, from_bit_patterns
from gbnn_compress.errors import ArtifactError
from gbnn_compress.format.vectors import (
    EXACT,
    LINEAR,
    LOGARITHMIC,
    RELATIVE,
    Vector,
    decode_vectors,
    dequantise,
    dequantise_all,
    encode_vectors,
    quantise,
    step_of,
    vector_bits,
)

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def quantised(values: np.ndarray, *, step: float, logarithmic: bool = False) -> Vector:
    exact = values.astype(np.float32).view(np.uint32)
    return quantise(values, step=step, logarithmic=logarithmic, exact=exact)


def round_trip(vectors: list[Vector]) -> list[Vector]:
    roles = ["weight", "bias"] * len(vectors)
    data = encode_vectors(vectors, roles=roles[: len(vectors)])
    return decode_vectors(data, sizes=[len(vector.codes) for vector in vectors], roles=roles[: len(vectors)])


def assert_same(got: Vector, expected: Vector) -> None:
    assert (got.mode, got.exponent, got.width) == (expected.mode, expected.exponent, expected.width)
    np.testing.assert_array_equal(got.codes, expected.codes)


@given(st.lists(floats, min_size=1, max_size=20), st.floats(1e-30, 1e30))
@settings(max_examples=100, deadline=None)
def test_error_is_at_most_half_a_step(given_values: list[float], step: float) -> None:
    values = np.array(given_values)
    vector = quantised(values, step=step)
    assert_same(round_trip([vector])[0], vector)
    if vector.mode == EXACT:
        np.testing.assert_array_equal(dequantise(vector).astype(np.uint32).view(np.float32), values)
        return
    grid = step_of(vector.exponent)
    assert step / np.sqrt(2) * (1 - 1e-12) <= grid <= step * (1 + 1e-12)
    assert (np.abs(dequantise(vector) - values) <= grid / 2 * (1 + 1e-9)).all()


@given(st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=20), st.floats(1e-3, 4))
@settings(max_examples=60, deadline=None)
def test_logarithmic_error_is_at_most_half_a_step_in_octaves(given_values: list[float], step: float) -> None:
    values = np.array(given_values)
    vector = quantised(values, step=step, logarithmic=True)
    assert_same(round_trip([vector])[0], vector)
    assert vector.mode == LOGARITHMIC
    error = np.abs(np.log2(dequantise(vector)) - np.log2(values))
    assert (error <= step_of(vector.exponent) / 2 + 1e-9).all()


@pytest.mark.parametrize("exponent", [-9, -4, -1, 0, 1, 7])
def test_step_is_a_half_octave_grid(exponent: int) -> None:
    assert step_of(exponent) == pytest.approx(2.0 ** (exponent / 2), rel=1e-15)


@pytest.mark.parametrize(("dtype", "width"), [("float16", 16), ("bfloat16", 16), ("float32", 32), ("float64", 64)])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_exact_values_keep_every_bit(dtype: str, width: int, data: st.DataObject) -> None:
    patterns = np.array(
        data.draw(st.lists(st.integers(0, 2**width - 1), min_size=1, max_size=12)), dtype=f"u{width // 8}"
    )
    vector = round_trip([Vector(EXACT, 0, patterns, width)])[0]
    assert (vector.mode, vector.width) == (EXACT, width)
    got = dequantise(vector).astype(patterns.dtype)
    np.testing.assert_array_equal(got, patterns)
    tensor = from_bit_patterns(got, dtype)
    assert tensor.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(bit_patterns(tensor), patterns)


@pytest.mark.parametrize("step", [1e-30, 1e-300, 0.0])
def test_values_are_exact_where_a_grid_would_cost_more(step: float) -> None:
    values = np.array([1.0, -2.5, 3e-3])
    vector = quantised(values, step=step)
    assert vector.mode == EXACT
    np.testing.assert_array_equal(vector.codes, values.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.25])
def test_equal_values_take_no_bits(value: float) -> None:
    vector = quantised(np.full(5000, value), step=0.25)
    assert vector.mode == LINEAR
    assert len(encode_vectors([vector], roles=["bias"])) <= 6
    np.testing.assert_array_equal(dequantise(round_trip([vector])[0]), np.full(5000, value))


def test_vectors_follow_each_other_without_gaps() -> None:
    random = np.random.default_rng(0)
    vectors = [
        quantised(random.normal(size=17), step=0.1),
        Vector(EXACT, 0, np.array([1, 2**64 - 1], dtype=np.uint64), 64),
        quantised(np.exp(random.normal(size=9)), step=0.5, logarithmic=True),
        quantised(np.zeros(3), step=1.0),
    ]
    for got, expected in zip(round_trip(vectors), vectors, strict=True):
        assert_same(got, expected)
    assert encode_vectors([], roles=[]) == b""


@given(st.lists(st.lists(floats, min_size=1, max_size=20), max_size=4), st.floats(1e-30, 1e30))
@settings(max_examples=60, deadline=None)
def test_bits_are_counted_as_they_will_be_written(given_values: list[list[float]], step: float) -> None:
    vectors = [quantised(np.array(values), step=step) for values in given_values]
    vectors += [quantised(np.abs(np.array(values)) + 1e-30, step=0.1, logarithmic=True) for values in given_values]
    roles = ["weight"] * len(vectors)
    assert -(-vector_bits(vectors, roles=roles) // 8) == len(encode_vectors(vectors, roles=roles))


def test_bytes_that_end_early_are_an_error() -> None:
    data = encode_vectors([quantised(np.random.default_rng(0).normal(size=30), step=0.01)], roles=["bias"])
    for length in range(len(data)):
        with pytest.raises(ArtifactError, match="damaged artifact"):
            decode_vectors(data[:length], sizes=[30], roles=["bias"])


@pytest.mark.parametrize(
    "bits",
    [
        "00" + "0" * 13 + "1" + "1" * 13 + "1" + "100",  # exponent
        "00" + "1" + "0" * 6 + "1" + "111111" + "100",  # order
        "00" + "1" + "011" + "0" * 3 + "1" + "00000",  # order below 0
        "00" + "1" + "1" + "0" * 53 + "1" + "1" * 55,  # centre
    ],
)
def test_an_impossible_grid_is_an_error(bits: str) -> None:
    padded = bits.ljust(160, "0")
    with pytest.raises(ArtifactError, match="damaged artifact"):
        decode_vectors(int(padded, 2).to_bytes(20, "big"), sizes=[1], roles=["bias"])


def test_vectors_of_one_role_are_described_by_what_changed() -> None:
    random = np.random.default_rng(1)
    vectors = [quantised(random.normal(size=16) + 3, step=0.05) for _ in range(40)]
    alike = vector_bits(vectors, roles=["weight"] * 40)
    strange = vector_bits(vectors, roles=[str(index) for index in range(40)])
    assert alike < strange - 40 * 8


@given(st.integers(0, 2**32 - 1), st.floats(1.0, 3000.0))
@settings(max_examples=30, deadline=None)
def test_codes_take_little_more_than_their_entropy(seed: int, deviation: float) -> None:
    codes = np.rint(np.random.default_rng(seed).laplace(scale=deviation, size=4000)).astype(np.int64)
    entropy = 4000 * np.log2(2 * np.e * deviation)
    assert vector_bits([Vector(LINEAR, 0, codes)], roles=[""]) < 1.06 * entropy + 600


def test_relative_values_are_in_deviations() -> None:
    variance = Vector(LOGARITHMIC, 0, np.array([-2, 0, 3]))
    means = Vector(RELATIVE, -2, np.array([4, -3, 1]))
    np.testing.assert_array_equal(dequantise(means, variance=variance), [1.0, -1.5, 0.5 * np.sqrt(8)])
    names = ["bn.running_mean", "other.running_var", "bn.running_var"]
    values = dequantise_all(names, [means, quantised(np.ones(1), step=1.0), variance])
    np.testing.assert_array_equal(values["bn.running_mean"], dequantise(means, variance=variance))
    np.testing.assert_array_equal(
        dequantise_all(["running_mean", "running_var"], [means, variance])["running_mean"][0], 1.0
    )


@pytest.mark.parametrize(
    "variance",
    [None, Vector(LINEAR, 0, np.ones(3, np.int64)), Vector(LOGARITHMIC, 0, np.ones(2, np.int64))],
    ids=["missing", "linear", "short"],
)
def test_relative_values_without_their_variances_are_an_error(variance: Vector | None) -> None:
    with pytest.raises(ArtifactError, match="are missing"):
        dequantise(Vector(RELATIVE, 0, np.zeros(3, np.int64)), variance=variance)
