"""Artifact -> dense state dict: the posterior mean, or one posterior sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.weights.blocks import from_bit_patterns

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from gbnn_compress.types import Artifact, IndexMap, TensorInfo


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


def rebuild(artifact: Artifact, *, seed: int | None = None) -> dict[str, torch.Tensor]:
    """Dense weights by their names in the checkpoint, with its dtypes, integer buffers and ties.

    Args:
        artifact: From `read_artifact`.
        seed: None for the posterior mean, else the seed of one posterior sample. In a sample all members of a
            component within a tensor share one draw, w_tk ~ N(m_k, s_tk^2).

    Returns:
        Name -> tensor, in the checkpoint's order. Tied names hold the same tensor.
    """
    decoded = codebooks(artifact, seed=seed)
    maps = {index_map.name: index_map for index_map in artifact.maps}
    result: dict[str, torch.Tensor] = {}
    for info in artifact.tensors:
        if info.kind == "shared":
            result[info.name] = _shared(next(decoded), maps[info.name], info)
        elif info.kind == "unshared":
            result[info.name] = _unshared(artifact.values[info.name], info)
        elif info.kind == "raw":
            result[info.name] = _raw(artifact.raw[info.name], info)
        else:
            result[info.name] = result[str(info.tied_to)]
    return result


def codebooks(artifact: Artifact, *, seed: int | None = None) -> Iterator[Codebook]:
    """What the ids of each shared tensor stand for, at the posterior mean or in one posterior sample.

    Args:
        artifact: From `read_artifact`.
        seed: As for `rebuild`; the draws are the same.

    Yields:
        One codebook a shared tensor, in the order of `artifact.maps`.
    """
    generator = None if seed is None else np.random.default_rng(seed)
    dtypes = {info.name: info.dtype for info in artifact.tensors}
    for index, index_map in enumerate(artifact.maps):
        dtype = dtypes[index_map.name]
        yield Codebook(
            name=index_map.name,
            entries=_entries(artifact, index, dtype, generator),
            outliers=_outliers(artifact, index, dtype, generator),
        )


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
    members = np.bincount(artifact.maps[index].ids, minlength=len(bank.means) + 1)[: len(bank.means)]
    noise = float(artifact.facts["noise"]) * artifact.scales[index]
    deviations = noise * np.exp(bank.log_sigmas) / np.sqrt(np.maximum(members, 1))
    return np.where((members > 0) & (bank.means != 0), deviations, 0.0)


def _shared(codebook: Codebook, index_map: IndexMap, info: TensorInfo) -> torch.Tensor:
    import torch

    escape = len(codebook.entries)
    table = torch.cat([codebook.entries, codebook.entries.new_zeros(1)])
    flat = table[torch.from_numpy(index_map.ids.astype(np.int64 if escape > 32_000 else np.int32))]
    if len(codebook.outliers):
        flat[torch.from_numpy(index_map.ids == escape)] = codebook.outliers
    return flat.reshape(info.shape)


def _entries(artifact: Artifact, index: int, dtype: str, generator: np.random.Generator | None) -> torch.Tensor:
    import torch

    centres = artifact.bank.means * artifact.scales[index]
    if generator is not None:
        centres = centres + component_deviations(artifact, index) * generator.standard_normal(len(centres))
    return torch.from_numpy(centres).to(getattr(torch, dtype))


def _outliers(artifact: Artifact, index: int, dtype: str, generator: np.random.Generator | None) -> torch.Tensor:
    import torch

    patterns = artifact.maps[index].outliers
    outliers = from_bit_patterns(patterns, dtype)
    if generator is None or not len(patterns):
        return outliers
    deviation = float(artifact.facts["noise"]) * artifact.scales[index]
    noise = torch.from_numpy(deviation * generator.standard_normal(len(patterns)))
    return (outliers.double() + noise).to(outliers.dtype)


def _unshared(values: np.ndarray, info: TensorInfo) -> torch.Tensor:
    import torch

    if values.dtype.kind == "u":
        width = int(getattr(torch, info.dtype).itemsize)
        return from_bit_patterns(values.astype(f"u{width}"), info.dtype).reshape(info.shape)
    return torch.from_numpy(np.array(values)).to(getattr(torch, info.dtype)).reshape(info.shape)


def _raw(data: bytes, info: TensorInfo) -> torch.Tensor:
    import torch

    dtype = getattr(torch, info.dtype)
    if not data:
        return torch.empty(info.shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(info.shape)
