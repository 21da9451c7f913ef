"""Compiled: the components of weights and cells, as `codebook.assign` finds them."""

from __future__ import annotations

import numpy as np
from numba import njit

SETTINGS = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(**SETTINGS)
def fill_intervals(means, lengths, escape, penalty, curvature, limit, ends, ids, winners, thresholds):
    """Write the intervals on which each component, or the escape, is the cheapest.

    Args:
        means: float64 (K,), strictly ascending.
        lengths: float64 (K + 1,), bits, infinite where unused.
        escape: Bits of an outlier's code and value.
        penalty: lambda.
        curvature: h s_t^2 of the weights.
        limit: Magnitude beyond which a weight is an outlier; negative: where that is cheaper.
        ends: float64 (3 K,), upper ends of the intervals, strictly ascending.
        ids: int64 (3 K,), component of each interval, K for outliers.
        winners: int64 (K,), working memory.
        thresholds: float64 (K,), working memory.

    Returns:
        The number of intervals.
    """
    ratio, n = penalty / curvature, 0  # number of winners; there is one threshold less
    for k in range(len(means)):
        if not np.isfinite(lengths[k]):
            continue
        intercept = means[k] * means[k] + ratio * lengths[k]
        while n > 0:
            last = winners[n - 1]
            before = means[last] * means[last] + ratio * lengths[last]
            crossing = (intercept - before) / (2 * (means[k] - means[last]))
            if n > 1 and crossing <= thresholds[n - 2]:
                n -= 1
                continue
            thresholds[n - 1] = crossing
            break
        winners[n] = k
        n += 1
    place, start = 0, -np.inf
    for j in range(n):
        k, stop = winners[j], thresholds[j] if j < n - 1 else np.inf
        if limit >= 0:
            first, last_inside = -limit, limit
        else:
            radius = np.sqrt(max(escape - lengths[k], 0.0) * penalty / curvature)
            first, last_inside = means[k] - radius, means[k] + radius
        before = min(max(np.nextafter(first, -np.inf), start), stop)
        inside = min(max(last_inside, before), stop)
        for end, component in ((before, len(means)), (inside, k), (stop, len(means))):
            if place == 0 or end > ends[place - 1]:
                ends[place], ids[place] = end, component
                place += 1
        start = stop
    return place


@njit(**SETTINGS)
def find(ends, n, x):
    """The first of n intervals whose end is at least x."""
    low = 0
    while n > 1:
        half = n >> 1
        low = low + half if ends[low + half - 1] < x else low
        n -= half
    return low


@njit(**SETTINGS)
def assign_groups(x, tensors, levels, starts, means, lengths, escapes, penalty, curvatures, limits):
    """Components of cells.

    Args:
        x: float64 (cells,), ascending within each group.
        tensors: int64 (G,), tensor of each group.
        levels: int64 (G,), its level.
        starts: int64 (G + 1,), first cell of each, and the end.
        means: float64 (K,).
        lengths: float64 (T, K + 1).
        escapes: float64 (T,), bits of an outlier's code and value.
        penalty: lambda.
        curvatures: float64, by level.
        limits: float64 (T,), see `fill_intervals`.

    Returns:
        int64 (cells,).
    """
    size = len(means)
    result = np.full(len(x), size)
    ends, ids = np.empty(3 * size), np.empty(3 * size, dtype=np.int64)
    winners, thresholds = np.empty(size, dtype=np.int64), np.empty(size)
    for g in range(len(tensors)):
        t = tensors[g]
        n = fill_intervals(
            means, lengths[t], escapes[t], penalty, curvatures[levels[g]], limits[t], ends, ids, winners, thresholds
        )
        place = 0
        for cell in range(starts[g], starts[g + 1] if n else starts[g]):
            while ends[place] < x[cell]:
                place += 1
            result[cell] = ids[place]
    return result


@njit(**SETTINGS)
def assign_rows(weights, scale, farthest, levels, means, lengths, escape, penalty, curvatures, limit, out):
    """Write the components of a tensor's weights.

    Args:
        weights: float32 or float64 (rows, n).
        scale: s_t.
        farthest: Largest abs(mu / s_t); larger ones are clipped to it.
        levels: int64 (rows,), level of each row.
        means: float64 (K,).
        lengths: float64 (K + 1,).
        escape: Bits of an outlier's code and value.
        penalty: lambda.
        curvatures: float64, by level.
        limit: See `fill_intervals`.
        out: Unsigned integers (rows, n).
    """
    size, n_levels = len(means), len(curvatures)
    ends, ids = np.empty((n_levels, 3 * size)), np.empty((n_levels, 3 * size), dtype=np.int64)
    winners, thresholds = np.empty(size, dtype=np.int64), np.empty(size)
    numbers = np.full(n_levels, -1)
    for row in range(len(weights)):
        level = levels[row]
        if numbers[level] < 0:
            numbers[level] = fill_intervals(
                means, lengths, escape, penalty, curvatures[level], limit, ends[level], ids[level], winners, thresholds
            )
        n, of_level, components, line, found = numbers[level], ends[level], ids[level], weights[row], out[row]
        for i in range(len(line)):
            x = min(max(np.float64(line[i]) / scale, -farthest), farthest)
            found[i] = components[find(of_level, n, x)] if n else size
