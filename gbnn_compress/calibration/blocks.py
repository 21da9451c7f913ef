"""Weights of one use as least-squares problems: which weights share which inputs, and samples of these inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional

from gbnn_compress.calibration.uses import Geometry, Use

SAMPLES_PER_WEIGHT, FEWEST_SAMPLES = 16, 1024
"""A layer's covariance is estimated from so many input patches per weight of a filter, and no fewer than the second."""

LONGEST_BLOCK = 1024
"""Most columns whose errors are fed back together; wider layers are cut into equal blocks."""


@dataclass(frozen=True, eq=False)
class Block:
    """Groups of filters; the filters of a group see the same inputs.

    Attributes:
        arrange: Maps values of the operand's shape, such as weights, to (groups, rows, d).
        width: d.
        count: Returns the number n of input patches in a use.
        patches: Maps (use, positions int64 (m,)) to the input patches there, (groups, m, d).
    """

    arrange: Callable[[torch.Tensor], torch.Tensor]
    width: int
    count: Callable[[Use], int]
    patches: Callable[[Use, torch.Tensor], torch.Tensor]

    @property
    def wanted(self) -> int:
        """Number of patches from which the covariance is estimated."""
        return max(FEWEST_SAMPLES, SAMPLES_PER_WEIGHT * min(self.width, LONGEST_BLOCK))


def column_blocks(width: int) -> list[slice]:
    """Equal runs of at most LONGEST_BLOCK columns."""
    edges = np.linspace(0, width, -(-width // LONGEST_BLOCK) + 1).astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges)]


def blocks_of(use: Use) -> list[Block]:
    """The least-squares problems of a use; together they hold each of its weights once."""
    shape = use.weight.shape
    if use.geometry is None:
        shared = use.weight.dim() == 3 and use.weight.stride(0) == 0
        return [_of_product(shape, transposed=use.transposed, shared=shared)]
    if use.geometry.transposed:
        return _of_transposed(shape, use.geometry)
    return [_of_convolution(shape, use.geometry)]


def places_of(operand: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Position of each value of an operand in its tensor, in C order, int64 of the operand's shape.

    Args:
        operand: The tensor or a view of it.
        tensor: The tensor.
    """
    numbers = torch.empty_strided(tensor.shape, tensor.stride(), dtype=torch.int64)
    numbers.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
    return numbers.as_strided(operand.shape, operand.stride(), operand.storage_offset() - tensor.storage_offset())


def chosen(total: int, wanted: int) -> torch.Tensor:
    """int64, sorted: all positions, or `wanted` random ones if there are more."""
    if total <= wanted:
        return torch.arange(total)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(total, (wanted,), generator=generator).sort().values


def _of_product(shape: torch.Size, *, transposed: bool, shared: bool) -> Block:
    """The block of a matrix, or of one matrix per group; `shared`: all groups have the same matrix."""
    width = shape[-2] if transposed else shape[-1]
    groups = shape[0] if len(shape) == 3 and not shared else 1

    def arrange(operand: torch.Tensor) -> torch.Tensor:
        rows = operand.transpose(-1, -2) if transposed else operand
        return rows[:1] if shared else rows.reshape(groups, *rows.shape[-2:])

    def inputs(use: Use) -> torch.Tensor:
        return use.x.reshape(groups, -1, width)

    return Block(
        arrange,
        width,
        count=lambda use: inputs(use).shape[1],
        patches=lambda use, positions: inputs(use)[:, positions.to(use.x.device)],
    )


def _of_convolution(shape: torch.Size, geometry: Geometry) -> Block:
    groups, kernel = geometry.groups, shape[2:]
    taps = [torch.arange(n) * step for n, step in zip(kernel, geometry.dilation, strict=True)]

    def size(use: Use) -> list[int]:
        sides = zip(use.x.shape[2:], kernel, geometry.stride, geometry.padding, geometry.dilation, strict=True)
        return [(n + 2 * pad - step * (k - 1) - 1) // stride + 1 for n, k, stride, pad, step in sides]

    def patches(use: Use, positions: torch.Tensor) -> torch.Tensor:
        image, *corner = _unravelled(positions, size(use))
        starts = [at * stride - pad for at, stride, pad in zip(corner, geometry.stride, geometry.padding, strict=True)]
        coordinates = [start[:, None] + tap for start, tap in zip(starts, taps, strict=True)]
        return _gathered(use.x, image, coordinates, groups)

    return Block(
        lambda operand: operand.reshape(groups, len(operand) // groups, -1),
        math.prod(shape[1:]),
        count=lambda use: len(use.x) * math.prod(size(use)),
        patches=patches,
    )


def _of_transposed(shape: torch.Size, geometry: Geometry) -> list[Block]:
    """Output t = q * stride - padding + phase sees input q - j through tap `phase + j * stride` of the kernel.

    Phases with equally many taps see the same windows of the input: they are rows of one block. With a dilation the
    taps are treated as rows, which leaves out that overlapping outputs are summed.
    """
    kernel = shape[2:]
    strides = geometry.stride if set(geometry.dilation) == {1} else kernel
    per_axis = []
    for k, stride in zip(kernel, strides, strict=True):
        counts = sorted({-(-(k - phase) // stride) for phase in range(min(stride, k))}, reverse=True)
        per_axis.append(
            [(n, [phase for phase in range(min(stride, k)) if -(-(k - phase) // stride) == n]) for n in counts]
        )
    return [_phases(shape[0], geometry, strides, combination) for combination in itertools.product(*per_axis)]


def _phases(
    channels: int, geometry: Geometry, strides: Sequence[int], combination: Sequence[tuple[int, list[int]]]
) -> Block:
    """The block of the phases with some number of taps along each axis."""
    axes, groups = len(combination), geometry.groups
    width = channels // groups * math.prod(n for n, _ in combination)
    back = [torch.arange(n) for n, _ in combination]

    def arrange(operand: torch.Tensor) -> torch.Tensor:
        split = operand.reshape(groups, channels // groups, *operand.shape[1:])
        for axis, ((n, phases), stride) in enumerate(zip(combination, strides, strict=True)):
            taps = torch.tensor(phases)[:, None] + stride * torch.arange(n)
            split = split.index_select(3 + 2 * axis, taps.reshape(-1))
            split = split.unflatten(3 + 2 * axis, (len(phases), n))
        order = [0, 2, *(3 + 2 * i for i in range(axes)), 1, *(4 + 2 * i for i in range(axes))]
        return split.permute(order).reshape(groups, -1, width)

    def size(use: Use) -> list[int]:
        return [side + n - 1 for side, (n, _) in zip(use.x.shape[2:], combination, strict=True)]

    def patches(use: Use, positions: torch.Tensor) -> torch.Tensor:
        image, *last = _unravelled(positions, size(use))
        return _gathered(use.x, image, [at[:, None] - j for at, j in zip(last, back, strict=True)], groups)

    return Block(arrange, width, count=lambda use: len(use.x) * math.prod(size(use)), patches=patches)


def _unravelled(positions: torch.Tensor, size: Sequence[int]) -> list[torch.Tensor]:
    """Image and place along each axis of positions in (images, *size)."""
    parts = []
    for side in reversed(size):
        parts.append(positions % side)
        positions = positions // side
    return [positions, *reversed(parts)]


def _gathered(x: torch.Tensor, image: torch.Tensor, coordinates: list[torch.Tensor], groups: int) -> torch.Tensor:
    """Patches (groups, m, d) of an input (N, channels, ...) at coordinates (m, taps) per axis; zero outside of it."""
    before = [max(0, -int(at.min())) for at in coordinates]
    after = [max(0, int(at.max()) - side + 1) for at, side in zip(coordinates, x.shape[2:], strict=True)]
    pads = [pad for pair in zip(reversed(before), reversed(after), strict=True) for pad in pair]
    padded = functional.pad(x, pads).movedim(1, -1)
    axes = len(coordinates)
    index = [image.reshape(-1, *[1] * axes).to(x.device)]
    for axis, (at, start) in enumerate(zip(coordinates, before, strict=True)):
        index.append((at + start).reshape(len(at), *[1] * axis, -1, *[1] * (axes - 1 - axis)).to(x.device))
    patches = padded[tuple(index)]  # m, taps..., channels
    taps = patches.shape[1:-1]
    split = patches.reshape(len(image), *taps, groups, x.shape[1] // groups)
    order = [1 + axes, 0, 2 + axes, *range(1, 1 + axes)]
    return split.permute(order).reshape(groups, len(image), -1)
