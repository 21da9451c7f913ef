"""Batch norms on coarse statistics: the same function, in use and about the same in training."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.codec.values import LOGARITHMIC, RELATIVE, dequantise_all
from gbnn_compress.weights.norms import EPSILON, LARGEST_EPSILON, code_norm

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
    result = code_norm(*vectors.values(), step=step, exact=exact)
    assert result is not None
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
        assert (np.abs(error) <= (1 + abs(z)) * step / 2 * (1 + 1e-6) + 1e-9).all()


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
    assert (np.abs(np.log(got["running_var"] / given_norm["running_var"])) / 2 <= 0.25 / 2 * np.log(2) + 1e-9).all()
    moved = np.abs(got["running_mean"] - given_norm["running_mean"]) / deviation
    assert moved.max() < 0.2
    # A batch's own statistics in their place, as in training: weight and bias alone make the difference.
    assert np.abs(got["weight"] - given_norm["weight"]).max() < 0.25
    assert np.abs(got["bias"] - given_norm["bias"]).max() < 0.45


def test_lost_channels_put_out_their_bias_and_cost_next_to_nothing() -> None:
    given_norm = norm(2)
    given_norm["weight"][:8] = 1e-3
    given_norm["running_var"][:8] = 1e-9
    given_norm["running_mean"][:8] = 30.0
    got = coded(given_norm, step=0.05)
    np.testing.assert_array_equal(got["weight"][:8], 0)
    np.testing.assert_allclose(got["bias"][:8], given_norm["bias"][:8], atol=0.025)
    typical = np.median(given_norm["running_var"][8:])
    assert (np.abs(np.log2(got["running_var"][:8] / typical)) <= 0.25 + 1e-9).all()


def test_a_norm_without_any_weight_is_coded_too() -> None:
    given_norm = {**norm(3), "weight": np.zeros(64)}
    got = coded(given_norm, step=1.0)
    np.testing.assert_array_equal(got["weight"], 0)
    np.testing.assert_allclose(got["bias"], given_norm["bias"], atol=0.5)


def test_vectors_that_grids_do_not_serve_are_left_to_others() -> None:
    vectors = norm(4)
    exact = [vector.astype(np.float16).view(np.uint16) for vector in vectors.values()]
    assert code_norm(*vectors.values(), step=1e-9, exact=exact) is None
    assert code_norm(*vectors.values(), step=1e-300, exact=exact) is None


def test_inputs_are_left_as_they_are() -> None:
    vectors = norm(5)
    vectors["weight"][:3] = 0
    before = {key: vector.copy() for key, vector in vectors.items()}
    coded(vectors, step=0.1)
    for key, vector in vectors.items():
        np.testing.assert_array_equal(vector, before[key])
