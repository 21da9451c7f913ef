"""Ids that follow the trellis, for tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gbnn_compress.format.trellis import next_states, superset_of


def trellis_ids(
    shape: Sequence[int], *, components: int = 41, step: float = 0.5, outliers: float = 0.0, seed: int = 0
) -> np.ndarray:
    """int64 (n,) in C order: Laplace weights whose rows, columns and kernels differ, each at the nearest id allowed.

    Args:
        shape: Shape of the tensor.
        components: K.
        step: Distance of neighbouring components, in units of the weights.
        outliers: Fraction of the weights that are outliers (id K).
        seed: Of the weights.
    """
    random = np.random.RandomState(seed)
    rows, columns, taps = shape[0], shape[1], math.prod(shape[2:])
    scale = np.exp(0.5 * random.normal(size=(rows, 1)) + 0.5 * random.normal(size=columns))
    x = scale[..., None] * (random.laplace(size=(rows, columns, taps)) + 0.5 * random.normal(size=(rows, columns, 1)))
    wanted = (x / step + components // 2).reshape(rows, -1)
    ids, states = np.empty(wanted.shape, dtype=np.int64), np.zeros(rows, dtype=np.int64)
    for place, want in enumerate(wanted.T):
        parity = superset_of(states)
        most = (components - 1 - parity) // 2
        found = parity + 2 * np.clip(np.rint((want - parity) / 2).astype(np.int64), 0, most)
        ids[:, place] = np.where(random.random_sample(rows) < outliers, components, found)
        states = next_states(states, ids[:, place], escape=components)
    return ids.ravel()
