"""A training that begins at a file of the target ratio, instead of at the checkpoint.

Where nothing but the checkpoint says what is right, calibration is a good start: no stage in which the ratio rises
throws away what error feedback has found. A regression network of 34,000 weights at 16x came from a relative error of
.041 to .017 in 10 epochs; begun at the checkpoint, it came to .046.
"""

from __future__ import annotations

import numpy as np
import torch

from gbnn_compress.target.encode import Cut, posterior_noise
from gbnn_compress.training.coding import CodingRule
from gbnn_compress.training.encoder import Trainer

INSIDE = 0.1
"""Least distance of a latent weight from its component's thresholds at the start, over the distance of the two."""


@torch.no_grad()
def start_from(trainer: Trainer, cut: Cut) -> None:
    """Let a network in training have the weights of a file: its components, their members, and its unshared tensors.

    Tables stay as they are. A file holds them to a small fraction of each value, so a value on its way through zero
    would make the file larger by several percent, and rate control would take them from the weights.

    Args:
        trainer: Changed in place.
        cut: What the file was encoded from.
    """
    shared, book, escape = trainer.shared, cut.book, len(cut.book.bank.means)
    ids = {each.name: torch.from_numpy(each.ids.astype(np.int64)).to(shared.device) for each in cut.assigned.maps}
    outliers = {
        name: (own == escape).reshape(shared.latent[name].shape) for name, own in ids.items() if (own == escape).any()
    }
    noise = posterior_noise(cut.prepared, book)
    shared.adopt(book, cut.prepared.posteriors, exponent=cut.exponent, noise=noise, outliers=outliers)
    for name, rule in shared.coding.rules.items():
        latent, means = shared.latent[name], shared.coding.means.detach()
        placed = _placed(rule, ids[name].view(len(latent), -1).clamp(max=escape - 1), means).view(latent.shape)
        kept = outliers.get(name)
        latent.copy_(placed * rule.scale if kept is None else torch.where(kept, latent, placed * rule.scale))
    own = trainer.network.state_dict()
    for name, tensor in cut.assigned.statistics.items():
        if name in trainer.names:
            own[trainer.names[name]].copy_(tensor)
    tables = {trainer.names[name] for name in cut.prepared.selection.tables if name in trainer.names}
    for name, parameter in trainer.network.named_parameters(remove_duplicate=False):
        if name in tables:
            parameter.requires_grad = False


def _placed(rule: CodingRule, ids: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Latent weights that a rule assigns to given components, as near as can be to their means, float32 (rows, n).

    A component that wins nowhere in a row, because another one costs less everywhere, leaves its weights at its mean.
    """
    edges = torch.nn.functional.pad(rule.thresholds, (1, 1), value=torch.inf)
    edges[:, 0] = -torch.inf
    found = means[ids]
    for place in range(rule.winners.shape[1]):
        low, high = edges[:, place, None], edges[:, place + 1, None]
        margin = torch.where((high - low).isfinite(), INSIDE * (high - low), 0.0)
        inside = torch.minimum(torch.maximum(means[rule.winners[:, place, None]], low + margin), high - margin)
        mine = (ids == rule.winners[:, place, None]) & (high > low)
        found = torch.where(mine, inside, found)
    return found
