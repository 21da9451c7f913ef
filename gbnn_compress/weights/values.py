"""Unshared tensors -> coded vectors, as finely as lambda says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.codec.values import Vector, quantise
from gbnn_compress.weights.blocks import bit_patterns, values
from gbnn_compress.weights.norms import code_norm
from gbnn_compress.weights.posterior import value_unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

SAFETY = 0.5
"""Steps are this much finer than the rate law says: errors of norms and biases hit whole channels at once."""

NORM = ("weight", "bias", "running_mean", "running_var")
"""The vectors of a batch norm."""


@dataclass(frozen=True)
class Unshared:
    """One unshared tensor, ready to be coded at any lambda.

    Attributes:
        name: The tensor.
        values: float64 (n,).
        unit: How its errors are felt (see `value_unit`).
        logarithmic: Whether it is coded by its logarithm.
        exact: Bit patterns (n,) at its own dtype.
    """

    name: str
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
    vectors: dict[str, Vector] = {}
    for norm in _norms(unshared):
        coded = code_norm(
            *(each.values for each in norm),
            step=SAFETY * relative_step * norm[0].unit or 1.0,
            exact=[each.exact for each in norm],
        )
        vectors.update(zip((each.name for each in norm), coded or [], strict=coded is not None))
    return [vectors.get(each.name) or _coded(each, relative_step) for each in unshared]


def _coded(each: Unshared, relative_step: float) -> Vector:
    return quantise(
        each.values,
        step=SAFETY * relative_step * each.unit or 1.0,
        logarithmic=each.logarithmic,
        exact=each.exact,
    )


def _norms(unshared: Sequence[Unshared]) -> list[list[Unshared]]:
    """Batch norms whose four vectors are there and of one length, each in the order of `NORM`."""
    by_name = {each.name: each for each in unshared}
    prefixes = [each.name.removesuffix("running_var") for each in unshared if each.logarithmic]
    found = [[by_name.get(prefix + key) for key in NORM] for prefix in prefixes]
    complete = [[each for each in norm if each is not None] for norm in found]
    return [norm for norm in complete if len(norm) == len(NORM) and len({each.values.size for each in norm}) == 1]


def _read(name: str, tensors: Mapping[str, torch.Tensor]) -> Unshared:
    unit, logarithmic = value_unit(name, tensors)
    vector = values(tensors[name])
    if logarithmic:
        # A dead channel's variance is zero; far below its neighbours' is just as dead.
        vector = np.maximum(vector, max(float(vector.max()) * 1e-12, 1e-37))
    return Unshared(name, vector, unit, logarithmic, bit_patterns(tensors[name]))
