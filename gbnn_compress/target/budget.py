"""Rate control: finds the codebook whose file meets the target, in a loop of prediction, encoding and correction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.rate.control import parameters_of, predicted_bytes, solve_size
from gbnn_compress.rate.maps import spend_on_outliers
from gbnn_compress.target.encode import Assigned, Cut, Result, assign
from gbnn_compress.target.forecast import MARGIN, find_safe_ratio, predicted_cut
from gbnn_compress.target.prepared import Prepared
from gbnn_compress.types import IndexMap

TOLERANCE = 1.03
"""A target is met if the ratio is at least the target and at most this factor above it."""

CLOSE = 0.993
"""Fraction of the budget that a file must use for rate control to stop."""

CLOSE_IN_LOCKSTEP = 0.98
"""The same if each attempt runs the network, which takes longer."""

ATTEMPTS = 6
"""Largest number of steps of the loop."""


def meet(prepared: Prepared, *, target_ratio: float | None, max_drop: float | None, ratio_of: str) -> Result:
    """Find the codebook that meets a target, and encode the file.

    Args:
        prepared: The checkpoint.
        target_ratio: Target ratio; None to use `max_drop`.
        max_drop: Largest predicted accuracy drop, in points.
        ratio_of: `artifact` (bytes) or `parameters` (the paper's count).
    """
    safe_ratio = find_safe_ratio(prepared)
    if target_ratio is None:
        book, exponent = predicted_cut(prepared, max_drop=float(max_drop or 0.0))
        cut = Cut(prepared, book, exponent, assign(prepared, book), safe_ratio)
        return Result(cut.encoded(), cut)
    return _meet_budget(prepared, budget_of(prepared, target_ratio, ratio_of), safe_ratio)


@dataclass(frozen=True)
class Budget:
    """The budget of a target ratio, in bytes of the file or in numbers by the paper's count.

    Attributes:
        limit: Largest amount that a file may use.
        predicted: Returns the predicted use of a codebook and its grid's exponent; see `predicted_bytes`.
        used: Returns the actual use of a file, from its bytes, its number of components and its index maps.
        monotone: Whether a coarser codebook never uses more. False for the paper's count, where the number of outliers
            goes up and down.
    """

    limit: float
    predicted: Callable[[Codebook, int, float | None], float]
    used: Callable[[bytes, int, Sequence[IndexMap]], float]
    monotone: bool


def budget_of(prepared: Prepared, target_ratio: float, ratio_of: str) -> Budget:
    """The budget of a target ratio; `ratio_of` is `artifact` or `parameters`."""
    if ratio_of == "artifact":
        return Budget(
            prepared.floating_bytes / target_ratio,
            partial(predicted_bytes, prepared.problem),
            lambda encoded, n_components, maps: len(encoded),
            monotone=True,
        )
    weights = float(prepared.sizes.sum()) + prepared.n_unshared
    return Budget(
        2 * weights / target_ratio,
        lambda book, exponent, limit: parameters_of(book, prepared.n_unshared),
        lambda encoded, n_components, maps: (
            2 * n_components + 2 * sum(len(m.outliers) for m in maps) + prepared.n_unshared
        ),
        monotone=False,
    )


@dataclass(frozen=True)
class Aim:
    """The predicted use that rate control solves for next, corrected by the actual use of earlier files.

    Attributes:
        limit: Largest amount that a file may use.
        value: Largest amount that a codebook may use by prediction.
        overs: Number of files so far that used more than the limit.
    """

    limit: float
    value: float
    overs: int = 0

    def next(self, used: float) -> Aim:
        """The aim after a file that used `used`.

        If the file is within the limit, the aim rises by what is left. If it is over, the aim falls by more than the
        excess, because the next file may exceed its prediction by as much again. It falls faster with each file over
        the limit, because files may shrink by less than predicted.
        """
        if used <= self.limit:
            return replace(self, value=self.value + MARGIN * self.limit - used)
        factor = (MARGIN * self.limit / used) ** (1.5 * 2**self.overs)
        return replace(self, value=self.value * factor, overs=self.overs + 1)

    def elsewhere(self) -> Aim:
        """A lower aim, for when this one gives a file that was made before."""
        return replace(self, value=self.value * CLOSE)


@dataclass(frozen=True)
class _Attempt:
    """An encoded file of about the wanted size.

    Attributes:
        book: The codebook.
        exponent: Exponent of the bank's grid.
        predicted: Predicted use of the budget.
        encoded: Bytes of the file.
        used: Actual use of the budget.
        assigned: Ids of the weights; None if they were dropped to save memory.
    """

    book: Codebook
    exponent: int
    predicted: float
    encoded: bytes
    used: float
    assigned: Assigned | None

    def is_better_than(self, best: _Attempt | None, limit: float) -> bool:
        """Whether this is the largest file within the limit so far."""
        return self.used <= limit and (best is None or best.used < self.used)

    def is_last(self, best: _Attempt | None, aim: Aim, *, close: float) -> bool:
        """Whether to stop: the file is close enough, the codebook cannot get coarser, or sizes jump at this point."""
        close_enough = best is not None and close * aim.limit <= best.used
        jumps = self.used <= aim.limit and abs(self.used - self.predicted) / aim.limit < 1 - CLOSE
        return close_enough or self.predicted > aim.value or jumps


def _meet_budget(prepared: Prepared, budget: Budget, safe_ratio: float | None) -> Result:
    """The largest file within the budget. What is left of the budget is spent on exact outliers."""
    found = _search(prepared, budget, safe_ratio)
    book, assigned = found.book, found.assigned or assign(prepared, found.book)
    cut = Cut(prepared, book, found.exponent, assigned, safe_ratio)
    if found.used * TOLERANCE >= budget.limit:  # close enough
        return Result(found.encoded, cut)
    size = len(book.bank.means)
    maps, encoded = spend_on_outliers(
        prepared.checkpoint.tensors,
        prepared.posteriors,
        assigned.maps,
        book.bank.means,
        encode=lambda maps: cut.with_maps(maps).encoded(),
        left=lambda encoded, maps: budget.limit - budget.used(encoded, size, maps),
        encoded=found.encoded,
        close=(1 - CLOSE) * budget.limit,
    )
    return Result(encoded, cut.with_maps(maps))


def _search(prepared: Prepared, budget: Budget, safe_ratio: float | None) -> _Attempt:
    """Solve for the aim, encode, correct the aim. Return the best attempt within the budget, else the last one."""
    aim, seen = Aim(budget.limit, MARGIN * budget.limit), set[float]()
    close = CLOSE if prepared.calibration is None else CLOSE_IN_LOCKSTEP
    best: _Attempt | None = None
    latest: _Attempt | None = None
    for _ in range(ATTEMPTS):
        book, exponent = solve_size(prepared.problem, budget.predicted, limit=aim.value, monotone=budget.monotone)
        predicted = budget.predicted(book, exponent, None)
        if predicted in seen and best is not None:
            break
        if predicted in seen:
            aim = aim.elsewhere()
            continue
        seen.add(predicted)
        latest, best = None, _slim(prepared, best)
        latest = _attempt(prepared, budget, book, exponent, predicted=predicted, safe_ratio=safe_ratio)
        best = latest if latest.is_better_than(best, budget.limit) else best
        if latest.is_last(best, aim, close=close):
            break
        aim = aim.next(latest.used)
    chosen = best or latest
    assert chosen is not None
    return chosen


def _attempt(
    prepared: Prepared, budget: Budget, book: Codebook, exponent: int, *, predicted: float, safe_ratio: float | None
) -> _Attempt:
    assigned = assign(prepared, book)
    encoded = Cut(prepared, book, exponent, assigned, safe_ratio).encoded()
    used = budget.used(encoded, len(book.bank.means), assigned.maps)
    return _Attempt(book, exponent, predicted, encoded, used, assigned)


def _slim(prepared: Prepared, attempt: _Attempt | None) -> _Attempt | None:
    """Drop the ids of an attempt, about a byte per weight, unless recomputing them takes a run of the network."""
    if attempt is None or prepared.calibration is not None:
        return attempt
    return replace(attempt, assigned=None)
