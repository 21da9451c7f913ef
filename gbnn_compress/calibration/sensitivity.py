"""The cost of each layer's errors by themselves, from gradients along them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch.nn import functional

from gbnn_compress.parallel import single_thread
from gbnn_compress.predict.running import own_names, run_with

MOST_GRADIENTS, MOST_PIXELS = 256, 2_600_000
"""Most inputs that are used, and most pixels of all of them: each input takes one forward and one backward pass."""


def _label_gradients(
    network: torch.nn.Module, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor
) -> Iterator[tuple[torch.Tensor | None, ...]]:
    """Gradients of -log p(y | x), input by input, with the label y drawn from the network itself.

    Args:
        network: In evaluation mode.
        weights: Name in the network -> what takes the place of its own tensor, requiring gradients.
        inputs: (N, ...), preprocessed; the network gets a copy of each, should it work in place.

    Yields:
        For each input one gradient per weight tensor, in their order; None where the output does not depend on it.
    """
    generator = torch.Generator().manual_seed(0)
    for part in inputs.split(1):
        scores = run_with(network, weights, part.clone()).log_softmax(dim=1)
        labels = torch.multinomial(scores.detach().exp(), 1, generator=generator)[:, 0]
        likelihood = functional.nll_loss(scores, labels, reduction="sum")
        yield torch.autograd.grad(likelihood, list(weights.values()), allow_unused=True)


def error_costs(
    network: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    errors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, float], int]:
    """KL from the network's own predictions that an error of one tensor alone causes, to second order.

    KL(p_w || p_w+e) = 1/2 E_x E_y~p(y | x) [(e . d log p(y | x) / dw)^2], the Fisher information along e (Amari 1998,
    "Natural gradient works efficiently in learning"), with one label drawn for each input.

    Args:
        network: In evaluation mode, holding the original weights.
        tensors: The network's own tensors by their names in the checkpoint.
        inputs: (N, ...), preprocessed.
        errors: Name -> error of a tensor, of the tensor's shape.

    Returns:
        Name -> nats per input, of the tensors that the output depends on, empty if the network gives no gradients; and
        the number of inputs that were used.
    """
    own = own_names(network, {name: tensors[name] for name in errors if name in tensors})
    weights = {own[name]: tensors[name].detach().clone().requires_grad_() for name in own}
    along = {name: errors[name].to(tensors[name].dtype) for name in own}
    count = min(len(inputs), MOST_GRADIENTS, max(MOST_PIXELS // inputs[0, 0].numel(), 1))
    sums: dict[str, float] = {}
    with single_thread():
        try:
            for gradients in _label_gradients(network, weights, inputs[:count]):
                for name, gradient in zip(own, gradients, strict=True):
                    if gradient is not None:
                        slope = float((gradient * along[name]).sum())
                        sums[name] = sums.get(name, 0.0) + slope * slope
        except RuntimeError:  # no weight, no gradient, or a value that gradients need was overwritten or not kept
            return {}, count
    return {name: total / (2 * count) for name, total in sums.items()}, count
