"""Sums over inputs of a layer, from which means and covariances follow. They add up over batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from gbnn_compress.calibration.blocks import Block, column_blocks
from gbnn_compress.calibration.positions import Positions
from gbnn_compress.calibration.tracing import Piece
from gbnn_compress.calibration.uses import Use
from gbnn_compress.parallel import on_threads

SMALL, LARGE = 1e-12, 1e12
"""Squares of inputs outside this range lose digits in float32, or overflow."""

CHUNK_BYTES = 1 << 24
"""Most bytes of input patches that are multiplied at once; the products are then added in float64."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over n pairs of inputs: x of the original and y of the compressed network, both minus a fixed shift.

    Attributes:
        n: Number of pairs.
        shift: float64 (G, d). A shift near the mean keeps the digits of a covariance.
        x: float64 (G, d), sum of x; zeros without original inputs.
        y: float64 (G, d), sum of y.
        yy: For each run of columns (`column_blocks`), float64 (G, k, k), sum of the products y y^T.
        xy: The same of x y^T; empty without original inputs.
    """

    n: int
    shift: np.ndarray
    x: np.ndarray
    y: np.ndarray
    yy: Sequence[np.ndarray]
    xy: Sequence[np.ndarray]

    def __add__(self, other: Moments) -> Moments:
        """The sums over the pairs of both."""
        return Moments(
            self.n + other.n,
            self.shift,
            self.x + other.x,
            self.y + other.y,
            [a + b for a, b in zip(self.yy, other.yy, strict=True)],
            [a + b for a, b in zip(self.xy, other.xy, strict=True)],
        )

    def run(self, i: int) -> Moments:
        """The moments of run i of the columns alone, as views."""
        part = column_blocks(self.y.shape[1])[i]
        shift, x, y = (each[:, part] for each in (self.shift, self.x, self.y))
        return Moments(self.n, shift, x, y, self.yy[i : i + 1], self.xy[i : i + 1])

    def covariance(self, i: int, *, centred: bool) -> np.ndarray:
        """Covariance of the compressed inputs in run i of the columns, centred or not, float64 (G, k, k)."""
        return self._expected(i, self.yy[i], self.y, centred=centred)

    def cross_covariance(self, i: int, *, centred: bool) -> np.ndarray:
        """Covariance of original (rows) with compressed inputs (columns) in run i, float64 (G, k, k)."""
        return self._expected(i, self.xy[i], self.x, centred=centred)

    def _expected(self, i: int, products: np.ndarray, left: np.ndarray, *, centred: bool) -> np.ndarray:
        part = column_blocks(self.y.shape[1])[i]
        a, b, shift = (each[:, part] for each in (left / self.n, self.y / self.n, self.shift))
        if centred:
            return products / self.n - _outer(a, b)
        return products / self.n + _outer(a, shift) + _outer(shift, b) + _outer(shift, shift)


def _outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, :, None] * b[:, None, :]


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums of one chunk, in the arithmetic that they were computed in."""

    half: int
    n: int
    x: torch.Tensor
    y: torch.Tensor
    yy: Sequence[torch.Tensor]
    xy: Sequence[torch.Tensor]


Halves = tuple[Moments | None, Moments | None]
"""Moments of the first and of the second half of the input patches; None without patches."""


def whole(halves: Halves, i: int) -> Moments:
    """The moments of all patches in run i of the columns."""
    first, second = (None if half is None else half.run(i) for half in halves)
    if first is None or second is None:
        found = first or second
        assert found is not None
        return found
    return first + second


def moments_of(
    piece: Piece, positions: Positions, uses: Mapping[int, Sequence[Use]], *, threads: int = 1
) -> list[Halves]:
    """Moments of the inputs of a piece that acts once in each batch.

    Args:
        piece: The piece.
        positions: Which input patches count.
        uses: Number of the batch -> the use in the original and in the compressed network, or in the latter alone.
        threads: Number of threads. The order of the sums is that of the batches.

    Returns:
        The moments of each block.
    """
    sums = [
        _MomentSum(block, n, centred=piece.centred) for block, n in zip(piece.blocks, positions.n_samples, strict=True)
    ]

    def chunks() -> Iterator[tuple[int, Sequence[Use], int, torch.Tensor]]:
        for batch, pair in uses.items():
            for i, (first, chosen) in enumerate(positions.next(batch, pair[-1])):
                for half, some in sums[i].chunks(first, chosen):
                    if sums[i].shift is None:
                        sums[i].set_shift(piece.blocks[i].patches(pair[-1], some))
                    yield i, pair, half, some

    def summed(chunk: tuple[int, Sequence[Use], int, torch.Tensor]) -> tuple[int, _Sums]:
        i, pair, half, some = chunk
        *x, y = (piece.blocks[i].patches(use, some) for use in pair)
        return i, sums[i].of(half, x[0] if x else None, y)

    for i, each in on_threads(summed, chunks(), threads=threads, alone=True):
        sums[i].add(each)
    return [each.halves for each in sums]


def collected(block: Block, before: torch.Tensor | None, after: torch.Tensor, *, centred: bool) -> Halves:
    """Moments of patches (G, n, d) that are in memory, of the original network, if there is one, and the compressed."""
    total = _MomentSum(block, after.shape[1], centred=centred)
    for half, some in total.chunks(0, torch.arange(after.shape[1])):
        pair = [None if each is None else each[:, some.to(each.device)] for each in (before, after)]
        assert pair[1] is not None
        if total.shift is None:
            total.set_shift(pair[1])
        total.add(total.of(half, pair[0], pair[1]))
    return total.halves


class _MomentSum:
    """The moments of both halves of the patches of a block, summed in float64."""

    def __init__(self, block: Block, n_samples: int, *, centred: bool) -> None:
        self.shift: torch.Tensor | None = None
        self._sums: list[Moments | None] = [None, None]
        self._width, self._half, self._centred = block.width, n_samples // 2, centred

    @property
    def halves(self) -> Halves:
        return self._sums[0], self._sums[1]

    def set_shift(self, y: torch.Tensor) -> None:
        """Take the shift from the first patches, (G, n, d)."""
        mean = y.double().mean(dim=1, keepdim=True)
        self.shift = (mean if self._centred else torch.zeros_like(mean)).float()

    def chunks(self, first: int, positions: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Half and positions of runs of the patches at `positions`, of which the first has the number `first`."""
        size = max(1, CHUNK_BYTES // (4 * self._width))
        edges = {0, len(positions), *range(0, len(positions), size)}
        edges |= {self._half - first} & set(range(len(positions)))
        for start, stop in pairwise(sorted(edges)):
            yield int(first + start >= self._half), positions[start:stop]

    def of(self, half: int, x: torch.Tensor | None, y: torch.Tensor) -> _Sums:
        """Sums of patches (G, n, d), which are overwritten. May be called in any thread."""
        assert self.shift is not None
        y = _with_range(y)
        x = None if x is None else _with_range(x)
        if x is not None and x.dtype != y.dtype:
            x, y = x.double(), y.double()
        for each in (y,) if x is None else (x, y):
            each -= self.shift.to(y.dtype)
        parts = column_blocks(y.shape[2])
        yy = [y[:, :, part].transpose(1, 2) @ y[:, :, part] for part in parts]
        xy = [] if x is None else [x[:, :, part].transpose(1, 2) @ y[:, :, part] for part in parts]
        sum_x = torch.zeros_like(y[:, 0], dtype=torch.float64) if x is None else x.sum(dim=1, dtype=torch.float64)
        return _Sums(half, y.shape[1], sum_x, y.sum(dim=1, dtype=torch.float64), yy, xy)

    def add(self, sums: _Sums) -> None:
        """Add the sums of a chunk. The order of these calls decides the rounding."""
        assert self.shift is not None
        there = self._sums[sums.half]
        if there is None:
            shift, x, y = (each.double().cpu().numpy() for each in (self.shift[:, 0], sums.x, sums.y))
            yy, xy = ([each.double().cpu().numpy() for each in products] for products in (sums.yy, sums.xy))
            self._sums[sums.half] = Moments(sums.n, shift, x, y, yy, xy)
            return
        parts = (sums.x, sums.y, *sums.yy, *sums.xy)
        for total, part in zip((there.x, there.y, *there.yy, *there.xy), parts, strict=True):
            total += part.cpu().numpy()
        self._sums[sums.half] = replace(there, n=there.n + sums.n)


def _with_range(patches: torch.Tensor) -> torch.Tensor:
    """In float64 if squares would leave the range of float32; below float32 in float32."""
    if patches.dtype in (torch.float16, torch.bfloat16):
        patches = patches.float()
    largest = float(patches.abs().amax()) if patches.numel() else 1.0
    return patches if SMALL <= largest <= LARGE else patches.double()
