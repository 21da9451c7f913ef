"""Which tensors get a trellis at one lambda, and what that asks of the components of the others."""

from __future__ import annotations

import numpy as np

from gbnn_compress.rate.codebook import id_bits

UNION_STEP = 0.53
"""Distance of components with a trellis over that without, at one lambda. Those of a superset are twice as far apart,
and tensors without a trellis use one superset. 0.5 is best for such tensors; 0.56 is with a trellis at 3 bits per
weight."""

TRELLIS_BITS, TRELLIS_PART = 1.4, 0.5
"""Bits per weight from which a tensor gets a trellis, and the least part of all bits that such tensors must have: with
fewer bits, most weights are zero, and odd states have no zero."""

CONTINUOUS = 1.5
"""Components of a tensor in the finer bank, over those in the coarser one, from which its values count as continuous:
about 1.9 if they are, and 1 if there are few of them, as in ternary networks."""


def worthwhile(allowed: np.ndarray | None, counts: np.ndarray) -> np.ndarray:
    """The tensors that have the bits for a trellis, bool (T,).

    Args:
        allowed: bool (T,), tensors that may have one; None: no tensor.
        counts: float64 (K, T), weights of each tensor in each component.
    """
    if allowed is None:
        return np.zeros(counts.shape[1], dtype=bool)
    bits = id_bits(counts.T)
    trellis: np.ndarray = allowed & (bits >= TRELLIS_BITS * counts.sum(axis=0))
    return trellis & (bits[trellis].sum() > TRELLIS_PART * bits.sum())


def continuous(coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """The tensors whose values are continuous, bool (T,), by their counts (K, T) in a coarser and in a finer bank."""
    return np.asarray((fine > 0).sum(axis=0) >= CONTINUOUS * (coarse > 0).sum(axis=0))


def thinned(means: np.ndarray, counts: np.ndarray, tensors: np.ndarray, *, step: float) -> np.ndarray:
    """Counts in which some tensors use every second component only, but not where that leaves gaps of over 1.6 steps.

    Args:
        means: float64 (K,), strictly ascending.
        counts: float64 (K, T).
        tensors: bool (T,), those without a trellis whose values are continuous.
        step: Distance of components without a trellis.
    """
    counts = counts.copy()
    for t in np.flatnonzero(tensors):
        live = np.flatnonzero(counts[:, t])
        if len(live) > 2:
            nearest = int(np.abs(means[live]).argmin())
            second = (np.arange(1, len(live) - 1) - nearest) % 2 == 1
            close = means[live[2:]] - means[live[:-2]] <= 3 * UNION_STEP * step
            counts[live[1:-1][second & close], t] = 0
    return counts
