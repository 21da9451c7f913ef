"""One number that makes probabilities honest: temperature scaling (Guo et al. 2017, arXiv 1706.04599, sec. 4.2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from gbnn_compress.types import Artifact

SMALLEST, LARGEST = 0.05, 20.0
"""Where a temperature is looked for; without bounds it would be 0 wherever every answer is right."""

FACT = "temperature"
"""Key among an artifact's facts."""


def scale(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """softmax(log p / T): less sure above T = 1, surer below; for a softmax of logits it is softmax(logits / T).

    Args:
        probabilities: (N, C), rows sum to 1; 0 counts as the smallest normal float64.
        temperature: T > 0.

    Returns:
        float64 (N, C).
    """
    return (_logarithms(probabilities) / temperature).softmax(dim=1)


def fit_temperature(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """The T at which softmax(log p / T) has the least NLL. NLL is convex in 1 / T, so there is one minimum.

    Args:
        probabilities: (N, C), N >= 1, on inputs that the network was not trained on.
        labels: Integers (N,) in 0..C-1.

    Returns:
        T in SMALLEST..LARGEST, searched on the scale of log T.
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
    """What to add to an artifact's facts so that `predict` and `evaluate` apply a temperature, and reports name it.

    Args:
        temperature: T > 0, kept to four digits; as `fit_temperature` finds it.
    """
    return {FACT: float(f"{temperature:.4g}")}


def folded_temperature(artifact: Artifact) -> float:
    """The temperature that an artifact says to apply to its probabilities; 1 where it says nothing."""
    return float(artifact.facts.get(FACT, 1.0))


def _logarithms(probabilities: torch.Tensor) -> torch.Tensor:
    import torch

    return probabilities.double().clamp(min=torch.finfo(torch.float64).tiny).log()
