"""Kullback-Leibler divergence between Gaussians."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def gaussian_divergence_nats(
    mean: torch.Tensor, deviation: torch.Tensor, prior_mean: torch.Tensor, prior_deviation: torch.Tensor
) -> torch.Tensor:
    """KL(N(mean, deviation^2) || N(prior_mean, prior_deviation^2)), summed over all elements.

    Args:
        mean: Floating, any shape.
        deviation: The same shape, above 0.
        prior_mean: A shape that broadcasts with it.
        prior_deviation: A shape that broadcasts with it, above 0.

    Returns:
        Nats, a scalar.
    """
    ratio = (deviation / prior_deviation) ** 2
    shift = ((mean - prior_mean) / prior_deviation) ** 2
    return 0.5 * (ratio + shift - 1 - ratio.log()).sum()
