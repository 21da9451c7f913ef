"""Posterior: N(mu, sigma^2) for each weight from what the checkpoint holds, or with sigma from inputs.

The curvature of a weight is how much the *relative* output error of its layer grows with the weight's squared
error. For a layer y = W x with roughly white inputs it is 1 / |W|^2 for every weight of the layer. Where a batch norm
follows the layer, the weight of filter f in the output is known better: batch norm multiplies the normalised filter by
gamma_f, and so its squared error by r_f = gamma_f^2 / var_f. The square root of r_f is used; r_f itself was no better
than a constant (docs/method.md):

    h_f = 1 / |W|^2 * sqrt(r_f) / mean sqrt(r),     r_f = gamma_f^2 / var_f   or   1 / |w_f|^2 without batch norm

and sigma_f^2 is proportional to 1 / h_f.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.checkpoint.arrays import blocks, values
from gbnn_compress.format.bank import short_float_codes, short_floats
from gbnn_compress.parallel import in_order
from gbnn_compress.rate.batch_norms import EPSILON
from gbnn_compress.types import Posterior

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-1000, 2.0**1000

TRIM = 64.0
"""Weights beyond this many 99th percentiles do not count towards a tensor's norm, which they would dominate."""

CURVATURE_RANGE = 2.0**8
"""Relative curvatures of filters are clipped to this factor around their mean."""


def data_free_posterior(
    tensors: Mapping[str, torch.Tensor],
    shared: Sequence[str],
    *,
    size_power: float = 1.0,
    precisions: Mapping[str, np.ndarray] | None = None,
    importances: Mapping[str, float] | None = None,
    usage: Mapping[str, np.ndarray] | None = None,
) -> tuple[Posterior, ...]:
    """(mu, sigma) for every weight of the shared tensors.

    Args:
        tensors: The whole state dict.
        shared: Names of the tensors to share.
        size_power: p. At 1, equal errors of mu / scale cost the same relative output error in every tensor. At 0, the
            scale is the root mean square of the weights.
        precisions: Name -> float64 (rows,), 1 / sigma^2 measured on inputs (`calibration/sources.py`), in place of the
            filters' relative curvatures. They do not change the scales: weighed by gradients, layers that a small
            change upsets get far too many bits (docs/method.md).
        importances: Name -> factor of the cost of the tensor's errors beside the norm (`target/allocation.py`).
        usage: Name of an embedding's table -> int64 (rows,), how often inputs use each row. Rows that are used more
            often than the mean row cost more, up to CURVATURE_RANGE; no row costs less than without.

    Returns:
        One posterior per tensor. `scale` is |W_t| / sqrt(n_t) * (n_t / n)^(p / 2) over the root of the importance, with
        n_t the tensor's size and n the typical one, rounded as the artifact stores it. mu / scale is of the order of 1.
    """
    sizes = {name: tensors[name].numel() for name in shared}
    typical, smaller = typical_size(list(sizes.values())), (1 - size_power) / 2
    weighed, used = importances or {}, usage or {}

    def one(name: str) -> Posterior:
        norm = _trimmed_norm(tensors[name], rows=_usual_rows(name, tensors))
        return Posterior(
            name=name,
            scale=storable_scale(norm / np.sqrt(typical * weighed.get(name, 1.0)) * (typical / sizes[name]) ** smaller),
            log_sigma=_log_sigma(name) - 0.5 * np.log(_usage_factors(used[name]) if name in used else 1.0),
        )

    def _log_sigma(name: str) -> np.ndarray:
        if precisions is None or name not in precisions:
            return np.asarray(-0.25 * np.log(_row_curvatures(name, tensors)))
        return np.asarray(-0.5 * np.log(_relative(precisions[name])))

    return tuple(in_order(one, shared, weights=sum(sizes.values())))


def batch_norm_after(name: str, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Prefix of the batch norm that follows tensor `name`, or None.

    It is the next `running_var` in the state dict's order with one entry per row of the tensor, before any other
    tensor with two or more dimensions.
    """
    names = list(tensors)
    for other in names[names.index(name) + 1 :]:
        if tensors[other].dim() >= 2:
            return None
        if other.endswith("running_var"):
            prefix = other.removesuffix("running_var")
            fits = tensors[other].numel() == tensors[name].shape[0] and prefix + "weight" in tensors
            return prefix if fits else None
    return None


def typical_size(sizes: Sequence[int]) -> float:
    """Geometric mean, over all weights, of the size of the weight's tensor."""
    array = np.array(sizes, dtype=np.float64)
    return float(np.exp((array * np.log(array)).sum() / array.sum()))


def value_unit(name: str, tensors: Mapping[str, torch.Tensor]) -> float:
    """Unit in which the errors of an unshared tensor count: its norm.

    An error of e * unit, as the norm over all values, is a relative output error of e. For `weight` and `bias` of a
    batch norm the unit is |weight|, or |bias| where the weight is zero.

    Returns:
        The unit, > 0 or 0 for a tensor of zeros.
    """
    prefix, _, key = name.rpartition(".")
    weight, variance = (f"{prefix}.{part}" if prefix else part for part in ("weight", "running_var"))
    of_norm = key in ("weight", "bias") and weight in tensors and variance in tensors
    return (_norm(values(tensors[weight])) if of_norm else 0.0) or _norm(values(tensors[name]))


def _relative(precisions: np.ndarray) -> np.ndarray:
    """float64 (rows,) within CURVATURE_RANGE of its mean, which is 1."""
    mean = float(precisions.mean())
    kept = np.clip(precisions / mean, 1 / CURVATURE_RANGE, CURVATURE_RANGE) if mean > 0 else np.ones(len(precisions))
    return kept / kept.mean()


def _usage_factors(counts: np.ndarray) -> np.ndarray:
    """float64 (rows,), how much more often than the mean row each row is used, within 1 and CURVATURE_RANGE."""
    return np.clip(counts / max(float(counts.mean()), 1e-300), 1.0, CURVATURE_RANGE)


def _norm(vector: np.ndarray) -> float:
    # Not numpy's norm: BLAS sums in an order that depends on the number of threads.
    with np.errstate(over="ignore"):
        return float(np.sqrt((vector**2).sum()))


def storable_scale(scale: float) -> float:
    """The nearest scale that the artifact stores; a tiny one for a tensor of zeros, so that any id decodes to zero."""
    return float(short_floats(short_float_codes(np.array([scale])))[0]) if scale > 0 else SMALLEST_SCALE


def _bulk(tensor: torch.Tensor) -> float:
    """The 99th percentile of the magnitudes, from a sample; the largest magnitude where that is zero."""
    magnitude = np.sort(np.abs(values(tensor, at_most=100_000)))
    percentile = float(magnitude[int(0.99 * (len(magnitude) - 1))])
    return percentile or max(float(np.abs(block).max()) for block in blocks(tensor))


def _trimmed_norm(tensor: torch.Tensor, *, rows: np.ndarray) -> float:
    bulk, total, count, start = _bulk(tensor), 0.0, 0, 0
    if not bulk:
        return 0.0
    for block in blocks(tensor):
        relative = np.abs(block[rows[start : start + len(block)]]) / bulk
        start += len(block)
        kept = relative[relative <= TRIM]
        total += float((kept**2).sum())
        count += kept.size
    return min(bulk * float(np.sqrt(total / max(count, 1) * tensor.numel())), LARGEST_SCALE)


def _usual_rows(name: str, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """bool (rows,), which rows of a tensor count towards its norm.

    A batch norm may divide a filter of huge weights by a huge deviation: the filter's output is then as large as any
    other, but its weights would dominate the norm. Rows larger than TRIM times the median row do not count; rows are
    weighed for the median by the power of their outputs. The weights of the other rows are outliers.
    """
    tensor = tensors[name]
    prefix = batch_norm_after(name, tensors)
    if prefix is None:
        return np.ones(tensor.shape[0], dtype=bool)
    gamma, variance = (values(tensors[prefix + key]) for key in ("weight", "running_var"))
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = np.sqrt(np.concatenate([(block**2).mean(axis=1) for block in blocks(tensor)]))
        powers = (gamma * sizes) ** 2 / (np.abs(variance) + EPSILON)
        order = np.argsort(sizes, kind="stable")
        below = np.cumsum(powers[order])
    if not 0 < below[-1] < np.inf:
        return np.ones(tensor.shape[0], dtype=bool)
    median = sizes[order][np.searchsorted(below, below[-1] / 2)]
    return sizes <= TRIM * median


def _row_curvatures(name: str, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """float64 (rows,), relative curvature r_f of each row; the mean of the square roots is 1."""
    tensor = tensors[name]
    prefix = batch_norm_after(name, tensors)
    if prefix is not None:
        gamma, variance = (values(tensors[prefix + key]) for key in ("weight", "running_var"))
        ratio = gamma**2 / np.maximum(variance, 1e-12 * max(float(variance.max()), 1e-30))
    else:
        unit = _bulk(tensor) or 1.0
        rows = [(np.clip(block / unit, -TRIM, TRIM) ** 2).mean(axis=1) for block in blocks(tensor)]
        squares = np.concatenate(rows)
        largest = float(squares.max())
        ratio = largest / np.maximum(squares, 1e-12 * largest) if largest > 0 else np.ones(len(squares))
    ratio = np.clip(ratio / max(float(ratio.mean()), 1e-300), 1 / CURVATURE_RANGE, CURVATURE_RANGE)
    return ratio / np.sqrt(ratio).mean() ** 2
