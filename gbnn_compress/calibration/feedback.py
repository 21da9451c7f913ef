"""Rate-constrained assignment with error feedback inside a layer.

Other weights of a filter can compensate for the error of one weight, as far as their inputs are correlated. With the
covariance H of a layer's inputs, weights w and shared values q, the output error of filter f is
(q_f - w_f)^T H (q_f - w_f). Ids minimise

    sum_f h_f (q_f - w_f)^T H (q_f - w_f) + lambda * bits

in two steps:

1. Column by column, each error is spread over the columns not yet decided (Optimal Brain Surgeon, Hassibi & Stork 1993;
   in a fixed order, with the Cholesky factor U of H^-1: Frantar et al. 2022, "GPTQ"). An error in column j then costs
   1 / U_jj^2. For each filter the cheapest few partial assignments go on, its paths: the M-algorithm (Anderson & Mohan
   1984, "Sequential coding algorithms"). A path costs the sum of h_f (q_j - x_j)^2 / U_jj^2 + lambda * bits over the
   columns decided, with x_j = w_j minus the errors spread to column j.
2. Sweeps minimise the objective itself: windows of columns are searched again, with the others as they are.

The rate term in both is that of entropy-constrained quantisation (Conzelmann & Bamler 2025, "Reducing storage of
pretrained neural networks by rate-constrained quantization and entropy coding").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.linalg.lapack import dtrtri

from gbnn_compress.calibration.decisions import Alphabet, decisions
from gbnn_compress.calibration.path_search import BLOCK, descend, search


def inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """Upper Cholesky factors U of the inverses, H^-1 = U^T U.

    With the order of rows and columns reversed, U is the inverse of the lower Cholesky factor of H.

    Args:
        hessian: float64 (G, d, d), positive definite.
    """
    inverses = [dtrtri(lower, lower=1)[0] for lower in _reversed_cholesky(hessian)]
    return np.ascontiguousarray(np.stack(inverses)[:, ::-1, ::-1])


def column_costs(hessian: np.ndarray) -> np.ndarray:
    """1 / U_jj^2, the cost of an error in each column after feedback: float64 (G, d).

    Args:
        hessian: float64 (G, d, d), positive definite.
    """
    diagonals: np.ndarray = np.einsum("gjj->gj", _reversed_cholesky(hessian))[:, ::-1] ** 2
    return diagonals


def _reversed_cholesky(hessian: np.ndarray) -> np.ndarray:
    """Lower Cholesky factors of H with its rows and columns in reverse order."""
    return np.linalg.cholesky(hessian[:, ::-1, ::-1])


def damped(hessian: np.ndarray, *, damping: float) -> np.ndarray:
    """H + damping * (its mean diagonal) * I, float64 (G, d, d); the identity where H is zero."""
    diagonal = np.einsum("gii->gi", hessian).mean(axis=1)
    lift = np.where(diagonal > 0, damping * diagonal, 1.0)
    return hessian + lift[:, None, None] * np.eye(hessian.shape[1])


def assign_with_feedback(
    weights: np.ndarray,
    hessian: np.ndarray,
    curvature: np.ndarray,
    alphabet: Alphabet,
    *,
    penalty: float,
    exact: np.ndarray,
    paths: int,
    sweeps: int,
    states: np.ndarray | None = None,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose components for the weights of one layer.

    Args:
        weights: float64 (G, r, d), groups of r filters with d weights each, in the units of the means.
        hessian: float64 (G, d, d), covariance of the inputs that each group sees, positive definite.
        curvature: float64 (G, r), h_f > 0: cost of a unit of squared output error.
        alphabet: The components.
        penalty: lambda, cost of one bit.
        exact: bool (G, r, d), weights that are kept as they are.
        paths: Partial assignments kept for each filter, at least 1.
        sweeps: Rounds of searching each window of columns again.
        states: int64 (G, r), of the trellis before the first weights. Default: 0.
        threads: Number of threads; ids do not depend on it.

    Returns:
        int64 (G, r, d), ids, K where `exact`; and int64 (G, r), the states after the last weights.
    """
    states = np.zeros(weights.shape[:2], dtype=np.int64) if states is None else states
    if not all(live.size for live in alphabet.supersets()):
        return np.full(weights.shape, len(alphabet.means)), states
    factor = inverse_factor(hessian)
    column = 1 / np.einsum("gjj->gj", factor) ** 2
    decide = decisions(alphabet, curvature, column, penalty=penalty)
    ids, last = search(weights, factor, decide, exact, paths=paths, states=states, threads=threads)
    for sweep in range(sweeps):
        counts = np.bincount(ids[~exact].ravel(), minlength=len(alphabet.means))
        counts = np.where(alphabet.counts > 0, counts + 0.5, 0.0)
        edges = _windows(weights.shape[2], shifted=sweep % 2 == 0)
        factor, column = _factors_within(hessian, edges)
        decide = decisions(Alphabet(alphabet.means, counts, alphabet.trellis), curvature, column, penalty=penalty)
        ids, last = descend(
            weights,
            hessian,
            factor,
            decide,
            exact,
            ids,
            edges=edges,
            paths=paths,
            states=states,
            threads=threads,
        )
    return ids, last


def _windows(width: int, *, shifted: bool) -> list[int]:
    """Where windows of at most BLOCK columns start, and the end; shifted ones start in the middle of the others."""
    return [0, *range(BLOCK // 2 if shifted else BLOCK, width, BLOCK), width]


def _factors_within(hessian: np.ndarray, edges: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Factors as in `inverse_factor` of each window alone, (G, d, BLOCK), and 1 / their squared diagonals, (G, d)."""
    factor, column = np.zeros((*hessian.shape[:2], BLOCK)), np.empty(hessian.shape[:2])
    for start, stop in pairwise(edges):
        own = inverse_factor(hessian[:, start:stop, start:stop])
        factor[:, start:stop, : stop - start] = own
        column[:, start:stop] = 1 / np.einsum("gjj->gj", own) ** 2
    return factor, column
