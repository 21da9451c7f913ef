"""Artifact -> dense state dict: the posterior mean, or one posterior sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.checkpoint.arrays import from_bit_patterns, rounded
from gbnn_compress.format.counts import id_counts

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    import torch

    from gbnn_compress.types import Artifact, TensorInfo


@dataclass(frozen=True, eq=False)
class SharedTensor:
    """The posterior of one shared tensor. A draw costs one random number per component and a gather.

    Attributes:
        name: Name in the checkpoint.
        shape: Shape of the tensor, with n values.
        dtype: Dtype of the tensor.
        means: float64 (K + 1,), mean of each component in units of the weights; the last entry, 0, is for outliers.
        deviations: float64 (K,), posterior deviation of each component in units of the weights.
        ids: int32 (n,), component of each weight; K marks an outlier.
        places: int64 (m,), positions of the outliers.
        outliers: (m,) at the tensor's dtype, means of the outliers.
        outlier_deviation: Posterior deviation of each outlier, in units of the weights.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    means: np.ndarray
    deviations: np.ndarray
    ids: torch.Tensor
    places: torch.Tensor
    outliers: torch.Tensor
    outlier_deviation: float


@dataclass(frozen=True)
class TensorCodebook:
    """The values that the ids of one shared tensor stand for.

    Attributes:
        name: Name of the tensor.
        entries: (K,) at the tensor's dtype, the weight of each component.
        outliers: (n_outliers,) at the tensor's dtype, values of the outliers in C order.
    """

    name: str
    entries: torch.Tensor
    outliers: torch.Tensor


def rebuild(
    artifact: Artifact, *, seed: int | None = None, names: Container[str] | None = None
) -> dict[str, torch.Tensor]:
    """Decode an artifact into dense weights, with the checkpoint's dtypes, integer buffers and ties.

    Args:
        artifact: From `read_artifact`.
        seed: Seed of a posterior sample; None for the posterior mean. In a sample, all members of a component within
            a tensor share one draw, w_tk ~ N(m_k, s_tk^2).
        names: Names of the tensors to decode, only without a seed; None for all.

    Returns:
        Name -> tensor, in the checkpoint's order. Tied names hold the same tensor.
    """
    assert seed is None or names is None
    generator = None if seed is None else np.random.default_rng(seed)
    indices = {index_map.name: index for index, index_map in enumerate(artifact.maps)}
    result: dict[str, torch.Tensor] = {}
    for info in artifact.tensors:
        if names is not None and info.name not in names:
            continue
        if info.kind == "shared":
            tensor = _shared_tensor(artifact, indices[info.name], info)
            result[info.name] = draw(tensor, generator).reshape(info.shape)
        elif info.kind == "unshared":
            result[info.name] = _unshared(artifact.values[info.name], info)
        elif info.kind == "raw":
            result[info.name] = _raw(artifact.raw[info.name], info)
        else:
            result[info.name] = result[str(info.tied_to)]
    return result


def shared_tensors(artifact: Artifact) -> tuple[SharedTensor, ...]:
    """The posterior of every shared tensor, in the order in which a seed's random numbers are used."""
    infos = [info for info in artifact.tensors if info.kind == "shared"]
    return tuple(_shared_tensor(artifact, index, info) for index, info in enumerate(infos))


def draw(
    tensor: SharedTensor, generator: np.random.Generator | None, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Weights of one tensor: a posterior draw, or the posterior mean.

    Args:
        tensor: Posterior of the tensor.
        generator: Gives K standard normal numbers, then one for each outlier. None: the posterior mean.
        out: Where the weights are written, (n,) at the tensor's dtype, contiguous, on the CPU.

    Returns:
        (n,) at the tensor's dtype; `out` if it is given.
    """
    import torch

    table = rounded(draw_values(tensor, generator), tensor.dtype)
    flat = torch.index_select(table, 0, tensor.ids, out=out)
    if len(tensor.places):
        flat[tensor.places] = _draw_outliers(tensor, generator)
    return flat


def draw_values(tensor: SharedTensor, generator: np.random.Generator | None) -> np.ndarray:
    """The value of each component, float64 (K + 1,); the last entry, for outliers, is 0."""
    if generator is None:
        return tensor.means
    values = tensor.means.copy()
    values[:-1] += tensor.deviations * generator.standard_normal(len(tensor.deviations))
    return values


def codebooks(artifact: Artifact, *, seed: int | None = None) -> Iterator[TensorCodebook]:
    """Codebooks of the shared tensors, at the posterior mean or in one posterior sample.

    Args:
        artifact: From `read_artifact`.
        seed: Seed of the posterior sample, which is the same as in `rebuild`; None for the posterior mean.

    Yields:
        One codebook per shared tensor, in the order of `artifact.maps`.
    """
    generator = None if seed is None else np.random.default_rng(seed)
    for tensor in shared_tensors(artifact):
        entries = rounded(draw_values(tensor, generator)[:-1], tensor.dtype)
        yield TensorCodebook(tensor.name, entries, _draw_outliers(tensor, generator))


def component_deviations(artifact: Artifact, index: int) -> np.ndarray:
    """Posterior deviation s_tk of each component in one shared tensor.

    s_tk = noise * s_t * e^y_k / sqrt(n_tk), where e^y_k is the bank's deviation and n_tk the number of members. The
    members share one draw, so their noise adds up coherently: 1 / s_tk^2 is proportional to the summed curvature of the
    members. The zero component has no noise.

    Args:
        artifact: The artifact.
        index: Position of the tensor among the shared tensors.

    Returns:
        float64 (K,), in units of the weights; 0 for a component without members.
    """
    bank = artifact.bank
    members = id_counts(artifact.maps[index].ids, len(bank.means) + 1)[:-1]
    noise = float(artifact.facts["noise"]) * artifact.scales[index]
    deviations = noise * np.exp(bank.log_sigmas) / np.sqrt(np.maximum(members, 1))
    return np.where((members > 0) & (bank.means != 0), deviations, 0.0)


def _shared_tensor(artifact: Artifact, index: int, info: TensorInfo) -> SharedTensor:
    import torch

    ids, escape = artifact.maps[index].ids, len(artifact.bank.means)
    return SharedTensor(
        name=info.name,
        shape=info.shape,
        dtype=getattr(torch, info.dtype),
        means=np.append(artifact.bank.means * artifact.scales[index], 0.0),
        deviations=component_deviations(artifact, index),
        ids=torch.from_numpy(ids.astype(np.int32)),
        places=torch.from_numpy(np.flatnonzero(ids == escape)),
        outliers=from_bit_patterns(artifact.maps[index].outliers, info.dtype),
        outlier_deviation=float(artifact.facts["noise"]) * artifact.scales[index],
    )


def _draw_outliers(tensor: SharedTensor, generator: np.random.Generator | None) -> torch.Tensor:
    import torch

    if generator is None:
        return tensor.outliers
    noise = torch.from_numpy(tensor.outlier_deviation * generator.standard_normal(len(tensor.outliers)))
    return rounded(tensor.outliers.double() + noise, tensor.outliers.dtype)


def _unshared(values: np.ndarray, info: TensorInfo) -> torch.Tensor:
    import torch

    if values.dtype.kind == "u":
        width = int(getattr(torch, info.dtype).itemsize)
        return from_bit_patterns(values.astype(f"u{width}"), info.dtype).reshape(info.shape)
    return rounded(values, getattr(torch, info.dtype)).reshape(info.shape)


def _raw(data: bytes, info: TensorInfo) -> torch.Tensor:
    import torch

    dtype = getattr(torch, info.dtype)
    if not data:
        return torch.empty(info.shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(info.shape)
