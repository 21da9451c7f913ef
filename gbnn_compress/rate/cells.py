"""One pass over the weights into a weighted histogram; mixture and rate control work on its cells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.checkpoint.arrays import blocks
from gbnn_compress.parallel import in_order
from gbnn_compress.types import Cells, Posterior

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

LEVEL_WIDTH = float(np.log(2) / 2)
LEVELS = np.arange(-4, 5) * LEVEL_WIDTH
"""log(sigma / s_t) in steps of half an octave."""

FARTHEST = 1e100
"""abs(mu / s_t) is clipped to this, so that squares are finite; such weights are outliers and kept exactly."""

SMALLEST_MAGNITUDE = 1e-9
"""Smallest abs(mu / s_t) that a sigma in proportion to it is computed from."""

_ONE, _OCTAVE = int(np.float64(1.0).view(np.int64)), 1 << 52
"""Bits of the float64 1.0, and their distance to those of 2.0."""


def sigma_levels(posterior: Posterior, rows: slice, x: np.ndarray) -> np.ndarray:
    """The index in LEVELS nearest to each log(sigma / s_t).

    Args:
        posterior: Of the tensor.
        rows: Some of its rows.
        x: float64 (r, n), mu / s_t of these rows.

    Returns:
        int64 (r, 1), or (r, n) where sigma follows the magnitude.
    """
    steps = np.rint(log_sigmas(posterior, rows, x) / LEVEL_WIDTH) + len(LEVELS) // 2
    return np.clip(steps, 0, len(LEVELS) - 1).astype(np.int64)


def log_sigmas(posterior: Posterior, rows: slice, x: np.ndarray) -> np.ndarray:
    """log(sigma / s_t), float64; arguments and shapes are those of `sigma_levels`."""
    log_sigma = posterior.log_sigma[rows, None]
    if posterior.by_magnitude:
        log_sigma = log_sigma + np.log(np.maximum(np.abs(x), SMALLEST_MAGNITUDE))
    return log_sigma


def row_blocks(tensor: torch.Tensor, posterior: Posterior) -> Iterator[tuple[slice, np.ndarray]]:
    """mu / s_t of a tensor, some rows at a time.

    Yields:
        The rows as a slice, and float64 (rows, weights per row).
    """
    start = 0
    for block in blocks(tensor):
        with np.errstate(over="ignore"):
            x = np.clip(block / posterior.scale, -FARTHEST, FARTHEST)
        yield slice(start, start + len(block)), x
        start += len(block)


def build_cells(tensors: Mapping[str, torch.Tensor], posteriors: Sequence[Posterior], *, resolution: float) -> Cells:
    """Histogram the points (mu / s_t, log(sigma / s_t)), separately for each tensor.

    Cells have the width 1 / resolution around zero, growing in proportion to abs(mu / s_t) outside +-1, so that any
    magnitude fits.

    Args:
        tensors: The state dict.
        posteriors: One for each shared tensor.
        resolution: Cells per unit of mu / s_t, near zero.

    Returns:
        The cells, sorted by (tensor, level, x), with exact means and variances of x.
    """
    parts = in_order(
        lambda index: _tensor_cells(
            tensors[posteriors[index].name], posteriors[index], index=index, resolution=resolution
        ),
        range(len(posteriors)),
        weights=sum(tensors[posterior.name].numel() for posterior in posteriors),
    )
    tensor, level, x, count, spread = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Cells(tensor, level, x, count, spread, LEVELS, len(posteriors))


def _tensor_cells(
    tensor: torch.Tensor, posterior: Posterior, *, index: int, resolution: float
) -> tuple[np.ndarray, ...]:
    keys, counts, sums, squares = [], [], [], []
    for rows, x in row_blocks(tensor, posterior):
        bins = _bins(x, resolution)
        key = (bins * len(LEVELS) + sigma_levels(posterior, rows, x)).ravel()
        low = int(key.min())
        count = np.bincount(key - low)
        used = np.flatnonzero(count)
        keys.append(used + low)
        counts.append(count[used].astype(np.float64))
        sums.append(np.bincount(key - low, weights=x.ravel())[used])
        squares.append(np.bincount(key - low, weights=x.ravel() ** 2)[used])
    unique, owner = np.unique(np.concatenate(keys), return_inverse=True)
    count, total, square = (np.bincount(owner, weights=np.concatenate(v)) for v in (counts, sums, squares))
    x, level = total / count, np.mod(unique, len(LEVELS))
    order = np.lexsort((x, level))
    spread = np.maximum(square / count - x**2, 0.0)
    return tuple(column[order] for column in (np.full(len(x), index, dtype=np.int64), level, x, count, spread))


def nearest_cells(cells: Cells, *, limit: float | np.ndarray) -> Cells:
    """The cells with abs(x) <= limit, a scalar or float64 (T,); all cells if that leaves none."""
    inside = np.abs(cells.x) <= np.broadcast_to(limit, cells.n_tensors)[cells.tensor]
    if not inside.any():
        return cells
    return replace(
        cells,
        **{name: getattr(cells, name)[inside] for name in ("tensor", "level", "x", "count", "spread")},
    )


def pooled_points(cells: Cells, *, log_sigma_weight: float, resolution: float) -> tuple[np.ndarray, np.ndarray]:
    """The cells of all tensors together, as points for the mixture.

    Args:
        cells: Cells by tensor.
        log_sigma_weight: c, the weight of log(sigma / s_t) as a coordinate.
        resolution: Cells per unit of x near zero; coarser than in rate control, to keep EM fast.

    Returns:
        float64 (N, 2) points (mu / s_t, c * log(sigma / s_t)) and float64 (N,) counts.
    """
    key = _bins(cells.x, resolution) * len(cells.levels) + cells.level
    unique, owner = np.unique(key, return_inverse=True)
    count = np.bincount(owner, weights=cells.count)
    x = np.bincount(owner, weights=cells.count * cells.x) / count
    return np.stack([x, log_sigma_weight * cells.levels[np.mod(unique, len(cells.levels))]], axis=1), count


def _bins(x: np.ndarray, resolution: float) -> np.ndarray:
    """int64, the cell of each x: sign(x) log2(1 + abs(x)) * resolution, with the logarithm linear within an octave.

    The bits of a float64, read as an integer, are that logarithm, and much faster than computing it.
    """
    octaves = ((np.abs(x) + 1.0).view(np.int64) - _ONE) * (resolution / _OCTAVE)
    return np.rint(np.copysign(octaves, x)).astype(np.int64)
