"""The merge path: from a fine mixture to ever coarser ones, the cheapest Wasserstein-2 pair first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gbnn_compress.mixture.wasserstein import moment_match, wasserstein2_squared
from gbnn_compress.types import Mixture


@dataclass(frozen=True)
class MergePath:
    """Every merge of a mixture down to one component, or as far as merging is allowed.

    Attributes:
        size: K, components of the mixture.
        pairs: int64 (M, 2), the component kept and the component that joined it, in merge order; M < K.
        slopes: float64 (M,), non-decreasing, in distortion per bit: a merge pays if lambda is at least its slope. On a
            path by distance, the squared distances: a merge is done if the squared threshold is at least its slope.
    """

    size: int
    pairs: np.ndarray
    slopes: np.ndarray

    def labels(self, penalty: float) -> np.ndarray:
        """int64 (K,), the surviving component that each component belongs to when lambda is `penalty`."""
        labels = np.arange(self.size)
        for kept, joined in self.pairs[: int(np.searchsorted(self.slopes, penalty, side="right"))]:
            labels[labels == joined] = kept
        return labels


class _State:
    """Live components of a path under construction, and the price of joining each with its nearest."""

    def __init__(
        self,
        mixture: Mixture,
        counts: np.ndarray,
        curvature: np.ndarray,
        component_bits: float | None,
        widest_gap: float,
    ) -> None:
        self.means, self.covariances = mixture.means.copy(), mixture.covariances.copy()
        self.counts, self.curvature = counts.copy(), curvature.copy()
        self.totals = counts.sum(axis=1)
        self.component_bits, self.widest_gap = component_bits, widest_gap
        self.alive = np.ones(len(self.means), dtype=bool)
        self.nearest = np.zeros(len(self.means), dtype=np.int64)
        self.distance = np.full(len(self.means), np.inf)
        self.slope = np.full(len(self.means), np.inf)
        for k in range(len(self.means)):
            self.refresh(k)

    def distances(self, k: int) -> np.ndarray:
        squared = wasserstein2_squared(self.means[k], self.covariances[k], self.means, self.covariances)
        squared[~self.alive | (np.abs(self.means[:, 1] - self.means[k, 1]) > self.widest_gap)] = np.inf
        squared[k] = np.inf
        return squared

    def refresh(self, k: int) -> np.ndarray:
        squared = self.distances(k)
        self.nearest[k] = int(np.argmin(squared))
        self.distance[k] = squared[self.nearest[k]]
        self.slope[k] = self.price(k, int(self.nearest[k]))
        return squared

    def price(self, i: int, j: int) -> float:
        """Distortion that joining i and j adds per bit that it saves (Ward's criterion over the code's entropy).

        On a path by distance, their squared distance. Infinite for a pair that may not be joined.
        """
        if self.component_bits is None or not np.isfinite(self.distance[i]):
            return float(self.distance[i])
        harmonic = self.curvature[i] * self.curvature[j] / max(self.curvature[i] + self.curvature[j], 1e-300)
        distortion = harmonic * (self.means[i, 0] - self.means[j, 0]) ** 2
        a, b = self.counts[i], self.counts[j]
        both = a + b
        bits = (x_log2_x(both) - x_log2_x(a) - x_log2_x(b)).sum()
        return float(distortion / (bits + self.component_bits))

    def join(self, i: int, j: int) -> None:
        pair = np.array([i, j])
        weights = np.maximum(self.curvature[pair], 1e-300)
        _, self.means[i], self.covariances[i] = moment_match(weights, self.means[pair], self.covariances[pair])
        self.counts[i] += self.counts[j]
        self.curvature[i] += self.curvature[j]
        self.alive[j] = False
        self.slope[j] = np.inf
        if self.alive.sum() < 2:
            return
        squared = self.refresh(i)
        for k in np.flatnonzero(self.alive & ((self.nearest == i) | (self.nearest == j) | (squared < self.distance))):
            if k != i:
                self.refresh(int(k))


def merge_path(
    mixture: Mixture,
    counts: np.ndarray,
    curvature: np.ndarray,
    *,
    component_bits: float | None,
    widest_gap: float = np.inf,
) -> MergePath:
    """Merge all the way down, and record the lambda from which each merge pays.

    The candidate partner of each component is its nearest in Wasserstein-2. Among these pairs, the one that adds the
    least curvature-weighted distortion per saved bit merges first. Merges are moment-matched.

    Args:
        mixture: K components.
        counts: float64 (K, T), weights of tensor t in component k.
        curvature: float64 (K,), sum of the members' curvatures.
        component_bits: Bits of one component besides its ids (its numbers and table entries). None: pairs merge in the
            order of their distance alone.
        widest_gap: Components whose means differ by more on the second axis never merge.

    Returns:
        The path, which serves every target.
    """
    state = _State(mixture, counts, curvature, component_bits, widest_gap)
    pairs, slopes = [], []
    for _ in range(len(mixture.weights) - 1):
        i = int(np.argmin(state.slope))
        if not np.isfinite(state.slope[i]):
            break
        j = int(state.nearest[i])
        pairs.append((i, j))
        slopes.append(state.slope[i])
        state.join(i, j)
    return MergePath(
        len(mixture.weights),
        np.array(pairs, dtype=np.int64).reshape(-1, 2),
        np.maximum.accumulate(np.array(slopes, dtype=np.float64)),
    )


def x_log2_x(x: np.ndarray) -> np.ndarray:
    """x log2 x, 0 at 0; any shape."""
    return x * np.log2(np.maximum(x, 1e-300))
