"""Means and variances of the channels of activations, over several batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gbnn_compress.calibration.uses import NormUse

ChannelMoments = tuple[int, torch.Tensor, torch.Tensor]
"""Number of values, and float64 (channels,) means and variances."""


def matched(use: NormUse) -> torch.Tensor:
    """The output of a batch norm that normalises with the inputs' own statistics."""
    mean, variance = channel_moments([use.x], axis=1)
    return use.normalise(mean.to(use.x.dtype), variance.to(use.x.dtype))


def channel_moments(ys: Sequence[torch.Tensor], *, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and variances of the channels along an axis over several tensors, float64 (channels,)."""
    return joined_moments([moments_along(y, axis=axis) for y in ys])


def moments_along(y: torch.Tensor, *, axis: int) -> ChannelMoments:
    """Moments of the channels along an axis of one tensor."""
    others = [i for i in range(y.dim()) if i != axis % y.dim()]
    variance, mean = torch.var_mean(y.double() if y.numel() < 1 << 22 else y, dim=others, correction=0)
    return y.numel(), mean.double(), variance.double()


def joined_moments(parts: Sequence[ChannelMoments]) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and variances over the values of all parts, float64 (channels,)."""
    if len(parts) == 1:
        return parts[0][1:]
    sizes, means, variances = zip(*parts, strict=True)
    mean, variance = torch.stack(means), torch.stack(variances)
    shares = torch.tensor(sizes, dtype=torch.float64, device=mean.device)
    shares = (shares / shares.sum())[:, None]
    whole = (shares * mean).sum(dim=0)
    return whole, (shares * (variance + (mean - whole) ** 2)).sum(dim=0)
