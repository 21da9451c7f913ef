"""Wasserstein-2 distance between 2-D Gaussians, in closed form."""

from __future__ import annotations

import numpy as np


def wasserstein2_squared(
    mean: np.ndarray, covariance: np.ndarray, means: np.ndarray, covariances: np.ndarray
) -> np.ndarray:
    """W2^2 of one Gaussian to each of K others.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S2^1/2 S1 S2^1/2)^1/2) (Dowson & Landau 1982); for 2x2 matrices the trace of
    the root of M is sqrt(tr M + 2 sqrt(det M)), with tr M = tr(S1 S2) and det M = det S1 det S2.

    Args:
        mean: float64 (2,).
        covariance: float64 (2, 2), symmetric positive semi-definite.
        means: float64 (K, 2).
        covariances: float64 (K, 2, 2), symmetric positive semi-definite.

    Returns:
        float64 (K,), >= 0, in squared units of the means.
    """
    shift = ((means - mean) ** 2).sum(axis=1)
    trace_product = (covariances * covariance.T).sum(axis=(1, 2))
    determinants = _determinant(covariances) * _determinant(covariance)
    root = np.sqrt(np.maximum(trace_product + 2 * np.sqrt(np.maximum(determinants, 0)), 0))
    spread = np.trace(covariance) + covariances[:, 0, 0] + covariances[:, 1, 1] - 2 * root
    return shift + np.maximum(spread, 0)


def moment_match(
    weights: np.ndarray, means: np.ndarray, covariances: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """The Gaussian with the mean and covariance of a mixture, including the spread of its means.

    Args:
        weights: float64 (K,), >= 0, not all zero.
        means: float64 (K, 2).
        covariances: float64 (K, 2, 2).

    Returns:
        Total weight, mean (2,) and covariance (2, 2).
    """
    total = weights.sum()
    fraction = weights / total
    mean = (fraction[:, None] * means).sum(axis=0)
    offset = means - mean
    between = offset[:, :, None] * offset[:, None, :]
    return float(total), mean, (fraction[:, None, None] * (covariances + between)).sum(axis=0)


def _determinant(matrices: np.ndarray) -> np.ndarray:
    return matrices[..., 0, 0] * matrices[..., 1, 1] - matrices[..., 0, 1] * matrices[..., 1, 0]
