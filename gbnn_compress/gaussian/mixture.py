"""Expectation-maximisation for a mixture of full-covariance 2-D Gaussians on weighted points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.gaussian.density import floor_eigenvalues, log_density
from gbnn_compress.types import Mixture

if TYPE_CHECKING:
    from collections.abc import Iterator

PART_SIZE = 1 << 15
"""Numbers that are worked on at once: the processor's cache holds several arrays of them."""


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
    responsibilities = np.empty((len(points), len(mixture.weights)))
    log_totals = np.empty(len(points))
    for rows in _parts(len(points), len(mixture.weights)):
        joint = log_density(points[rows], mixture.means, mixture.covariances) + np.log(mixture.weights)
        largest = joint.max(axis=1)
        joint -= largest[:, None]
        np.exp(joint, out=joint)
        total = joint.sum(axis=1)
        np.divide(joint, total[:, None], out=responsibilities[rows])
        log_totals[rows] = largest + np.log(total)
    return responsibilities, float((counts * log_totals).sum() / counts.sum())


def _moments(responsibilities: np.ndarray, points: np.ndarray, counts: np.ndarray, *, floor: float) -> Mixture:
    """The M step; components that hold no weight are dropped."""
    weighted = responsibilities * counts[:, None]
    mass = weighted.sum(axis=0)
    alive = np.flatnonzero(mass > 1e-9)
    mass = mass[alive]
    means, covariances = np.empty((len(alive), 2)), np.empty((len(alive), 2, 2))
    for part in _parts(len(alive), len(points)):
        own = weighted[:, alive[part]]
        means[part] = (
            np.stack([(own * points[:, axis, None]).sum(axis=0) for axis in (0, 1)], axis=1) / mass[part, None]
        )
        first, second = points[:, None, 0] - means[part, 0], points[:, None, 1] - means[part, 1]
        xx, xy, yy = ((own * product).sum(axis=0) for product in (first * first, first * second, second * second))
        covariances[part] = np.stack([xx, xy, xy, yy], axis=-1).reshape(-1, 2, 2) / mass[part, None, None]
    return Mixture(mass / mass.sum(), means, floor_eigenvalues(covariances, floor=floor))


def _parts(size: int, width: int) -> Iterator[slice]:
    """Runs of at least max(8, PART_SIZE // width) rows, and fewer than twice as many."""
    n_parts = max(1, size // max(8, PART_SIZE // max(width, 1)))
    edges = [size * part // n_parts for part in range(n_parts + 1)]
    return map(slice, edges[:-1], edges[1:])
