"""Rate control: find the lambda at which the file has the target size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from gbnn_compress.format.bank import encode_bank
from gbnn_compress.format.tables import coarse_levels, code_lengths, table_bits
from gbnn_compress.rate.codebook import Codebook, id_bits, ideal_lengths
from gbnn_compress.rate.rate_problem import RateProblem, assigned_again, codebook_at, codebook_between

LEAST_FRACTION = 0.4
"""Smallest fraction of their plain code lengths that ids can take with contexts."""

COUNT_SLACK = 0.9
"""Factor of a lower bound of a file's size from counts that one more assignment changes."""

LOWEST, HIGHEST = -44.0, 28.0
"""Range of log2(lambda): from the precision of float32 to a single component."""

LAMBDA_TOLERANCE = 0.003
"""Resolution of log2(lambda): about a tenth of a percent of a file's size."""

CLOSE_SIZE, CLOSE_DAMAGE = 0.001, 0.002
"""A search ends where log(size / limit), or log(damage / limit), is at most this below zero."""

LEAST_PART = 0.05
"""Each step of a search cuts off at least this fraction of the interval."""

USUAL_BITS = 4.0
"""Bits per weight that a search for a damage begins with."""

GAP = 0.97
"""Fraction of a size limit: a best file below it lies at a gap of the rate-distortion curve."""

HELD_BACK, MOST_OCTAVES = (1.0, 0.5, 2.0, 3.0), 4.0
"""In a gap, all in octaves of lambda: by how much the lambda of merging is lowered, and by how much the lambda of
assignment may rise."""


def predicted_bytes(problem: RateProblem, book: Codebook, exponent: int, limit: float | None = None) -> float:
    """Predicted size of the file of a codebook: its cells are assigned once more, as the weights will be.

    Args:
        problem: From `fit_path`.
        book: The codebook.
        exponent: Exponent of its grid.
        limit: Size in question. The result may be an upper or a lower bound on the same side of it: measuring what
            contexts save takes most of the time.
    """
    if limit is not None:  # much too large by the codebook's own counts
        least = LEAST_FRACTION * float(id_bits(book.counts, book.trellis).sum()) / 8
        if COUNT_SLACK * least > limit:
            return least
    counts = assigned_again(problem, book).counts
    levels = [coarse_levels(np.ceil(row)) for row in counts]
    lengths = ideal_lengths(counts, book.trellis)
    for t, level in enumerate(levels):
        if book.trellis is None or not book.trellis[t]:
            lengths[t] = code_lengths(level)
    coded_bits = sum(
        float((row[level > 0] * length[level > 0]).sum())
        for row, level, length in zip(counts, levels, lengths, strict=True)
    )
    outlier_bits = float((counts[:, -1] * problem.value_bits).sum())
    nothing = np.zeros(0)  # scales and errors are part of `other_bytes`
    bank = encode_bank(book.bank, exponent=exponent, scales=nothing, relative_rmse=nothing)
    others = (sum(map(table_bits, levels)) + outlier_bits) / 8 + len(bank) + problem.other_bytes(book.penalty)
    if limit is not None:
        most, least = others + coded_bits / 8, others + LEAST_FRACTION * coded_bits / 8
        if most <= (1 - CLOSE_SIZE) * limit or least > limit:
            return most if most <= limit else least
    return others + coded_bits * problem.id_fraction(book.penalty) / 8


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
    """The finest codebook within a size limit, by interpolation in log2(lambda): sizes fall as lambda grows.

    Args:
        problem: From `fit_path`.
        amount: Size of a codebook (given with the exponent of its grid), such as bytes; see `predicted_bytes` for its
            third argument.
        limit: Largest size allowed.
        monotone: Whether the size falls at every lambda; if not, the search starts at the finest codebooks.

    Returns:
        The codebook and its grid exponent; those of the largest lambda if nothing fits.
    """

    def excess(codebook: tuple[Codebook, int]) -> float:
        return _log_ratio(amount(*codebook, limit), limit)

    def size(codebook: tuple[Codebook, int]) -> float:
        return amount(*codebook, None)

    at = partial(codebook_at, problem)
    if monotone:
        bits = 8 * limit / float(problem.cells.count.sum())
        best, beyond = _solve(at, excess, inside=HIGHEST, outside=LOWEST, start=_expected_log_penalty(bits))
    else:
        inside, outside = _finest_that_fits(problem, lambda codebook: excess(codebook) <= 0)
        best, beyond = _solve(at, excess, inside=inside, outside=outside)
    used = size(best)
    if used > limit or best[0].penalty == 2.0**LOWEST:
        return best
    others = _in_gap(problem, beyond, best, excess)
    while used < GAP * limit and (other := next(others, None)) is not None:
        if used < (more := size(other)) <= limit:
            used, best = more, other
    return best


def _in_gap(
    problem: RateProblem,
    beyond: float,
    best: tuple[Codebook, int],
    excess: Callable[[tuple[Codebook, int]], float],
) -> Iterator[tuple[Codebook, int]]:
    """Codebooks within a gap of the rate-distortion curve, where sizes jump between two neighbouring lambdas.

    For flat distributions, rates of 0 to 1 bit per weight are such a gap. Where several tensors jump at once, some of
    them can stay on the finer side. Else, merging at a smaller lambda than assignment gives more components.

    Args:
        problem: From `fit_path`.
        beyond: log2(lambda) of the finer side, which does not fit.
        best: The codebook of the coarser side.
        excess: See `_solve`.
    """
    finer = codebook_at(problem, 2.0**beyond)
    if problem.paper is None and finer[0].trellis is None and best[0].trellis is None:
        yield _partly_finer(problem, finer, best, lambda codebook: excess(codebook) <= 0)
    for octaves in HELD_BACK:
        held = partial(codebook_at, problem, merge_penalty=2.0 ** (beyond - octaves))
        other, _ = _solve(held, excess, inside=beyond + MOST_OCTAVES, outside=beyond - octaves)
        yield other


def _partly_finer(
    problem: RateProblem,
    finer: tuple[Codebook, int],
    coarser: tuple[Codebook, int],
    fits: Callable[[tuple[Codebook, int]], bool],
) -> tuple[Codebook, int]:
    """The largest codebook that fits in which some tensors are as in `finer`, and the others as in `coarser`.

    Those whose error falls most per bit become finer first.
    """
    lost = coarser[0].distortion - finer[0].distortion
    bits = id_bits(finer[0].counts, finer[0].trellis) - id_bits(coarser[0].counts, coarser[0].trellis)
    order = np.argsort(-lost / np.maximum(bits, 1.0), kind="stable")
    best, least, most = coarser, 0, len(order)
    while most - least > 1:
        middle = (least + most) // 2
        candidate = codebook_between(problem, finer[0], coarser[0], coarse=order[middle:])
        if fits(candidate):
            best, least = candidate, middle
        else:
            most = middle
    return best


def solve_damage(problem: RateProblem, amount: Callable[[Codebook], float], *, limit: float) -> tuple[Codebook, int]:
    """The coarsest codebook within a damage limit, by interpolation in log2(lambda): damage grows with lambda.

    Args:
        problem: From `fit_path`.
        amount: Damage of a codebook.
        limit: Largest damage allowed.

    Returns:
        The codebook and its grid exponent; those of the smallest lambda if nothing fits.
    """
    best, _ = _solve(
        partial(codebook_at, problem),
        lambda codebook: _log_ratio(amount(codebook[0]), limit),
        inside=LOWEST,
        outside=HIGHEST,
        start=_expected_log_penalty(USUAL_BITS),
        close=CLOSE_DAMAGE,
    )
    return best


def _finest_that_fits(problem: RateProblem, fits: Callable[[tuple[Codebook, int]], bool]) -> tuple[float, float]:
    """log2 of the smallest lambda that fits, in steps of two octaves, and log2 of the lambda one step below."""
    outside = inside = LOWEST
    while inside < HIGHEST and not fits(codebook_at(problem, 2.0**inside)):
        outside, inside = inside, inside + 2
    return inside, outside


def _solve(
    codebook_of: Callable[[float], tuple[Codebook, int]],
    excess: Callable[[tuple[Codebook, int]], float],
    *,
    inside: float,
    outside: float,
    start: float | None = None,
    close: float = CLOSE_SIZE,
) -> tuple[tuple[Codebook, int], float]:
    """The codebook that fits at the lambda nearest to `outside`, to LAMBDA_TOLERANCE, or to `close` in the excess.

    Steps that double lead from `start` to two lambdas of which one fits. The next lambda between them is where a line
    through the two excesses is zero (the Illinois method: Dowell & Jarratt, "A modified regula falsi method", 1971).

    Args:
        codebook_of: Maps lambda to a codebook.
        excess: Above 0 where a codebook does not fit; the farther, the larger.
        inside: log2(lambda) that fits if any does.
        outside: log2(lambda) of the other end.
        start: log2(lambda) near the result; None: nothing is known of it.
        close: The search ends at an excess of at most this below zero.

    Returns:
        The codebook, that of `inside` if nothing fits, and log2 of the nearest lambda that was seen not to fit.
    """
    interval, place, step = _Interval(inside, outside), start, 1.0
    while place is not None and not interval.is_known:
        interval = interval.narrowed(place, codebook_of(2.0**place), excess)
        goal = interval.outside if interval.inside == place else interval.inside
        place = None if place == goal else place + float(np.clip(goal - place, -step, step))
        step *= 2
    while abs(interval.inside - interval.outside) > LAMBDA_TOLERANCE and not -close <= interval.below <= 0:
        place = interval.next_place(-close / 2)
        interval = interval.narrowed(place, codebook_of(2.0**place), excess)
    return interval.best or codebook_of(2.0**inside), interval.outside


@dataclass(frozen=True)
class _Interval:
    """An interval of log2(lambda) with the result of a search.

    Attributes:
        inside: The end that fits.
        outside: The end that does not.
        best: The codebook of `inside`; None if it was not made.
        below: Its excess, at most 0; NaN if it is not known.
        above: The excess at `outside`; NaN if it is not known.
        weights: Of the two excesses: an end that stays twice loses half of its weight.
        latest: The end that moved last: 0 for `inside`, 1 for `outside`.
    """

    inside: float
    outside: float
    best: tuple[Codebook, int] | None = None
    below: float = math.nan
    above: float = math.nan
    weights: tuple[float, float] = (1.0, 1.0)
    latest: int | None = None

    @property
    def is_known(self) -> bool:
        """Whether the excess of both ends is known."""
        return not math.isnan(self.below + self.above)

    def next_place(self, aim: float) -> float:
        """Where the line through both excesses has the value `aim`; the middle if one of them is not known."""
        part = 0.5
        if self.is_known:
            low, high = self.weights[0] * (self.below - aim), self.weights[1] * self.above
            part = float(np.clip(low / (low - high), LEAST_PART, 1 - LEAST_PART))
        return self.inside + (self.outside - self.inside) * part

    def narrowed(
        self, place: float, codebook: tuple[Codebook, int], excess: Callable[[tuple[Codebook, int]], float]
    ) -> _Interval:
        """The interval with the codebook of `place` as one of its ends."""
        value = excess(codebook)
        if value <= 0:
            weights = (1.0, self.weights[1] / (2 if self.latest == 0 else 1))
            return replace(self, inside=place, best=codebook, below=value, weights=weights, latest=0)
        weights = (self.weights[0] / (2 if self.latest == 1 else 1), 1.0)
        return replace(self, outside=place, above=value, weights=weights, latest=1)


def _expected_log_penalty(bits: float) -> float:
    """About the log2(lambda) of so many bits per weight: half a bit per octave (rate law of Gaussian weights).

    It is whole, so that searches for similar sizes meet the same codebooks.
    """
    return float(np.clip(np.rint(1 - 2 * bits), LOWEST, HIGHEST))


def _log_ratio(amount: float, limit: float) -> float:
    return float(np.log(max(amount, 1e-300)) - np.log(max(limit, 1e-300)))
