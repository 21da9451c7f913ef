"""Predictions averaged over posterior draws, with their uncertainty."""

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
    """Class probabilities p_s averaged over posterior draws s, with their uncertainty.

    Attributes:
        probabilities: float64 (N, C), mean of p_s over the draws; rows sum to 1.
        entropy: float64 (N,), nats, predictive entropy H(mean of p_s): the total uncertainty.
        mutual_information: float64 (N,), nats, H(mean of p_s) - mean of H(p_s), >= 0: the uncertainty due to the
            weights (Houlsby et al. 2011, arXiv 1112.5745, eq. 2). It is 0 with a single draw.
        samples: Number of draws.
    """

    probabilities: torch.Tensor
    entropy: torch.Tensor
    mutual_information: torch.Tensor
    samples: int


def average(draws: Iterable[torch.Tensor]) -> Prediction:
    """Average draws. They are consumed one at a time and not kept.

    Args:
        draws: Probabilities of each draw, float64 (N, C); at least one draw.
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
    """Concatenate predictions for several sets of inputs (at least one), all with the same number of draws."""
    import torch

    return Prediction(
        torch.cat([part.probabilities for part in parts]),
        torch.cat([part.entropy for part in parts]),
        torch.cat([part.mutual_information for part in parts]),
        parts[0].samples,
    )


def across_members(members: Sequence[Prediction]) -> Prediction:
    """Average the predictions of an ensemble's members, each at its own temperature, for the same inputs.

    The mutual information has two parts, by the chain rule: what the choice of a member tells, H(mean of p_m) - mean of
    H(p_m), and the mean of the members' own. At temperatures of 1 the sum is that of all draws of all members.

    Args:
        members: At least one prediction, all of the same shape.

    Returns:
        The prediction; `samples` is the number of draws of all members.
    """
    import torch

    mean = torch.stack([each.probabilities for each in members]).mean(dim=0)
    expected, within = (
        torch.stack([getattr(each, name) for each in members]).mean(dim=0) for name in ("entropy", "mutual_information")
    )
    of_mean = entropy(mean)
    between = (of_mean - expected).clamp(min=0.0)
    return Prediction(mean, of_mean, between + within, sum(each.samples for each in members))


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy of each row of probabilities (N, C), in nats, float64 (N,)."""
    import torch

    return torch.from_numpy(metrics.predictive_entropy(probabilities))


def at_temperature(prediction: Prediction, temperature: float) -> Prediction:
    """Apply a temperature T: probabilities become softmax(log p / T), less confident for T > 1.

    `entropy` is that of the new probabilities. `mutual_information` stays, because it is a property of the draws.
    """
    if temperature == 1.0:
        return prediction
    scaled = scale(prediction.probabilities, temperature)
    return replace(prediction, probabilities=scaled, entropy=entropy(scaled))
