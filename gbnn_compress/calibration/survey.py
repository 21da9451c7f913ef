"""A first look at every layer: how much its errors are felt, from the original network's own activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional

from gbnn_compress.calibration.calls import Call, Interceptor, NormCall, channel_moments, sampled_patches
from gbnn_compress.rate.feedback import damped, inverse_factor

LONGEST_BLOCK = 1024
"""Most columns of a layer whose errors are fed back together; wider layers are cut into equal blocks."""

GRADIENT_INPUTS, GRADIENT_BATCH, LABELS_DRAWN = 64, 32, 2
"""Inputs whose gradients are taken, and labels drawn from the model's own prediction for each."""

SMALLEST_ROW = 2.0**-8
"""Filters' gradients are believed down to this part of their mean: a dead filter is not quite free."""


@dataclass(frozen=True)
class LayerStatistics:
    """What was seen of one layer.

    Attributes:
        column: Squared output error of one weight's unit error after feedback, averaged over the weights.
        power: float64 (rows,), variance of each filter's output.
        gradient: float64 (rows,), squared gradient of the model's own log-likelihood by each filter's output,
            summed over positions, averaged over inputs; None without gradients.
        calls: How often a forward pass uses the layer.
        gain: What the error costs without feedback, over `column`.
    """

    column: float
    power: np.ndarray
    gradient: np.ndarray | None
    calls: int
    gain: float = 1.0


def survey(
    network: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    *,
    damping: float,
    match_batch_norm: bool,
    gradients: bool,
) -> dict[str, LayerStatistics]:
    """Look at every linear and 2-D convolutional layer whose weight is among the tensors.

    Args:
        network: In evaluation mode, holding the original weights.
        tensors: The network's own tensors by their names in the checkpoint.
        inputs: (N, ...), preprocessed.
        damping: See `rate.feedback.damped`.
        match_batch_norm: Normalise with the inputs' own statistics: batch norm then gives each layer activations of the
            mean and variance that it had in training, whatever the inputs.
        gradients: Whether to take gradients.
    """
    seen: dict[str, LayerStatistics] = {}

    def on_layer(call: Call) -> torch.Tensor:
        y = call.run(call.x, call.weight, call.bias)
        if call.name in seen:
            seen[call.name] = replace(seen[call.name], calls=seen[call.name].calls + 1)
        else:
            _, variance = channel_moments(y, linear=call.geometry is None)
            column, plain = _costs(call, damping)
            seen[call.name] = LayerStatistics(column, variance.numpy(), None, 1, gain=plain / column)
        return y

    with torch.no_grad(), Interceptor(tensors, on_layer=on_layer, on_norm=normaliser(match=match_batch_norm)):
        network(inputs.clone())  # the network's own, should it work in place
    if gradients:
        squares = _squared_gradients(network, tensors, inputs[:GRADIENT_INPUTS])
        seen = {name: replace(layer, gradient=squares.get(name)) for name, layer in seen.items()}
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


def trusted(patches: torch.Tensor, *, damping: float) -> np.ndarray:
    """float64 (G, d, d), the covariance of patches (G, n, d), damped, and by d / n more: few samples tell little."""
    return damped(covariance(patches), damping=damping + patches.shape[2] / patches.shape[1])


def column_blocks(width: int) -> list[slice]:
    """Equal runs of at most LONGEST_BLOCK columns."""
    edges = np.linspace(0, width, -(-width // LONGEST_BLOCK) + 1).astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _costs(call: Call, damping: float) -> tuple[float, float]:
    """Squared output error of one weight's unit error, averaged over the weights: with and without feedback."""
    (patches,) = sampled_patches(call, [call.x], seed=0)
    fed_back, plain = [], []
    for block in column_blocks(patches.shape[2]):
        hessian = trusted(patches[:, :, block], damping=damping)
        fed_back.append((1 / np.einsum("gjj->gj", inverse_factor(hessian)) ** 2).ravel())
        plain.append(np.einsum("gjj->gj", hessian).ravel())
    return float(np.concatenate(fed_back).mean()), float(np.concatenate(plain).mean())


def _squared_gradients(
    network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], inputs: torch.Tensor
) -> dict[str, np.ndarray]:
    """Diagonal of the Gauss-Newton matrix by each filter's output, with labels drawn from the model (Martens 2014)."""
    generator = torch.Generator().manual_seed(0)
    totals: dict[str, torch.Tensor] = {}

    def on_layer(call: Call) -> torch.Tensor:
        y = call.run(call.x, call.weight, call.bias)
        axis = y.dim() - 1 if call.geometry is None else 1
        others = [i for i in range(y.dim()) if i != axis]

        def add(gradient: torch.Tensor) -> None:
            totals[call.name] = totals.get(call.name, torch.zeros(())) + (gradient**2).sum(dim=others).double()

        if y.requires_grad:
            y.register_hook(add)
        return y

    for batch in inputs.split(GRADIENT_BATCH):
        with torch.enable_grad(), Interceptor(tensors, on_layer=on_layer, on_norm=normaliser(match=False)):
            log_likelihood = network(batch.clone().requires_grad_(True).clone()).log_softmax(dim=-1)
        for draw in range(LABELS_DRAWN):
            labels = torch.multinomial(log_likelihood.detach().exp(), 1, generator=generator)[:, 0]
            loss = functional.nll_loss(log_likelihood, labels, reduction="sum")
            torch.autograd.backward(loss, retain_graph=draw + 1 < LABELS_DRAWN)
    network.zero_grad()
    return {name: (total / (LABELS_DRAWN * len(inputs))).numpy() for name, total in totals.items()}
