"""Rate-constrained assignment with error feedback inside a layer.

A weight's error can be made good by the weights beside it, as far as their inputs are correlated. With the covariance
H of a layer's inputs, weights w and shared values q, the error of filter f's output is (q_f - w_f)^T H (q_f - w_f), and
ids are chosen for the least

    sum_f h_f (q_f - w_f)^T H (q_f - w_f) + lambda * bits

first column by column, each error spread over the columns not yet decided (Optimal Brain Surgeon, Hassibi & Stork
1993; in this order, with the Cholesky factor U of H^-1: Frantar et al. 2022, "GPTQ"), where an error in column j costs
1 / U_jj^2; then by sweeps of coordinate descent on the objective itself. The rate term in both is that of
entropy-constrained quantisation (Conzelmann & Bamler 2025, "Reducing storage of pretrained neural networks by
rate-constrained quantization and entropy coding").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gbnn_compress.gaussian.assign import decision_intervals

BLOCK = 64
"""Columns whose errors are spread one by one; the columns after them hear of all of these at once."""

CURVATURE_STEPS = 8
"""Decision thresholds are worked out anew for each so-manieth of an octave of curvature."""

REACH = 1000.0
"""Targets are told apart as far outside the means, in units of their range."""


@dataclass(frozen=True)
class Alphabet:
    """What a weight of one tensor may become.

    Attributes:
        means: float64 (K,), strictly ascending.
        counts: float64 (K,), weights expected in each, for the code lengths.
    """

    means: np.ndarray
    counts: np.ndarray


def inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """Upper Cholesky factors U of the inverses, H^-1 = U^T U.

    Args:
        hessian: float64 (G, d, d), positive definite.
    """
    return np.ascontiguousarray(np.swapaxes(np.linalg.cholesky(np.linalg.inv(hessian)), 1, 2))


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
    sweeps: int,
) -> np.ndarray:
    """Choose components for the weights of one layer.

    Args:
        weights: float64 (G, r, d), groups of r filters with d weights each, in the units of the means.
        hessian: float64 (G, d, d), covariance of the inputs that each group sees, positive definite.
        curvature: float64 (G, r), h_f > 0: what a unit of squared output error costs.
        alphabet: The components.
        penalty: lambda, cost of one bit.
        exact: bool (G, r, d), weights that are kept as they are.
        sweeps: Rounds of coordinate descent.

    Returns:
        int64 (G, r, d), ids; K where `exact`.
    """
    live = np.flatnonzero(alphabet.counts > 0)
    if not live.size:
        return np.full(weights.shape, len(alphabet.means))
    means, counts = alphabet.means[live], alphabet.counts[live]
    factor = inverse_factor(hessian)
    column = 1 / np.einsum("gjj->gj", factor) ** 2
    ids = _feed_forward(weights, factor, _Decisions(means, counts, curvature, column, penalty), exact)
    diagonal = np.einsum("gjj->gj", hessian)
    for _ in range(sweeps):
        counts = np.bincount(ids[~exact].ravel(), minlength=len(live)) + 0.5
        decide = _Decisions(means, counts, curvature, diagonal, penalty)
        ids = _descend(weights, hessian, diagonal, decide, exact, ids)
    return np.where(exact, len(alphabet.means), live[ids])


class _Decisions:
    """argmin_k c (m_k - x)^2 + lambda L_k for rows of any curvature c, one column at a time."""

    def __init__(
        self, means: np.ndarray, counts: np.ndarray, rows: np.ndarray, columns: np.ndarray, penalty: float
    ) -> None:
        lengths = np.log2(counts.sum()) - np.log2(counts)
        self.means = means
        self._rows = np.rint(CURVATURE_STEPS * np.log2(rows)).astype(np.int64)
        self._columns = np.rint(CURVATURE_STEPS * np.log2(columns)).astype(np.int64)
        pairs = (np.unique(self._rows[g])[:, None] + np.unique(self._columns[g]) for g in range(len(rows)))
        self._levels = np.unique(np.concatenate([np.unique(pair) for pair in pairs]))
        reach = REACH * (float(means[-1] - means[0]) + 1.0)
        self._low, self._high = float(means[0]) - reach, float(means[-1]) + reach
        # One sorted array serves all levels: the thresholds of level i lie in [i, i + 1).
        keys, winners = [], []
        for position, level in enumerate(self._levels.tolist()):
            won, thresholds = decision_intervals(means, lengths, penalty=penalty * 2.0 ** (-level / CURVATURE_STEPS))
            keys.append(position + self._inside(thresholds).clip(0.0, 1.0))
            keys.append(np.array([position + 1.0]))
            winners.append(won)
        self._keys, self._winners = np.concatenate(keys), np.concatenate(winners)

    def __call__(self, x: np.ndarray, j: int) -> np.ndarray:
        """int64 (G, r), the winners for targets x, float64 (G, r), of column j."""
        position = np.searchsorted(self._levels, self._rows + self._columns[:, j : j + 1])
        return self._winners[np.searchsorted(self._keys, position + self._inside(x).clip(1e-9, 1 - 1e-9), side="left")]

    def _inside(self, x: np.ndarray) -> np.ndarray:
        return (x - self._low) / (self._high - self._low)


def _feed_forward(weights: np.ndarray, factor: np.ndarray, decide: _Decisions, exact: np.ndarray) -> np.ndarray:
    """Decide column by column, spreading errors over the columns to come."""
    pending, ids = weights.copy(), np.empty(weights.shape, dtype=np.int64)
    width = weights.shape[2]
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        errors = np.empty((*weights.shape[:2], stop - start))
        for j in range(start, stop):
            ids[:, :, j] = decide(pending[:, :, j], j)
            value = np.where(exact[:, :, j], weights[:, :, j], decide.means[ids[:, :, j]])
            error = (pending[:, :, j] - value) / factor[:, j, j][:, None]
            pending[:, :, j + 1 : stop] -= error[:, :, None] * factor[:, None, j, j + 1 : stop]
            errors[:, :, j - start] = error
        pending[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return ids


def _descend(
    weights: np.ndarray,
    hessian: np.ndarray,
    diagonal: np.ndarray,
    decide: _Decisions,
    exact: np.ndarray,
    ids: np.ndarray,
) -> np.ndarray:
    """One sweep of coordinate descent over the columns."""
    ids, width = ids.copy(), weights.shape[2]
    shared = np.where(exact, weights, decide.means[ids])
    slope = (shared - weights) @ hessian
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        before = shared[:, :, start:stop].copy()
        for j in range(start, stop):
            target = shared[:, :, j] - slope[:, :, j] / diagonal[:, None, j]
            chosen = decide(target, j)
            value = np.where(exact[:, :, j], weights[:, :, j], decide.means[chosen])
            step = value - shared[:, :, j]
            slope[:, :, j:stop] += step[:, :, None] * hessian[:, None, j, j:stop]
            ids[:, :, j], shared[:, :, j] = chosen, value
        slope[:, :, stop:] += (shared[:, :, start:stop] - before) @ hessian[:, start:stop, stop:]
    return ids
