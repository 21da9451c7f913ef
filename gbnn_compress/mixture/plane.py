"""The (mu, log sigma) plane for a picture: weights counted on a grid, components by the moments of their members."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gbnn_compress.types import Mixture, Plane

ROWS, COLUMNS = 61, 121
"""Odd, so that zero is inside a cell."""

Y_LIMIT = 1.5
"""Larger abs(log(sigma / s_t)) is shown at the edge; the mixture's cells end there too."""

COVERED = 0.99
"""Fraction of the weights whose components the columns reach."""

Members = Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Blocks of weights: component ids (n,), and their coordinates x and y, float64 (n,)."""


def plane_of(members: Members, *, size: int, x_limit: float) -> Plane:
    """Count weights on a grid, and compute the moments of each component's members.

    Args:
        members: Blocks of weights, read once.
        size: K; larger ids are outliers, which count only towards the density.
        x_limit: Columns reach from -x_limit to x_limit.
    """
    density, sums, total = np.zeros(ROWS * COLUMNS), np.zeros((6, size + 1)), 0
    for ids, x, y in members:
        row = np.clip((y / Y_LIMIT + 1) / 2 * ROWS, 0, ROWS - 1).astype(np.int64)
        column = np.floor((x / x_limit + 1) / 2 * COLUMNS)
        inside = (column >= 0) & (column < COLUMNS)
        density += np.bincount(row[inside] * COLUMNS + column[inside].astype(np.int64), minlength=ROWS * COLUMNS)
        powers = (np.ones(len(x)), x, y, x * x, x * y, y * y)
        sums += [np.bincount(ids, weights=power, minlength=size + 1) for power in powers]
        total += len(x)
    return Plane(
        density=density.reshape(ROWS, COLUMNS),
        x_limit=x_limit,
        y_limit=Y_LIMIT,
        beyond=1 - float(density.sum()) / total,
        components=_moments(sums[:, :size]),
    )


def reach(means: np.ndarray, ids: Iterable[np.ndarray]) -> float:
    """The x_limit within which the components of nearly all weights lie.

    Args:
        means: float64 (K,), of the components, in mu / s_t.
        ids: Component ids (n,) of each tensor; larger ones are outliers.
    """
    if not len(means):
        return 1.0
    counts = np.sum([np.bincount(each, minlength=len(means) + 1)[:-1] for each in ids], axis=0)
    order = np.argsort(np.abs(means), kind="stable")
    covered = np.cumsum(counts[order])
    last = order[min(int(np.searchsorted(covered, COVERED * covered[-1])), len(order) - 1)]
    return 1.2 * float(np.abs(means[last])) or 1.0


def _moments(sums: np.ndarray) -> Mixture:
    """Mixture of the components with members, from their sums of 1, x, y, x^2, xy and y^2, float64 (6, K)."""
    count, x, y, xx, xy, yy = sums[:, sums[0] > 0]
    x, y = x / count, y / count
    covariances = np.array([[xx / count - x * x, xy / count - x * y], [xy / count - x * y, yy / count - y * y]])
    return Mixture(count / max(count.sum(), 1), np.stack([x, y], axis=1), covariances.transpose(2, 0, 1))
