"""Compiled: how often ids occur, alone and by context."""

from __future__ import annotations

import numpy as np
from numba import njit

from gbnn_compress.format.ans_loops import SETTINGS

WAYS = 4
"""Counters per id: an addition to a number takes longer than the next id, which is often the same."""


@njit(**SETTINGS)
def count(ids, counts):
    """Add the number of occurrences of ids (n,), below the length of `counts`, to `counts` int64."""
    parts = np.zeros((WAYS, len(counts)), dtype=np.int64)
    n = len(ids) // WAYS * WAYS
    for k in range(0, n, WAYS):
        parts[0, ids[k]] += 1
        parts[1, ids[k + 1]] += 1
        parts[2, ids[k + 2]] += 1
        parts[3, ids[k + 3]] += 1
    for k in range(n, len(ids)):
        parts[0, ids[k]] += 1
    for i in range(len(counts)):
        counts[i] += parts[0, i] + parts[1, i] + parts[2, i] + parts[3, i]


@njit(**SETTINGS)
def mark(contexts, occurs):
    """Set `occurs`, bool, of each context."""
    last = -1
    for k in range(len(contexts)):
        if contexts[k] != last:
            last = np.int64(contexts[k])
            occurs[last] = True


@njit(**SETTINGS)
def count_pairs(contexts, ids, places, first, size, counts):
    """Count the ids of each context.

    Args:
        contexts: uint16 (n,), equal ones side by side.
        ids: (n,), from `first` to `first + size - 1`.
        places: int64, row of each context in `counts`.
        first: The lowest id.
        size: Number of ids.
        counts: float64 (rows, size), added to.
    """
    parts, begin = np.zeros((WAYS, size), dtype=np.int64), 0
    while begin < len(ids):
        end = begin + 1
        while end < len(ids) and contexts[end] == contexts[begin]:
            end += 1
        row, k = counts[places[contexts[begin]]], begin
        if end - begin > size:
            parts[:] = 0
            while k + WAYS <= end:
                for way in range(WAYS):
                    parts[way, np.int64(ids[k + way]) - first] += 1
                k += WAYS
            for i in range(size):
                for way in range(WAYS):
                    row[i] += parts[way, i]
        while k < end:
            row[np.int64(ids[k]) - first] += 1.0
            k += 1
        begin = end
