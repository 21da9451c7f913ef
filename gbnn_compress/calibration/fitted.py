"""Synthetic inputs whose activations have the statistics that batch norms saw in training.

Noise is moved by gradient descent until the inputs of each batch norm have its running mean and variance (Cai et al.
2020, "ZeroQ", arXiv 2001.00281; Yin et al. 2020, "Dreaming to distill", arXiv 1912.08795).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from gbnn_compress.parallel import seeded_draws, single_thread
from gbnn_compress.predict.running import copied


@dataclass(frozen=True)
class Descent:
    """How inputs are fitted.

    Attributes:
        steps: Steps of Adam.
        rate: First learning rate, in deviations of the inputs; it falls by a cosine.
        batch: Inputs whose statistics are compared together.
    """

    steps: int = 20
    rate: float = 0.1
    batch: int = 64


def fitted_inputs(
    network: torch.nn.Module, inputs: torch.Tensor, *, descent: Descent | None = None
) -> torch.Tensor | None:
    """Inputs near the given ones, on which batch norms see what they saw in training.

    With m and s the mean and the deviation of a channel's inputs and m', s' those that its batch norm holds, the mean
    of ((m - m') / s')^2 + (s / s' - 1)^2 over the channels of each batch norm, and over all batch norms, is minimised.

    Args:
        network: In evaluation mode; it is not changed.
        inputs: Floating (n, ...), such as noise; not changed.
        descent: How inputs are fitted.

    Returns:
        Inputs of the same shape and dtype; None if the network has no batch norms that are modules, gives no gradients,
        or if the statistics of a batch come no nearer.
    """
    chosen = descent or Descent()
    network = copied(network)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    parts = []
    with single_thread(), seeded_draws(), _misfits(network) as misfits:
        for part in inputs.split(chosen.batch):
            fitted = _fitted(network, part, misfits, chosen)
            if fitted is None:
                return None
            parts.append(fitted)
    return torch.cat(parts)


def _fitted(
    network: torch.nn.Module, part: torch.Tensor, misfits: list[torch.Tensor], descent: Descent
) -> torch.Tensor | None:
    moved = part.clone().requires_grad_()
    optimiser = torch.optim.Adam([moved])
    found, values = part, list[float]()
    try:
        for step in range(descent.steps):
            optimiser.param_groups[0]["lr"] = descent.rate * 0.5 * (1 + math.cos(math.pi * step / descent.steps))
            value = _misfit(network, moved, misfits)
            if value is None:
                return None
            if values and value.item() < min(values):
                found = moved.detach().clone()
            values.append(value.item())
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
    except RuntimeError:  # no gradient
        return None
    return found if min(values) < values[0] else None


def _misfit(network: torch.nn.Module, inputs: torch.Tensor, misfits: list[torch.Tensor]) -> torch.Tensor | None:
    """Mean misfit over the batch norms that a pass uses; None without any."""
    misfits.clear()
    network(inputs.clone())  # a network may change its inputs
    return torch.stack(misfits).mean() if misfits else None


@contextmanager
def _misfits(network: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list to which each pass of the network adds the misfit of every batch norm."""
    found: list[torch.Tensor] = []
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    handles = [
        norm.register_forward_pre_hook(_measuring(norm, found)) for norm in norms if norm.running_var is not None
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _measuring(
    norm: _BatchNorm, found: list[torch.Tensor]
) -> Callable[[torch.nn.Module, Sequence[torch.Tensor]], None]:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    deviation = (variance + norm.eps).sqrt()

    def measure(module: torch.nn.Module, args: Sequence[torch.Tensor]) -> None:
        dims = [axis for axis in range(args[0].dim()) if axis != 1]
        seen, seen_mean = torch.var_mean(args[0], dim=dims, correction=0)
        away = (seen_mean - mean) / deviation
        stretch = (seen + norm.eps).sqrt() / deviation - 1
        found.append(away.square().mean() + stretch.square().mean())

    return measure
