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
    """The posterior of one shared tensor, ready to be drawn from: a draw costs the bank and a gather.

    Attributes:
        name: Its name in the checkpoint.
        shape: Its shape; n is the product.
        dtype: Its dtype.
        means: float64 (K + 1,), of each component in units of the weights; outliers, the last, count as 0.
        deviations: float64 (K,), `component_deviations`.
        ids: int32 (n,), component of each weight, K for an outlier.
        places: int64 (m,), positions of the outliers.
        outliers: (m,) of the tensor's dtype, their means.
        outlier_deviation: Posterior deviation of each.
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
class Codebook:
    """What the ids of one shared tensor stand for.

    Attributes:
        name: The tensor.
        entries: (K,) at the tensor's own dtype, the weight of each component.
        outliers: (n_outliers,) at the tensor's own dtype, in C order of the ids that mark them.
    """

    name: str
    entries: torch.Tensor
    outliers: torch.Tensor


def rebuild(
    artifact: Artifact, *, seed: int | None = None, names: Container[str] | None = None
) -> dict[str, torch.Tensor]:
    """Dense weights by their names in the checkpoint, with its dtypes, integer buffers and ties.

    Args:
        artifact: From `read_artifact`.
        seed: None for the posterior mean, else the seed of one posterior sample. In a sample all members of a
            component within a tensor share one draw, w_tk ~ N(m_k, s_tk^2).
        names: The tensors that are wanted, without a seed; None for all.

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
    """The posterior of every shared tensor, in the order in which a seed's numbers are spent on them."""
    infos = [info for info in artifact.tensors if info.kind == "shared"]
    return tuple(_shared_tensor(artifact, index, info) for index, info in enumerate(infos))


def draw(
    tensor: SharedTensor, generator: np.random.Generator | None, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """One tensor's weights.

    Args:
        tensor: Its posterior.
        generator: Takes K standard normal numbers, then one for each outlier; None for the posterior mean.
        out: (n,) of the tensor's dtype, contiguous, on the CPU; written to.

    Returns:
        (n,) of the tensor's dtype: `out` where it is given.
    """
    import torch

    table = rounded(draw_values(tensor, generator), tensor.dtype)
    flat = torch.index_select(table, 0, tensor.ids, out=out)
    if len(tensor.places):
        flat[tensor.places] = _draw_outliers(tensor, generator)
    return flat


def draw_values(tensor: SharedTensor, generator: np.random.Generator | None) -> np.ndarray:
    """float64 (K + 1,), each component's one value for all of its members; the last is 0."""
    if generator is None:
        return tensor.means
    values = tensor.means.copy()
    values[:-1] += tensor.deviations * generator.standard_normal(len(tensor.deviations))
    return values


def codebooks(artifact: Artifact, *, seed: int | None = None) -> Iterator[Codebook]:
    """What the ids of each shared tensor stand for, at the posterior mean or in one posterior sample.

    Args:
        artifact: From `read_artifact`.
        seed: As for `rebuild`; the draws are the same.

    Yields:
        One codebook a shared tensor, in the order of `artifact.maps`.
    """

    generator = None if seed is None else np.random.default_rng(seed)
    for tensor in shared_tensors(artifact):
        entries = rounded(draw_values(tensor, generator)[:-1], tensor.dtype)
        yield Codebook(tensor.name, entries, _draw_outliers(tensor, generator))


def component_deviations(artifact: Artifact, index: int) -> np.ndarray:
    """Posterior deviation s_tk of each component in one shared tensor.

    1 / s_tk^2 is N times the summed curvature of the members: their noise adds up coherently. The zero component
    is noiseless. With e^y_k the bank's deviation: s_tk = noise * s_t * e^y_k / sqrt(n_tk).

    Args:
        artifact: The artifact.
        index: Position of the tensor among the shared ones.

    Returns:
        float64 (K,), in units of the weights; 0 where the component has no member.
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
