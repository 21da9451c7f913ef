"""Rate-constrained assignment: the component that each weight goes to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

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


class IntervalTables(NamedTuple):
    """Intervals for several prices of a bit or sets of components, one table after the other.

    Attributes:
        winners: int64 (n,), the components that win somewhere.
        thresholds: float64 (n,), the upper end of each winner's interval; infinite for the last of a table.
        edges: int64 (tables + 1,), where each table starts, and the end.
    """

    winners: np.ndarray
    thresholds: np.ndarray
    edges: np.ndarray


def interval_tables(
    means: np.ndarray, lengths: np.ndarray, tables: Iterable[tuple[np.ndarray, float]]
) -> IntervalTables:
    """The intervals of `decision_intervals`, for each table.

    Args:
        means: float64 (K,), strictly ascending.
        lengths: float64 (K,), bits of each component that is in a table.
        tables: For each table the components in it, int64 (m,) ascending, and the penalty. A table without components
            is empty.
    """
    winners, thresholds, edges = [np.zeros(0, dtype=np.int64)], [np.zeros(0)], [0]
    for live, penalty in tables:
        if live.size:
            won, between = decision_intervals(means[live], lengths[live], penalty=penalty)
            winners.append(live[won])
            thresholds += [between, np.array([np.inf])]
        edges.append(edges[-1] + (len(won) if live.size else 0))
    return IntervalTables(np.concatenate(winners), np.concatenate(thresholds), np.array(edges))


def places_in(tables: IntervalTables, numbers: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Positions of the winners for targets x by the tables of these numbers, int64 of their common shape.

    A target on a threshold goes to the component below it. The place in an empty table means nothing.
    """
    low, high = (
        np.broadcast_to(each, np.broadcast(numbers, x).shape)
        for each in (tables.edges[numbers], tables.edges[numbers + 1] - 1)
    )
    while (low < high).any():
        middle, open_ = (low + high) >> 1, low < high
        above = tables.thresholds[np.minimum(middle, len(tables.thresholds) - 1)] < x
        low, high = np.where(open_ & above, middle + 1, low), np.where(open_ & ~above, middle, high)
    return low
