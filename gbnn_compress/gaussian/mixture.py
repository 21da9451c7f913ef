"""Expectation-maximisation for a mixture of full-covariance 2-D Gaussians on weighted points."""

from __future__ import annotations

import numpy as np

from gbnn_compress.gaussian.density import floor_eigenvalues, log_density
from gbnn_compress.types import Mixture


def initial_mixture(points: np.ndarray, counts: np.ndarray, *, n_components: int, floor: float) -> Mixture:
    """Spread components along the first axis as the best fixed-rate scalar quantiser does.

    The density of the means follows the cube root of the points' density (Panter & Dite 1951, "Quantization
    distortion in pulse-count modulation"): denser where the weights are, yet present in the tails.

    Args:
        points: float64 (N, 2).
        counts: float64 (N,), weight of each point, > 0.
        n_components: Number of components wanted, >= 1; fewer come back when there are fewer distinct points.
        floor: Smallest covariance eigenvalue.

    Returns:
        A mixture of at most `n_components` components with means ascending in the first axis.
    """
    order = np.argsort(points[:, 0], kind="stable")
    points, counts = points[order], counts[order]
    positions, owner = np.unique(points[:, 0], return_inverse=True)
    if len(positions) <= n_components:
        return _moments(np.eye(len(positions))[owner], points, counts, floor=floor)
    mass = np.bincount(owner, weights=counts)
    gaps = np.gradient(positions)
    cumulative = np.cumsum(np.cbrt(mass / gaps) * gaps)
    slot = np.floor((cumulative - cumulative[0]) / (cumulative[-1] - cumulative[0]) * n_components)
    slot = np.minimum(slot, n_components - 1).astype(np.int64)
    _, slot = np.unique(slot, return_inverse=True)
    return _moments(np.eye(slot.max() + 1)[slot[owner]], points, counts, floor=floor)


def fit_mixture(
    points: np.ndarray,
    counts: np.ndarray,
    *,
    n_components: int,
    floor: float,
    max_iterations: int = 20,
    tolerance: float = 1e-4,
) -> tuple[Mixture, list[float]]:
    """Fit a mixture by EM (Dempster, Laird & Rubin 1977) with an eigenvalue floor on the covariances.

    Args:
        points: float64 (N, 2).
        counts: float64 (N,), weight of each point, > 0.
        n_components: Number of components to start from.
        floor: Smallest covariance eigenvalue, > 0: points on a line would let the likelihood grow without bound.
        max_iterations: Most EM steps.
        tolerance: Stop when the mean log-likelihood grows by less, in nats a point.

    Returns:
        The mixture, and the mean log-likelihood (nats a point) before each step; it never falls.
    """
    mixture = initial_mixture(points, counts, n_components=n_components, floor=floor)
    trace: list[float] = []
    for _ in range(max_iterations):
        responsibilities, log_likelihood = expectation(mixture, points, counts)
        if trace and log_likelihood - trace[-1] < tolerance:
            break
        trace.append(log_likelihood)
        mixture = _moments(responsibilities, points, counts, floor=floor)
    return mixture, trace


def expectation(mixture: Mixture, points: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, float]:
    """The E step.

    Returns:
        float64 (N, K) responsibilities (rows sum to 1), and the mean log-likelihood in nats a point.
    """
    joint = log_density(points, mixture.means, mixture.covariances) + np.log(mixture.weights)
    largest = joint.max(axis=1)
    joint = np.exp(joint - largest[:, None])
    total = joint.sum(axis=1)
    log_likelihood = float((counts * (largest + np.log(total))).sum() / counts.sum())
    return joint / total[:, None], log_likelihood


def _moments(responsibilities: np.ndarray, points: np.ndarray, counts: np.ndarray, *, floor: float) -> Mixture:
    """The M step; components that hold no weight are dropped."""
    weighted = responsibilities * counts[:, None]
    mass = weighted.sum(axis=0)
    alive = mass > 1e-9
    weighted, mass = weighted[:, alive], mass[alive]
    means = np.stack([(weighted * points[:, axis, None]).sum(axis=0) / mass for axis in (0, 1)], axis=1)
    first, second = points[:, None, 0] - means[:, 0], points[:, None, 1] - means[:, 1]
    xx, xy, yy = (
        (weighted * product).sum(axis=0) / mass for product in (first * first, first * second, second * second)
    )
    covariances = np.stack([np.stack([xx, xy], axis=-1), np.stack([xy, yy], axis=-1)], axis=-2)
    return Mixture(mass / mass.sum(), means, floor_eigenvalues(covariances, floor=floor))
