"""The first stage of the published method (`rate/paper.py` has its other rules): sigma by variational inference.

The network runs on labelled data in evaluation mode; the result is the precision 1 / sigma^2 of each filter's weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch.nn import functional

from gbnn_compress.mixture.divergence import gaussian_divergence_nats
from gbnn_compress.parallel import single_thread
from gbnn_compress.predict.running import own_names, run_with

STEPS, BATCH = 150, 64
"""Steps of variational inference, and inputs per step."""

LEARNING_RATE = 0.1
"""Adam's learning rate for log sigma, which falls by a cosine."""

FIRST_SIGMA = 0.02
"""Initial sigma, in root mean squares of the tensor."""


def variational_precisions(
    network: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    seed: int,
) -> dict[str, np.ndarray]:
    """Mean-field variational inference: one sigma per filter, with means at the checkpoint's weights.

    Minimises E_q[CE] + KL(q || prior) / N over log sigma, with q = N(w, sigma_f^2) for each weight and the prior
    N(w, s^2), s the root mean square of the tensor (Graves 2011, "Practical variational inference for neural
    networks"). Each step uses a draw and its mirror image, so that terms linear in the draw cancel. The sigma of a
    filter that the loss does not depend on goes to the prior's.

    Args:
        network: In evaluation mode, holding the checkpoint's weights.
        tensors: The shared tensors of the network, by their names in the checkpoint.
        inputs: float32 (N, ...), preprocessed.
        labels: int64 (N,).
        seed: Seed of batches and draws.

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
    """Positions of STEPS batches, int64 (B,)."""
    for _ in range(STEPS):
        yield torch.randperm(count, generator=generator)[:BATCH]


def _moved(log_sigma: torch.Tensor, mean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A draw minus the means, independent for every weight."""
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    return log_sigma.exp().view(-1, *[1] * (mean.dim() - 1)) * noise
