"""Expectation-maximisation for a mixture of full-covariance 2-D Gaussians on weighted points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.mixture.density import LOG_2_PI, floor_eigenvalues
from gbnn_compress.types import Mixture

if TYPE_CHECKING:
    from collections.abc import Iterator

PART_SIZE = 1 << 16
"""Numbers per array that is worked on at once: several such arrays fit the processor's cache."""

LEAST_LOG, LEAST = -600.0, 1e-260
"""Log responsibilities, relative to the largest, are raised to the first; exponentials below the second become 0. An
exponential that underflows takes seven times as long as one that does not."""


def initial_mixture(points: np.ndarray, counts: np.ndarray, *, n_components: int, floor: float) -> Mixture:
    """Place components along the first axis like the best fixed-rate scalar quantiser.

    The density of the means follows the cube root of the points' density (Panter & Dite 1951, "Quantization
    distortion in pulse-count modulation"): it is high where the weights are, and the tails get components too.

    Args:
        points: float64 (N, 2).
        counts: float64 (N,), weight of each point, > 0.
        n_components: Number of components, >= 1; the result has fewer if there are fewer distinct points.
        floor: Smallest covariance eigenvalue.

    Returns:
        A mixture of at most `n_components` components with means ascending in the first axis.
    """
    order = np.argsort(points[:, 0], kind="stable")
    points, counts = points[order], counts[order]
    positions, owner = np.unique(points[:, 0], return_inverse=True)
    if len(positions) <= n_components:
        return _mixture_of_groups(owner, points, counts, floor=floor)
    mass = np.bincount(owner, weights=counts)
    gaps = np.gradient(positions)
    cumulative = np.cumsum(np.cbrt(mass / gaps) * gaps)
    slot = np.floor((cumulative - cumulative[0]) / (cumulative[-1] - cumulative[0]) * n_components)
    slot = np.minimum(slot, n_components - 1).astype(np.int64)
    _, slot = np.unique(slot, return_inverse=True)
    return _mixture_of_groups(slot[owner], points, counts, floor=floor)


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
        tolerance: EM stops when the mean log-likelihood grows by less, in nats per point.

    Returns:
        The mixture, and the mean log-likelihood (nats per point) before each step, which never falls but for rounding.
    """
    mixture = initial_mixture(points, counts, n_components=n_components, floor=floor)
    trace: list[float] = []
    for _ in range(max_iterations):
        moments, log_likelihood = expectation(mixture, points, counts)
        if trace and log_likelihood - trace[-1] < tolerance:
            break
        trace.append(log_likelihood)
        mixture = _maximisation(moments, mixture.means, floor=floor)
    return mixture, trace


def expectation(mixture: Mixture, points: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, float]:
    """The E step: expected moments of each component, without an array of all responsibilities.

    A log density is a quadratic polynomial, so each part of the points takes one matrix product for its log densities
    and one for its moments. Both polynomials are centred at the middle of the part; the rounding error of the log
    densities is about that of (width of the part)^2 / (least variance).

    Args:
        mixture: K components.
        points: float64 (N, 2); neighbours should stand together.
        counts: float64 (N,), weight of each point, > 0.

    Returns:
        float64 (6, K) moments about each component's current mean: sums over points of count x responsibility times
        1, x, y, x^2, x y and y^2. And the mean log-likelihood in nats per point.
    """
    import torch

    polynomial = _log_densities(mixture)
    moments, log_likelihood = np.zeros((6, len(mixture.weights))), 0.0
    for rows in _parts(len(points), len(mixture.weights)):
        middle = points[rows].mean(axis=0)
        shift = _shift((middle - mixture.means).T)
        powers = _powers(*(points[rows] - middle).T)
        joint = powers.T @ np.einsum("ijk,ik->jk", shift, polynomial)
        largest = joint.max(axis=1)
        joint -= largest[:, None]
        np.maximum(joint, LEAST_LOG, out=joint)
        torch.from_numpy(joint).exp_()  # three times as fast as NumPy's, which is scalar without AVX-512
        joint *= joint > LEAST
        total = joint.sum(axis=1)
        held = (powers * (counts[rows] / total)) @ joint
        moments += np.einsum("ijk,jk->ik", shift, held)
        log_likelihood += float((counts[rows] * (largest + np.log(total))).sum())
    return moments, log_likelihood / float(counts.sum())


def _log_densities(mixture: Mixture) -> np.ndarray:
    """float64 (6, K): log(weight x density) about the mean of each component, as coefficients of `_powers`."""
    (xx, xy), (_, yy) = np.moveaxis(mixture.covariances, 0, -1)
    determinant = xx * yy - xy * xy
    zero = np.zeros_like(xx)
    constant = np.log(mixture.weights) - LOG_2_PI - 0.5 * np.log(determinant)
    return np.stack([constant, zero, zero, -0.5 * yy / determinant, xy / determinant, -0.5 * xx / determinant])


def _shift(offsets: np.ndarray) -> np.ndarray:
    """float64 (6, 6, K): the powers of p + offset are this times those of p."""
    x, y = offsets
    shift = np.zeros((6, 6, len(x)))
    shift[range(6), range(6)] = 1
    shift[:, 0] = _powers(x, y)
    shift[3, 1], shift[4, 1], shift[4, 2], shift[5, 2] = 2 * x, y, x, 2 * y
    return shift


def _powers(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """float64 (6, N): 1, x, y, x^2, x y, y^2."""
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y])


def _mixture_of_groups(owner: np.ndarray, points: np.ndarray, counts: np.ndarray, *, floor: float) -> Mixture:
    """The mixture of groups of points; `owner` (N,) numbers them from 0 without gaps."""
    mass = np.bincount(owner, weights=counts)
    means = np.stack([np.bincount(owner, weights=counts * axis) for axis in points.T], axis=1) / mass[:, None]
    powers = _powers(*(points - means[owner]).T)
    return _maximisation(np.stack([np.bincount(owner, weights=counts * power) for power in powers]), means, floor=floor)


def _maximisation(moments: np.ndarray, centres: np.ndarray, *, floor: float) -> Mixture:
    """The M step, from moments (6, K) about `centres` (K, 2); components without weight are dropped."""
    alive = moments[0] > 1e-9
    mass, *rest = moments[:, alive]
    x, y, xx, xy, yy = rest / mass
    xx, xy, yy = xx - x * x, xy - x * y, yy - y * y
    covariances = np.stack([xx, xy, xy, yy], axis=-1).reshape(-1, 2, 2)
    means = centres[alive] + np.stack([x, y], axis=1)
    return Mixture(mass / mass.sum(), means, floor_eigenvalues(covariances, floor=floor))


def _parts(size: int, width: int) -> Iterator[slice]:
    """Runs of max(8, PART_SIZE // width) rows or more, but fewer than twice as many; one run if rows are fewer."""
    n_parts = max(1, size // max(8, PART_SIZE // max(width, 1)))
    edges = [size * part // n_parts for part in range(n_parts + 1)]
    return map(slice, edges[:-1], edges[1:])
