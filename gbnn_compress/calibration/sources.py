"""Where sigma comes from when there are inputs: squared gradients, or variational inference around the checkpoint.

Both give the precision 1 / sigma^2 of a weight, averaged over a filter, for a network that runs on the inputs in
evaluation mode. Labels of the Fisher information are drawn from the network itself (Kunstner, Hennig & Balles 2019,
"Limitations of the empirical Fisher approximation", arXiv 1905.12558); those of variational inference are the data's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch.nn import functional

from gbnn_compress.calibration.calibrated import single_thread
from gbnn_compress.calibration.sensitivity import label_gradients
from gbnn_compress.mixture.divergence import gaussian_divergence_nats
from gbnn_compress.predict.running import own_names, run_with

FISHER_BATCH = 8
"""Inputs whose gradients are squared together: labels drawn from the network make their products vanish on average."""

STEPS, BATCH = 150, 64
"""Of variational inference."""

LEARNING_RATE = 0.1
"""Adam's, for log sigma, falling by a cosine."""

FIRST_SIGMA = 0.02
"""Of variational inference, in root mean squares of the tensor."""


def fisher_precisions(
    network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], inputs: torch.Tensor, *, seed: int
) -> dict[str, np.ndarray]:
    """Diagonal Fisher information of each weight, averaged over its filter.

    F_i = E[(d log p(y | x) / d w_i)^2], y drawn from the network; over a batch, E[(sum of gradients)^2] is the sum of
    F_i, since gradients of different inputs are independent and 0 on average.

    Args:
        network: In evaluation mode, holding the checkpoint's weights.
        tensors: The network's own tensors by their names in the checkpoint, those wanted.
        inputs: float32 (N, ...), preprocessed.
        seed: Of the labels.

    Returns:
        Name -> float64 (rows,), in nats an input and squared weight; tensors that do not matter to the output left out.
    """
    own = own_names(network, tensors)
    weights = {own[name]: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    sums: dict[str, torch.Tensor] = {}
    with single_thread():
        for gradients in label_gradients(network, weights, inputs, batch=FISHER_BATCH, seed=seed):
            for name, gradient in zip(tensors, gradients, strict=True):
                if gradient is not None:
                    squares = gradient.double().square().flatten(start_dim=1).mean(dim=1)
                    sums[name] = sums.get(name, 0) + squares
    return {name: total.numpy() / len(inputs) for name, total in sums.items()}


def variational_precisions(
    network: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    seed: int,
) -> dict[str, np.ndarray]:
    """Mean-field variational inference: one sigma a filter, with means at the checkpoint's weights.

    Minimises E_q[CE] + KL(q || prior) / N over log sigma, q = N(w, sigma_f^2) for each weight by itself, the prior
    N(w, root mean square of the tensor); a draw and its mirror image a step, so that what the loss does not curve
    cancels (Graves 2011, "Practical variational inference for neural networks"). Where the loss does not feel a filter,
    its sigma goes to the prior's.

    Args:
        network: As for `fisher_precisions`.
        tensors: As for `fisher_precisions`.
        inputs: float32 (N, ...), preprocessed.
        labels: int64 (N,).
        seed: Of batches and draws.

    Returns:
        Name -> float64 (rows,), 1 / sigma^2.
    """
    generator = torch.Generator().manual_seed(seed)
    own = own_names(network, tensors)
    means = {name: tensor.detach() for name, tensor in tensors.items()}
    spreads = {name: mean.double().square().mean().sqrt().clamp_min(1e-30).to(mean) for name, mean in means.items()}
    logs = {
        name: (torch.zeros(len(mean)) + (FIRST_SIGMA * spreads[name]).log()).requires_grad_()
        for name, mean in means.items()
    }
    optimiser = torch.optim.Adam(logs.values())
    with single_thread():
        for step, chosen in enumerate(_batches(len(inputs), generator)):
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            moved = {name: _moved(log, means[name], generator) for name, log in logs.items()}
            draws = [{own[name]: mean + sign * moved[name] for name, mean in means.items()} for sign in (1, -1)]
            outputs = torch.cat([run_with(network, drawn, inputs[chosen]) for drawn in draws])
            misfit = functional.cross_entropy(outputs, labels[chosen].repeat(2))
            divergence = sum(
                mean[0].numel()
                * gaussian_divergence_nats(torch.zeros(()), logs[name].exp(), torch.zeros(()), spreads[name])
                for name, mean in means.items()
            )
            optimiser.zero_grad()
            (misfit + divergence / len(inputs)).backward()
            optimiser.step()
    return {name: log.detach().double().mul(-2).exp().numpy() for name, log in logs.items()}


def _batches(count: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """int64 (B,) positions, STEPS times."""
    for _ in range(STEPS):
        yield torch.randperm(count, generator=generator)[:BATCH]


def _moved(log_sigma: torch.Tensor, mean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """How far a draw is from the means, for every weight by itself."""
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    return log_sigma.exp().view(-1, *[1] * (mean.dim() - 1)) * noise
