"""How many inputs a layer may see: bounds on the memory of runs that all stop at the same layer."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gbnn_compress.data.batches import tensors_in

MOST_BYTES = 600_000_000
"""Memory for what all runs hold while they stop at a layer. Where inputs need more, early layers see fewer of them."""


class LiveBytes(TorchDispatchMode):
    """Within this context, counts the memory of the tensors that operations of this thread have made and still live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self._tensors: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._counts: dict[int, int] = {}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operation."""
        output = func(*args, **(kwargs or {}))
        for tensor in tensors_in(output):
            self._note(tensor)
        return output

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place, number = storage._cdata, id(tensor)
        if number in self._tensors:  # in-place operations return their argument
            if self._tensors[number][1] == place:
                return
            self._drop(number)  # `set_` has given it another memory
        if not self._counts.get(place):
            self._sizes[place] = storage.nbytes()
            self.now += self._sizes[place]
        self._counts[place] = self._counts.get(place, 0) + 1
        self._tensors[number] = weakref.ref(tensor, lambda _: self._drop(number)), place

    def _drop(self, number: int) -> None:
        _, place = self._tensors.pop(number)
        self._counts[place] -= 1
        if not self._counts[place]:
            self.now -= self._sizes.pop(place)


def find_stays(held: np.ndarray, weights: np.ndarray, *, most_bytes: int = MOST_BYTES) -> list[range]:
    """The places at which each batch takes part: the run of places with most weights at which memory suffices.

    Batches before it come first, so that the layers with small activations see more batches than others, and each
    batch needs one forward pass. The first batch takes part everywhere.

    Args:
        held: float64 (batches, places), bytes that the runs of a batch hold at each place.
        weights: float64 (places,), number of weights that are chosen there.
        most_bytes: Memory for all batches.

    Returns:
        A range for each batch, empty where memory suffices nowhere.
    """
    allowed = np.cumsum(held, axis=0) <= most_bytes
    allowed[:1] = True
    return [_longest(row, weights) for row in allowed]


def bytes_of(held: np.ndarray, stays: Sequence[range]) -> np.ndarray:
    """float64 (places,), bytes that all runs hold at each place, from those of each batch, (batches, places)."""
    there = np.array([[place in stay for place in range(held.shape[1])] for stay in stays], dtype=bool)
    return np.where(there.reshape(held.shape), held, 0.0).sum(axis=0)


def _longest(allowed: np.ndarray, weights: Sequence[float] | np.ndarray) -> range:
    """The run of allowed places with most weights; the later of equal ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], allowed.astype(int), [0]])))
    runs = [range(start, stop) for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]
    return max(reversed(runs), key=lambda run: float(np.sum(weights[run.start : run.stop])), default=range(0))
