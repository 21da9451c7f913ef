"""Compiled loops of `path_search`; `path_search` has numpy code for the same bytes."""

from __future__ import annotations

import numpy as np
from numba import njit

from gbnn_compress.format.trellis import NEXT_STATE
from gbnn_compress.rate.assign_loops import SETTINGS, find


@njit(**SETTINGS)
def search_block(first, last, columns, decide, found, out_errors, out_ids, settles):
    """`path_search._search_block`; the same arguments."""
    base, weights, exact, factor_before, factor = columns
    means, bits_costs, row_costs, column_costs, row_steps, column_steps, tables, n_steps, has_trellis = decide
    winners, thresholds, edges = tables
    costs, states, errors, ids = found
    rows, width, n_before = base.shape[1], base.shape[2], factor_before.shape[1]
    paths = costs.shape[1]
    targets, next_targets = np.empty((paths, width)), np.empty((paths, width))
    sources, chosen = np.empty((width, paths), dtype=np.int64), np.empty((width, paths), dtype=np.int64)
    made = np.empty((width, paths))
    best, which = np.empty(paths), np.empty(paths, dtype=np.int64)
    components, misses = np.empty(3 * paths, dtype=np.int64), np.empty(3 * paths)
    next_states, roots = np.empty(paths, dtype=np.int64), np.empty(paths, dtype=np.int64)
    traced_errors, traced_ids = np.empty((paths, width)), np.empty((paths, width), dtype=np.int64)
    escape = len(means)
    for f in range(first, last):
        g, r = f // rows, f % rows
        for p in range(paths):
            if costs[f, p] == np.inf:
                continue
            row = targets[p]
            row[:] = base[g, r]
            for i in range(n_before):
                error, spread = errors[f, p, i], factor_before[g, i]
                for k in range(width):
                    row[k] -= error * spread[k]
        for j in range(width):
            n_kept = 0
            cost = row_costs[g, r] * column_costs[g, j]
            step = row_steps[g, r] + column_steps[g, j]
            weight = weights[g, r, j]
            for p in range(paths):
                before = costs[f, p]
                if before == np.inf:
                    continue
                x = targets[p, j]
                low, high, centre, tried = 0, 0, 0, 1
                if not exact[g, r, j]:
                    table = step + (states[f, p] & 1) * n_steps if has_trellis else step
                    low, high = edges[table], edges[table + 1]
                    centre, tried = low + find(thresholds[low:high], high - low, x), 3
                for t in range(tried):
                    if exact[g, r, j]:
                        component = escape
                        miss = weight - x
                        total = before + cost * (miss * miss)
                    else:
                        beside = centre if t == 0 else (centre - 1 if t == 1 else centre + 1)
                        if beside < low or beside >= high:
                            continue
                        component = winners[beside]
                        miss = means[component] - x
                        total = before + (cost * (miss * miss) + bits_costs[component])
                    if n_kept == paths and not total < best[n_kept - 1]:
                        continue
                    components[3 * p + t], misses[3 * p + t] = component, miss
                    spot = n_kept if n_kept < paths else paths - 1
                    while spot > 0 and total < best[spot - 1]:
                        best[spot], which[spot] = best[spot - 1], which[spot - 1]
                        spot -= 1
                    best[spot], which[spot] = total, 3 * p + t
                    n_kept = min(n_kept + 1, paths)
            for q in range(n_kept):
                p, component = which[q] // 3, components[which[q]]
                error = -misses[which[q]] / factor[g, j, j]
                made[j, q], chosen[j, q], sources[j, q] = error, component, p
                branch = 0 if component == escape else (component >> 1) & 1
                next_states[q] = NEXT_STATE[states[f, p], branch]
                row, next_row, spread = targets[p], next_targets[q], factor[g, j]
                for k in range(j + 1, width):
                    next_row[k] = row[k] - error * spread[k]
            for q in range(paths):
                costs[f, q] = best[q] if q < n_kept else np.inf
                if q < n_kept:
                    states[f, q] = next_states[q]
            targets, next_targets = next_targets, targets
        n_paths = 0
        while n_paths < paths and costs[f, n_paths] < np.inf:
            path = n_paths
            for j in range(width - 1, -1, -1):
                traced_errors[n_paths, j], traced_ids[n_paths, j] = made[j, path], chosen[j, path]
                path = sources[j, path]
            roots[n_paths] = path
            n_paths += 1
        root = roots[0]
        for i in range(n_before):
            out_errors[f, i], out_ids[f, i] = errors[f, root, i], ids[f, root, i]
        for q in range(n_paths):
            if settles and roots[q] != root:
                costs[f, q] = np.inf
            for j in range(width):
                errors[f, q, j], ids[f, q, j] = traced_errors[q, j], traced_ids[q, j]
