"""The cost of errors in every layer, with and without feedback, from the network's own activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from gbnn_compress.calibration.feedback import by_falling_variance, damped, inverse_factor, reordered
from gbnn_compress.calibration.interceptor import Call, Interceptor, NormCall, channel_moments, sampled_patches

LONGEST_BLOCK = 1024
"""Most columns whose errors are fed back together; wider layers are cut into equal blocks."""


@dataclass(frozen=True)
class LayerStatistics:
    """What the survey measures of one layer.

    Attributes:
        column: Squared output error of one weight's unit error after feedback, averaged over the weights.
        calls: How often a forward pass uses the layer.
        gain: The same without feedback, over `column`.
    """

    column: float
    calls: int
    gain: float


def survey(
    network: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    *,
    damping: float,
    match_batch_norm: bool,
) -> dict[str, LayerStatistics]:
    """Measure every linear and 2-D convolutional layer whose weight is among the tensors.

    Args:
        network: In evaluation mode, holding the original weights.
        tensors: The network's own tensors by their names in the checkpoint.
        inputs: (N, ...), preprocessed.
        damping: Damping of the inputs' covariance (`feedback.damped`).
        match_batch_norm: Whether batch norm normalises with the inputs' own statistics. Each layer then sees
            activations of the mean and variance that it saw in training, whatever the inputs.
    """
    seen: dict[str, LayerStatistics] = {}

    def on_layer(call: Call) -> torch.Tensor:
        if call.name in seen:
            seen[call.name] = replace(seen[call.name], calls=seen[call.name].calls + 1)
        else:
            column, plain = _costs(call, damping)
            seen[call.name] = LayerStatistics(column, calls=1, gain=plain / column)
        return call.run(call.x, call.weight, call.bias)

    with torch.no_grad(), Interceptor(tensors, on_layer=on_layer, on_norm=normaliser(match=match_batch_norm)):
        network(inputs.clone())  # a copy: the network may work in place
    return seen


def normaliser(*, match: bool) -> Callable[[NormCall], torch.Tensor]:
    """The batch norm of the original network: with its running statistics, or with the inputs' own."""

    def on_norm(call: NormCall) -> torch.Tensor:
        if not match:
            return call.normalise(call.x, call.mean, call.variance)
        mean, variance = channel_moments(call.x, linear=False)
        return call.normalise(call.x, mean.to(call.x.dtype), variance.to(call.x.dtype))

    return on_norm


def covariance(patches: torch.Tensor, other: torch.Tensor | None = None) -> np.ndarray:
    """float64 (G, d, d), mean of the outer products of centred patches (G, n, d) with others."""
    centred = patches - patches.mean(dim=1, keepdim=True)
    right = centred if other is None else other - other.mean(dim=1, keepdim=True)
    return (centred.transpose(1, 2) @ right / patches.shape[1]).double().numpy()


def trusted(seen: np.ndarray, *, n_samples: int, damping: float) -> np.ndarray:
    """A covariance float64 (G, d, d), damped by `damping` + d / n: few samples are less reliable."""
    return damped(seen, damping=damping + seen.shape[1] / n_samples)


def column_blocks(width: int) -> list[slice]:
    """Equal runs of at most LONGEST_BLOCK columns."""
    edges = np.linspace(0, width, -(-width // LONGEST_BLOCK) + 1).astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _costs(call: Call, damping: float) -> tuple[float, float]:
    """Squared output error of one weight's unit error, averaged over the weights: with and without feedback."""
    (patches,) = sampled_patches(call, [call.x], seed=0)
    fed_back, plain = [], []
    for block in column_blocks(patches.shape[2]):
        hessian = trusted(covariance(patches[:, :, block]), n_samples=patches.shape[1], damping=damping)
        factor = inverse_factor(reordered(hessian, by_falling_variance(hessian)))
        fed_back.append((1 / np.einsum("gjj->gj", factor) ** 2).ravel())
        plain.append(np.einsum("gjj->gj", hessian).ravel())
    return float(np.concatenate(fed_back).mean()), float(np.concatenate(plain).mean())
