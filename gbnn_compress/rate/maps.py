"""Codebook and weights to index maps: the second and last pass over the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress import compiled
from gbnn_compress.checkpoint.arrays import BLOCK_SIZE, bit_patterns, from_bit_patterns
from gbnn_compress.checkpoint.select import dtype_name
from gbnn_compress.format.counts import id_counts
from gbnn_compress.parallel import in_order
from gbnn_compress.rate.cells import FARTHEST, LEVELS, row_blocks, sigma_levels
from gbnn_compress.rate.codebook import Codebook, assign, curvature_of, escape_bits, has_both_supersets, ideal_lengths
from gbnn_compress.rate.trellis_paths import cheapest_paths
from gbnn_compress.types import IndexMap, Posterior

if TYPE_CHECKING:
    import torch


FEW_PATTERNS = 1 << 20
"""Tensors of 16 bits with at least so many weights are assigned by bit pattern: their values repeat."""


def index_maps(
    tensors: Mapping[str, torch.Tensor],
    posteriors: Sequence[Posterior],
    book: Codebook,
    *,
    value_bits: np.ndarray,
) -> list[IndexMap]:
    """Assign every weight, with the code lengths that the codebook's counts give.

    Args:
        tensors: The state dict.
        posteriors: One per shared tensor.
        book: From rate control.
        value_bits: int64 (T,), bits of an outlier's value.

    Returns:
        One map per shared tensor; the ids' dtype is the smallest unsigned one that holds K.
    """
    lengths, totals = ideal_lengths(book.counts, book.trellis), book.counts.sum(axis=1)
    possible = has_both_supersets(book.counts)

    def one(t: int) -> IndexMap:
        name, escape = posteriors[t].name, len(book.bank.means)
        ids = _ids(
            tensors[name],
            posteriors[t],
            book,
            lengths[t],
            int(value_bits[t]),
            float(totals[t]),
            None if book.limits is None else float(book.limits[t]),
        )
        has_trellis = book.trellis is not None and bool(book.trellis[t] and possible[t])
        if has_trellis:
            ids = _on_paths(tensors[name], posteriors[t], book, lengths[t, :-1], ids == escape).astype(ids.dtype)
        return with_outliers(tensors[name], name, ids, escape=escape, trellis=has_trellis)

    weights = sum(tensors[posterior.name].numel() for posterior in posteriors)
    return list(in_order(one, range(len(posteriors)), weights=weights))


def with_outliers(tensor: torch.Tensor, name: str, ids: np.ndarray, *, escape: int, trellis: bool = False) -> IndexMap:
    """The map of ids, with the exact values of the weights that are outliers."""
    chosen = ids == escape
    values = bit_patterns(tensor)[chosen] if chosen.any() else np.empty(0, dtype=f"u{tensor.element_size()}")
    return IndexMap(name, ids, values, trellis)


def _on_paths(
    tensor: torch.Tensor, posterior: Posterior, book: Codebook, lengths: np.ndarray, exact: np.ndarray
) -> np.ndarray:
    """int64 (n,), ids that follow the trellis; weights that are `exact` (n,) stay outliers."""
    ids, exact = (
        np.empty((tensor.shape[0], tensor.numel() // tensor.shape[0]), dtype=np.int64),
        exact.reshape(tensor.shape[0], -1),
    )
    for rows, x in row_blocks(tensor, posterior):
        ids[rows] = cheapest_paths(
            x,
            sigma_levels(posterior, rows, x)[:, 0],
            exact[rows],
            curvature=curvature_of(LEVELS),
            means=book.bank.means,
            lengths=lengths,
            penalty=book.penalty,
        )
    return ids.ravel()


def squared_errors(
    tensor: torch.Tensor, posterior: Posterior, index_map: IndexMap, means: np.ndarray
) -> tuple[float, float]:
    """Summed squared error and summed square of a tensor's weights, in units of s_t^2."""
    error = total = 0.0
    for _, x, missed in _errors(tensor, posterior, index_map, means):
        error += float(np.einsum("i,i", missed.ravel(), missed.ravel()))
        total += float(np.einsum("i,i", x.ravel(), x.ravel()))
    return error, total


def _errors(
    tensor: torch.Tensor, posterior: Posterior, index_map: IndexMap, means: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Rows, mu / s_t of their weights, and component minus weight: both float64 (rows, n); no error for outliers."""
    table, start = np.append(means, np.nan), 0
    for rows, x in row_blocks(tensor, posterior):
        missed = table.take(index_map.ids[start : start + x.size]).reshape(x.shape)
        missed -= x
        missed[np.isnan(missed)] = 0
        yield rows, x, missed
        start += x.size


def spend_on_outliers(
    tensors: Mapping[str, torch.Tensor],
    posteriors: Sequence[Posterior],
    maps: Sequence[IndexMap],
    means: np.ndarray,
    *,
    encode: Callable[[Sequence[IndexMap]], bytes],
    left: Callable[[bytes, Sequence[IndexMap]], float],
    encoded: bytes,
    close: float,
) -> tuple[list[IndexMap], bytes]:
    """Spend the rest of a budget on outliers: keep the weights of the largest errors exactly.

    Args:
        tensors: The state dict.
        posteriors: One per shared tensor.
        maps: One per shared tensor.
        means: float64 (K,), the bank's means.
        encode: Encodes a file from maps; it takes most of the time, so few files are tried.
        left: Rest of the budget after a file with these maps; negative if the file is over it.
        encoded: The file of `maps`.
        close: The search ends when the rest is at most this.

    Returns:
        The maps with the most outliers that fit, among those tried, and their file.
    """
    bins = [_error_bins(tensors[p.name], p, m, means) for p, m in zip(posteriors, maps, strict=True)]
    for part, index_map in zip(bins, maps, strict=True):
        if index_map.trellis:  # an outlier leads to the state that a component of subset 0 or 1 leads to
            part[(index_map.ids & 2) > 0] = 0
    histogram = np.sum([id_counts(part, 1 << 16) for part in bins], axis=0)
    low, high, best = 0, int(histogram[1:].sum()), (list(maps), encoded)
    room = rest = left(encoded, maps)
    price = _OutlierPrice(sum(len(m.ids) for m in maps), 8.0 * max(m.outliers.itemsize for m in maps))
    count = price.affordable(8 * (room - close / 2))
    for _ in range(SPENDING_ATTEMPTS):
        count = min(max(count, low + 1), high)
        if low >= high or rest <= close:
            break
        candidate = _with_worst(tensors, maps, bins, histogram, count=count, escape=len(means))
        file = encode(candidate)
        over = left(file, candidate)
        # The next guess corrects the predicted price by what these outliers did cost.
        count_before, count = count, price.affordable(price(count) * (room - close / 2) / max(room - over, 1.0))
        if over >= 0:
            low, best, rest = count_before, (candidate, file), over
        else:
            high = count_before - 1
    return best


@dataclass(frozen=True)
class _OutlierPrice:
    """Approximate bits of n outliers: their values and their positions.

    Attributes:
        weights: Number of all weights.
        value_bits: Bits of a value.
    """

    weights: int
    value_bits: float

    def __call__(self, count: int) -> float:
        return count * self._each(count)

    def affordable(self, bits: float) -> int:
        """The number of outliers that `bits` pay for."""
        count = 1.0
        for _ in range(PRICE_ROUNDS):
            count = max(bits / self._each(count), 1.0)
        return int(count)

    def _each(self, count: float) -> float:
        return self.value_bits + math.log2(math.e * max(self.weights / count, 1.0))


PRICE_ROUNDS = 8
"""Rounds of a fixed-point iteration; each lowers the error more than tenfold."""

SPENDING_ATTEMPTS = 12
"""Most files that are tried."""


def _error_bins(tensor: torch.Tensor, posterior: Posterior, index_map: IndexMap, means: np.ndarray) -> np.ndarray:
    """uint16 (n,), the upper half of the float32 of each weight's curvature-weighted squared error.

    0 for outliers, and where the error is only rounding: an outlier would decode to the same weight.
    """
    import torch

    rounding, parts = torch.finfo(tensor.dtype).eps, []
    for rows, x, missed in _errors(tensor, posterior, index_map, means):
        missed[np.abs(missed) <= rounding * np.abs(x)] = 0
        error = (missed**2 * curvature_of(LEVELS)[sigma_levels(posterior, rows, x)]).astype(np.float32)
        parts.append((error.ravel().view(np.uint32) >> np.uint32(16)).astype(np.uint16))
    return np.concatenate(parts)


def _with_worst(
    tensors: Mapping[str, torch.Tensor],
    maps: Sequence[IndexMap],
    bins: Sequence[np.ndarray],
    histogram: np.ndarray,
    *,
    count: int,
    escape: int,
) -> list[IndexMap]:
    """The maps with the `count` weights of the largest errors as outliers; within a bin, the first ones."""
    from_above = np.cumsum(histogram[::-1])[::-1]
    limit = int(np.flatnonzero(from_above >= count)[-1])
    room = count - int(from_above[limit] - histogram[limit])
    result = []
    for index_map, part in zip(maps, bins, strict=True):
        equal = np.flatnonzero(part == limit)[:room]
        room -= len(equal)
        chosen = part > limit
        chosen[equal] = True
        ids = np.where(chosen, np.array(escape, dtype=index_map.ids.dtype), index_map.ids)
        tensor, trellis = tensors[index_map.name], index_map.trellis
        result.append(with_outliers(tensor, index_map.name, ids, escape=escape, trellis=trellis))
    return result


def _ids(
    tensor: torch.Tensor,
    posterior: Posterior,
    book: Codebook,
    lengths: np.ndarray,
    value_bits: int,
    total: float,
    limit: float | None,
) -> np.ndarray:
    curvature = curvature_of(LEVELS)
    dtype = np.min_scalar_type(len(book.bank.means))

    def assigned(x: np.ndarray, level: int) -> np.ndarray:
        return assign(
            x,
            book.bank.means,
            lengths,
            penalty=book.penalty,
            curvature=float(curvature[level]),
            value_bits=value_bits,
            total=total,
            limit=limit,
            dtype=dtype,
        )

    if tensor.element_size() == 2 and tensor.numel() >= FEW_PATTERNS and not posterior.by_magnitude:
        return _ids_by_pattern(tensor, posterior, assigned)
    ids = np.empty((tensor.shape[0], tensor.numel() // tensor.shape[0]), dtype=dtype)
    loops = None if posterior.by_magnitude else compiled.loops("rate.assign_loops", work=tensor.numel())
    if loops is not None:
        escape = escape_bits(lengths, total) + value_bits
        for rows, block, scale in _rows(tensor, posterior):
            loops.assign_rows(
                block,
                scale,
                FARTHEST,
                sigma_levels(posterior, rows, block)[:, 0],
                book.bank.means,
                lengths,
                escape,
                book.penalty,
                curvature,
                -1.0 if limit is None else limit,
                ids[rows],
            )
        return ids.ravel()
    for rows, x in row_blocks(tensor, posterior):
        part = sigma_levels(posterior, rows, x)
        for level in np.unique(part):
            chosen = part == level if posterior.by_magnitude else (part == level)[:, 0]
            these = x[chosen]
            ids[rows][chosen] = assigned(these.ravel(), level).reshape(these.shape)
    return ids.ravel()


def _rows(tensor: torch.Tensor, posterior: Posterior) -> Iterator[tuple[slice, np.ndarray, float]]:
    """Rows of a tensor, their weights float32 or float64 (rows, n), and the scale of these."""
    import torch

    if tensor.dtype == torch.float32:
        yield slice(0, len(tensor)), tensor.detach().reshape(len(tensor), -1).contiguous().numpy(), posterior.scale
        return
    for rows, x in row_blocks(tensor, posterior):
        yield rows, x, 1.0


def _ids_by_pattern(
    tensor: torch.Tensor, posterior: Posterior, assigned: Callable[[np.ndarray, int], np.ndarray]
) -> np.ndarray:
    """int (n,), ids from a table over all 65,536 bit patterns, built once per level."""
    patterns = from_bit_patterns(np.arange(1 << 16, dtype=np.uint16), dtype_name(tensor))
    _, x = next(row_blocks(patterns.nan_to_num()[None], posterior))
    levels = sigma_levels(posterior, slice(None), x)[:, 0]
    used, place = np.unique(levels, return_inverse=True)
    table = np.stack([assigned(x[0], level) for level in used])
    weights = bit_patterns(tensor).reshape(tensor.shape[0], -1)
    ids = np.empty(weights.shape, dtype=table.dtype)
    step = max(1, BLOCK_SIZE // weights.shape[1])
    for start in range(0, len(weights), step):
        rows = slice(start, start + step)
        ids[rows] = table[place[rows, None], weights[rows]]
    return ids.ravel()
