"""Differences between the outputs of two networks on the same inputs: relative error and cosine.

relative_error = sqrt(sum (yhat - y)^2 / sum (y - mean y)^2), where y are the outputs of the reference. The mean is
taken over the inputs (axis 0) at each place of the output. Where shapes differ between batches, or where there is a
single input, it is taken over all axes but the channel axis: axis 1 of outputs with four axes or more, else the last
one. If the channel axis differs in length between batches, the other of the two is used. If that differs, too, or if a
single value is left for each mean, the mean is taken over all values.

Sums are kept from batch to batch, in numpy and float64; outputs are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gbnn_compress.errors import DataError, listed

if TYPE_CHECKING:
    import torch

    Outputs = Mapping[str, torch.Tensor]

PLACES, ALL = "places", "all"
"""Groupings of values with a common mean, besides those by channel, whose names are the channel axes."""


DEAD_ERROR = 1.0
"""Relative error of outputs that are as far from the reference's as the mean of the reference's outputs is."""

LOST = "the network is lost"
"""Start of the warning that outputs are unrelated to the reference's."""


@dataclass(frozen=True)
class OutputDifference:
    """How the outputs of a network differ from those of a reference.

    Attributes:
        relative_error: Over all outputs together. None if no output varies; infinite if an output is not finite where
            the reference's is.
        cosine: Cosine along the last axis, mean over the inputs and all other axes. None if outputs are zero or not
            finite.
        outputs: Name of an output -> its own `relative_error`.
        left_out: Names of outputs whose shapes differ between the two networks.
    """

    relative_error: float | None
    cosine: float | None
    outputs: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and summed squared distance from the mean of the values in each group; arrays of one shape."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray


@dataclass(frozen=True, eq=False)
class Sums:
    """What is kept of one output.

    Attributes:
        moments: Moments of the reference's values by grouping; a grouping whose shapes differ between batches is None.
        n_axes: Number of axes of the output.
        error: Sum of (yhat - y)^2.
        cosine: Sum of the cosines.
        n_cosines: Number of vectors that have a cosine.
        is_finite: Whether the output is finite wherever the reference's is.
    """

    moments: Mapping[str, Moments | None]
    n_axes: int
    error: float
    cosine: float
    n_cosines: int
    is_finite: bool


Running = Mapping[str, "Sums | None"]
"""Name of an output -> its sums so far; None if its shapes differ between the networks."""


def compared(pairs: Iterable[tuple[Outputs, Outputs]]) -> OutputDifference:
    """Compare outputs batch by batch.

    Args:
        pairs: For each batch, the reference's outputs by name, floating tensors of any shape whose axis 0 counts the
            inputs; and the same of the other network, on the same inputs.
    """
    running: Running = {}
    for before, after in pairs:
        running = with_batch(running, before, after)
    return difference(running)


def with_batch(running: Running, before: Outputs, after: Outputs) -> Running:
    """The sums with one more batch.

    Args:
        running: The sums so far; empty at the beginning.
        before: The reference's outputs by name.
        after: The other network's outputs by name.
    """
    first = not running
    names = dict.fromkeys((*running, *before, *after))
    return {name: _with_output(running.get(name), before.get(name), after.get(name), first) for name in names}


def difference(running: Running) -> OutputDifference:
    """The measures from the sums over all batches."""
    found = {name: sums for name, sums in running.items() if sums is not None}
    spreads = {name: _spread(sums) for name, sums in found.items()}
    vectors = sum(sums.n_cosines for sums in found.values())
    is_finite = all(sums.is_finite for sums in found.values())
    return OutputDifference(
        relative_error=_relative(found.values(), sum(spreads.values())),
        cosine=sum(sums.cosine for sums in found.values()) / vectors if vectors and is_finite else None,
        outputs={name: {"relative_error": _relative([sums], spreads[name])} for name, sums in found.items()},
        left_out=tuple(name for name, sums in running.items() if sums is None),
    )


def require_compared(found: OutputDifference, *, option: str) -> None:
    """Refuse a comparison without any output left.

    Args:
        found: The comparison.
        option: The option that names the data, for messages.

    Raises:
        DataError: Every output has other shapes in the other network.
    """
    if not found.outputs:
        raise DataError(
            f"`{option}`: {left_out_note(found) or 'there is no output to compare'}; choose one whose shape depends on"
            " the inputs alone (`--output`), return such outputs (`--forward`), or give a `--metric`"
        )


def lost_warnings(found: OutputDifference, *, inputs: str, reference: str = "the checkpoint") -> list[str]:
    """Warnings of outputs that are not finite, unrelated to the reference's, or constant in the reference.

    Args:
        found: Differences of the outputs.
        inputs: The inputs on which the outputs were compared, for the message.
        reference: The reference, for the message.
    """
    errors = {name: each["relative_error"] for name, each in found.outputs.items()}
    constant = [name for name, error in errors.items() if error is None]
    warnings = []
    if found.relative_error is not None and found.relative_error >= DEAD_ERROR:
        warnings.append(f"{LOST}: on {inputs} its outputs {_unrelated(found.relative_error, reference)}")
    else:
        lost = {name: error for name, error in errors.items() if error is not None and error >= DEAD_ERROR}
        warnings += [
            f"on {inputs} values of the output `{name}` {_unrelated(error, reference)}" for name, error in lost.items()
        ]
    if constant:
        which = "the outputs" if len(constant) == len(errors) else listed(constant)
        warnings.append(f"on {inputs} {which} of {reference} do not vary, so their relative error is not defined")
    return warnings


def _unrelated(error: float, reference: str) -> str:
    if error == float("inf"):
        return "are not finite; ask for a smaller ratio"
    return (
        f"are no nearer to those of {reference} than their mean (relative error {error:.2g}); ask for a smaller ratio"
    )


def left_out_note(found: OutputDifference) -> str | None:
    """A sentence on outputs that are not compared; None if all are."""
    if not found.left_out:
        return None
    return f"the shapes of {listed(found.left_out)} differ between the two networks, so they are not compared"


def as_json(found: OutputDifference) -> dict[str, Any]:
    """`relative_error`, `cosine` and `outputs` for a report; None for infinity, which JSON lacks."""
    return {
        "relative_error": _finite(found.relative_error),
        "cosine": found.cosine,
        "outputs": {name: {"relative_error": _finite(each["relative_error"])} for name, each in found.outputs.items()},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _with_output(
    sums: Sums | None, before: torch.Tensor | None, after: torch.Tensor | None, first: bool
) -> Sums | None:
    """The sums of one output with one more batch; None as soon as shapes differ or a network lacks the output."""
    if before is None or after is None or before.shape != after.shape or (sums is None and not first):
        return None
    y, yhat = _as_float64(before), _as_float64(after)
    known = np.isfinite(y)
    # Masks of -inf are no error where both networks have them.
    is_finite = bool(np.where(known, np.isfinite(yhat), (yhat == y) | np.isnan(y)).all())
    y, yhat = np.where(known, y, 0.0), np.where(known & np.isfinite(yhat), yhat, 0.0)
    new = _moments(y, known)
    cosine, n_cosines = _cosines(y, yhat)
    error = float(((yhat - y) ** 2).sum())
    if sums is None:
        return Sums(new, y.ndim, error, cosine, n_cosines, is_finite)
    return Sums(
        {grouping: _merged(sums.moments[grouping], new.get(grouping)) for grouping in sums.moments},
        sums.n_axes,
        sums.error + error,
        sums.cosine + cosine,
        sums.n_cosines + n_cosines,
        sums.is_finite and is_finite,
    )


def _as_float64(values: torch.Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().cpu().double().numpy()
    return array if array.ndim else array[np.newaxis]


def _moments(y: np.ndarray, known: np.ndarray) -> dict[str, Moments | None]:
    """Moments by grouping, of the values that are known."""
    kept = {PLACES: (0,), ALL: tuple(range(y.ndim))}
    if y.ndim > 1:
        kept |= {str(axis): tuple(set(range(y.ndim)) - {axis % y.ndim}) for axis in (1, -1)}
    return {grouping: _moments_over(y, known, axes) for grouping, axes in kept.items()}


def _moments_over(y: np.ndarray, known: np.ndarray, axes: tuple[int, ...]) -> Moments:
    count = known.sum(axis=axes, keepdims=True).astype(np.float64)
    mean = y.sum(axis=axes, keepdims=True) / np.maximum(count, 1)
    squares = (np.where(known, y - mean, 0.0) ** 2).sum(axis=axes)
    return Moments(count.reshape(squares.shape), mean.reshape(squares.shape), squares)


def _merged(a: Moments | None, b: Moments | None) -> Moments | None:
    """Moments of the union of two sets (Chan et al. 1979); None if their shapes differ."""
    if a is None or b is None or a.mean.shape != b.mean.shape:
        return None
    count = a.count + b.count
    share = b.count / np.maximum(count, 1)
    step = b.mean - a.mean
    return Moments(count, a.mean + step * share, a.squares + b.squares + step**2 * a.count * share)


def _spread(sums: Sums) -> float:
    """Sum of (y - mean y)^2 over the finest grouping that holds in all batches and has several values in a group."""
    order = (PLACES, *(("1", "-1") if sums.n_axes > 3 else ("-1", "1")), ALL)
    found = (sums.moments.get(grouping) for grouping in order)
    return next((float(each.squares.sum()) for each in found if each is not None and (each.count > 1).any()), 0.0)


def _relative(parts: Iterable[Sums], spread: float) -> float | None:
    found = list(parts)
    if not all(sums.is_finite for sums in found):
        return float("inf")
    return float(np.sqrt(sum(sums.error for sums in found) / spread)) if spread > 0 else None


def _cosines(y: np.ndarray, yhat: np.ndarray) -> tuple[float, int]:
    """Sum and number of the cosines along the last axis, which is a single value for each input of a (N,) output."""
    y, yhat = (each.reshape(-1, each.shape[-1] if each.ndim > 1 else 1) for each in (y, yhat))
    norms = np.sqrt((y**2).sum(axis=1) * (yhat**2).sum(axis=1))
    alive = norms > 0
    return float(((y * yhat).sum(axis=1)[alive] / norms[alive]).sum()), int(alive.sum())
