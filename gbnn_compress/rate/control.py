"""Rate control: the lambda, and with it the cut of the merge path, at which the file has the wanted size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from gbnn_compress.codec.bank import encode_bank, round_bank
from gbnn_compress.codec.tables import coarse_levels, code_lengths, table_bits
from gbnn_compress.gaussian.merge import MergePath, merge_path
from gbnn_compress.gaussian.mixture import fit_mixture
from gbnn_compress.gaussian.segment import Moments, merge_exactly
from gbnn_compress.rate.cells import nearest_cells, pooled_points
from gbnn_compress.rate.codebook import HIGH_RATE_STEP, Codebook, Groups, curvature_of, group_cells, refine
from gbnn_compress.types import Cells, Mixture

EM_LIMIT = 1000.0
"""Cells beyond this many typical deviations stay out of the mixture; they become outliers."""

COMPONENT_BITS = 12.0
"""What the numbers of one component cost."""

ENTRY_BITS = 4.0
"""What a component's entry in the frequency table of one tensor costs."""

CUT_BELOW = 1 / 64
"""The path is followed to this fraction of lambda, components much finer than wanted; then merging is exact."""

LONGEST_RUN = 256
"""Most components that exact merging joins into one."""

BANK_STEP = 1 / 16
"""Grid of the bank's means over the quantisation step: finer costs bytes, coarser adds 1 % to the distortion."""

REFINEMENTS = 3

SHARE_OCTAVES = 2
"""Octaves of lambda from one measurement of what contexts save to the next; between them it is interpolated."""

LOWEST, HIGHEST = -44.0, 28.0
"""Range of log2(lambda): from float32's own precision to nothing but one component."""

LAMBDA_TOLERANCE = 0.003
"""Resolution of log2(lambda); the size of a file changes by about a tenth of a percent over it."""

GAP = 0.97
"""Share of a size limit below which the edge is taken for a gap in the rate-distortion curve."""

HELD_BACK, MOST_OCTAVES, GAP_TOLERANCE = (1.0, 0.5, 2.0, 3.0), 4.0, 0.02
"""How much finer merging is tried in a gap, how far lambda may then rise, and its resolution, in octaves of lambda."""


@dataclass(frozen=True)
class RateProblem:
    """What rate control works on.

    Attributes:
        cells: The weights.
        groups: Their runs.
        near: The cells within EM_LIMIT; the mixture and its merging know only these.
        owner: int64 (n_near,), component of the fitted mixture that each near cell starts in.
        path: The merge path over these components.
        mixture_size: Components that the mixture was fitted with.
        value_bits: int64 (T,), bits of an outlier's value.
        other_bytes: Maps lambda to the bytes of everything that is neither bank, maps nor outliers, the scales
            and errors that stand in the bank included.
        other_bytes: Maps lambda to the bytes of everything that is neither bank, maps nor outliers.
        share: Maps log2(lambda) / SHARE_OCTAVES to the share of their plain code lengths that ids take there.
    """

    cells: Cells
    groups: Groups
    near: Cells
    owner: np.ndarray
    path: MergePath
    mixture_size: int
    value_bits: np.ndarray
    other_bytes: Callable[[float], int]
    share: Callable[[int], float]


def fit_path(
    cells: Cells,
    *,
    n_components: int,
    log_sigma_weight: float,
    max_iterations: int,
    value_bits: np.ndarray,
    other_bytes: Callable[[float], int],
    measure_share: Callable[[Codebook], float] = lambda book: 1.0,
) -> RateProblem:
    """Fit the mixture and its merge path; one serves every target.

    Args:
        cells: The weights.
        n_components: Components to start from.
        log_sigma_weight: c, weight of log(sigma / s_t) as a coordinate.
        max_iterations: Most EM steps.
        value_bits: int64 (T,), bits of an outlier's value.
        other_bytes: See `RateProblem`.
        measure_share: The share of its plain code lengths that ids take under a codebook.
    """
    near = nearest_cells(cells, limit=EM_LIMIT)
    points, counts = pooled_points(near, log_sigma_weight=log_sigma_weight, resolution=n_components / 8)
    floor = (1.0 / n_components) ** 2
    mixture, _ = fit_mixture(points, counts, n_components=n_components, floor=floor, max_iterations=max_iterations)
    mixture, owner = _keep_used(mixture, near)
    moments = _moments(near, owner)
    path = merge_path(mixture, moments.counts, moments.curvature, component_bits=COMPONENT_BITS)
    problem = RateProblem(
        cells=cells,
        groups=group_cells(cells),
        near=near,
        owner=owner,
        path=path,
        mixture_size=len(mixture.weights),
        value_bits=value_bits,
        other_bytes=other_bytes,
        share=lambda place: 1.0,
    )
    return replace(
        problem, share=cache(lambda place: measure_share(codebook_at(problem, 2.0 ** (SHARE_OCTAVES * place))[0]))
    )


def codebook_at(problem: RateProblem, penalty: float, *, merge_penalty: float | None = None) -> tuple[Codebook, int]:
    """The codebook for one lambda: cut the path, merge exactly, refine, put the bank on the file's grid.

    Args:
        problem: From `fit_path`.
        penalty: lambda.
        merge_penalty: lambda for cutting and merging, when it is not the one for assignment.

    Returns:
        The codebook, and the exponent of the bank's grid.
    """
    cells = problem.cells
    merge_penalty = merge_penalty or penalty
    label = _sorted_labels(problem.near, problem.path.labels(merge_penalty * CUT_BELOW)[problem.owner])
    runs = merge_exactly(
        _moments(problem.near, label),
        penalty=merge_penalty,
        component_bits=COMPONENT_BITS,
        entry_bits=ENTRY_BITS,
        longest=LONGEST_RUN,
    )
    moments = _moments(problem.near, runs[label])
    book = refine(
        cells,
        problem.groups,
        moments.first / moments.curvature,
        np.pad(moments.counts.T, ((0, 0), (0, 1))),
        penalty=penalty,
        value_bits=problem.value_bits,
        iterations=REFINEMENTS,
    )
    exponent = int(np.floor(np.log2(np.sqrt(HIGH_RATE_STEP * penalty) * BANK_STEP)))
    return replace(book, bank=round_bank(book.bank, exponent=exponent)), exponent


def _sorted_labels(cells: Cells, label: np.ndarray) -> np.ndarray:
    """Labels renamed to 0, 1, ... in the order of their members' means."""
    _, label = np.unique(label, return_inverse=True)
    moments = _moments(cells, label)
    order = np.argsort(moments.first / moments.curvature, kind="stable")
    return np.argsort(order, kind="stable")[label]


def _moments(cells: Cells, label: np.ndarray) -> Moments:
    size = int(label.max()) + 1
    mass = cells.count * curvature_of(cells.levels)[cells.level]
    counts = np.bincount(label * cells.n_tensors + cells.tensor, weights=cells.count, minlength=size * cells.n_tensors)
    curvature, first, second = (
        np.bincount(label, weights=mass * power, minlength=size) for power in (1.0, cells.x, cells.x**2)
    )
    return Moments(counts.reshape(size, cells.n_tensors), curvature, first, second)


def predicted_bytes(problem: RateProblem, book: Codebook, exponent: int) -> float:
    """Size of the file that a codebook leads to, from its counts alone."""
    levels = [coarse_levels(np.rint(row)) for row in book.counts]
    id_bits = sum(
        float((row[level > 0] * code_lengths(level)[level > 0]).sum())
        for row, level in zip(book.counts, levels, strict=True)
    )
    nothing = np.zeros(0)  # scales and errors are among the other bytes
    bank = encode_bank(book.bank, exponent=exponent, scales=nothing, relative_rmse=nothing)
    outlier_bits = float((book.counts[:, -1] * problem.value_bits).sum())
    map_bits = id_bits * _share_at(problem, book.penalty) + sum(map(table_bits, levels))
    return (map_bits + outlier_bits) / 8 + len(bank) + problem.other_bytes(book.penalty)


def _share_at(problem: RateProblem, penalty: float) -> float:
    place = float(np.log2(penalty)) / SHARE_OCTAVES
    low = int(np.floor(place))
    if place == low:
        return problem.share(low)
    return problem.share(low) + (place - low) * (problem.share(low + 1) - problem.share(low))


def parameters_of(book: Codebook, n_unshared: int) -> float:
    """Numbers that a codebook leaves: two a component in use, two an outlier, one an unshared value."""
    live = int(book.counts[:, :-1].any(axis=0).sum())
    return 2 * live + 2 * float(book.counts[:, -1].sum()) + n_unshared


def solve_size(
    problem: RateProblem, amount: Callable[[Codebook, int], float], *, limit: float, monotone: bool = True
) -> tuple[Codebook, int]:
    """The best codebook within a size, by bisection on log2(lambda): sizes fall as lambda grows.

    Args:
        problem: From `fit_path`.
        amount: What a codebook (with the exponent of its grid) takes, in bytes say.
        limit: Not to be exceeded.
        monotone: Whether the amount falls all the way as lambda grows; if not, the finest that fits is searched for.

    Returns:
        The codebook and its grid exponent; at the largest lambda when nothing fits.
    """

    def fits(codebook: tuple[Codebook, int]) -> bool:
        return amount(*codebook) <= limit

    inside, outside = (HIGHEST, LOWEST) if monotone else _finest_that_fits(problem, fits)
    edge, best = _bisect(lambda penalty: codebook_at(problem, penalty), fits, inside=inside, outside=outside)
    if fits(best) and amount(*best) < GAP * limit:
        # Nothing at the edge between two lambdas lies on the convex hull: rates of 0 to 1 bit a weight are such a
        # gap for flat distributions. Components merged for a finer file, at this lambda's assignment, fill it.
        for octaves in HELD_BACK:
            held = 2.0 ** (edge - octaves)
            _, other = _bisect(
                partial(_held, problem, held),
                fits,
                inside=edge + MOST_OCTAVES,
                outside=edge - octaves,
                tolerance=GAP_TOLERANCE,
            )
            if fits(other) and amount(*other) > amount(*best):
                best = other
            if amount(*best) >= GAP * limit:
                break
    return best


def solve_damage(problem: RateProblem, amount: Callable[[Codebook], float], *, limit: float) -> tuple[Codebook, int]:
    """The coarsest codebook within a damage, by bisection on log2(lambda): damage grows with lambda.

    Args:
        problem: From `fit_path`.
        amount: Damage of a codebook.
        limit: Not to be exceeded.

    Returns:
        The codebook and its grid exponent; at the smallest lambda when nothing fits.
    """
    _, best = _bisect(
        lambda penalty: codebook_at(problem, penalty),
        lambda codebook: amount(codebook[0]) <= limit,
        inside=LOWEST,
        outside=HIGHEST,
    )
    return best


def _finest_that_fits(problem: RateProblem, fits: Callable[[tuple[Codebook, int]], bool]) -> tuple[float, float]:
    """log2 of the first lambda that fits, from the finest up in steps of two octaves, and of the one before it."""
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


def _keep_used(mixture: Mixture, cells: Cells) -> tuple[Mixture, np.ndarray]:
    """Drop components that no cell is nearest to; returns the rest, and each cell's component."""
    order = np.argsort(mixture.means[:, 0], kind="stable")
    positions = mixture.means[order, 0]
    nearest = np.searchsorted((positions[1:] + positions[:-1]) / 2, cells.x)
    used, owner = np.unique(nearest, return_inverse=True)
    keep = order[used]
    return Mixture(mixture.weights[keep], mixture.means[keep], mixture.covariances[keep]), owner
