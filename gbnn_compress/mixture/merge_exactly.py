"""Exact merging: the best way to merge runs of neighbouring components at one lambda.

Merging the cheapest pair first halves the resolution region by region, so that at most targets one part of the line is
twice as coarse as another; that costs a quarter of the distortion. The merging cost (increase of curvature-weighted
distortion + lambda * change in bits) is a sum over the merged runs, so dynamic programming finds the best partition of
the line (Muresan & Effros 2008, "Quantization as histogram segmentation").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gbnn_compress.mixture.merge_path import x_log2_x


@dataclass(frozen=True)
class Moments:
    """Counts and moments of K components, sorted by their means: all that the merging cost depends on.

    Attributes:
        counts: float64 (K, T), weights of tensor t in component k.
        curvature: float64 (K,), sum of the members' curvatures.
        first: float64 (K,), curvature-weighted sum of the members' positions.
        second: float64 (K,), curvature-weighted sum of their squares.
    """

    counts: np.ndarray
    curvature: np.ndarray
    first: np.ndarray
    second: np.ndarray


def merge_exactly(
    moments: Moments, *, penalty: float, component_bits: float, entry_bits: float, longest: int
) -> np.ndarray:
    """Partition components into the runs of least distortion + lambda * bits.

    The bits of a run are those of its ids, -sum_t n_t log2(n_t / N_t), `component_bits`, and `entry_bits` for each
    tensor that uses it.

    Args:
        moments: K components, sorted by mean.
        penalty: lambda.
        component_bits: Bits of a component's numbers.
        entry_bits: Bits of an entry in a tensor's frequency table.
        longest: Most components in a run.

    Returns:
        int64 (K,), the run of each component, ascending from 0.
    """
    size = len(moments.curvature)
    counts, curvature, first, second = (
        np.concatenate([np.zeros((1, *column.shape[1:])), np.cumsum(column, axis=0)])
        for column in (moments.counts, moments.curvature, moments.first, moments.second)
    )
    best, start = np.zeros(size + 1), np.zeros(size + 1, dtype=np.int64)
    for stop in range(1, size + 1):
        starts = slice(max(0, stop - longest), stop)
        members = counts[stop] - counts[starts]
        bits = -x_log2_x(members).sum(axis=1) + entry_bits * (members > 0).sum(axis=1) + component_bits
        mass = np.maximum(curvature[stop] - curvature[starts], 1e-300)
        distortion = second[stop] - second[starts] - (first[stop] - first[starts]) ** 2 / mass
        cost = best[starts] + np.maximum(distortion, 0.0) + penalty * bits
        choice = int(np.argmin(cost))
        best[stop], start[stop] = cost[choice], starts.start + choice
    return _runs(start)


def _runs(start: np.ndarray) -> np.ndarray:
    """Follow the choices back from the end."""
    edges, stop = [], len(start) - 1
    while stop > 0:
        edges.append(stop)
        stop = int(start[stop])
    lengths = np.diff(np.array([0, *reversed(edges)]))
    return np.repeat(np.arange(len(lengths)), lengths)
