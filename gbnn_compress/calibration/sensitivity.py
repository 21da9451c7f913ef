"""The cost of each layer's errors by themselves, from gradients along them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Queue
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from gbnn_compress.calibration.twins import deep_copy
from gbnn_compress.data.batches import Batch, MadeBatches, read_batch
from gbnn_compress.parallel import give_back, on_threads, seeded_draws, single_thread
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
            costs so much in proportion; empty for a classifier.
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
    along = {name: errors[name].to(weight) for name, weight in weights.items()}
    device = next((weight.device for weight in weights.values()), torch.device("cpu"))
    parts, repeats = _parts(calibration)
    scalar = _log_loss if classifier else partial(_along_directions, scales=dict(_scales(calibration.traced.outputs)))
    count = repeats * sum(part.size for part in parts)

    def gradients(number: int) -> list[torch.Tensor | None]:
        """Gradients of a part with labels or directions of its own."""
        generator = torch.Generator().manual_seed(number)
        own = copies.get()
        try:
            part = parts[number % len(parts)].on(device)
            value = scalar(forward.chosen(forward(own, part)), generator=generator)
            return list(torch.autograd.grad(value, list(weights.values()), allow_unused=True))
        finally:
            copies.put(own)

    sums: dict[str, float] = {}
    rows: dict[str, np.ndarray] = {}
    with single_thread() as usable, seeded_draws():
        threads = 1 if calibration.traced.draws else usable
        kept, copies = {id(tensor): tensor for tensor in weights.values()}, Queue[torch.nn.Module]()
        for _ in range(threads):
            copies.put(deep_copy(network, kept))
        try:
            for found in on_threads(gradients, range(repeats * len(parts)), threads=threads, alone=True):
                for name, gradient in zip(weights, found, strict=True):
                    if gradient is not None:
                        slope = float((gradient * along[name]).sum())
                        sums[name] = sums.get(name, 0.0) + slope * slope
                        if not classifier:  # whose filters are weighed by their batch norms
                            powers = gradient.double().flatten(1).square().mean(dim=1).cpu().numpy()
                            rows[name] = rows.get(name, 0.0) + powers
        except RuntimeError:  # no weight, no gradient, or a value that gradients need was overwritten or not kept
            return ErrorCosts({}, {}, count)
    give_back()
    costs = {name: total / (2 * count) for name, total in sums.items()}
    return ErrorCosts(costs, {name: total / count for name, total in rows.items()}, count)


def _parts(calibration: Calibration) -> tuple[Sequence[Batch], int]:
    """Single inputs of the calibration if its batches are tensors, else its batches; and how often each is used."""
    batches = calibration.batches
    first = batches[0]
    if isinstance(batches, MadeBatches) or (
        len(batches) == 1 and isinstance(first.value, torch.Tensor) and calibration.forward.function is None
    ):
        pixels = first.value[0, 0].numel() if first.value.dim() > 1 else 1
        most, singles = min(MOST_GRADIENTS, max(MOST_PIXELS // pixels, 1)), list[torch.Tensor]()
        for batch in batches:
            singles += batch.value[: most - len(singles)].split(1)
            if len(singles) == most:
                break
        return [read_batch(single) for single in singles], 1
    return batches, max(1, -(-FEWEST_GRADIENTS // len(batches)))


def _log_loss(outputs: Outputs, *, generator: torch.Generator) -> torch.Tensor:
    """-log p(y | x), summed, with labels y drawn from the network itself."""
    scores = logits_among(outputs).log_softmax(dim=1)
    labels = torch.multinomial(scores.detach().exp().cpu(), 1, generator=generator)[:, 0]
    return functional.nll_loss(scores, labels.to(scores.device), reduction="sum")


def _along_directions(outputs: Outputs, *, scales: Mapping[str, float], generator: torch.Generator) -> torch.Tensor:
    """Sum of the outputs over their scales, with random normal factors."""
    parts = []
    for name, y in outputs.items():
        factors = torch.randn(y.shape, generator=generator, dtype=torch.float32).to(y)
        parts.append((factors * y).sum() / scales.get(name, 1.0))
    return torch.stack([part.double() for part in parts]).sum()


def _scales(outputs: Outputs) -> Iterator[tuple[str, float]]:
    """Deviation of each output from its mean over the inputs, times the root of its number of values per input."""
    for name, y in outputs.items():
        centred = y.double() - y.double().mean(dim=0, keepdim=True) if y.dim() and len(y) > 1 else y.double()
        spread = float(centred.square().sum()) / max(len(y) if y.dim() else 1, 1)
        yield name, spread**0.5 or 1.0
