"""Tables: small tensors that are no weights, of which every value counts.

Frequencies of rotary embeddings, noise schedules, bins, one energy an element: networks look values up in them, take
differences of neighbours or logarithms. They are kept exactly. Only where they would take much of the file are they
coded, to a relative error that such uses bear.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.checkpoint.arrays import bit_patterns, rounded, values
from gbnn_compress.format.vectors import EXACT, Vector, dequantise, exactly, quantise, vector_bits

if TYPE_CHECKING:
    import torch

LEARNED = re.compile(r"weight|gamma|beta|running_\w+|(\w+_)?bias(_\w+)?")
"""Last parts of the names of vectors that are learned and not looked up."""

FEWEST_VALUES = 256
"""Matrices of fewer values are tables, whatever their names."""

RELATIVE_ERROR = 1e-3
"""Of a value in a coded table, and of 1 - value where all values lie between 0 and 1."""

MOST_SHARE = 0.05
"""Of the file that exact tables may take."""


def is_table(name: str, tensor: torch.Tensor) -> bool:
    """Whether a floating tensor is a table.

    Vectors are, unless they are named as weights, biases or parts of a norm; so are matrices of one row or one column,
    tensors of more dimensions that are as narrow, and matrices of under `FEWEST_VALUES` values.
    """
    if tensor.dim() <= 1:
        return LEARNED.fullmatch(name.rpartition(".")[2]) is None
    return is_narrow(tensor) or (tensor.dim() == 2 and tensor.numel() < FEWEST_VALUES)


def is_narrow(tensor: torch.Tensor) -> bool:
    """Whether a tensor has one dimension, at most, of more than one entry."""
    return sum(size > 1 for size in tensor.shape) <= 1


def code_table(tensor: torch.Tensor) -> Vector:
    """A table on the cheapest grid that keeps `is_faithful`; exact where none does.

    Args:
        tensor: Floating, of any shape, finite.

    Returns:
        The vector of its values, C order.
    """
    table, exact = values(tensor), exactly(bit_patterns(tensor))
    smallest = float(np.abs(table[table != 0]).min(initial=np.inf))
    grids = [quantise(table, step=RELATIVE_ERROR * smallest, logarithmic=False, exact=exact.codes)]
    if table.min() > 0:
        step = RELATIVE_ERROR / float(np.log(2))
        grids.append(quantise(table, step=step, logarithmic=True, exact=exact.codes))
    faithful = [grid for grid in grids if grid.mode != EXACT and _keeps(tensor, grid)]
    return min((exact, *faithful), key=lambda vector: vector_bits([vector], roles=[""]))


def _keeps(tensor: torch.Tensor, grid: Vector) -> bool:
    return is_faithful(values(tensor), values(rounded(dequantise(grid), tensor.dtype)))


def is_faithful(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether a decoded table still serves.

    Args:
        before: float64 (n,).
        after: float64 (n,), decoded.

    Returns:
        Whether each value is kept to a relative error of `RELATIVE_ERROR`, and 1 - value too where all lie in (0, 1);
        zeros are where zeros were, and what was larger than another value still is.
    """
    error = np.abs(after - before)
    order = np.argsort(before, kind="stable")
    rises = np.diff(before[order]) > 0
    inside = bool(((before > 0) & (before < 1)).all())
    return bool(
        (error <= RELATIVE_ERROR * np.abs(before)).all()
        and (not inside or (error <= RELATIVE_ERROR * (1 - before)).all())
        and ((after == 0) == (before == 0)).all()
        and (np.diff(after[order])[rises] > 0).all()
    )
