"""Rate-constrained assignment: the component that each weight goes to."""

from __future__ import annotations

import numpy as np


def decision_intervals(means: np.ndarray, code_lengths: np.ndarray, *, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Cut the line into the intervals on which each component is the cheapest.

    A weight x goes to argmin_k (x - m_k)^2 + penalty * L_k. Without the term x^2, the costs are lines in x, and the
    least cost is their lower envelope. So one pass over the components in the order of their means gives exact
    thresholds for any number of weights.

    Args:
        means: float64 (K,), strictly ascending.
        code_lengths: float64 (K,), bits.
        penalty: lambda / h, squared units of the means for one bit, >= 0.

    Returns:
        int64 (J,) positions in `means` of the components that win somewhere, ascending, and float64 (J - 1,)
        the ascending thresholds between them; `winners[searchsorted(thresholds, x)]` is the assignment.
    """
    intercepts = (means**2 + penalty * code_lengths).tolist()
    positions = means.tolist()
    winners: list[int] = []
    thresholds: list[float] = []
    for k, (position, intercept) in enumerate(zip(positions, intercepts, strict=True)):
        while winners:
            last = winners[-1]
            crossing = (intercept - intercepts[last]) / (2 * (position - positions[last]))
            if thresholds and crossing <= thresholds[-1]:
                winners.pop()
                thresholds.pop()
                continue
            thresholds.append(crossing)
            break
        winners.append(k)
    return np.array(winners, dtype=np.int64), np.array(thresholds)
