"""The four vectors of a batch norm -> coded vectors, of which only two need to be fine.

A batch norm in use computes y = weight (x - running_mean) / sqrt(running_var + eps) + bias. Any running variance v'
and mean m' compute the same with

    weight' = weight sqrt(v' + eps) / sqrt(v + eps),    bias' = bias + weight' (m' - m) / sqrt(v' + eps).

So the statistics go on coarse grids, and weight and bias, on fine ones, make up for what that moved them by. The
statistics are still about those of the layer, so that a network trained further, where a batch's own take their
place, starts from nearly the same function.

A channel whose weight rounds to zero puts out its bias, whatever its statistics; they become a typical channel's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gbnn_compress.codec.values import EXACT, RELATIVE, Vector, dequantise, quantise

VARIANCE_STEP = 0.5
"""Grid of the running variances, in octaves: deviations are kept to 9 %."""

MEAN_STEP = 2.0**-1.5
"""Grid of the running means, in deviations of their channels."""

EPSILON, LARGEST_EPSILON = 1e-5, 1e-3
"""eps of a batch norm, torch's default, which is assumed, and the largest in use: checkpoints do not tell."""

EPSILON_SLACK = 2.0
"""How much more than rounding another eps may cost; 1 and 4 were no better, no bound cost a fifth of the logit KL."""


def code_norm(
    weight: np.ndarray,
    bias: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    *,
    step: float,
    exact: Sequence[np.ndarray],
) -> list[Vector] | None:
    """Quantise a batch norm.

    Args:
        weight: float64 (n,).
        bias: float64 (n,).
        mean: float64 (n,), running mean.
        variance: float64 (n,), running variance, > 0.
        step: Largest grid step of weight and bias.
        exact: Bit patterns (n,) of the four, as for `quantise`.

    Returns:
        The four coded vectors, in the order of the arguments; None where a grid does not serve.
    """
    lost = np.abs(weight) < step / 2
    if lost.any() and not lost.all():
        weight = np.where(lost, 0.0, weight)
        mean, variance = (np.where(lost, np.median(vector[~lost]), vector) for vector in (mean, variance))
    deviation = np.sqrt(variance + EPSILON)
    variance_step, mean_step = _coarse_steps(weight, variance, step=step)
    coarse_variance = quantise(variance, step=variance_step, logarithmic=True, exact=exact[3])
    if coarse_variance.mode == EXACT:
        return None
    near = dequantise(coarse_variance)
    coarse_mean = quantise(mean / np.sqrt(near), step=mean_step, logarithmic=False, exact=exact[2])
    coarse_deviation = np.sqrt(near + EPSILON)
    fine_weight = quantise(weight * (coarse_deviation / deviation), step=step, logarithmic=False, exact=exact[0])
    if EXACT in (coarse_mean.mode, fine_weight.mode):
        return None
    coarse_mean = replace(coarse_mean, mode=RELATIVE)
    moved = dequantise(coarse_mean, variance=coarse_variance) - mean
    shifted = bias + dequantise(fine_weight) * moved / coarse_deviation
    fine_bias = quantise(shifted, step=step, logarithmic=False, exact=exact[1])
    return None if fine_bias.mode == EXACT else [fine_weight, fine_bias, coarse_mean, coarse_variance]


def _coarse_steps(weight: np.ndarray, variance: np.ndarray, *, step: float) -> tuple[float, float]:
    """Grid steps of the running variances, in octaves, and of the running means, in deviations.

    Where eps is not the one assumed, what the statistics were moved by is made up for wrongly, most of all in channels
    of small variance. The steps are such that its root mean square is at most EPSILON_SLACK times that of rounding
    weight and bias.
    """
    near, far = variance + EPSILON, variance + LARGEST_EPSILON
    slope = weight * np.log(2) / 2 * (variance / near - variance / far)
    shift = weight * (np.sqrt(variance / near) - np.sqrt(variance / far))
    slope_rms, shift_rms = (max(float(np.sqrt((vector**2).mean())), 1e-300) for vector in (slope, shift))
    return min(VARIANCE_STEP, EPSILON_SLACK * step / slope_rms), min(MEAN_STEP, EPSILON_SLACK * step / shift_rms)
