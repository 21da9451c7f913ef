"""Unshared tensors -> coded vectors, as finely as lambda says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.codec.values import Vector, quantise
from gbnn_compress.weights.blocks import bit_patterns, values
from gbnn_compress.weights.posterior import value_unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

SAFETY = 0.5
"""Steps are this much finer than the rate law says: errors of norms and biases hit whole channels at once."""


@dataclass(frozen=True)
class Unshared:
    """One unshared tensor, ready to be coded at any lambda.

    Attributes:
        values: float64 (n,).
        unit: How its errors are felt (see `value_unit`).
        logarithmic: Whether it is coded by its logarithm.
        exact: Bit patterns (n,) at its own dtype.
    """

    values: np.ndarray
    unit: float
    logarithmic: bool
    exact: np.ndarray


def read_unshared(tensors: Mapping[str, torch.Tensor], unshared: Sequence[str]) -> list[Unshared]:
    """Collect the unshared tensors.

    Args:
        tensors: The state dict.
        unshared: Their names.
    """
    return [_read(name, tensors) for name in unshared]


def code_values(unshared: Sequence[Unshared], *, relative_step: float) -> list[Vector]:
    """Quantise the unshared tensors under the same lambda as the weights.

    Args:
        unshared: From `read_unshared`.
        relative_step: Step that a value of unit 1 would get, from the lambda of the weights.

    Returns:
        One vector a tensor.
    """
    return [
        quantise(
            each.values,
            step=SAFETY * relative_step * each.unit or 1.0,
            logarithmic=each.logarithmic,
            exact=each.exact,
        )
        for each in unshared
    ]


def _read(name: str, tensors: Mapping[str, torch.Tensor]) -> Unshared:
    unit, logarithmic = value_unit(name, tensors)
    vector = values(tensors[name])
    if logarithmic:
        # A dead channel's variance is zero; far below its neighbours' is just as dead.
        vector = np.maximum(vector, max(float(vector.max()) * 1e-12, 1e-37))
    return Unshared(vector, unit, logarithmic, bit_patterns(tensors[name]))
