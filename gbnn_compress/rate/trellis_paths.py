"""The cheapest way of each row's weights through the trellis, without error feedback (Viterbi's algorithm)."""

from __future__ import annotations

import numpy as np

from gbnn_compress.compiled import loops
from gbnn_compress.format.trellis import NEXT_STATE
from gbnn_compress.mixture.intervals import IntervalTables, interval_tables, places_in

SLOWER = 64
"""About by how much numpy is slower here than in the jobs that `compiled.WORTHWHILE` is measured in."""


def cheapest_paths(
    x: np.ndarray,
    levels: np.ndarray,
    exact: np.ndarray,
    *,
    curvature: np.ndarray,
    means: np.ndarray,
    lengths: np.ndarray,
    penalty: float,
) -> np.ndarray:
    """Choose components that follow the trellis, at the least sum of h (x - m_k)^2 + lambda L_k over each row.

    Args:
        x: float64 (rows, n), weights in units of the means.
        levels: int64 (rows,), positions in `curvature`.
        exact: bool (rows, n), weights that are kept exactly.
        curvature: float64 (levels,), h.
        means: float64 (K,), strictly ascending.
        lengths: float64 (K,), bits of each component within its superset; infinite where it is not used. Each superset
            has at least one component.
        penalty: lambda.

    Returns:
        int64 (rows, n), ids, K where `exact`.
    """
    live, used = np.flatnonzero(np.isfinite(lengths)), np.unique(levels)
    tables = [
        (live[(live % 4 == subset) & (level in used)], penalty / curvature[level])
        for level in range(len(curvature))
        for subset in range(4)
    ]
    bits_costs = np.where(np.isfinite(lengths), penalty * lengths, 0.0)
    ids = np.empty(x.shape, dtype=np.int64)
    compiled = loops("rate.trellis_loops", work=SLOWER * x.size)
    (_best_paths if compiled is None else compiled.best_paths)(
        np.ascontiguousarray(x),
        levels,
        np.ascontiguousarray(exact),
        curvature,
        means,
        bits_costs,
        interval_tables(means, lengths, tables),
        ids,
    )
    return ids


def _best_paths(
    x: np.ndarray,
    levels: np.ndarray,
    exact: np.ndarray,
    curvature: np.ndarray,
    means: np.ndarray,
    bits_costs: np.ndarray,
    tables: IntervalTables,
    ids: np.ndarray,
) -> None:
    """Fill in the ids, int64 (rows, n). Table 4 * level + subset has the winners of one subset at one level."""
    rows, width = x.shape
    every, states = np.arange(rows), np.arange(8)
    costs = np.full((rows, 8), np.inf)
    costs[:, 0] = 0
    cheapest, came = np.empty((width, rows, 4), dtype=np.int64), np.empty((width, rows, 8), dtype=np.int64)
    scale = curvature[levels][:, None]
    # Each state is reached from two others: the first one in the order of states, then branches, wins ties.
    arrivals = [[(s, b) for s in range(8) for b in range(2) if NEXT_STATE[s, b] == to] for to in range(8)]
    numbers = 4 * levels[:, None] + np.arange(4)
    missing = tables.edges[numbers] == tables.edges[numbers + 1]
    for j in range(width):
        component = tables.winners[np.where(missing, 0, places_in(tables, numbers, x[:, j, None]))]
        miss = means[component] - x[:, j, None]
        cost = np.where(missing, np.inf, scale * (miss * miss) + bits_costs[component])
        cost = np.where(exact[:, j, None], 0.0, cost)
        cheapest[j] = np.where(exact[:, j, None], len(means), component)
        after = np.empty_like(costs)
        for to in states:
            totals = np.stack([costs[:, s] + cost[:, (s & 1) + 2 * b] for s, b in arrivals[to]], axis=1)
            for way, (_, b) in enumerate(arrivals[to]):
                totals[:, way] = np.where(exact[:, j] & (b == 1), np.inf, totals[:, way])
            best = totals.argmin(axis=1)
            after[:, to] = totals[every, best]
            came[j, :, to] = np.array([2 * s + b for s, b in arrivals[to]])[best]
        costs = after
    state = costs.argmin(axis=1)
    for j in reversed(range(width)):
        before = came[j, every, state]
        ids[:, j] = cheapest[j, every, ((before >> 1) & 1) + 2 * (before & 1)]
        state = before >> 1
