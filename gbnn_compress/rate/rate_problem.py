"""Weights, mixture and merge path, and the codebook that they give at any lambda."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from gbnn_compress.format.bank import round_bank
from gbnn_compress.mixture.em import fit_mixture
from gbnn_compress.rate.cells import nearest_cells, pooled_points
from gbnn_compress.rate.codebook import HIGH_RATE_STEP, Codebook, Groups, group_cells, has_both_supersets, refine
from gbnn_compress.rate.paper import PaperRules
from gbnn_compress.rate.partition import Partition, by_rate, moments_of
from gbnn_compress.rate.trellis_choice import UNION_STEP, continuous, thinned, worthwhile
from gbnn_compress.types import Cells, Mixture

EM_LIMIT = 1000.0
"""Cells beyond this many typical deviations are left out of the mixture and become outliers."""

BANK_STEP = 1 / 16
"""Grid of the bank's means, in quantisation steps: a finer grid costs bytes, a coarser one adds 1 % distortion."""

SAME_COMPONENT = 0.25
"""Components of two codebooks that are so near, in quantisation steps, count as one."""

FRACTION_OCTAVES = 2
"""Octaves of lambda between two measurements of what contexts save; it is interpolated between them."""

KEPT_COUNTS = 1 << 21
"""Number of counts in the codebooks that are kept: searches for different sizes begin with the same lambdas."""


@dataclass(frozen=True)
class RateProblem:
    """Weights, mixture and merge path, ready for any lambda.

    Attributes:
        cells: The weights.
        groups: Their runs.
        near: The cells within EM_LIMIT and the limits of outliers, which alone form components.
        partition: Maps lambda to the component of each of these cells.
        mixture: The mixture before merging; None where components do not come from a mixture.
        refinements: Rounds of assignment at one lambda.
        log_sigma_weight: c, weight of log(sigma / s_t) as a coordinate.
        scales: float64 (T,), s_t.
        value_bits: int64 (T,), bits of an outlier's value.
        other_bytes: Maps lambda to the bytes of everything but components, maps and outliers.
        measure_fraction: Maps a codebook to the fraction of their plain code lengths that ids take in a file.
        paper: Published rules in place of the project's own.
        trellis_allowed: bool (T,), tensors that may have a trellis; None: no tensor.
    """

    cells: Cells
    groups: Groups
    near: Cells
    partition: Partition
    mixture: Mixture | None
    refinements: int
    log_sigma_weight: float
    scales: np.ndarray
    value_bits: np.ndarray
    other_bytes: Callable[[float], float]
    measure_fraction: Callable[[Codebook], float]
    paper: PaperRules | None = None
    trellis_allowed: np.ndarray | None = None
    _fractions: dict[int, float] = field(default_factory=dict, init=False, repr=False)
    _books: dict[tuple[float, float], tuple[Codebook, int]] = field(default_factory=dict, init=False, repr=False)

    def merged(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Components at lambda, before refinement: their means (K,), ascending, and counts (K, T), both float64."""
        moments = moments_of(self.near, self.partition(penalty))
        return moments.first / moments.curvature, moments.counts

    def id_fraction(self, penalty: float) -> float:
        """Fraction of their plain code lengths that ids take at lambda, interpolated in log2(lambda)."""
        return interpolated(self._measured_fraction, float(np.log2(penalty)) / FRACTION_OCTAVES)

    def _measured_fraction(self, place: int) -> float:
        """The fraction at log2(lambda) = FRACTION_OCTAVES * place, measured once."""
        if place not in self._fractions:
            self._fractions[place] = self.measure_fraction(codebook_at(self, 2.0 ** (FRACTION_OCTAVES * place))[0])
        return self._fractions[place]

    def with_predictions_of(self, other: RateProblem) -> RateProblem:
        """The problem with the savings by contexts and the other bytes of another one, which has the same weights."""
        problem = replace(self, other_bytes=other.other_bytes)
        problem._fractions.update(other._fractions)
        return problem

    @property
    def mixture_size(self) -> int:
        """Components of the mixture before merging; 0 without a mixture."""
        return 0 if self.mixture is None else len(self.mixture.weights)


def fit_path(
    cells: Cells,
    *,
    n_components: int,
    log_sigma_weight: float,
    max_iterations: int,
    scales: np.ndarray,
    value_bits: np.ndarray,
    other_bytes: Callable[[float], float],
    measure_fraction: Callable[[Codebook], float] = lambda book: 1.0,
    refinements: int = 3,
    paper: PaperRules | None = None,
    trellis_allowed: np.ndarray | None = None,
) -> RateProblem:
    """Fit the mixture and its merge path, which serve every target.

    Args:
        cells: The weights.
        n_components: Components of the mixture before merging.
        log_sigma_weight: c, weight of log(sigma / s_t) as a coordinate.
        max_iterations: Most EM steps.
        scales: float64 (T,), s_t.
        value_bits: int64 (T,), bits of an outlier's value.
        other_bytes: See `RateProblem`.
        measure_fraction: See `RateProblem`; default: contexts save nothing.
        refinements: Rounds of assignment at one lambda, centroids between them.
        paper: Published rules in place of the project's own.
        trellis_allowed: See `RateProblem`.
    """
    limits = None if paper is None else paper.limits(scales)
    near = nearest_cells(cells, limit=EM_LIMIT if limits is None else np.minimum(limits, EM_LIMIT))
    mixture, owner = _fitted(
        near, n_components=n_components, log_sigma_weight=log_sigma_weight, max_iterations=max_iterations
    )
    if paper is None:
        partition = by_rate(near, mixture, owner)
    else:
        partition = paper.partition(near, mixture, owner, log_sigma_weight=log_sigma_weight)
    return RateProblem(
        cells=cells,
        groups=group_cells(cells),
        near=near,
        partition=partition,
        mixture=mixture,
        refinements=refinements,
        log_sigma_weight=log_sigma_weight,
        scales=scales,
        value_bits=value_bits,
        other_bytes=other_bytes,
        measure_fraction=measure_fraction,
        paper=paper,
        trellis_allowed=trellis_allowed,
    )


def codebook_at(problem: RateProblem, penalty: float, *, merge_penalty: float | None = None) -> tuple[Codebook, int]:
    """The codebook for one lambda: merge, refine, and round the bank to the file's grid.

    Args:
        problem: From `fit_path`.
        penalty: lambda.
        merge_penalty: lambda for merging; default: `penalty`.

    Returns:
        The codebook, and the exponent of the bank's grid.
    """
    key = penalty, merge_penalty or penalty
    if key not in problem._books:
        found = _on_grid(_codebook(problem, *key))
        if sum(book.counts.size for book, _ in problem._books.values()) > KEPT_COUNTS:
            problem._books.clear()
        problem._books[key] = found
    return problem._books[key]


def codebook_between(
    problem: RateProblem, finer: Codebook, coarser: Codebook, *, coarse: np.ndarray
) -> tuple[Codebook, int]:
    """The codebook at the lambda of `finer` that begins with the counts of `coarser` in some tensors.

    Args:
        problem: From `fit_path`.
        finer: Codebook of one lambda, without a trellis.
        coarser: Codebook of a slightly larger one, without a trellis.
        coarse: int64 (n,), the tensors that begin as in `coarser`.

    Returns:
        The codebook, and the exponent of its grid.
    """
    step = np.sqrt(HIGH_RATE_STEP * finer.penalty)
    distance = np.abs(np.subtract.outer(coarser.bank.means, finer.bank.means)).min(axis=1)
    missing = (distance > SAME_COMPONENT * step) & coarser.counts[coarse, :-1].any(axis=0)
    means = np.sort(np.append(finer.bank.means, coarser.bank.means[missing]))
    counts = _moved(finer, means)
    counts[coarse] = _moved(coarser, means)[coarse]
    return _on_grid(_refined(problem, means, counts, finer.penalty, None))


def _moved(book: Codebook, means: np.ndarray) -> np.ndarray:
    """float64 (T, len(means) + 1), a codebook's counts at the nearest of other components, outliers last."""
    nearest = np.abs(np.subtract.outer(book.bank.means, means)).argmin(axis=1)
    counts = np.zeros((len(book.counts), len(means) + 1))
    np.add.at(counts.T, nearest, book.counts.T[:-1])
    counts[:, -1] = book.counts[:, -1]
    return counts


def _codebook(problem: RateProblem, penalty: float, merge_penalty: float) -> Codebook:
    means, counts = problem.merged(merge_penalty)
    # In a gap, the bits of the merged components say little of those after assignment at another lambda.
    book = _with_trellis(problem, counts, penalty) if merge_penalty == penalty else None
    book = book or _refined(problem, means, _no_outliers(counts), penalty, None)
    if problem.paper is None:
        return book
    return problem.paper.blended(
        problem.cells,
        problem.groups,
        book,
        value_bits=problem.value_bits,
        log_sigma_weight=problem.log_sigma_weight,
    )


def _on_grid(book: Codebook) -> tuple[Codebook, int]:
    """The codebook with its bank on the file's grid, and the exponent of that grid."""
    exponent = int(np.floor(np.log2(np.sqrt(HIGH_RATE_STEP * book.penalty) * BANK_STEP)))
    return replace(book, bank=round_bank(book.bank, exponent=exponent)), exponent


def _with_trellis(problem: RateProblem, coarse: np.ndarray, penalty: float) -> Codebook | None:
    """The codebook with a trellis where that pays; None if it pays for no tensor.

    Args:
        problem: From `fit_path`.
        coarse: float64 (K, T), counts of the components without a trellis.
        penalty: lambda.
    """
    trellis = worthwhile(problem.trellis_allowed, coarse)
    if not trellis.any():
        return None
    means, counts = problem.merged(UNION_STEP**2 * penalty)
    smooth = continuous(coarse, counts)
    trellis &= smooth
    while trellis.any():
        start = thinned(means, counts, smooth & ~trellis, step=np.sqrt(HIGH_RATE_STEP * penalty))
        book = _refined(problem, means, _no_outliers(start), penalty, trellis)
        feasible = has_both_supersets(book.counts)
        if feasible[trellis].all():
            return book
        trellis = trellis & feasible
    return None


def assigned_again(problem: RateProblem, book: Codebook) -> Codebook:
    """The codebook after one more assignment with its own code lengths: without feedback, its counts are a file's."""
    return _refined(problem, book.bank.means, book.counts, book.penalty, book.trellis, iterations=1)


def interpolated(value_at: Callable[[int], float], place: float) -> float:
    """A function of whole numbers, linear between them."""
    low = int(np.floor(place))
    first = value_at(low)
    return first if place == low else first + (place - low) * (value_at(low + 1) - first)


def _refined(
    problem: RateProblem,
    means: np.ndarray,
    counts: np.ndarray,
    penalty: float,
    trellis: np.ndarray | None,
    *,
    iterations: int | None = None,
) -> Codebook:
    """The codebook at lambda that begins with these means (K,) and counts (T, K + 1)."""
    return refine(
        problem.cells,
        problem.groups,
        means,
        counts,
        penalty=penalty,
        value_bits=problem.value_bits,
        iterations=iterations or problem.refinements,
        limits=None if problem.paper is None else problem.paper.limits(problem.scales),
        trellis=trellis,
    )


def _no_outliers(counts: np.ndarray) -> np.ndarray:
    """float64 (T, K + 1) from counts (K, T)."""
    return np.pad(counts.T, ((0, 0), (0, 1)))


def _fitted(
    cells: Cells, *, n_components: int, log_sigma_weight: float, max_iterations: int
) -> tuple[Mixture, np.ndarray]:
    """The mixture, and the component that each cell starts in."""
    points, counts = pooled_points(cells, log_sigma_weight=log_sigma_weight, resolution=n_components / 8)
    floor = (1.0 / n_components) ** 2
    mixture, _ = fit_mixture(points, counts, n_components=n_components, floor=floor, max_iterations=max_iterations)
    return _keep_used(mixture, cells)


def _keep_used(mixture: Mixture, cells: Cells) -> tuple[Mixture, np.ndarray]:
    """Drop components that no cell is nearest to; returns the rest, and each cell's component."""
    order = np.argsort(mixture.means[:, 0], kind="stable")
    positions = mixture.means[order, 0]
    nearest = np.searchsorted((positions[1:] + positions[:-1]) / 2, cells.x)
    used, owner = np.unique(nearest, return_inverse=True)
    keep = order[used]
    return Mixture(mixture.weights[keep], mixture.means[keep], mixture.covariances[keep]), owner
