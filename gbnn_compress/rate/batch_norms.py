"""The four vectors of a batch norm to coded vectors, of which only two need fine grids.

In evaluation mode a batch norm computes y = weight (x - running_mean) / sqrt(running_var + eps) + bias. Any running
variance v' and mean m' compute the same with

    weight' = weight sqrt(v' + eps) / sqrt(v + eps),    bias' = bias + weight' (m' - m) / sqrt(v' + eps).

So the statistics are rounded to coarse grids, and weight and bias, on fine grids, compensate for the rounding. The
statistics stay close to those of the layer: a network that is trained further, with statistics of its batches, starts
from nearly the same function.

A channel whose weight rounds to zero outputs its bias, whatever its statistics; they are replaced by typical ones.

The outputs of the coded norm are compared with the original, channel by channel. Where a grid fails, the next finer one
is tried; where all fail, the vectors are kept exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.checkpoint.arrays import rounded
from gbnn_compress.format.vectors import EXACT, RELATIVE, Vector, dequantise, exactly, quantise, step_of, vector_bits

if TYPE_CHECKING:
    import torch

ROLES = ("weight", "bias", "running_mean", "running_var")
"""The vectors of a batch norm."""

VARIANCE_STEP = 1.0
"""Grid of the running variances, in octaves: deviations are off by at most 19 %."""

MEAN_STEP = 0.5
"""Grid of the running means, in standard deviations of their channels."""

EPSILON, LARGEST_EPSILON = 1e-5, 1e-3
"""eps of a batch norm: torch's default, which is assumed, and the largest in use. Checkpoints do not store it."""

EPSILON_SLACK = 2.0
"""Largest error under another eps, over that of rounding. 1 and 4 were no better; without a bound the logit KL was a
fifth larger."""

MOST_STEPS = 2.9
"""Largest output error of a channel within two deviations and with either eps, in steps of weight and bias."""

DEVIATIONS = 2.0
"""Outputs are compared at inputs that lie so many standard deviations from the channel's mean."""

MOST_SPAN = 1e4
"""Weights or biases are kept exactly if the largest is over so many times their lower decile."""

FLOORS = (1e-12, 0.0)
"""Smallest variance that is coded, as a fraction of the largest one: below it, a channel is as good as dead."""

HIGHEST_FLOOR = 1e-9
"""Highest floor: beside an eps of 1e-5, a variance this small makes no difference."""

SMALLEST_VARIANCE = 1e-37
"""Lowest floor: zero has no logarithm."""

MOST_FINER = 9
"""Most half octaves by which the two grids of the statistics become finer, together."""

NUDGES = np.arange(-8, 9)
"""Steps by which a channel's weight may move, so that outputs are about right with either eps."""


@dataclass(frozen=True)
class BatchNorm:
    """What a batch norm computes with, all float64 (n,).

    Attributes:
        weight: gamma; ones where there is none.
        bias: beta; zeros where there is none.
        mean: Running mean.
        variance: Running variance, >= 0.
    """

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    def outputs(self, inputs: np.ndarray) -> np.ndarray:
        """float64 (2, 2, n), outputs for inputs (2, n); the first axis is over the two values of eps."""
        return self.weight * self.standardised(inputs) + self.bias

    def standardised(self, inputs: np.ndarray) -> np.ndarray:
        """float64 (2, 2, n), the same before weight and bias."""
        eps = np.array([EPSILON, LARGEST_EPSILON])[:, None, None]
        with np.errstate(over="ignore", invalid="ignore"):
            return (inputs - self.mean) / np.sqrt(self.variance + eps)

    def probes(self) -> np.ndarray:
        """float64 (2, n), inputs on both sides of the mean."""
        reach = DEVIATIONS * np.sqrt(self.variance)
        return np.stack([self.mean - reach, self.mean + reach])


def output_error(before: BatchNorm, after: BatchNorm) -> np.ndarray:
    """float64 (n,), largest difference of each channel's output, at `probes` and with either eps."""
    probes = before.probes()
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(after.outputs(probes) - before.outputs(probes)).max(axis=(0, 1))
    return np.where(np.isnan(error), np.inf, error)


def spans_too_much(vector: np.ndarray) -> bool:
    """Whether a vector's magnitudes, zeros left out, span more than one grid serves.

    The smallest of many values is near zero by chance, so a tenth of them does not count; of up to nine, all do.
    """
    magnitudes = np.sort(np.abs(vector[vector != 0]))
    return bool(magnitudes.size and magnitudes[-1] > MOST_SPAN * magnitudes[magnitudes.size // 10])


def code_norm(
    weight: np.ndarray,
    bias: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    *,
    step: float,
    exact: Sequence[np.ndarray],
    dtypes: Sequence[torch.dtype],
) -> list[Vector]:
    """Quantise a batch norm.

    Args:
        weight: float64 (n,).
        bias: float64 (n,).
        mean: float64 (n,), running mean.
        variance: float64 (n,), running variance, >= 0.
        step: Largest grid step of weight and bias.
        exact: Bit patterns (n,) of the four.
        dtypes: Dtypes of the four.

    Returns:
        The four coded vectors, in the order of the arguments. With either eps, and up to two deviations from its mean,
        a channel's output is off by at most MOST_STEPS steps of the coded weight. If no grid serves, all four are
        exact.
    """
    norm = BatchNorm(weight, bias, mean, variance)
    if variance.min() >= 0 and not (spans_too_much(weight) or spans_too_much(bias)):
        for grids in _grids(variance):
            tried = [_coded(norm, step=step, grid=grid, exact=exact, dtypes=dtypes) for grid in grids]
            found = [vectors for vectors in tried if vectors is not None]
            if found:
                return found[0] if len(found) == 1 else min(found, key=_bits)
    return [exactly(bits) for bits in exact]


def _bits(vectors: Sequence[Vector]) -> int:
    return vector_bits(vectors, roles=ROLES)


def code_statistics(
    mean: np.ndarray, variance: np.ndarray, *, step: float, exact: Sequence[np.ndarray], dtypes: Sequence[torch.dtype]
) -> list[Vector]:
    """Quantise a batch norm without weight and bias, which could compensate for the rounding of the statistics.

    Args:
        mean: float64 (n,), running mean.
        variance: float64 (n,), running variance, >= 0.
        step: Largest grid step of an output.
        exact: Bit patterns (n,) of both.
        dtypes: Dtypes of both.

    Returns:
        Both coded vectors; exact if outputs would be off by more than MOST_STEPS steps.
    """
    norm = BatchNorm(np.ones_like(mean), np.zeros_like(mean), mean, variance)
    for grid in itertools.chain.from_iterable(_grids(variance) if variance.min() >= 0 else ()):
        steps = (step * grid.finer_mean, 2 * step * grid.finer_variance)
        floored = np.maximum(variance, grid.floor)
        statistics = _statistics(mean, floored, steps=steps, exact=exact, dtypes=dtypes)
        if statistics is not None:
            vectors, (centre, near) = statistics
            if output_error(norm, replace(norm, mean=centre, variance=near)).max() <= MOST_STEPS * step:
                return vectors
    return [exactly(bits) for bits in exact]


@dataclass(frozen=True)
class _Grid:
    """How finely the statistics are coded.

    Attributes:
        floor: Smallest variance that is coded.
        finer_mean: Factor of the usual step of the means.
        finer_variance: Factor of the usual step of the variances.
    """

    floor: float
    finer_mean: float
    finer_variance: float


def _grids(variance: np.ndarray) -> Iterator[list[_Grid]]:
    """Lists of grids, coarsest first; those of one list take about the same bits."""
    largest = float(variance.max())
    floors = [max(min(fraction * largest, HIGHEST_FLOOR), SMALLEST_VARIANCE) for fraction in FLOORS]
    for floor in floors if variance.min() < floors[0] else floors[:1]:
        for halves in range(MOST_FINER + 1):
            yield [_Grid(floor, 2.0 ** (-part / 2), 2.0 ** ((part - halves) / 2)) for part in range(halves + 1)]


def _coded(
    norm: BatchNorm,
    *,
    step: float,
    grid: _Grid,
    exact: Sequence[np.ndarray],
    dtypes: Sequence[torch.dtype],
) -> list[Vector] | None:
    """The four vectors; None if these grids do not serve."""
    weight, mean, variance = norm.weight, norm.mean, np.maximum(norm.variance, grid.floor)
    lost = np.abs(weight) < step / 2
    if lost.any() and not lost.all():
        weight = np.where(lost, 0.0, weight)
        mean, variance = (np.where(lost, np.median(vector[~lost]), vector) for vector in (mean, variance))
    mean_step, variance_step = _coarse_steps(weight, variance, step=step)
    steps = (grid.finer_mean * mean_step, grid.finer_variance * variance_step)
    statistics = _statistics(mean, variance, steps=steps, exact=exact[2:], dtypes=dtypes[2:])
    if statistics is None:
        return None
    vectors, (centre, near) = statistics
    deviation = np.sqrt(near + EPSILON)
    weight = np.where(lost & ~lost.all(), 0.0, norm.weight * (deviation / np.sqrt(norm.variance + EPSILON)))
    fine_weight = quantise(weight, step=step, logarithmic=False, exact=exact[0])
    if fine_weight.mode == EXACT:
        return None
    shifted = norm.bias + dequantise(fine_weight) * (centre - norm.mean) / deviation
    fine_bias = quantise(shifted, step=step, logarithmic=False, exact=exact[1])
    if fine_bias.mode == EXACT:
        return None
    fine = _balanced(norm, fine_weight, fine_bias, centre, near)
    slope, shift = (rounded(dequantise(v), dtype).double().numpy() for v, dtype in zip(fine, dtypes[:2], strict=True))
    error = output_error(norm, BatchNorm(slope, shift, centre, near)).max()
    return [*fine, *vectors] if error <= MOST_STEPS * step_of(fine_weight.exponent) else None


def _statistics(
    mean: np.ndarray,
    variance: np.ndarray,
    *,
    steps: Sequence[float],
    exact: Sequence[np.ndarray],
    dtypes: Sequence[torch.dtype],
) -> tuple[list[Vector], tuple[np.ndarray, np.ndarray]] | None:
    """Mean and variance as vectors, and their decoded values; `steps` are those of the mean and of the variance."""
    coarse_variance = quantise(variance, step=steps[1], logarithmic=True, exact=exact[1])
    if coarse_variance.mode == EXACT:
        return None
    near = dequantise(coarse_variance)
    coarse_mean = quantise(mean / np.sqrt(near), step=steps[0], logarithmic=False, exact=exact[0])
    if coarse_mean.mode == EXACT:
        return None
    coarse_mean = replace(coarse_mean, mode=RELATIVE)
    centre = dequantise(coarse_mean, variance=coarse_variance)
    centre, near = (rounded(each, dtype).double().numpy() for each, dtype in zip((centre, near), dtypes, strict=True))
    return [coarse_mean, coarse_variance], (centre, near)


def _balanced(
    norm: BatchNorm, weight: Vector, bias: Vector, centre: np.ndarray, near: np.ndarray
) -> tuple[Vector, Vector]:
    """Weight and bias; channels that are off by too much move so that their largest error with either eps is least."""
    step, ones = step_of(weight.exponent), np.ones_like(near)
    error = output_error(norm, BatchNorm(dequantise(weight), dequantise(bias), centre, near))
    off = np.flatnonzero(error > MOST_STEPS * step)
    if not off.size:
        return weight, bias
    probes = norm.probes()
    wanted = norm.outputs(probes).reshape(4, -1)[:, off]
    slopes = BatchNorm(ones, 0 * ones, centre, near).standardised(probes).reshape(4, -1)[:, off]
    tried = (weight.codes[off] + NUDGES[:, None]) * step
    rest = wanted - tried[:, None] * slopes
    with np.errstate(invalid="ignore", over="ignore"):
        shifts = np.rint((rest.max(axis=1) + rest.min(axis=1)) / 2 / step)
        best = np.abs(rest - shifts[:, None] * step).max(axis=1).argmin(axis=0)
    chosen = shifts[best, np.arange(off.size)]
    if not (np.abs(chosen) < 2.0**51).all():
        return weight, bias
    weights, biases = weight.codes.copy(), bias.codes.copy()
    weights[off] += NUDGES[best]
    biases[off] = chosen.astype(np.int64)
    return replace(weight, codes=weights), replace(bias, codes=biases)


def _coarse_steps(weight: np.ndarray, variance: np.ndarray, *, step: float) -> tuple[float, float]:
    """Grid steps of the running means, in deviations, and of the running variances, in octaves.

    Under another eps than the assumed one, weight and bias compensate for the rounding wrongly, most of all in channels
    of small variance. The steps are such that the root mean square of this error is at most EPSILON_SLACK times that of
    rounding weight and bias.
    """
    near, far = variance + EPSILON, variance + LARGEST_EPSILON
    slope = weight * np.log(2) / 2 * (variance / near - variance / far)
    shift = weight * (np.sqrt(variance / near) - np.sqrt(variance / far))
    slope_rms, shift_rms = (max(float(np.sqrt((vector**2).mean())), 1e-300) for vector in (slope, shift))
    return min(MEAN_STEP, EPSILON_SLACK * step / shift_rms), min(VARIANCE_STEP, EPSILON_SLACK * step / slope_rms)
