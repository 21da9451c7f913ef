"""The trellis: which components a weight may have after the weights before it in its row.

Components, in ascending order, belong to four subsets cyclically: component k to subset k mod 4. A state allows one
superset, the even or the odd components, and the subset within it leads to the next state (Ungerboeck 1982, "Channel
coding with multilevel/phase signals"; Marcellin & Fischer 1990, "Trellis coded quantization of memoryless and
Gauss-Markov sources"; Fischer & Wang 1992, "Entropy-constrained trellis-coded quantization"). The components of one
superset are twice as far apart as those of the bank, so an id takes one bit less than it would without states; the
error is smaller than that of the superset alone, because the ways through the trellis differ.
"""

from __future__ import annotations

import numpy as np

NEXT_STATE = np.array([[0, 1], [2, 3], [5, 4], [7, 6], [1, 0], [3, 2], [4, 5], [6, 7]])
"""int64 (8, 2), the state after a component of subset 0 or 1, and of subset 2 or 3. Each row starts in state 0."""


def superset_of(states: np.ndarray) -> np.ndarray:
    """0 for states whose weights are even components, 1 for odd ones."""
    return states & 1


def next_states(states: np.ndarray, ids: np.ndarray, *, escape: int) -> np.ndarray:
    """The states after weights with these ids.

    Any state allows an outlier, which leads where a component of subset 0 or 1 leads.

    Args:
        states: int (n,), 0 to 7.
        ids: int (n,), K = `escape` for outliers.
        escape: K.
    """
    return NEXT_STATE[states, np.where(ids == escape, 0, (ids >> 1) & 1)]
