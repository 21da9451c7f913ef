"""Unshared tensors to coded vectors, under the lambda of the weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.checkpoint.arrays import bit_patterns, values
from gbnn_compress.checkpoint.exact_tables import code_table
from gbnn_compress.format.vectors import Vector, exactly, quantise, role
from gbnn_compress.rate.batch_norms import ROLES, code_norm, code_statistics, spans_too_much
from gbnn_compress.rate.posterior import value_unit

if TYPE_CHECKING:
    import torch

SAFETY = 0.5
"""Factor of the step that the rate law gives: an error of a norm or bias hits a whole channel."""


@dataclass(frozen=True)
class Unshared:
    """One unshared tensor, ready to be coded at any lambda.

    Attributes:
        name: The tensor.
        values: float64 (n,).
        unit: Unit in which its errors count (`posterior.value_unit`).
        exact: Bit patterns (n,) at its own dtype.
        dtype: Its dtype.
        kept: Its vector if lambda does not matter (a table, or a tensor that is kept exactly); else None.
    """

    name: str
    values: np.ndarray
    unit: float
    exact: np.ndarray
    dtype: torch.dtype
    kept: Vector | None = None


def read_unshared(
    tensors: Mapping[str, torch.Tensor],
    unshared: Sequence[str],
    *,
    tables: Collection[str] = (),
    exact: Collection[str] = (),
) -> list[Unshared]:
    """Collect the unshared tensors.

    Args:
        tensors: The state dict.
        unshared: Their names.
        tables: Names of those that are tables (`checkpoint/exact_tables.py`).
        exact: Names of those to keep exactly.
    """
    return [_read(name, tensors, is_table=name in tables, is_exact=name in exact) for name in unshared]


def code_values(unshared: Sequence[Unshared], *, relative_step: float) -> list[Vector]:
    """Quantise the unshared tensors under the same lambda as the weights.

    Args:
        unshared: From `read_unshared`.
        relative_step: Step of a value of unit 1 at the lambda of the weights.

    Returns:
        One vector per tensor.
    """
    vectors = {each.name: each.kept for each in unshared if each.kept is not None}
    by_name = {each.name: each for each in unshared}
    for norm in norms_of([each.name for each in unshared if each.kept is None]):
        found = {key: by_name[name] for key, name in norm.items()}
        vectors |= zip(norm.values(), _coded_norm(found, relative_step), strict=True)
    return [vectors.get(each.name) or _coded(each, relative_step) for each in unshared]


def value_step(unit: float, relative_step: float) -> float:
    """The largest grid step of a tensor of this unit."""
    return SAFETY * relative_step * unit or 1.0


def statistics_unit(size: int) -> float:
    """Unit of output errors of a batch norm with `size` channels and neither weight nor bias."""
    return float(np.sqrt(size))


def norms_of(names: Collection[str]) -> list[dict[str, str]]:
    """The batch norms among some names: for each, role -> name of the vectors that it has, in the order of `ROLES`."""
    prefixes = [name.removesuffix("running_var") for name in names if role(name) == "running_var"]
    return [{key: prefix + key for key in ROLES if prefix + key in names} for prefix in prefixes]


def _coded_norm(norm: Mapping[str, Unshared], relative_step: float) -> list[Vector]:
    """The vectors of a batch norm in the order of `ROLES`; exact if one is missing or lengths differ."""
    parts = list(norm.values())
    if tuple(norm) not in (ROLES, ROLES[2:]) or len({each.values.size for each in parts}) != 1:
        return [exactly(each.exact) for each in parts]
    vectors, exact, dtypes = zip(*((each.values, each.exact, each.dtype) for each in parts), strict=True)
    if "bias" in norm:
        return code_norm(*vectors, step=value_step(norm["bias"].unit, relative_step), exact=exact, dtypes=dtypes)
    step = value_step(statistics_unit(parts[0].values.size), relative_step)
    return code_statistics(*vectors, step=step, exact=exact, dtypes=dtypes)


def _coded(each: Unshared, relative_step: float) -> Vector:
    if spans_too_much(each.values):
        return exactly(each.exact)
    return quantise(each.values, step=value_step(each.unit, relative_step), logarithmic=False, exact=each.exact)


def _read(name: str, tensors: Mapping[str, torch.Tensor], *, is_table: bool, is_exact: bool) -> Unshared:
    tensor = tensors[name]
    bits = bit_patterns(tensor)
    kept = exactly(bits) if is_exact else code_table(tensor) if is_table else None
    return Unshared(name, values(tensor), value_unit(name, tensors), bits, tensor.dtype, kept)
