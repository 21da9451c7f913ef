"""Batch-norm statistics of a network with changed weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from gbnn_compress.data.batches import Batch
from gbnn_compress.predict.running import evaluating
from gbnn_compress.training.goal import Goal


@torch.no_grad()
def settle_batch_norm(
    network: torch.nn.Module, weights: Mapping[str, torch.Tensor], batches: Iterator[Batch], *, goal: Goal
) -> None:
    """Replace the batch-norm statistics of a network by their averages over batches.

    Args:
        network: Its statistics change in place, its modes stay.
        weights: Name in the network -> weights to run it with.
        batches: On the network's device.
        goal: How the network runs.
    """
    norms = _tracking(network)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    with evaluating(network):
        for norm in norms:
            norm.train()
        for batch in batches:
            goal.run(network, batch, weights)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum


def running_statistics(network: torch.nn.Module) -> list[torch.Tensor]:
    """The means and variances of all batch-norm layers that track them, not copied."""
    return [
        tensor for norm in _tracking(network) for tensor in (norm.running_mean, norm.running_var) if tensor is not None
    ]


def _tracking(network: torch.nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
