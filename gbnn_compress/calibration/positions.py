"""Samples of a layer's input patches, at positions that are chosen in advance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gbnn_compress.calibration.blocks import chosen
from gbnn_compress.calibration.tracing import Piece
from gbnn_compress.calibration.uses import Use


class Positions:
    """Which input patches of a piece are looked at: some of those of all batches, chosen in advance."""

    def __init__(self, piece: Piece, batches: Sequence[int] | None = None) -> None:
        """Choose positions.

        Args:
            piece: The piece.
            batches: The batches that count. Default: all.
        """
        self._blocks = piece.blocks
        counts = piece.counts if batches is None else piece.counts[list(batches)]
        self._rows = {batch: row for row, batch in enumerate(range(len(counts)) if batches is None else batches)}
        self._starts, self._seen = np.cumsum(counts, axis=0) - counts, np.zeros_like(counts)
        self._total = counts.sum(axis=0)
        self._chosen = [chosen(int(n), block.wanted) for n, block in zip(self._total, piece.blocks, strict=True)]

    @property
    def n_samples(self) -> list[int]:
        """Number of chosen patches of each block."""
        return [len(each) for each in self._chosen]

    @property
    def complete(self) -> bool:
        """Whether all calls were seen."""
        return bool((self._seen.sum(axis=0) >= self._total).all())

    def next(self, batch: int, use: Use) -> list[tuple[int, torch.Tensor]]:
        """For each block, the number of the next call's first chosen patch, and the positions in it, int64 (m,)."""
        found, row = [], self._rows.get(batch)
        if row is None:
            return [(0, torch.zeros(0, dtype=torch.int64)) for _ in self._blocks]
        for i, block in enumerate(self._blocks):
            count = block.count(use)
            start = int(self._starts[row, i] + self._seen[row, i])
            self._seen[row, i] += count
            edges = torch.tensor([start, start + count])
            low, high = torch.searchsorted(self._chosen[i], edges).tolist()
            found.append((low, self._chosen[i][low:high] - start))
        return found


class Sampler:
    """Input patches of one piece over all its calls, for pieces that are chosen after a pass."""

    def __init__(self, piece: Piece, batches: Sequence[int] | None = None) -> None:
        self.positions = Positions(piece, batches)
        self._blocks = piece.blocks
        self._parts: list[dict[int, torch.Tensor]] = [{} for _ in piece.blocks]

    def add(self, batch: int, use: Use) -> None:
        """Take the patches of one call."""
        for i, (first, positions) in enumerate(self.positions.next(batch, use)):
            if len(positions):
                self._parts[i][first] = self._blocks[i].patches(use, positions)

    @property
    def complete(self) -> bool:
        """Whether all calls were seen."""
        return self.positions.complete

    def patches(self, i: int) -> torch.Tensor:
        """(groups, m, d), patches of block i in the order of batches and calls."""
        parts = [self._parts[i][first] for first in sorted(self._parts[i])]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
