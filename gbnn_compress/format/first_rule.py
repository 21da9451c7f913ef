"""The start and the neighbours of a tensor's rule, guessed from its ids before anything is coded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gbnn_compress.format.contexts import ContextRule, kernel_of
from gbnn_compress.format.table_fit import quarter_octaves

NEIGHBOUR_WEIGHTS = 1 << 19
"""Largest number of weights, in whole rows drawn at random, for the regression on neighbours."""


def first_rule(ids: np.ndarray, counts: np.ndarray, shape: Sequence[int], values: np.ndarray) -> ContextRule:
    """The start and the neighbours of the rule; contexts do not depend on the rest, which is fitted later."""
    magnitude = float((counts * np.abs(values)).sum()) / len(ids)
    has_kernel = kernel_of(shape) != (1, 1)
    neighbours = _neighbours(ids, shape, values) if has_kernel else (0, 0, 0)
    return ContextRule(quarter_octaves(magnitude), neighbours, tail=1, offset=0, floor=0)


def _neighbours(ids: np.ndarray, shape: Sequence[int], values: np.ndarray) -> tuple[int, int, int]:
    """Least squares of a weight on its left, upper and upper left neighbour, with rows and columns normalised."""
    if len(ids) > NEIGHBOUR_WEIGHTS:
        n_rows = max(1, NEIGHBOUR_WEIGHTS * shape[0] // len(ids))
        drawn = np.random.default_rng(0).permutation(shape[0])[:n_rows]
        ids, shape = ids.reshape(shape)[drawn], (n_rows, *shape[1:])
    taps, x = by_tap(ids, shape), values.astype(np.float64)
    magnitudes = sum(np.abs(x)[tap] for tap in taps) / len(taps)
    scale = np.broadcast_to(magnitudes.mean(axis=1, keepdims=True) + 1, shape[:2])
    if shape[1] > 1:
        scale = scale * ((magnitudes / scale).mean(axis=0) + 1e-3)
    x = np.stack([x[tap] / scale for tap in taps]).reshape(*kernel_of(shape), -1)
    # Sums of products of each weight with itself and with its left, upper, upper left and upper right neighbour.
    pairs = ((x, x), (x[:, 1:], x[:, :-1]), (x[1:], x[:-1]), (x[1:, 1:], x[:-1, :-1]), (x[1:, :-1], x[:-1, 1:]))
    own, beside, below, along, across = (np.einsum("yxn,yxn->yx", a, b) for a, b in pairs)
    gram = np.array(
        [
            [own[:, :-1].sum(), across.sum(), below[:, :-1].sum()],
            [across.sum(), own[:-1].sum(), beside[:-1].sum()],
            [below[:, :-1].sum(), beside[:-1].sum(), own[:-1, :-1].sum()],
        ]
    )
    ridge = (1e-3 * np.trace(gram) + 1e-9) * np.eye(3)
    weights = np.linalg.solve(gram + ridge, [beside.sum(), below.sum(), along.sum()])
    left, above, corner = np.clip(np.rint(16 * weights), -32, 31).astype(int).tolist()
    return left, above, corner


def by_tap(ids: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(taps, rows, columns), contiguous."""
    return np.ascontiguousarray(np.moveaxis(ids.reshape(*shape[:2], math.prod(kernel_of(shape))), -1, 0))
