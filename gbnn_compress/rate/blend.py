"""Blends: one more component between two others, for weights that fit neither.

A weight whose squared Mahalanobis distance to its component exceeds CHI_SQUARED is taken for a blend of its two
likeliest components (Lin et al. 2025, arXiv 2505.17856). The blend alpha a + (1 - alpha) b, alpha one of ALPHAS, is a
component of the bank like any other: one more symbol, shared by every weight that is nearest to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gbnn_compress.mixture.density import floor_eigenvalues, log_density
from gbnn_compress.rate.codebook import (
    HIGH_RATE_STEP,
    Codebook,
    Groups,
    assign_cells,
    refine,
)
from gbnn_compress.types import Cells

CHI_SQUARED = 5.991
"""95 % of the weights of a 2-D Gaussian are within this squared Mahalanobis distance."""

ALPHAS = np.array([0.25, 0.5, 0.75])

SMALLEST_DEVIATION = 1 / 16
"""Of a component, in steps of the uniform quantiser that is best at lambda."""


@dataclass(frozen=True)
class Candidates:
    """Blends that might be formed.

    Attributes:
        means: float64 (B,).
        cell: int64 (F,), the cells that the test flags.
        blend: int64 (F,), the candidate of each.
    """

    means: np.ndarray
    cell: np.ndarray
    blend: np.ndarray


def with_blends(
    cells: Cells,
    groups: Groups,
    book: Codebook,
    *,
    value_bits: np.ndarray,
    log_sigma_weight: float,
) -> Codebook:
    """Add blends to a codebook, and assign anew.

    Args:
        cells: The weights.
        groups: Their runs.
        book: Without blends, means not yet on the file's grid.
        value_bits: int64 (T,), bits of an outlier's value.
        log_sigma_weight: c, the weight of log(sigma / s_t) as a coordinate.
    """
    ids = assign_cells(
        cells, groups, book.bank.means, book.counts, penalty=book.penalty, value_bits=value_bits, limits=book.limits
    )
    candidates = find_candidates(cells, ids, book, log_sigma_weight=log_sigma_weight)
    if not len(candidates.means):
        return book
    return _assigned(cells, groups, book, ids, candidates, value_bits=value_bits)


def find_candidates(cells: Cells, ids: np.ndarray, book: Codebook, *, log_sigma_weight: float) -> Candidates:
    """Test every cell against its component, and blend the two likeliest components of those that fail.

    Args:
        cells: The weights.
        ids: int64 (n_cells,), the component of each, K for outliers.
        book: K components.
        log_sigma_weight: c, the weight of log(sigma / s_t) as a coordinate.
    """
    size = len(book.bank.means)
    points = np.stack([cells.x, log_sigma_weight * cells.levels[cells.level]], axis=1)
    floor = HIGH_RATE_STEP * book.penalty * SMALLEST_DEVIATION**2
    used, weights, means, covariances = _gaussians(points, cells, ids, size, floor=floor)
    nothing = Candidates(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    if len(used) < 2:
        return nothing
    inside = np.flatnonzero(ids < size)
    distance = _squared_distance(points[inside], means, covariances, np.searchsorted(used, ids[inside]))
    flagged = inside[distance > CHI_SQUARED]
    if not flagged.size:
        return nothing
    joint = log_density(points[flagged], means, covariances) + np.log(weights)
    two = np.argsort(-joint, axis=1, kind="stable")[:, :2]
    first, second = (np.take_along_axis(joint, two[:, i : i + 1], axis=1)[:, 0] for i in (0, 1))
    alpha = 1 / (1 + np.exp(np.maximum(second - first, -50.0)))
    level = np.argmin(np.abs(alpha[:, None] - ALPHAS), axis=1)
    a, b = (book.bank.means[used[two[:, i]]] for i in (0, 1))
    blended, blend = np.unique(ALPHAS[level] * a + (1 - ALPHAS[level]) * b, return_inverse=True)
    return _chosen(Candidates(blended, flagged, blend), ~np.isin(blended, book.bank.means))


def _gaussians(
    points: np.ndarray, cells: Cells, ids: np.ndarray, size: int, *, floor: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Components in use, and shares, means (K, 2) and covariances (K, 2, 2) of their members."""
    inside = ids < size
    ids, points, count = ids[inside], points[inside], cells.count[inside]
    mass = np.bincount(ids, weights=count, minlength=size)
    used = np.flatnonzero(mass)
    mass = np.maximum(mass, 1e-300)
    means = np.stack([np.bincount(ids, weights=count * points[:, i], minlength=size) / mass for i in (0, 1)], axis=1)
    offset = points - means[ids]
    covariances = np.empty((size, 2, 2))
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        product = offset[:, i] * offset[:, j] + (cells.spread[inside] if i == j == 0 else 0.0)
        covariances[:, i, j] = np.bincount(ids, weights=count * product, minlength=size) / mass
    shares = mass[used] / mass[used].sum()
    return used, shares, means[used], floor_eigenvalues(covariances[used], floor=floor)


def _squared_distance(
    points: np.ndarray, means: np.ndarray, covariances: np.ndarray, position: np.ndarray
) -> np.ndarray:
    """float64 (N,), squared Mahalanobis distance of each point to the Gaussian at its position."""
    offset = points - means[position]
    return np.einsum("ni,nij,nj->n", offset, np.linalg.inv(covariances)[position], offset)


def _members(cells: Cells, candidates: Candidates) -> np.ndarray:
    """float64 (B, T), weights of each tensor that the test gives to each candidate."""
    shape = (len(candidates.means), cells.n_tensors)
    place = candidates.blend * cells.n_tensors + cells.tensor[candidates.cell]
    return np.bincount(place, weights=cells.count[candidates.cell], minlength=shape[0] * shape[1]).reshape(shape)


def _chosen(candidates: Candidates, keep: np.ndarray) -> Candidates:
    kept = keep[candidates.blend] if len(keep) else np.zeros(0, dtype=bool)
    rank = np.cumsum(keep) - 1
    return Candidates(candidates.means[keep], candidates.cell[kept], rank[candidates.blend[kept]])


def _assigned(
    cells: Cells, groups: Groups, book: Codebook, ids: np.ndarray, candidates: Candidates, *, value_bits: np.ndarray
) -> Codebook:
    """The codebook with the candidates in it; components that no weight chooses any more are dropped."""
    size = len(book.bank.means)
    counts = book.counts.copy()
    np.add.at(counts, (cells.tensor[candidates.cell], ids[candidates.cell]), -cells.count[candidates.cell])
    columns = np.concatenate([np.maximum(counts[:, :size], 0.0), _members(cells, candidates).T], axis=1)
    means = np.concatenate([book.bank.means, candidates.means])
    order = np.argsort(means, kind="stable")
    with_all = refine(
        cells,
        groups,
        means[order],
        np.concatenate([columns[:, order], counts[:, size:]], axis=1),
        penalty=book.penalty,
        value_bits=value_bits,
        iterations=1,
        limits=book.limits,
    )
    live = with_all.counts[:, :-1].any(axis=0)
    if not live.any():
        return book
    bank = replace(with_all.bank, means=with_all.bank.means[live], log_sigmas=with_all.bank.log_sigmas[live])
    blends = np.flatnonzero((order >= size)[live])
    return replace(with_all, bank=bank, counts=with_all.counts[:, np.append(live, True)], blends=blends)
