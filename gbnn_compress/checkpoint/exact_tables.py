"""Tables: small tensors that are not learned and whose every value matters.

Examples are frequencies of rotary embeddings, noise schedules, bin edges, and energies per chemical element. Networks
look up values in them, and take differences or logarithms. Tables are kept exactly, unless they would take a large part
of the file; then they are coded to a small relative error.
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
"""Last part of the name of a learned vector; vectors with other names are tables."""

FEWEST_VALUES = 256
"""Matrices with fewer values are tables, whatever their names."""

RELATIVE_ERROR = 1e-3
"""Largest relative error of a value in a coded table, and of 1 - value if all values lie between 0 and 1."""

MOST_FRACTION = 0.05
"""Largest fraction of the file that exact tables may take."""


def is_table(name: str, tensor: torch.Tensor) -> bool:
    """Whether a floating tensor is a table.

    Tables are: vectors, unless they are named as weights, biases or parts of a norm; tensors with at most one dimension
    larger than 1; and matrices with fewer than `FEWEST_VALUES` values.
    """
    if tensor.dim() <= 1:
        return LEARNED.fullmatch(name.rpartition(".")[2]) is None
    return is_narrow(tensor) or (tensor.dim() == 2 and tensor.numel() < FEWEST_VALUES)


def is_narrow(tensor: torch.Tensor) -> bool:
    """Whether a tensor has at most one dimension larger than 1."""
    return sum(size > 1 for size in tensor.shape) <= 1


def code_table(tensor: torch.Tensor) -> Vector:
    """Code a table on the cheapest grid that satisfies `is_faithful`; exactly if no grid does.

    Args:
        tensor: Finite floating tensor of any shape.

    Returns:
        The vector of the table's values, in C order.
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
    """Whether a decoded table is accurate enough.

    Args:
        before: Original values, float64 (n,).
        after: Decoded values, float64 (n,).

    Returns:
        Whether all of these hold: the relative error of each value is at most `RELATIVE_ERROR`, and so is that of
        1 - value if all values lie in (0, 1); exactly the zeros are zero; the strict order of the values is preserved.
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
