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


def fraction_meter(
    tensors: Mapping[str, torch.Tensor], posteriors: Sequence[Posterior], *, value_bits: np.ndarray
) -> Callable[[Codebook], float]:
    """A function from a codebook to the fraction of `code_lengths` that a file's ids take.

    It assigns the first rows and columns of every tensor, the same part of each, and counts the bits of their ids.
    Contexts save a little less in a part of a tensor than in all of it.

    Args:
        tensors: The state dict.
        posteriors: One a shared tensor.
        value_bits: int64 (T,), bits of an outlier's value.
    """
    total = sum(tensors[posterior.name].numel() for posterior in posteriors)
    part = min(1.0, float(np.sqrt(SAMPLE / max(total, 1))))
    corners = {posterior.name: _corner(tensors[posterior.name], part) for posterior in posteriors}
    cut = [replace(p, log_sigma=p.log_sigma[: corners[p.name].shape[0]]) for p in posteriors]

    def measure(book: Codebook) -> float:
        maps = index_maps(corners, cut, book, value_bits=value_bits)
        values = whole_values(book.bank.means)
        choices = [choose(m.ids, corners[m.name].shape, values, smooth=False, trellis=m.trellis) for m in maps]
        whole = [tensors[m.name].numel() / len(m.ids) for m in maps]
        plain = sum(size * choice.plain_bits for size, choice in zip(whole, choices, strict=True))
        coded = sum(size * choice.id_bits for size, choice in zip(whole, choices, strict=True))
        return coded / plain if plain else 1.0

    return measure


def _corner(tensor: torch.Tensor, part: float) -> torch.Tensor:
    rows, columns = (int(np.ceil(part * size)) for size in tensor.shape[:2])
    return tensor[:rows, :columns].contiguous()
