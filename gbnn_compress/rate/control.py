"""Rate control: find the lambda at which the file has the target size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from gbnn_compress.format.bank import encode_bank, round_bank
from gbnn_compress.format.tables import coarse_levels, code_lengths, table_bits
from gbnn_compress.mixture.em import fit_mixture
from gbnn_compress.rate.cells import nearest_cells, pooled_points
from gbnn_compress.rate.codebook import (
    HIGH_RATE_STEP,
    Codebook,
    Groups,
    group_cells,
    has_both_supersets,
    ideal_lengths,
    refine,
)
from gbnn_compress.rate.paper import PaperRules
from gbnn_compress.rate.partition import Partition, by_rate, moments_of
from gbnn_compress.types import Cells, Mixture

EM_LIMIT = 1000.0
"""Cells beyond this many typical deviations are left out of the mixture and become outliers."""

BANK_STEP = 1 / 16
"""Grid of the bank's means, in quantisation steps: a finer grid costs bytes, a coarser one adds 1 % distortion."""

FRACTION_OCTAVES = 2
"""Octaves of lambda between two measurements of what contexts save; it is interpolated between them."""

LEAST_FRACTION = 0.4
"""Smallest fraction of their plain code lengths that ids can take with contexts."""

LOWEST, HIGHEST = -44.0, 28.0
"""Range of log2(lambda): from the precision of float32 to a single component."""

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

LAMBDA_TOLERANCE = 0.003
"""Resolution of log2(lambda): about a tenth of a percent of a file's size."""

GAP = 0.97
"""Fraction of a size limit: a best file below it lies at a gap of the rate-distortion curve."""

HELD_BACK, MOST_OCTAVES, GAP_TOLERANCE = (1.0, 0.5, 2.0, 3.0), 4.0, 0.02
"""In a gap, all in octaves of lambda: by how much the lambda of merging is lowered, by how much the lambda of
assignment may rise, and its resolution."""


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
    other_bytes: Callable[[float], int]
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
        place = float(np.log2(penalty)) / FRACTION_OCTAVES
        low = int(np.floor(place))
        fraction = self._measured_fraction(low)
        return fraction if place == low else fraction + (place - low) * (self._measured_fraction(low + 1) - fraction)

    def _measured_fraction(self, place: int) -> float:
        """The fraction at log2(lambda) = FRACTION_OCTAVES * place, measured once."""
        if place not in self._fractions:
            self._fractions[place] = self.measure_fraction(codebook_at(self, 2.0 ** (FRACTION_OCTAVES * place))[0])
        return self._fractions[place]

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
    other_bytes: Callable[[float], int],
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
    merge_penalty = merge_penalty or penalty
    if (penalty, merge_penalty) not in problem._books:
        found = _codebook(problem, penalty, merge_penalty)
        if sum(book.counts.size for book, _ in problem._books.values()) > KEPT_COUNTS:
            problem._books.clear()
        problem._books[penalty, merge_penalty] = found
    return problem._books[penalty, merge_penalty]


def _codebook(problem: RateProblem, penalty: float, merge_penalty: float) -> tuple[Codebook, int]:
    coarse = problem.merged(merge_penalty)
    trellis = _with_trellis(problem, coarse[1]) if merge_penalty == penalty else None
    while trellis is not None:
        means, counts = problem.merged(UNION_STEP**2 * merge_penalty)
        continuous = (counts > 0).sum(axis=0) >= CONTINUOUS * (coarse[1] > 0).sum(axis=0)
        trellis &= continuous
        counts = counts.copy()
        for t in np.flatnonzero(continuous & ~trellis):
            counts[_every_second(means, counts[:, t], step=np.sqrt(HIGH_RATE_STEP * penalty)), t] = 0
        book = _refined(problem, means, counts, penalty, trellis)
        feasible = has_both_supersets(book.counts)
        if trellis.any() and feasible[trellis].all():
            break
        trellis = trellis & feasible if (trellis & feasible).any() else None
    else:
        book = _refined(problem, *coarse, penalty, None)
    if problem.paper is not None:
        book = problem.paper.blended(
            problem.cells,
            problem.groups,
            book,
            value_bits=problem.value_bits,
            log_sigma_weight=problem.log_sigma_weight,
        )
    exponent = int(np.floor(np.log2(np.sqrt(HIGH_RATE_STEP * penalty) * BANK_STEP)))
    return replace(book, bank=round_bank(book.bank, exponent=exponent)), exponent


def _every_second(means: np.ndarray, counts: np.ndarray, *, step: float) -> np.ndarray:
    """Positions of every second component that a tensor uses, but not where that leaves gaps of over 1.6 steps."""
    live = np.flatnonzero(counts)
    if len(live) < 3:
        return live[:0]
    nearest = int(np.abs(means[live]).argmin())
    gaps = means[live[2:]] - means[live[:-2]]
    second = (np.arange(1, len(live) - 1) - nearest) % 2 == 1
    return live[1:-1][second & (gaps <= 3 * UNION_STEP * step)]


def _refined(
    problem: RateProblem, means: np.ndarray, counts: np.ndarray, penalty: float, trellis: np.ndarray | None
) -> Codebook:
    """The codebook at lambda that begins with these means (K,) and counts (K, T)."""
    return refine(
        problem.cells,
        problem.groups,
        means,
        np.pad(counts.T, ((0, 0), (0, 1))),
        penalty=penalty,
        value_bits=problem.value_bits,
        iterations=problem.refinements,
        limits=None if problem.paper is None else problem.paper.limits(problem.scales),
        trellis=trellis,
    )


def _with_trellis(problem: RateProblem, counts: np.ndarray) -> np.ndarray | None:
    """bool (T,), the tensors that get a trellis, by the entropy of counts (K, T) of components; None if none does."""
    if problem.trellis_allowed is None:
        return None
    members = counts.sum(axis=0)
    lengths = ideal_lengths(counts.T)
    bits = np.where(counts.T > 0, counts.T * np.where(np.isfinite(lengths), lengths, 0), 0).sum(axis=1)
    trellis: np.ndarray = problem.trellis_allowed & (bits >= TRELLIS_BITS * members)
    return trellis if bits[trellis].sum() > TRELLIS_PART * bits.sum() else None


def predicted_bytes(problem: RateProblem, book: Codebook, exponent: int, limit: float | None = None) -> float:
    """Predicted size of the file of a codebook, from its counts alone.

    Args:
        problem: From `fit_path`.
        book: The codebook.
        exponent: Exponent of its grid.
        limit: Size in question. If what contexts save cannot decide whether the file is within it, the result is the
            size without any savings, or with more than there can be: measuring savings takes most of the time.
    """
    levels = [coarse_levels(np.ceil(row)) for row in book.counts]
    lengths = ideal_lengths(book.counts, book.trellis)
    for t, level in enumerate(levels):
        if book.trellis is None or not book.trellis[t]:
            lengths[t] = code_lengths(level)
    id_bits = sum(
        float((row[level > 0] * length[level > 0]).sum())
        for row, level, length in zip(book.counts, levels, lengths, strict=True)
    )
    nothing = np.zeros(0)  # scales and errors are part of `other_bytes`
    bank = encode_bank(book.bank, exponent=exponent, scales=nothing, relative_rmse=nothing)
    outlier_bits = float((book.counts[:, -1] * problem.value_bits).sum())
    others = (sum(map(table_bits, levels)) + outlier_bits) / 8 + len(bank) + problem.other_bytes(book.penalty)
    if limit is not None:
        most, least = others + id_bits / 8, others + LEAST_FRACTION * id_bits / 8
        if most <= limit or least > limit:
            return most if most <= limit else least
    return others + id_bits * problem.id_fraction(book.penalty) / 8


def parameters_of(book: Codebook, n_unshared: int) -> float:
    """Parameters that remain: two per component in use, two per outlier, one per unshared value."""
    live = int(book.counts[:, :-1].any(axis=0).sum())
    return 2 * live + 2 * float(book.counts[:, -1].sum()) + n_unshared


def solve_size(
    problem: RateProblem,
    amount: Callable[[Codebook, int, float | None], float],
    *,
    limit: float,
    monotone: bool = True,
) -> tuple[Codebook, int]:
    """The finest codebook within a size limit, by bisection on log2(lambda): sizes fall as lambda grows.

    Args:
        problem: From `fit_path`.
        amount: Size of a codebook (given with the exponent of its grid), such as bytes; see `predicted_bytes` for its
            third argument.
        limit: Largest size allowed.
        monotone: Whether the size falls at every lambda; if not, the search starts at the finest codebooks.

    Returns:
        The codebook and its grid exponent; those of the largest lambda if nothing fits.
    """

    def fits(codebook: tuple[Codebook, int]) -> bool:
        return amount(*codebook, limit) <= limit

    def size(codebook: tuple[Codebook, int]) -> float:
        return amount(*codebook, None)

    inside, outside = (HIGHEST, LOWEST) if monotone else _finest_that_fits(problem, fits)
    edge, best = _bisect(lambda penalty: codebook_at(problem, penalty), fits, inside=inside, outside=outside)
    if fits(best) and size(best) < GAP * limit:
        # No codebook between the two lambdas at the edge lies on the convex hull; for flat distributions, rates of 0 to
        # 1 bit per weight are such a gap. Merging at a smaller lambda than assignment gives codebooks inside it.
        for octaves in HELD_BACK:
            held = 2.0 ** (edge - octaves)
            _, other = _bisect(
                partial(_held, problem, held),
                fits,
                inside=edge + MOST_OCTAVES,
                outside=edge - octaves,
                tolerance=GAP_TOLERANCE,
            )
            if fits(other) and size(other) > size(best):
                best = other
            if size(best) >= GAP * limit:
                break
    return best


def solve_damage(problem: RateProblem, amount: Callable[[Codebook], float], *, limit: float) -> tuple[Codebook, int]:
    """The coarsest codebook within a damage limit, by bisection on log2(lambda): damage grows with lambda.

    Args:
        problem: From `fit_path`.
        amount: Damage of a codebook.
        limit: Largest damage allowed.

    Returns:
        The codebook and its grid exponent; those of the smallest lambda if nothing fits.
    """
    _, best = _bisect(
        lambda penalty: codebook_at(problem, penalty),
        lambda codebook: amount(codebook[0]) <= limit,
        inside=LOWEST,
        outside=HIGHEST,
    )
    return best


def _finest_that_fits(problem: RateProblem, fits: Callable[[tuple[Codebook, int]], bool]) -> tuple[float, float]:
    """log2 of the smallest lambda that fits, in steps of two octaves, and log2 of the lambda one step below."""
    outside = inside = LOWEST
    while inside < HIGHEST and not fits(codebook_at(problem, 2.0**inside)):
        outside, inside = inside, inside + 2
    return inside, outside


def _held(problem: RateProblem, merge_penalty: float, penalty: float) -> tuple[Codebook, int]:
    return codebook_at(problem, penalty, merge_penalty=merge_penalty)


def _bisect(
    codebook: Callable[[float], tuple[Codebook, int]],
    fits: Callable[[tuple[Codebook, int]], bool],
    *,
    inside: float,
    outside: float,
    tolerance: float = LAMBDA_TOLERANCE,
) -> tuple[float, tuple[Codebook, int]]:
    """log2(lambda) nearest to `outside` whose codebook fits, and that codebook; `inside` itself if none does."""
    best = codebook(2.0**inside)
    while abs(inside - outside) > tolerance:
        middle = (inside + outside) / 2
        candidate = codebook(2.0**middle)
        if fits(candidate):
            inside, best = middle, candidate
        else:
            outside = middle
    return inside, best


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
