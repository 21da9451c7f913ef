"""Compiled loop of `trellis_paths`; `trellis_paths` has numpy code for the same ids."""

from __future__ import annotations

import numpy as np
from numba import njit

from gbnn_compress.format.trellis import NEXT_STATE
from gbnn_compress.rate.assign_loops import SETTINGS, find


@njit(**SETTINGS)
def best_paths(x, levels, exact, curvature, means, bits_costs, tables, ids):
    """`trellis_paths._best_paths`; the same arguments."""
    rows, width = x.shape
    winners, thresholds, edges = tables
    escape = len(means)
    costs, after = np.empty(8), np.empty(8)
    cheapest, cost = np.empty((width, 4), dtype=np.int64), np.empty(4)
    came = np.empty((width, 8), dtype=np.int8)
    for r in range(rows):
        costs[:] = np.inf
        costs[0] = 0.0
        scale = curvature[levels[r]]
        for j in range(width):
            is_exact = exact[r, j]
            for subset in range(4):
                if is_exact:
                    cheapest[j, subset], cost[subset] = escape, 0.0
                    continue
                table = 4 * levels[r] + subset
                low, high = edges[table], edges[table + 1]
                if low == high:
                    cheapest[j, subset], cost[subset] = escape, np.inf
                    continue
                component = winners[low + find(thresholds[low:high], high - low, x[r, j])]
                miss = means[component] - x[r, j]
                cheapest[j, subset], cost[subset] = component, scale * (miss * miss) + bits_costs[component]
            after[:] = np.inf
            for state in range(8):
                for branch in range(1 if is_exact else 2):
                    total = costs[state] + cost[(state & 1) + 2 * branch]
                    to = NEXT_STATE[state, branch]
                    if total < after[to]:
                        after[to], came[j, to] = total, 2 * state + branch
            costs[:] = after
        state = 0
        for other in range(1, 8):
            if costs[other] < costs[state]:
                state = other
        for j in range(width - 1, -1, -1):
            before = came[j, state]
            ids[r, j] = cheapest[j, ((before >> 1) & 1) + 2 * (before & 1)]
            state = before >> 1
