"""Artifact -> dense state dict: the posterior mean, or one posterior sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.weights.blocks import from_bit_patterns

if TYPE_CHECKING:
    import torch

    from gbnn_compress.types import Artifact, IndexMap, TensorInfo


def rebuild(artifact: Artifact, *, seed: int | None = None) -> dict[str, torch.Tensor]:
    """Dense weights by their names in the checkpoint, with its dtypes, integer buffers and ties.

    Args:
        artifact: From `read_artifact`.
        seed: None for the posterior mean, else the seed of one posterior sample. In a sample all members of a
            component within a tensor share one draw, w_tk ~ N(m_k, s_tk^2).

    Returns:
        Name -> tensor, in the checkpoint's order. Tied names hold the same tensor.
    """

    generator = None if seed is None else np.random.default_rng(seed)
    shared = {index_map.name: index for index, index_map in enumerate(artifact.maps)}
    result: dict[str, torch.Tensor] = {}
    for info in artifact.tensors:
        if info.kind == "shared":
            result[info.name] = _shared(artifact, shared[info.name], info, generator)
        elif info.kind == "unshared":
            result[info.name] = _unshared(artifact.values[info.name], info)
        elif info.kind == "raw":
            result[info.name] = _raw(artifact.raw[info.name], info)
        else:
            result[info.name] = result[str(info.tied_to)]
    return result


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


def _shared(artifact: Artifact, index: int, info: TensorInfo, generator: np.random.Generator | None) -> torch.Tensor:
    import torch

    index_map, escape = artifact.maps[index], len(artifact.bank.means)
    centres = artifact.bank.means * artifact.scales[index]
    if generator is not None:
        centres = centres + component_deviations(artifact, index) * generator.standard_normal(escape)
    table = torch.from_numpy(np.append(centres, 0.0)).to(getattr(torch, info.dtype))
    flat = table[torch.from_numpy(index_map.ids.astype(np.int64 if escape > 32_000 else np.int32))]
    if len(index_map.outliers):
        flat[torch.from_numpy(index_map.ids == escape)] = _outliers(artifact, index, info, index_map, generator)
    return flat.reshape(info.shape)


def _outliers(
    artifact: Artifact,
    index: int,
    info: TensorInfo,
    index_map: IndexMap,
    generator: np.random.Generator | None,
) -> torch.Tensor:
    import torch

    outliers = from_bit_patterns(index_map.outliers, info.dtype)
    if generator is None:
        return outliers
    deviation = float(artifact.facts["noise"]) * artifact.scales[index]
    noise = torch.from_numpy(deviation * generator.standard_normal(len(index_map.outliers)))
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
