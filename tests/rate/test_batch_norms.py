"""Batch norms on coarse statistics: the same function, in use and about the same in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.checkpoint.arrays import bit_patterns, from_bit_patterns, rounded
from gbnn_compress.format.vectors import EXACT, LOGARITHMIC, RELATIVE, Vector, dequantise_all, step_of
from gbnn_compress.rate.batch_norms import EPSILON, LARGEST_EPSILON, code_norm, code_statistics

KEYS = ("weight", "bias", "running_mean", "running_var")


def norm(seed: int, *, size: int = 64, log_variance: float = 0.0) -> dict[str, np.ndarray]:
    """A batch norm with variances around 2^log_variance, over several octaves."""
    random = np.random.RandomState(seed)
    variance = np.exp2(random.normal(size=size) + log_variance)
    return {
        "weight": random.normal(size=size) * 0.3 + 1,
        "bias": random.normal(size=size),
        "running_mean": random.normal(size=size) * np.sqrt(variance),
        "running_var": variance,
    }


def coded(vectors: dict[str, np.ndarray], *, step: float) -> dict[str, np.ndarray]:
    exact = [vector.astype(np.float32).view(np.uint32) for vector in vectors.values()]
    result = code_norm(*vectors.values(), step=step, exact=exact, dtypes=[torch.float32] * 4)
    assert [vector.mode for vector in result[2:]] == [RELATIVE, LOGARITHMIC]
    return dequantise_all(KEYS, result)


def output(norm: dict[str, np.ndarray], z: float, like: dict[str, np.ndarray], *, epsilon: float) -> np.ndarray:
    """What the norm makes of an input that lies z deviations from the mean of another norm."""
    x = like["running_mean"] + z * np.sqrt(like["running_var"])
    slope = norm["weight"] / np.sqrt(norm["running_var"] + epsilon)
    return slope * (x - norm["running_mean"]) + norm["bias"]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.01, 1e-4]), st.sampled_from([0.0, -3.0, 8.0]))
@settings(max_examples=40, deadline=None)
def test_function_is_that_of_fine_steps(seed: int, step: float, log_variance: float) -> None:
    given_norm = norm(seed, log_variance=log_variance)
    got = coded(given_norm, step=step)
    for z in (-2, 0, 1):
        error = output(got, z, given_norm, epsilon=EPSILON) - output(given_norm, z, given_norm, epsilon=EPSILON)
        # Rounding alone is up to (1 + |z|) / 2 steps; channels that another eps would upset are moved by more.
        assert np.abs(error).max() <= 3 * step
        assert np.sqrt((error**2).mean()) <= step


@pytest.mark.parametrize("log_variance", [-13.0, -10.0, -4.0, 0.0])
@pytest.mark.parametrize("step", [0.05, 0.002])
def test_function_is_about_the_same_with_another_eps(log_variance: float, step: float) -> None:
    given_norm = norm(0, size=500, log_variance=log_variance)
    got = coded(given_norm, step=step)
    for z in (0, 1):
        pair = (output(each, z, given_norm, epsilon=LARGEST_EPSILON) for each in (got, given_norm))
        error = np.subtract(*pair)
        assert np.sqrt((error**2).mean()) < 1.2 * step


def test_statistics_stay_near_those_of_the_layer() -> None:
    given_norm = norm(1, size=1000)
    got = coded(given_norm, step=0.05)
    deviation = np.sqrt(given_norm["running_var"])
    assert (np.abs(np.log(got["running_var"] / given_norm["running_var"])) / 2 <= 0.5 / 2 * np.log(2) + 1e-9).all()
    moved = np.abs(got["running_mean"] - given_norm["running_mean"]) / deviation
    assert moved.max() < 0.3
    # A batch's own statistics in their place, as in training: weight and bias alone make the difference.
    assert np.abs(got["weight"] - given_norm["weight"]).max() < 0.4
    assert np.abs(got["bias"] - given_norm["bias"]).max() < 0.5


def test_lost_channels_put_out_their_bias_and_cost_next_to_nothing() -> None:
    given_norm = norm(2)
    given_norm["weight"][:8] = 1e-3
    given_norm["running_var"][:8] = 1e-9
    given_norm["running_mean"][:8] = 30.0
    got = coded(given_norm, step=0.05)
    np.testing.assert_array_equal(got["weight"][:8], 0)
    np.testing.assert_allclose(got["bias"][:8], given_norm["bias"][:8], atol=0.025)
    typical = np.median(given_norm["running_var"][8:])
    assert (np.abs(np.log2(got["running_var"][:8] / typical)) <= 0.5 + 1e-9).all()


def test_a_norm_without_any_weight_is_coded_too() -> None:
    given_norm = {**norm(3), "weight": np.zeros(64)}
    got = coded(given_norm, step=1.0)
    np.testing.assert_array_equal(got["weight"], 0)
    np.testing.assert_allclose(got["bias"], given_norm["bias"], atol=0.5)


def test_vectors_that_no_grid_serves_are_exact() -> None:
    vectors = norm(4)
    exact = [vector.astype(np.float16).view(np.uint16) for vector in vectors.values()]
    for step in (1e-9, 1e-300):
        result = code_norm(*vectors.values(), step=step, exact=exact, dtypes=[torch.float16] * 4)
        assert [vector.mode for vector in result] == [EXACT] * 4
        for vector, bits in zip(result, exact, strict=True):
            np.testing.assert_array_equal(vector.codes, bits)


@pytest.mark.parametrize("key", ["weight", "bias"])
def test_weights_of_very_unequal_size_are_exact(key: str) -> None:
    vectors = norm(6, size=16)
    vectors[key][3] = 1e5
    exact = [vector.astype(np.float32).view(np.uint32) for vector in vectors.values()]
    result = code_norm(*vectors.values(), step=0.01, exact=exact, dtypes=[torch.float32] * 4)
    assert [vector.mode for vector in result] == [EXACT] * 4


magnitudes = st.one_of(st.floats(0.05, 20), st.floats(-30, 12).map(lambda exponent: 10**exponent), st.just(0.0))
channels = st.tuples(
    magnitudes, st.floats(-3, 3), st.one_of(st.floats(-20, 20), st.floats(-1e12, 1e12)), magnitudes, st.booleans()
)


def decoded(vectors: list[Vector], dtype: torch.dtype, keys: tuple[str, ...] = KEYS) -> dict[str, np.ndarray]:
    """The values at the dtype, as a file gives them back."""
    name = str(dtype).removeprefix("torch.")
    bits = {16: np.uint16, 32: np.uint32, 64: np.uint64}
    return {
        key: (
            from_bit_patterns(values.astype(bits[vector.width]), name)
            if vector.mode == EXACT
            else rounded(values, dtype)
        )
        .double()
        .numpy()
        for (key, values), vector in zip(dequantise_all(keys, vectors).items(), vectors, strict=True)
    }


@pytest.mark.long
@given(
    st.lists(channels, min_size=1, max_size=12),
    st.sampled_from([0.3, 0.03, 1e-3]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
@settings(max_examples=150, deadline=None)
def test_every_channel_puts_out_what_it_did(channels: list[tuple], relative_step: float, dtype: torch.dtype) -> None:
    """Whatever the other channels' weights and variances are."""
    columns = [np.array(column, dtype=np.float64) for column in zip(*channels, strict=True)]
    columns[0] = np.where(columns.pop(), -columns[0], columns[0])
    stored = [rounded(column, dtype) for column in columns]
    vectors = dict(zip(KEYS, (tensor.double().numpy() for tensor in stored), strict=True))
    step = relative_step * float(np.sqrt((vectors["weight"] ** 2).sum()) or np.sqrt((vectors["bias"] ** 2).sum()) or 1)
    result = code_norm(
        *vectors.values(), step=step, exact=[bit_patterns(tensor) for tensor in stored], dtypes=[dtype] * 4
    )
    got = decoded(result, dtype)
    if result[0].mode == EXACT:
        for key in KEYS:
            np.testing.assert_array_equal(got[key], vectors[key])
        return
    grid = step_of(result[0].exponent)
    assert grid <= step * (1 + 1e-12)
    for epsilon in (EPSILON, LARGEST_EPSILON):
        for z in (-2, 2):
            error = output(got, z, vectors, epsilon=epsilon) - output(vectors, z, vectors, epsilon=epsilon)
            assert np.abs(error).max() <= 3 * grid


@given(st.lists(st.tuples(st.floats(-50, 50), magnitudes), min_size=1, max_size=12), st.sampled_from([0.1, 0.01]))
@settings(max_examples=60, deadline=None)
def test_norms_without_weight_and_bias(channels: list[tuple], step: float) -> None:
    stored = [torch.tensor(column, dtype=torch.float32) for column in zip(*channels, strict=True)]
    mean, variance = (tensor.double().numpy() for tensor in stored)
    dtypes, exact = [torch.float32] * 2, [bit_patterns(tensor) for tensor in stored]
    result = code_statistics(mean, variance, step=step, exact=exact, dtypes=dtypes)
    ones = {"weight": np.ones_like(mean), "bias": np.zeros_like(mean)}
    before = {**ones, "running_mean": mean, "running_var": variance}
    got = {**ones, **decoded(result, torch.float32, KEYS[2:])}
    for epsilon in (EPSILON, LARGEST_EPSILON):
        for z in (-2, 2):
            error = output(got, z, before, epsilon=epsilon) - output(before, z, before, epsilon=epsilon)
            assert np.abs(error).max() <= 3 * step


def test_inputs_are_left_as_they_are() -> None:
    vectors = norm(5)
    vectors["weight"][:3] = 0
    before = {key: vector.copy() for key, vector in vectors.items()}
    coded(vectors, step=0.1)
    for key, vector in vectors.items():
        np.testing.assert_array_equal(vector, before[key])


@pytest.mark.filterwarnings("error")
def test_a_variance_below_zero_is_kept_exactly_without_a_word() -> None:
    vectors = norm(8, size=16)
    vectors["running_var"][3] = -1e-9
    exact = [vector.astype(np.float32).view(np.uint32) for vector in vectors.values()]
    result = code_norm(*vectors.values(), step=0.01, exact=exact, dtypes=[torch.float32] * 4)
    assert [vector.mode for vector in result] == [EXACT] * 4
    statistics = code_statistics(
        vectors["running_mean"], vectors["running_var"], step=0.01, exact=exact[2:], dtypes=[torch.float32] * 2
    )
    assert [vector.mode for vector in statistics] == [EXACT] * 2


@pytest.mark.parametrize("epsilon", [EPSILON, LARGEST_EPSILON])
def test_a_dead_channel_beside_a_huge_one_is_the_same_function_far_from_its_mean_too(epsilon: float) -> None:
    vectors = norm(9, size=24)
    vectors["running_var"][:2] = (1e-20, 1e8)
    vectors["running_mean"][0] = 1e-10
    got = coded(vectors, step=0.01)
    near, far = (each["weight"] / np.sqrt(each["running_var"] + epsilon) for each in (vectors, got))
    assert abs(far[0] / near[0] - 1) < 0.02
