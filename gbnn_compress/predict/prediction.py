"""What a Bayesian network says of its inputs: averaged probabilities, and how unsure it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gbnn_compress.predict import metrics
from gbnn_compress.predict.temperature import scale

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch


@dataclass(frozen=True, eq=False)
class Prediction:
    """Class probabilities averaged over posterior draws p_s, and where the doubt comes from.

    Attributes:
        probabilities: float64 (N, C), the mean of p_s over the draws; rows sum to 1.
        entropy: float64 (N,), nats, predictive entropy H(probabilities): the whole doubt.
        mutual_information: float64 (N,), nats, H(mean of p_s) - mean of H(p_s), never below 0: the part of it that
            comes from not knowing the weights (Houlsby et al. 2011, arXiv 1112.5745, eq. 2). 0 with a single draw.
        samples: Number of draws.
    """

    probabilities: torch.Tensor
    entropy: torch.Tensor
    mutual_information: torch.Tensor
    samples: int


def average(draws: Iterable[torch.Tensor]) -> Prediction:
    """The prediction of draws that come one after the other and are not kept.

    Args:
        draws: At least one, each float64 (N, C), probabilities.
    """
    total: torch.Tensor | float = 0.0
    total_entropy: torch.Tensor | float = 0.0
    count = 0
    for probabilities in draws:
        total = total + probabilities
        total_entropy = total_entropy + entropy(probabilities)
        count += 1
    mean: torch.Tensor = total / count  # type: ignore[assignment]
    of_mean = entropy(mean)
    return Prediction(mean, of_mean, (of_mean - total_entropy / count).clamp(min=0.0), count)


def joined(parts: Sequence[Prediction]) -> Prediction:
    """One prediction of several sets of inputs, at least one, all of as many draws."""
    import torch

    return Prediction(
        torch.cat([part.probabilities for part in parts]),
        torch.cat([part.entropy for part in parts]),
        torch.cat([part.mutual_information for part in parts]),
        parts[0].samples,
    )


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy of each row of (N, C), in nats: float64 (N,)."""
    import torch

    return torch.from_numpy(metrics.predictive_entropy(probabilities))


def at_temperature(prediction: Prediction, temperature: float) -> Prediction:
    """The same prediction, less sure of itself above temperature 1 and surer below.

    Probabilities become softmax(log p / T), and entropy is theirs; mutual information, a matter of the draws, stays.
    """
    if temperature == 1.0:
        return prediction
    scaled = scale(prediction.probabilities, temperature)
    return replace(prediction, probabilities=scaled, entropy=entropy(scaled))
