"""The cost of each layer's errors by themselves, from gradients along them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from gbnn_compress.data.batches import Batch, read_batch
from gbnn_compress.parallel import seeded_draws, single_thread
from gbnn_compress.predict.running import copied, logits_among

if TYPE_CHECKING:
    from gbnn_compress.calibration.calibrated import Calibration

    Outputs = Mapping[str, torch.Tensor]

MOST_GRADIENTS, MOST_PIXELS = 256, 2_600_000
"""Most inputs that are used, and most pixels of all of them, if inputs are taken one by one."""

FEWEST_GRADIENTS = 64
"""Fewest gradients if batches are taken whole; each batch then gets several random directions of the outputs."""


@dataclass(frozen=True)
class ErrorCosts:
    """What errors cost, by name of the tensor. Empty if the network gives no gradients.

    Attributes:
        costs: Cost per input of an error of the whole tensor.
        rows: float64 (rows,), mean squared gradient of each row of the tensor, for which an error of all its weights
            costs so much in proportion.
        n_inputs: Number of inputs that were used.
    """

    costs: Mapping[str, float]
    rows: Mapping[str, np.ndarray]
    n_inputs: int


def error_costs(calibration: Calibration, errors: Mapping[str, torch.Tensor], *, classifier: bool) -> ErrorCosts:
    """Change of the outputs that an error of one tensor alone causes, to second order.

    For a classifier it is the KL from the network's own predictions: KL(p_w || p_w+e) = 1/2 E_x E_y~p(y | x)
    [(e . d log p(y | x) / dw)^2], the Fisher information along e (Amari 1998, "Natural gradient works efficiently in
    learning"), with one label drawn for each input. For other networks it is half the squared change of each output
    over the output's variance, from random directions of the outputs (Hutchinson 1989).

    Args:
        calibration: The network and its inputs.
        errors: Name -> error of a tensor, of the tensor's shape.
        classifier: Whether the network returns logits.

    Returns:
        The costs of the tensors that the outputs depend on.
    """
    network, forward = copied(calibration.network), calibration.forward
    for parameter in network.parameters():  # a scripted module has no `requires_grad_`
        parameter.requires_grad_(False)
    own = network.state_dict(keep_vars=True)
    weights = {name: own[calibration.names[name]] for name in errors if name in calibration.names}
    for weight in weights.values():
        weight.requires_grad_()
    along = {name: errors[name].to(weight.dtype) for name, weight in weights.items()}
    parts, repeats = _parts(calibration)
    scalar = _drawn_labels() if classifier else _drawn_directions(calibration.traced.outputs)
    sums: dict[str, float] = {}
    rows: dict[str, np.ndarray] = {}
    count = repeats * sum(part.size for part in parts)
    with single_thread(), seeded_draws():
        try:
            for part in parts * repeats:
                value = scalar(forward.chosen(forward(network, part.on(torch.device("cpu")))))
                gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
                for name, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:
                        slope = float((gradient * along[name]).sum())
                        sums[name] = sums.get(name, 0.0) + slope * slope
                        powers = gradient.double().flatten(1).square().mean(dim=1).numpy()
                        rows[name] = rows.get(name, 0.0) + powers
        except RuntimeError:  # no weight, no gradient, or a value that gradients need was overwritten or not kept
            return ErrorCosts({}, {}, count)
    costs = {name: total / (2 * count) for name, total in sums.items()}
    return ErrorCosts(costs, {name: total / count for name, total in rows.items()}, count)


def _parts(calibration: Calibration) -> tuple[list[Batch], int]:
    """Single inputs of the calibration if it has one tensor, else its batches; and how often each is used."""
    first = calibration.batches[0]
    if len(calibration.batches) == 1 and isinstance(first.value, torch.Tensor) and calibration.forward.function is None:
        pixels = first.value[0, 0].numel() if first.value.dim() > 1 else 1
        count = min(len(first.value), MOST_GRADIENTS, max(MOST_PIXELS // pixels, 1))
        return [read_batch(part) for part in first.value[:count].split(1)], 1
    return list(calibration.batches), max(1, -(-FEWEST_GRADIENTS // len(calibration.batches)))


def _drawn_labels() -> Callable[[Outputs], torch.Tensor]:
    """-log p(y | x), summed, with labels y drawn from the network itself."""
    generator = torch.Generator().manual_seed(0)

    def scalar(outputs: Outputs) -> torch.Tensor:
        scores = logits_among(outputs).log_softmax(dim=1)
        labels = torch.multinomial(scores.detach().exp(), 1, generator=generator)[:, 0]
        return functional.nll_loss(scores, labels, reduction="sum")

    return scalar


def _drawn_directions(outputs: Outputs) -> Callable[[Outputs], torch.Tensor]:
    """Sums of the outputs over their deviations, with random normal factors.

    Args:
        outputs: Outputs by name, from which their deviations are taken.
    """
    generator = torch.Generator().manual_seed(0)
    scales = dict(_scales(outputs))

    def scalar(outputs: Outputs) -> torch.Tensor:
        parts = []
        for name, y in outputs.items():
            factors = torch.randn(y.shape, generator=generator, dtype=torch.float32).to(y.dtype)
            parts.append((factors * y).sum() / scales.get(name, 1.0))
        return torch.stack([part.double() for part in parts]).sum()

    return scalar


def _scales(outputs: Outputs) -> Iterator[tuple[str, float]]:
    """Deviation of each output from its mean over the inputs, times the root of its number of values per input."""
    for name, y in outputs.items():
        centred = y.double() - y.double().mean(dim=0, keepdim=True) if y.dim() and len(y) > 1 else y.double()
        spread = float(centred.square().sum()) / max(len(y) if y.dim() else 1, 1)
        yield name, spread**0.5 or 1.0
