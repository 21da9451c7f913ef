"""What contexts save: the fraction of their plain code lengths that ids take, measured on a part of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.format.contexts import whole_values
from gbnn_compress.format.table_choice import choose
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.rate.maps import index_maps
from gbnn_compress.types import Posterior

if TYPE_CHECKING:
    import torch

SAMPLE = 1 << 18
"""About the number of weights that the fraction is measured on."""

MOST_TENSORS = 32
"""Largest number of tensors that the fraction is measured on: each takes milliseconds, whatever its size."""


def fraction_meter(
    tensors: Mapping[str, torch.Tensor], posteriors: Sequence[Posterior], *, value_bits: np.ndarray
) -> Callable[[Codebook], float]:
    """A function from a codebook to the fraction of `code_lengths` that a file's ids take.

    It assigns the first rows and columns of up to MOST_TENSORS tensors, the same part of each, and counts the bits of
    their ids. Contexts save a little less in a part of a tensor than in all of it. Where there are more tensors, they
    are sorted by size and cut into runs, and the middle one counts for all of its run.

    Args:
        tensors: The state dict.
        posteriors: One per shared tensor.
        value_bits: int64 (T,), bits of an outlier's value.
    """
    sizes = np.array([tensors[posterior.name].numel() for posterior in posteriors])
    runs = np.array_split(np.argsort(sizes, kind="stable"), min(len(sizes), MOST_TENSORS))
    chosen = np.array([run[len(run) // 2] for run in runs])
    stands_for = np.array([sizes[run].sum() for run in runs])
    part = min(1.0, float(np.sqrt(SAMPLE / max(sizes[chosen].sum(), 1))))
    corners = {posteriors[t].name: _corner(tensors[posteriors[t].name], part) for t in chosen}
    cut = [
        replace(posteriors[t], log_sigma=posteriors[t].log_sigma[: corners[posteriors[t].name].shape[0]])
        for t in chosen
    ]

    def measure(book: Codebook) -> float:
        maps = index_maps(corners, cut, book.of_tensors(chosen), value_bits=value_bits[chosen])
        values = whole_values(book.bank.means)
        choices = [choose(m.ids, corners[m.name].shape, values, smooth=False, trellis=m.trellis) for m in maps]
        whole = stands_for / [len(m.ids) for m in maps]
        plain = float(whole @ [choice.plain_bits for choice in choices])
        coded = float(whole @ [choice.id_bits for choice in choices])
        return coded / plain if plain else 1.0

    return measure


def _corner(tensor: torch.Tensor, part: float) -> torch.Tensor:
    rows, columns = (int(np.ceil(part * size)) for size in tensor.shape[:2])
    return tensor[:rows, :columns].contiguous()
