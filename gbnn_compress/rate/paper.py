"""The published rules (2DGBNN, Lin et al. 2025, arXiv 2505.17856), each in place of one of the project's own.

`PaperRules` says which of them hold. Recipe `paper` sets all but `magnitude_sigma`, which only the ablation sets.

- Merging: components merge, the nearest pair first, while their Wasserstein-2 distance is below a threshold.
- Outliers: a weight above a magnitude is kept exactly.
- Blends: a weight whose squared Mahalanobis distance to its component exceeds CHI_SQUARED gets a blend of its two
  likeliest components. The blend alpha a + (1 - alpha) b, alpha one of ALPHAS, is a component of the bank like any
  other: one more symbol, shared by every weight that is nearest to it.
- Sigma in proportion to abs(weight).

The first stage, variational inference of sigma on labelled data (recipe key `posterior: variational`), runs the network
and is in `calibration/sources.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.mixture.density import floor_eigenvalues, log_density
from gbnn_compress.mixture.merge_path import MergePath, merge_path
from gbnn_compress.rate.codebook import (
    HIGH_RATE_STEP,
    Codebook,
    Groups,
    assign_cells,
    refine,
)
from gbnn_compress.rate.partition import Partition, ascending, by_rate, moments_of
from gbnn_compress.rate.posterior import data_free_posterior, typical_size
from gbnn_compress.types import Cells, Mixture, Posterior

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from gbnn_compress.recipe import Recipe

CHI_SQUARED = 5.991
"""95 % of the weights of a 2-D Gaussian are within this squared Mahalanobis distance."""

ALPHAS = np.array([0.25, 0.5, 0.75])

SMALLEST_DEVIATION = 1 / 16
"""Smallest deviation of a component, in steps of the uniform quantiser that is best at lambda."""


@dataclass(frozen=True)
class PaperRules:
    """Which published rules hold; at the defaults, none does.

    Attributes:
        merge_distance: tau_d, threshold on the Wasserstein-2 distance, in steps of the uniform quantiser that is best
            at lambda; None: components merge by rate.
        merge_variance: tau_v: components whose log sigma differ by more never merge.
        outlier_threshold: tau_w: a weight with abs(weight) above it is an outlier; None: where that is cheaper.
        blends: Whether weights that fit no component get blends.
        magnitude_sigma: Whether sigma is in proportion to abs(weight).
    """

    merge_distance: float | None = None
    merge_variance: float = 1.0
    outlier_threshold: float | None = None
    blends: bool = False
    magnitude_sigma: bool = False

    def posteriors(self, tensors: Mapping[str, torch.Tensor], usual: tuple[Posterior, ...]) -> tuple[Posterior, ...]:
        """The posteriors under these rules, in place of the usual ones."""
        return magnitude_posterior(tensors, [each.name for each in usual]) if self.magnitude_sigma else usual

    def limits(self, scales: np.ndarray) -> np.ndarray | None:
        """float64 (T,), magnitude in units of s_t above which a weight is an outlier; None: where that is cheaper."""
        return None if self.outlier_threshold is None else self.outlier_threshold / scales

    def partition(self, cells: Cells, mixture: Mixture, owner: np.ndarray, *, log_sigma_weight: float) -> Partition:
        """Which cells share a component at lambda; the arguments are those of `by_rate`, and c."""
        if self.merge_distance is None:
            return by_rate(cells, mixture, owner)
        gap = log_sigma_weight * self.merge_variance
        return by_distance(cells, mixture, owner, merge_distance=self.merge_distance, widest_gap=gap)

    def blended(
        self, cells: Cells, groups: Groups, book: Codebook, *, value_bits: np.ndarray, log_sigma_weight: float
    ) -> Codebook:
        """The codebook, with blends if these rules form any; the arguments are those of `with_blends`."""
        if not self.blends:
            return book
        return with_blends(cells, groups, book, value_bits=value_bits, log_sigma_weight=log_sigma_weight)


def paper_rules(recipe: Recipe) -> PaperRules | None:
    """The published rules that a recipe asks for; None where it asks for none."""
    if (recipe.merging, recipe.outliers, recipe.blending) == ("rate", "rate", "none"):
        return None
    return PaperRules(
        merge_distance=recipe.merge_distance if recipe.merging == "wasserstein" else None,
        merge_variance=recipe.merge_variance,
        outlier_threshold=recipe.outlier_threshold if recipe.outliers == "magnitude" else None,
        blends=recipe.blending == "all",
    )


def magnitude_posterior(tensors: Mapping[str, torch.Tensor], shared: Sequence[str]) -> tuple[Posterior, ...]:
    """(mu, sigma) with every sigma in proportion to abs(mu); s_t for a weight at the tensor's root mean square.

    Args:
        tensors: The whole state dict.
        shared: Names of the tensors to share.

    Returns:
        One posterior per tensor, with the scales of `data_free_posterior`.
    """
    typical = typical_size([tensors[name].numel() for name in shared])

    def one(usual: Posterior) -> Posterior:
        level = 0.5 * np.log(tensors[usual.name].numel() / typical)
        return replace(usual, log_sigma=np.full(usual.log_sigma.shape, level), by_magnitude=True)

    return tuple(one(usual) for usual in data_free_posterior(tensors, shared))


def by_distance(
    cells: Cells, mixture: Mixture, owner: np.ndarray, *, merge_distance: float, widest_gap: float
) -> Partition:
    """Merge what is nearer than a threshold in Wasserstein-2 distance, nearest first, whatever it costs and saves.

    Args:
        cells: The weights of the mixture.
        mixture: As fitted.
        owner: int64 (n_cells,), component of the mixture that each cell starts in.
        merge_distance: tau_d, in steps of the uniform quantiser that is best at lambda.
        widest_gap: tau_v, in units of the mixture's second axis.
    """
    counts = moments_of(cells, owner).counts
    path = merge_path(mixture, counts, counts.sum(axis=1), component_bits=None, widest_gap=widest_gap)
    return partial(_cut, cells, owner, path, merge_distance)


def _cut(cells: Cells, owner: np.ndarray, path: MergePath, merge_distance: float, penalty: float) -> np.ndarray:
    """int64 (n_cells,), the components that merging up to the threshold at lambda leaves."""
    return ascending(cells, path.labels(merge_distance**2 * HIGH_RATE_STEP * penalty)[owner])


@dataclass(frozen=True)
class Candidates:
    """Blends that may be formed.

    Attributes:
        means: float64 (B,).
        cell: int64 (F,), the cells that fit no component.
        blend: int64 (F,), position of each cell's blend in `means`.
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
    """Add blends to a codebook and assign all weights again.

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
    """Components in use, with weights (K,), means (K, 2) and covariances (K, 2, 2) of their members."""
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
    weights = mass[used] / mass[used].sum()
    return used, weights, means[used], floor_eigenvalues(covariances[used], floor=floor)


def _squared_distance(
    points: np.ndarray, means: np.ndarray, covariances: np.ndarray, position: np.ndarray
) -> np.ndarray:
    """float64 (N,), squared Mahalanobis distance of each point to the Gaussian at its position."""
    offset = points - means[position]
    return np.einsum("ni,nij,nj->n", offset, np.linalg.inv(covariances)[position], offset)


def _members(cells: Cells, candidates: Candidates) -> np.ndarray:
    """float64 (B, T), weights of each tensor that each candidate gets."""
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
    """The codebook with the candidates; components left without members are dropped."""
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
