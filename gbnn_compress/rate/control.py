"""Rate control: find the lambda at which the file has the target size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from gbnn_compress.format.bank import encode_bank
from gbnn_compress.format.tables import coarse_levels, code_lengths, table_bits
from gbnn_compress.rate.codebook import Codebook, ideal_lengths
from gbnn_compress.rate.rate_problem import RateProblem, codebook_at

LEAST_FRACTION = 0.4
"""Smallest fraction of their plain code lengths that ids can take with contexts."""

LOWEST, HIGHEST = -44.0, 28.0
"""Range of log2(lambda): from the precision of float32 to a single component."""

LAMBDA_TOLERANCE = 0.003
"""Resolution of log2(lambda): about a tenth of a percent of a file's size."""

GAP = 0.97
"""Fraction of a size limit: a best file below it lies at a gap of the rate-distortion curve."""

HELD_BACK, MOST_OCTAVES, GAP_TOLERANCE = (1.0, 0.5, 2.0, 3.0), 4.0, 0.02
"""In a gap, all in octaves of lambda: by how much the lambda of merging is lowered, by how much the lambda of
assignment may rise, and its resolution."""


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
