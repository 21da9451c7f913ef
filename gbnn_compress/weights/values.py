"""Unshared tensors -> coded vectors, as finely as lambda says."""

from __future__ import annotations

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


def code_values(tensors: Mapping[str, torch.Tensor], unshared: Sequence[str], *, relative_step: float) -> list[Vector]:
    """Quantise the unshared tensors under the same lambda as the weights.

    Args:
        tensors: The state dict.
        unshared: Names of the tensors to code.
        relative_step: Step that a value of unit 1 would get (see `value_unit`), from the lambda of the weights.

    Returns:
        One vector a tensor.
    """
    return [_code(name, tensors, relative_step) for name in unshared]


def _code(name: str, tensors: Mapping[str, torch.Tensor], relative_step: float) -> Vector:
    unit, logarithmic = value_unit(name, tensors)
    vector = values(tensors[name])
    if logarithmic:
        # A dead channel's variance is zero; far below its neighbours' is just as dead.
        vector = np.maximum(vector, max(float(vector.max()) * 1e-12, 1e-37))
    step = SAFETY * relative_step * unit
    return quantise(vector, step=step or 1.0, logarithmic=logarithmic, exact=bit_patterns(tensors[name]))
