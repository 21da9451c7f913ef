"""Density of 2-D Gaussians, in float64 and in log space."""

from __future__ import annotations

import numpy as np

LOG_2_PI = float(np.log(2 * np.pi))


def log_density(points: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """Log density of each point under each Gaussian.

    log N(p; m, S) = -log(2 pi) - log det L - |L^-1 (p - m)|^2 / 2, with S = L L^T (Cholesky).

    Args:
        points: float64 (N, 2).
        means: float64 (K, 2).
        covariances: float64 (K, 2, 2), positive definite.

    Returns:
        float64 (N, K), in nats.

    Raises:
        numpy.linalg.LinAlgError: A covariance is not positive definite.
    """
    cholesky = np.linalg.cholesky(covariances)
    l11, l21, l22 = cholesky[:, 0, 0], cholesky[:, 1, 0], cholesky[:, 1, 1]
    first = (points[:, None, 0] - means[None, :, 0]) / l11
    second = (points[:, None, 1] - means[None, :, 1] - l21 * first) / l22
    return -0.5 * (first**2 + second**2) - (LOG_2_PI + np.log(l11 * l22))


def floor_eigenvalues(covariances: np.ndarray, *, floor: float) -> np.ndarray:
    """Raise the eigenvalues of symmetric matrices to at least `floor`.

    The result is the most likely covariance among those with eigenvalues >= floor, so an EM step that
    ends with it still cannot lower the likelihood.

    Args:
        covariances: float64 (K, 2, 2), symmetric.
        floor: Smallest eigenvalue allowed, > 0.

    Returns:
        float64 (K, 2, 2).
    """
    values, vectors = np.linalg.eigh(covariances)
    return np.einsum("kij,kj,klj->kil", vectors, np.maximum(values, floor), vectors)
