"""Posterior of the weights from what a survey saw of their layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gbnn_compress.calibration.survey import SMALLEST_ROW, LayerStatistics
from gbnn_compress.rate.cells import LEVELS
from gbnn_compress.types import Posterior
from gbnn_compress.weights.posterior import storable_scale

GRADIENT_SHARE = 0.3
"""Layers are weighed by their relative output error times this power of what that costs by the gradients."""


def calibrated_posterior(
    posteriors: Sequence[Posterior], statistics: Mapping[str, LayerStatistics], *, typical: float
) -> tuple[Posterior, ...]:
    """Curvatures from inputs instead of white ones.

    With output power p_f, share r_f of filter f (mean 1; from squared gradients, else as in the data-free posterior)
    and c the squared output error of a unit error in one weight, that error is c r_f / sum r p of the layer's output
    power. It counts omega times, omega = (F_t / geometric mean of F)^GRADIENT_SHARE with F_t = sum_f g_f p_f where
    there are gradients, so

        1 / s_t^2 = n * omega * c / sum_f r_f p_f,     log(sigma_f / s_t) = -log(r_f) / 2

    Args:
        posteriors: Data-free ones.
        statistics: By name; tensors without keep their posterior.
        typical: n, see `weights.posterior.typical_size`.
    """
    importance = _importance([statistics[p.name] for p in posteriors if p.name in statistics])
    order = iter(importance)
    return tuple(
        _calibrated(posterior, statistics[posterior.name], typical * next(order))
        if posterior.name in statistics
        else posterior
        for posterior in posteriors
    )


def _importance(layers: Sequence[LayerStatistics]) -> np.ndarray:
    if not layers or any(layer.gradient is None for layer in layers):
        return np.ones(len(layers))
    felt = np.array([float((layer.gradient * layer.power).sum()) for layer in layers])
    logarithm = np.log(np.maximum(felt, 1e-6 * max(float(felt.max()), 1e-300)))
    return np.exp(GRADIENT_SHARE * (logarithm - logarithm.mean()))


def _calibrated(posterior: Posterior, layer: LayerStatistics, weight: float) -> Posterior:
    rows = np.exp(-2 * posterior.log_sigma)
    if layer.gradient is not None and layer.gradient.any():
        rows = np.maximum(layer.gradient / layer.gradient.mean(), SMALLEST_ROW)
    low, high = np.exp(-2 * LEVELS[-1]), np.exp(-2 * LEVELS[0])
    rows = np.clip(rows / rows.mean(), low, high)
    power = float((rows * layer.power).sum())
    if not (power > 0 and layer.column > 0 and np.isfinite(power)):
        return posterior
    scale = storable_scale(float(np.sqrt(power / (weight * layer.column))))
    return replace(posterior, scale=scale, log_sigma=-0.5 * np.log(rows))
