"""Weights that the network divides by their norm, which must not become zero.

torch's weight norm computes g v / |v|, in each of its forms: hooks (`weight_g`, `weight_v`) and parametrisations
(`parametrizations.weight.original0`, `original1`). Its spectral norm divides by a norm of the whole matrix
(`weight_orig` beside `weight_u`, `parametrizations.weight.original` beside `0._u`). A part of v that rounds to zeros
gives NaN.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.checkpoint.arrays import bit_patterns, rounded, values
from gbnn_compress.types import IndexMap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

_WEIGHT_NORMS = ((re.compile(r"_v$"), "_g"), (re.compile(r"(?<=\.)original1$"), "original0"))
"""How the name of a direction v ends, and the name of its length g."""

_SPECTRAL_NORMS = (
    (re.compile(r"_orig$"), re.compile(r"_u")),
    (re.compile(r"(?<=\.)original$"), re.compile(r"\d+\._u")),
)
"""How the name of a matrix ends, and the name of its singular vector."""


UNEVEN = 64.0
"""A warning names parts whose largest value is over so many times smaller than that of the median part."""


def divided_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The tensors that a network divides by their norms.

    Args:
        shapes: Name -> shape of every tensor of the state dict.

    Returns:
        Name -> axes: each index along them has a norm of its own; without axes, the tensor has one norm.
    """
    names = list(shapes)
    return {name: axes for name in names if (axes := _axes(name, shapes)) is not None}


def uneven_warnings(tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> list[str]:
    """One line for each tensor whose parts have norms so unequal that one scale does not serve all of them.

    Args:
        tensors: The state dict.
        names: Names of the shared tensors.
    """
    axes = divided_weights({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    lines = []
    for name in names:
        if name not in axes:
            continue
        largest = np.abs(values(tensors[name]))[_parts(tensors[name], axes[name])].max(axis=1)
        alive = largest[largest > 0]
        small = int((UNEVEN * alive < np.median(alive)).sum()) if alive.size else 0
        if small:
            lines.append(
                f"`{name}`: {small:,} of {len(largest):,} parts are over {UNEVEN:g} times smaller than the others; the"
                " network divides each part by its norm, so these lose more: evaluate the file before use"
            )
    return lines


def vanished_places(before: torch.Tensor, after: torch.Tensor, *, axes: Sequence[int]) -> np.ndarray:
    """Places of the largest original values of the parts that have become all zeros.

    Args:
        before: The tensor.
        after: The same shape, decoded.
        axes: From `divided_weights`.

    Returns:
        int64 (parts,), positions in C order, ascending.
    """
    parts = _parts(before, axes)
    old, new = (np.abs(values(tensor))[parts] for tensor in (before, after))
    lost = np.flatnonzero((new.max(axis=1) == 0) & (old.max(axis=1) > 0))
    return np.sort(parts[lost, old[lost].argmax(axis=1)])


def _parts(tensor: torch.Tensor, axes: Sequence[int]) -> np.ndarray:
    """int64 (parts, n), positions in C order of the values of each part."""
    apart = sorted(axes)
    others = [axis for axis in range(tensor.dim()) if axis not in apart]
    count = int(np.prod([tensor.shape[axis] for axis in apart], dtype=np.int64))
    return np.arange(tensor.numel()).reshape(tuple(tensor.shape)).transpose(*apart, *others).reshape(count, -1)


def with_parts_kept(
    maps: Sequence[IndexMap], tensors: Mapping[str, torch.Tensor], *, means: np.ndarray, scales: Iterable[float]
) -> list[IndexMap]:
    """Maps in which each part that would become all zeros keeps its largest value, as an outlier.

    Args:
        maps: One per shared tensor.
        tensors: The state dict.
        means: float64 (K,), the bank's means.
        scales: s_t of each shared tensor.
    """
    axes = divided_weights({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return [
        _kept(index_map, tensors[index_map.name], means * scale, axes=axes[index_map.name])
        if index_map.name in axes
        else index_map
        for index_map, scale in zip(maps, scales, strict=True)
    ]


def _kept(index_map: IndexMap, tensor: torch.Tensor, centres: np.ndarray, *, axes: Sequence[int]) -> IndexMap:
    import torch

    escape = len(centres)
    table = rounded(np.append(centres, 0.0), tensor.dtype)
    ids = index_map.ids
    decoded = table[torch.from_numpy(ids.astype(np.int64))].reshape(tensor.shape)
    patterns = bit_patterns(tensor)
    flat = decoded.reshape(-1)
    outliers = torch.from_numpy(np.flatnonzero(ids == escape))
    flat[outliers] = tensor.detach().reshape(-1)[outliers]
    places = vanished_places(tensor, decoded, axes=axes)
    if not places.size:
        return index_map
    ids = ids.copy()
    ids[places] = escape
    return IndexMap(index_map.name, ids, patterns[ids == escape])


def _axes(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The axes of `divided_weights`; None for a tensor that is not divided."""
    shape = shapes[name]
    for ending, length in _WEIGHT_NORMS:
        lengths = shapes.get(ending.sub(length, name)) if ending.search(name) else None
        if lengths is not None and len(shape) >= 2:
            return _axes_of_lengths(lengths, shape)
    for ending, vector in _SPECTRAL_NORMS:
        match = ending.search(name)
        if match is None or len(shape) < 2:
            continue
        prefix = name[: match.start()]
        if any(other.startswith(prefix) and vector.fullmatch(other[len(prefix) :]) for other in shapes):
            return ()
    return None


def _axes_of_lengths(lengths: Sequence[int], shape: Sequence[int]) -> tuple[int, ...] | None:
    """Axes on which the lengths g have as many entries as v; None if g does not fit v."""
    if all(size == 1 for size in lengths):
        return ()
    if len(lengths) != len(shape) or any(g not in (1, v) for g, v in zip(lengths, shape, strict=True)):
        return None
    return tuple(axis for axis, g in enumerate(lengths) if g > 1)
