"""Calibration of probabilities by temperature scaling (Guo et al. 2017, arXiv 1706.04599, sec. 4.2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from gbnn_compress.types import Artifact

SMALLEST, LARGEST = 0.05, 20.0
"""Bounds of the search. Without them the temperature would go to 0 if all predictions are correct."""

FACT = "temperature"
"""Key of the temperature in an artifact's facts."""


def scale(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """Scale probabilities p by a temperature: softmax(log p / T), which equals softmax(logits / T).

    Args:
        probabilities: (N, C), rows sum to 1. A probability of 0 counts as the smallest normal float64.
        temperature: T > 0. Above 1 the result is less confident, below 1 more.

    Returns:
        float64 (N, C).
    """
    return (_logarithms(probabilities) / temperature).softmax(dim=1)


def fit_temperature(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Find the temperature T that minimises the NLL of softmax(log p / T). The NLL is convex in 1 / T.

    Args:
        probabilities: (N, C), N >= 1, on inputs that the network was not trained on.
        labels: Integers (N,) in 0..C-1.

    Returns:
        T in SMALLEST..LARGEST. The search is over log T.
    """
    import torch
    from scipy.optimize import minimize_scalar

    logarithms = _logarithms(probabilities)
    targets = torch.as_tensor(labels, dtype=torch.int64)

    def nll(log_temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logarithms / math.exp(log_temperature), targets))

    bounds = (math.log(SMALLEST), math.log(LARGEST))
    return math.exp(minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x)


def temperature_fact(temperature: float) -> dict[str, float]:
    """The entry of an artifact's facts that makes `predict` and `evaluate` apply a temperature.

    Args:
        temperature: T > 0, rounded to four significant digits.
    """
    return {FACT: float(f"{temperature:.4g}")}


def folded_temperature(artifact: Artifact) -> float:
    """The temperature that an artifact records; 1 if it records none."""
    return float(artifact.facts.get(FACT, 1.0))


def _logarithms(probabilities: torch.Tensor) -> torch.Tensor:
    import torch

    return probabilities.double().clamp(min=torch.finfo(torch.float64).tiny).log()
