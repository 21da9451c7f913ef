"""Batch-norm statistics of the compressed layers, without data.

Sharing weights changes the mean and the variance of a layer's outputs, while batch norm still uses the statistics of
the original. Both changes can be computed from the checkpoint, and correcting the statistics costs no bytes:

* The running mean of filter f is sum_c m_c sum_taps w_fc, with m_c the mean of input channel c. The filters of a layer
  are as many equations for the m_c, solved by least squares (ridge, towards one mean for all channels); the error of
  the weights then shifts the output by sum_c m_c sum_taps (w^_fc - w_fc).
* The running variance follows |w_f|^2: components at their members' centroids shrink it by the distortion.

Bias correction with batch-norm statistics is from Nagel et al. 2019, "Data-free quantization through weight
equalization and bias correction"; there the input means come from the architecture, here from the running means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.checkpoint.arrays import blocks, values
from gbnn_compress.parallel import in_order
from gbnn_compress.rate.posterior import batch_norm_after
from gbnn_compress.types import IndexMap

if TYPE_CHECKING:
    import torch

RIDGE = 0.5
"""Strength of the pull towards one mean, over the root of the mean squared column norm."""

VARIANCE_RANGE = (0.3, 1.5)
"""Range of the factor that corrects a variance; outside it, the filter is lost anyway."""


def recentred_statistics(
    tensors: Mapping[str, torch.Tensor],
    maps: Sequence[IndexMap],
    *,
    means: np.ndarray,
    scales: np.ndarray,
) -> dict[str, torch.Tensor]:
    """Corrected `running_mean` and `running_var` of every batch norm that follows a shared tensor.

    Args:
        tensors: The state dict.
        maps: One per shared tensor.
        means: float64 (K,), the bank's means.
        scales: float64 (T,), s_t.

    Returns:
        Name -> tensor of the original dtype. `tensors` is not changed.
    """
    import torch
    from threadpoolctl import threadpool_limits

    def one(pair: tuple[IndexMap, float]) -> dict[str, torch.Tensor]:
        index_map, scale = pair
        prefix = batch_norm_after(index_map.name, tensors)
        if prefix is None:
            return {}
        names = (prefix + "running_mean", prefix + "running_var")
        with np.errstate(over="ignore", invalid="ignore"):
            sums, errors, factor = _row_statistics(tensors[index_map.name], index_map, means * scale)
            mean, variance = (values(tensors[name]) for name in names)
            moved = mean + (errors * _input_means(sums, mean)).sum(axis=1)
        vectors = zip(names, (moved, variance * factor), strict=True)
        found = {name: torch.from_numpy(vector).to(tensors[name].dtype) for name, vector in vectors}
        return {name: tensor for name, tensor in found.items() if bool(tensor.isfinite().all())}

    # One thread of BLAS: the order in which it sums, and so the bytes, depend on the number of threads.
    with threadpool_limits(1):
        weights = sum(len(index_map.ids) for index_map in maps)
        parts = list(in_order(one, zip(maps, scales, strict=True), weights=weights))
    return {name: tensor for part in parts for name, tensor in part.items()}


def _row_statistics(
    tensor: torch.Tensor, index_map: IndexMap, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums over taps of weights and of errors, float64 (rows, channels), and |w^|^2 / |w|^2, float64 (rows,)."""
    table, channels, start = np.append(centres, np.nan), tensor.shape[1], 0
    sums, errors, factors = [], [], []
    for block in blocks(tensor):
        shared = table[index_map.ids[start : start + block.size]].reshape(block.shape)
        if len(index_map.outliers):
            shared = np.where(np.isnan(shared), block, shared)
        start += block.size
        sums.append(_over_taps(block, channels))
        errors.append(_over_taps(shared - block, channels))
        factors.append((shared**2).sum(axis=1) / np.maximum((block**2).sum(axis=1), 1e-300))
    return np.concatenate(sums), np.concatenate(errors), np.clip(np.concatenate(factors), *VARIANCE_RANGE)


def _over_taps(block: np.ndarray, channels: int) -> np.ndarray:
    """float64 (rows, channels), sums over the taps of a kernel."""
    return block if block.shape[1] == channels else block.reshape(len(block), channels, -1).sum(axis=2)


def _input_means(sums: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Mean of each input channel, float64 (channels,); (rows, 1) for depthwise layers, where rows have their own.

    Minimises |mean - sums m|^2 + ridge |m - m0|^2, m0 the best single mean for all channels.
    """
    power = float((sums**2).sum()) / sums.shape[1]
    if not 0 < power < np.inf:
        return np.zeros(sums.shape[1])
    if sums.shape[1] == 1:
        return mean[:, None] * sums / (sums**2 + RIDGE**2 * power / len(sums))
    totals = sums.sum(axis=1)
    single = max(float((mean * totals).sum() / max(float((totals**2).sum()), 1e-300)), 0.0)
    return single + _ridge(sums, mean - single * totals, RIDGE**2 * power)


def _ridge(matrix: np.ndarray, target: np.ndarray, ridge: float) -> np.ndarray:
    """(A^T A + ridge)^-1 A^T b, from the smaller of A^T A and A A^T."""
    if matrix.shape[0] < matrix.shape[1]:
        gram = matrix @ matrix.T + ridge * np.eye(len(matrix))
        return matrix.T @ np.linalg.solve(gram, target)
    return np.linalg.solve(matrix.T @ matrix + ridge * np.eye(matrix.shape[1]), matrix.T @ target)
