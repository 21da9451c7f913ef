"""The cost of errors in every layer, with and without feedback, from the network's own activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from gbnn_compress.calibration.blocks import LONGEST_BLOCK, Block
from gbnn_compress.calibration.feedback import damped, inverse_factor
from gbnn_compress.calibration.interceptor import intercepted, unfused
from gbnn_compress.calibration.tracing import Piece, Sampler, Trace, key_of, run
from gbnn_compress.calibration.twins import Twin
from gbnn_compress.calibration.uses import AnyUse, NormUse, Use
from gbnn_compress.data.batches import Batch
from gbnn_compress.parallel import seeded_draws
from gbnn_compress.predict.forward import Forward

SMALL, LARGE = 1e-12, 1e12
"""Squares of inputs outside this range lose digits in float32, or overflow."""


@dataclass(frozen=True)
class LayerStatistics:
    """What the survey measures of one tensor.

    Attributes:
        column: Squared output error of one weight's unit error after feedback, averaged over the weights.
        calls: How often a forward pass uses the layer.
        gain: The same without feedback, over `column`.
    """

    column: float
    calls: int
    gain: float


def survey(
    twin: Twin,
    batches: Sequence[Batch],
    forward: Forward,
    traced: Trace,
    *,
    damping: float,
    match_batch_norm: bool,
) -> dict[str, LayerStatistics]:
    """Measure every layer whose weight is among the tensors.

    Args:
        twin: The original network.
        batches: The inputs.
        forward: How the network is run.
        traced: Result of `trace` on these inputs.
        damping: Damping of the inputs' covariance (`feedback.damped`).
        match_batch_norm: Whether batch norm normalises with the inputs' own statistics. Each layer then sees
            activations of the mean and variance that it saw in training, whatever the inputs.
    """
    samplers = {key: Sampler(piece) for key, piece in traced.pieces.items()}
    costs: dict[str, list[tuple[int, float, float, int]]] = {}

    def on_use(use: AnyUse, batch: int) -> torch.Tensor | None:
        if isinstance(use, NormUse):
            return matched(use) if match_batch_norm else None
        sampler = samplers.get(key_of(use)) if isinstance(use, Use) else None
        if sampler is not None and isinstance(use, Use):
            sampler.add(batch, use)
            if sampler.complete:
                piece = traced.pieces[key_of(use)]
                del samplers[key_of(use)]
                costs.setdefault(piece.name, []).append(_costs(piece, sampler, twin, damping))
        return None

    for i, batch in enumerate(batches):
        with seeded_draws(), unfused(), intercepted(twin.tensors, _bound(on_use, i)):
            run(twin, batch, forward)
    return {name: _joined(each) for name, each in costs.items()}


def _bound(on_use: Callable[[AnyUse, int], torch.Tensor | None], batch: int) -> Callable[[AnyUse], torch.Tensor | None]:
    return lambda use: on_use(use, batch)


def matched(use: NormUse) -> torch.Tensor:
    """The output of a batch norm that normalises with the inputs' own statistics."""
    mean, variance = channel_moments([use.x], axis=1)
    return use.normalise(mean.to(use.x.dtype), variance.to(use.x.dtype))


def channel_moments(ys: Sequence[torch.Tensor], *, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and variances of the channels along an axis over several tensors, float64 (channels,)."""
    pairs = []
    for y in ys:
        others = [i for i in range(y.dim()) if i != axis % y.dim()]
        variance, mean = torch.var_mean(y.double() if y.numel() < 1 << 22 else y, dim=others, correction=0)
        pairs.append((mean.double(), variance.double()))
    if len(pairs) == 1:
        return pairs[0]
    shares = torch.tensor([y.numel() for y in ys], dtype=torch.float64)
    shares = (shares / shares.sum())[:, None]
    means, variances = (torch.stack(each) for each in zip(*pairs, strict=True))
    mean = (shares * means).sum(dim=0)
    return mean, (shares * (variances + (means - mean) ** 2)).sum(dim=0)


def covariance(patches: torch.Tensor, other: torch.Tensor | None = None, *, centred: bool = True) -> np.ndarray:
    """float64 (G, d, d), mean of the outer products of patches (G, n, d), centred or not, with others.

    Products of inputs that are all below SMALL, or some above LARGE, are taken in float64.
    """
    if not SMALL <= float(patches.abs().amax()) <= LARGE:
        patches, other = patches.double(), None if other is None else other.double()
    left = patches - patches.mean(dim=1, keepdim=True) if centred else patches
    right = left if other is None else other - other.mean(dim=1, keepdim=True) if centred else other
    return (left.transpose(1, 2) @ right / patches.shape[1]).double().numpy()


def trusted(seen: np.ndarray, *, n_samples: int, damping: float) -> np.ndarray:
    """A covariance float64 (G, d, d), damped by `damping` + d / n: few samples are less reliable."""
    return damped(seen, damping=damping + seen.shape[1] / n_samples)


def column_blocks(width: int) -> list[slice]:
    """Equal runs of at most LONGEST_BLOCK columns."""
    edges = np.linspace(0, width, -(-width // LONGEST_BLOCK) + 1).astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges)]


def source_factors(twin: Twin, name: str, operand: torch.Tensor, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Factors from errors of a tensor to errors of the weight: float64 (G, r) of the rows, (G, d) of the columns.

    They are 1 unless the weight is computed from the tensor, as in `weight_norm`: then a row or a column of the weight
    is a multiple of the tensor's.
    """
    weight = block.arrange(operand.detach()).double().numpy()
    ones = np.ones(weight.shape[:2]), np.ones((weight.shape[0], weight.shape[2]))
    if name not in twin.sources:
        return ones
    source = block.arrange(seen_alike(twin.sources[name].detach(), operand)).double().numpy()
    powers = source**2
    by_row = (weight * source).sum(axis=2) / np.maximum(powers.sum(axis=2), 1e-300)
    by_column = (weight * source).sum(axis=1) / np.maximum(powers.sum(axis=1), 1e-300)
    row_error = ((by_row[:, :, None] * source - weight) ** 2).sum()
    column_error = ((by_column[:, None] * source - weight) ** 2).sum()
    return (np.abs(by_row), ones[1]) if row_error <= column_error else (ones[0], np.abs(by_column))


def seen_alike(tensor: torch.Tensor, operand: torch.Tensor) -> torch.Tensor:
    """The view of a tensor that an operand is of a contiguous tensor of the same shape."""
    return tensor.contiguous().as_strided(operand.shape, operand.stride(), operand.storage_offset())


def _costs(piece: Piece, sampler: Sampler, twin: Twin, damping: float) -> tuple[int, float, float, int]:
    """Number of weights, squared output error of one weight's unit error with and without feedback, and calls."""
    fed_back, plain = [], []
    for i, block in enumerate(piece.blocks):
        patches = sampler.patches(i)
        rows, columns = source_factors(twin, piece.name, piece.operand, block)
        power = float((rows**2).mean())
        repeats = rows.shape[1] * power
        for part in column_blocks(patches.shape[2]):
            seen = covariance(patches[:, :, part], centred=piece.centred)
            hessian = trusted(seen, n_samples=patches.shape[1], damping=damping)
            hessian = hessian * columns[:, part, None] * columns[:, None, part]
            factor = inverse_factor(hessian)
            fed_back.append((repeats, (1 / np.einsum("gjj->gj", factor) ** 2).ravel()))
            plain.append((repeats, np.einsum("gjj->gj", hessian).ravel()))
    size = piece.operand.numel()
    return size, _mean(fed_back, piece), _mean(plain, piece), piece.calls


def _mean(parts: Sequence[tuple[float, np.ndarray]], piece: Piece) -> float:
    """Mean over the columns of all blocks, weighed by the rows."""
    if len(piece.blocks) == 1:
        rows = parts[0][0] / piece.blocks[0].arrange(piece.operand).shape[1]
        return rows * float(np.concatenate([each for _, each in parts]).mean())
    return sum(rows * float(each.sum()) for rows, each in parts) / sum(rows * each.size for rows, each in parts)


def _joined(costs: Sequence[tuple[int, float, float, int]]) -> LayerStatistics:
    if len(costs) == 1:
        _, column, plain, calls = costs[0]
        return LayerStatistics(column, calls, gain=plain / column)
    total = sum(size for size, *_ in costs)
    column = sum(size * fed_back for size, fed_back, _, _ in costs) / total
    plain = sum(size * each for size, _, each, _ in costs) / total
    return LayerStatistics(column, calls=max(calls for *_, calls in costs), gain=plain / column)
