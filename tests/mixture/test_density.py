"""Densities and covariance floors against torch.distributions, scipy and numpy's eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.mixture.density import floor_eigenvalues, log_density

seeds = st.integers(0, 2**32 - 1)


def gaussians(seed: int, *, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Random means (K, 2) and positive definite covariances (K, 2, 2)."""
    random = np.random.default_rng(seed)
    roots = random.normal(size=(count, 2, 2))
    return random.normal(size=(count, 2)), roots @ roots.transpose(0, 2, 1) + 1e-2 * np.eye(2)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_log_density_is_that_of_torch_and_scipy(seed: int) -> None:
    means, covariances = gaussians(seed)
    points = np.random.default_rng(seed + 1).normal(size=(7, 2)) * 3
    got = log_density(points, means, covariances)
    assert got.shape == (7, 5)
    oracle = torch.distributions.MultivariateNormal(torch.from_numpy(means), torch.from_numpy(covariances))
    np.testing.assert_allclose(got, oracle.log_prob(torch.from_numpy(points)[:, None]).numpy(), rtol=1e-9, atol=1e-9)
    for k in range(5):
        column = scipy.stats.multivariate_normal(means[k], covariances[k]).logpdf(points)
        np.testing.assert_allclose(got[:, k], column, rtol=1e-9, atol=1e-9)


def test_log_density_stays_finite_far_away_and_in_narrow_components() -> None:
    narrow = np.diag([1e-12, 1e-12])[None]
    got = log_density(np.array([[0.0, 0.0], [1e6, -1e6]]), np.zeros((1, 2)), narrow)
    assert np.isfinite(got).all()
    assert got[0, 0] == pytest.approx(-np.log(2 * np.pi) + 12 * np.log(10))


def test_log_density_refuses_a_matrix_that_is_no_covariance() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        log_density(np.zeros((1, 2)), np.zeros((1, 2)), np.array([[[1.0, 2.0], [2.0, 1.0]]]))


@given(seeds, st.floats(1e-6, 10))
@settings(max_examples=30, deadline=None)
def test_floor_raises_low_eigenvalues_and_leaves_the_rest(seed: int, floor: float) -> None:
    _, covariances = gaussians(seed)
    floored = floor_eigenvalues(covariances, floor=floor)
    expected = np.maximum(np.linalg.eigvalsh(covariances), floor)
    np.testing.assert_allclose(np.linalg.eigvalsh(floored), expected, rtol=1e-9)
    np.testing.assert_allclose(floored, floored.transpose(0, 2, 1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(floor_eigenvalues(covariances, floor=1e-9), covariances, rtol=1e-9, atol=1e-12)


def test_floor_makes_a_point_mass_and_a_line_positive_definite() -> None:
    degenerate = np.array([[[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    floored = floor_eigenvalues(degenerate, floor=0.25)
    np.testing.assert_allclose(np.linalg.eigvalsh(floored), [[0.25, 0.25], [0.25, 2.0]], atol=1e-12)
    np.linalg.cholesky(floored)
