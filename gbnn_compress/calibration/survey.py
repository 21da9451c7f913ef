"""The cost of errors in every layer, with and without feedback, from the network's own activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gbnn_compress.calibration.blocks import Block, column_blocks
from gbnn_compress.calibration.channels import matched
from gbnn_compress.calibration.feedback import column_costs, damped
from gbnn_compress.calibration.moments import Halves, collected, moments_of, whole
from gbnn_compress.calibration.positions import Positions, Sampler
from gbnn_compress.calibration.together import Inputs, Run, Stops, run_together
from gbnn_compress.calibration.tracing import Key, Piece, key_of
from gbnn_compress.calibration.twins import Twin
from gbnn_compress.calibration.uses import AnyUse, NormUse, Use


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


@torch.no_grad()
def survey(twin: Twin, inputs: Inputs, *, damping: float, match_batch_norm: bool) -> dict[str, LayerStatistics]:
    """Measure every layer whose weight is among the tensors.

    Args:
        twin: The original network.
        inputs: The batches.
        damping: Damping of the inputs' covariance (`feedback.damped`).
        match_batch_norm: Whether batch norm normalises with the inputs' own statistics. Each layer then sees
            activations of the mean and variance that it saw in training, whatever the inputs.
    """
    traced, costs = inputs.traced, dict[Key, tuple[int, float, float, int]]()
    pieces = traced.pieces
    samplers = {key: Sampler(piece, traced.present(key)) for key, piece in pieces.items() if piece.calls > 1}

    def answer(key: Key, uses: Mapping[int, Sequence[Use]]) -> dict[int, Sequence[Run]]:
        if key not in costs:
            present = traced.present(key)
            there = {batch: pair for batch, pair in uses.items() if batch in present} or uses
            found = moments_of(pieces[key], Positions(pieces[key], list(there)), there, threads=inputs.threads)
            costs[key] = _costs(pieces[key], found, twin, damping)
        return {batch: [use.run for use in pair] for batch, pair in uses.items()}

    def on_the_way(use: AnyUse, batch: int, side: int) -> torch.Tensor | None:
        sampler = samplers.get(key_of(use))
        if isinstance(use, Use) and sampler is not None:
            sampler.add(batch, use)
        return matched(use) if isinstance(use, NormUse) and match_batch_norm else None

    def stops(use: AnyUse) -> bool:
        return isinstance(use, Use) and key_of(use) in pieces and key_of(use) not in samplers

    run_together([twin], inputs, Stops(stops, answer, lambda use: use.run, on_the_way), leave=not samplers)
    for key, sampler in samplers.items():
        piece = pieces[key]
        found = [
            collected(each, None, sampler.patches(i), centred=piece.centred) for i, each in enumerate(piece.blocks)
        ]
        costs[key] = _costs(piece, found, twin, damping)
    by_name: dict[str, list[tuple[int, float, float, int]]] = {}
    for key in pieces:
        if key in costs:
            by_name.setdefault(pieces[key].name, []).append(costs[key])
    return {name: _joined(each) for name, each in by_name.items()}


def trusted(seen: np.ndarray, *, n_samples: int, damping: float) -> np.ndarray:
    """A covariance float64 (G, d, d), damped by `damping` + d / n: few samples are less reliable."""
    return damped(seen, damping=damping + seen.shape[1] / n_samples)


def source_factors(twin: Twin, name: str, operand: torch.Tensor, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Factors from errors of a tensor to errors of the weight: float64 (G, r) of the rows, (G, d) of the columns.

    They are 1 unless the weight is computed from the tensor, as in `weight_norm`: then a row or a column of the weight
    is a multiple of the tensor's.
    """
    weight = block.arrange(operand.detach()).double().cpu().numpy()
    ones = np.ones(weight.shape[:2]), np.ones((weight.shape[0], weight.shape[2]))
    if name not in twin.sources:
        return ones
    source = block.arrange(seen_alike(twin.sources[name].detach(), operand)).double().cpu().numpy()
    powers = source**2
    by_row = (weight * source).sum(axis=2) / np.maximum(powers.sum(axis=2), 1e-300)
    by_column = (weight * source).sum(axis=1) / np.maximum(powers.sum(axis=1), 1e-300)
    row_error = ((by_row[:, :, None] * source - weight) ** 2).sum()
    column_error = ((by_column[:, None] * source - weight) ** 2).sum()
    return (np.abs(by_row), ones[1]) if row_error <= column_error else (ones[0], np.abs(by_column))


def seen_alike(tensor: torch.Tensor, operand: torch.Tensor) -> torch.Tensor:
    """The view of a tensor that an operand is of a contiguous tensor of the same shape."""
    return tensor.contiguous().as_strided(operand.shape, operand.stride(), operand.storage_offset())


def _costs(piece: Piece, halves: Sequence[Halves], twin: Twin, damping: float) -> tuple[int, float, float, int]:
    """Number of weights, squared output error of one weight's unit error with and without feedback, and calls."""
    fed_back, plain = [], []
    for block, each in zip(piece.blocks, halves, strict=True):
        rows, columns = source_factors(twin, piece.name, piece.operand, block)
        power = float((rows**2).mean())
        repeats = rows.shape[1] * power
        for i, part in enumerate(column_blocks(block.width)):
            found = whole(each, i)
            hessian = trusted(found.covariance(0, centred=piece.centred), n_samples=found.n, damping=damping)
            hessian = hessian * columns[:, part, None] * columns[:, None, part]
            fed_back.append((repeats, column_costs(hessian).ravel()))
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
