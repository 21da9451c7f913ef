"""The closed form against matrix roots, the axioms of a metric, and moments that merging keeps."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.mixture.wasserstein import moment_match, wasserstein2_squared

seeds = st.integers(0, 2**32 - 1)


def gaussians(seed: int, *, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random means (K, 2) and covariances (K, 2, 2), some narrow."""
    random = np.random.default_rng(seed)
    roots = random.normal(size=(count, 2, 2)) * random.choice([1e-2, 1.0, 5.0], size=(count, 1, 1))
    return random.normal(size=(count, 2)), roots @ roots.transpose(0, 2, 1) + 1e-6 * np.eye(2)


def with_matrix_roots(m1: np.ndarray, s1: np.ndarray, m2: np.ndarray, s2: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(s2)
    cross = scipy.linalg.sqrtm(root @ s1 @ root)
    return float(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * np.real(cross)))


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_closed_form_is_that_of_matrix_roots(seed: int) -> None:
    means, covariances = gaussians(seed, count=6)
    got = wasserstein2_squared(means[0], covariances[0], means, covariances)
    expected = [with_matrix_roots(means[0], covariances[0], means[k], covariances[k]) for k in range(6)]
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-7)


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_is_a_metric(seed: int) -> None:
    means, covariances = gaussians(seed, count=4)
    squared = np.array([wasserstein2_squared(means[k], covariances[k], means, covariances) for k in range(4)])
    assert (squared >= 0).all()
    distance = np.sqrt(squared)
    np.testing.assert_allclose(np.diag(squared), 0.0, atol=1e-12)
    np.testing.assert_allclose(squared, squared.T, rtol=1e-9, atol=1e-11)
    assert (distance[:, None, :] <= distance[:, :, None] + distance[None, :, :] + 1e-5).all()


def test_degenerate_covariances_have_their_known_distances() -> None:
    point, line, disc = np.zeros((2, 2)), np.diag([4.0, 0.0]), np.eye(2)
    tilted = 2 * np.array([[1.0, 1.0], [1.0, 1.0]])
    got = wasserstein2_squared(
        np.zeros(2), point, np.array([[3.0, 4.0], [0, 0], [0, 0]]), np.array([point, line, disc])
    )
    np.testing.assert_allclose(got, [25.0, 4.0, 2.0])
    # Two lines of length 2 at 45 degrees: tr + tr - 2 * 4 cos 45.
    got = wasserstein2_squared(np.zeros(2), line, np.zeros((1, 2)), tilted[None])
    np.testing.assert_allclose(got, [8 - 8 * np.cos(np.pi / 4)])


@st.composite
def weighted_gaussians(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count = draw(st.integers(1, 6))
    seed = draw(seeds)
    weights = np.array(draw(st.lists(st.floats(0, 1e6), min_size=count, max_size=count)))
    weights[0] += 1
    return weights, *gaussians(seed, count=count)


@given(weighted_gaussians())
@settings(max_examples=40, deadline=None)
def test_moment_match_keeps_mass_mean_and_second_moment(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    weights, means, covariances = data
    total, mean, covariance = moment_match(weights, means, covariances)
    assert total == pytest.approx(weights.sum())
    np.testing.assert_allclose(total * mean, weights @ means, rtol=1e-9, atol=1e-6)
    seconds = covariances + means[:, :, None] * means[:, None, :]
    expected = np.einsum("k,kij->ij", weights, seconds)
    np.testing.assert_allclose(total * (covariance + np.outer(mean, mean)), expected, rtol=1e-9, atol=1e-6)


@given(weighted_gaussians())
@settings(max_examples=20, deadline=None)
def test_moment_match_in_steps_is_moment_match_at_once(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    weights, means, covariances = data
    state = weights[0], means[0], covariances[0]
    for k in range(1, len(weights)):
        state = moment_match(
            np.array([state[0], weights[k]]),
            np.array([state[1], means[k]]),
            np.array([state[2], covariances[k]]),
        )
    for stepwise, at_once in zip(state, moment_match(weights, means, covariances), strict=True):
        np.testing.assert_allclose(stepwise, at_once, rtol=1e-9, atol=1e-9)
