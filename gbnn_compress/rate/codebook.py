"""Rate-constrained quantisation on cells: assignment, outliers and centroids at one lambda.

Entropy-constrained vector quantisation (Chou, Lookabaugh & Gray 1989) repeats three steps: each weight goes to the
component of the least h (x - m_k)^2 + lambda L_tk, each component moves to the curvature-weighted mean of its members,
and code lengths follow the counts. Components without members are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import DTypeLike

from gbnn_compress import compiled
from gbnn_compress.mixture.intervals import decision_intervals
from gbnn_compress.types import Bank, Cells

HIGH_RATE_STEP = 6 / float(np.log(2))
"""Step^2 of the best uniform quantiser, over lambda / h, at high rate: from D = h step^2 / 12, dD/dR = -2 ln 2 D."""

TRELLIS_GAIN = 0.8
"""Squared error of weights in a trellis over that of the same weights in one superset, at 2 bits per weight or more."""

NOISE_CEILING = 0.001
"""Mean relative output error of the layers from posterior noise, at most; above it, noise did not improve
calibration."""


@dataclass(frozen=True)
class Codebook:
    """Components and how each tensor uses them.

    Attributes:
        bank: K components, means strictly ascending.
        counts: float64 (T, K + 1), weights of each tensor in each component; the last column counts outliers.
        penalty: lambda, the curvature-weighted squared error (in units of s_t^2) that one bit costs.
        distortion: float64 (T,), curvature-weighted squared error of each tensor, in units of s_t^2.
        limits: float64 (T,), magnitude beyond which a weight is an outlier, in units of s_t, by the published rule
            (`rate/paper.py`); None: where that is cheaper.
        trellis: bool (T,), tensors whose weights' states decide which components they may take; None: no tensor.
        blends: int64 (B,), positions of the components that are blends of two others (`rate/paper.py`).
    """

    bank: Bank
    counts: np.ndarray
    penalty: float
    distortion: np.ndarray
    limits: np.ndarray | None = None
    trellis: np.ndarray | None = None
    blends: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def of_tensors(self, chosen: np.ndarray) -> Codebook:
        """The same components for some of the tensors, int64 (n,)."""
        return replace(
            self,
            counts=self.counts[chosen],
            distortion=self.distortion[chosen],
            limits=None if self.limits is None else self.limits[chosen],
            trellis=None if self.trellis is None else self.trellis[chosen],
        )


@dataclass(frozen=True)
class Groups:
    """Runs of cells that share tensor and level.

    Attributes:
        tensors: int64 (G,).
        levels: int64 (G,).
        starts: int64 (G + 1,), first cell of each, and the end.
    """

    tensors: np.ndarray
    levels: np.ndarray
    starts: np.ndarray


def group_cells(cells: Cells) -> Groups:
    """Find the runs of sorted cells."""
    key = cells.tensor * len(cells.levels) + cells.level
    starts = np.flatnonzero(np.diff(key, prepend=key[0] - 1))
    return Groups(cells.tensor[starts], cells.level[starts], np.append(starts, len(key)))


def ideal_lengths(counts: np.ndarray, trellis: np.ndarray | None = None) -> np.ndarray:
    """Bits of each symbol at its own frequency, infinite where it does not occur.

    Args:
        counts: float64 (T, K + 1), outliers last.
        trellis: bool (T,), tensors in which a component competes with those of its superset only; None: no tensor.

    Returns:
        float64 (T, K + 1).
    """
    totals = np.repeat(counts.sum(axis=1, keepdims=True), counts.shape[1], axis=1)
    if trellis is not None:
        for parity in (0, 1):  # outliers occur in both supersets
            totals[trellis, parity:-1:2] = (counts[:, parity:-1:2].sum(axis=1) + counts[:, -1] / 2)[trellis, None]
    lengths = np.log2(np.maximum(totals, 1e-300)) - np.log2(np.maximum(counts, 1e-300))
    return np.where(counts > 0, lengths, np.inf)


def id_bits(counts: np.ndarray, trellis: np.ndarray | None = None) -> np.ndarray:
    """Bits of the ids of each tensor at their own frequencies, float64 (T,); arguments as in `ideal_lengths`."""
    lengths = np.where(counts > 0, ideal_lengths(counts, trellis), 0.0)
    return np.asarray((counts * lengths).sum(axis=1))


def has_both_supersets(counts: np.ndarray) -> np.ndarray:
    """bool (T,), whether each tensor uses even and odd components; counts are (T, K + 1), outliers last."""
    return np.asarray(counts[:, 0:-1:2].any(axis=1) & counts[:, 1:-1:2].any(axis=1))


def curvature_of(levels: np.ndarray) -> np.ndarray:
    """h s_t^2 = exp(-2 log(sigma / s_t)), 1 for the typical row of a tensor."""
    return np.exp(-2 * levels)


def relative_step(penalty: float, typical: float) -> float:
    """Step at lambda of an unshared value of unit 1 (`posterior.value_unit`): that of weights of the same curvature."""
    return float(np.sqrt(HIGH_RATE_STEP * penalty / typical))


def outlier_radius(
    lengths: np.ndarray, *, escape_length: float, value_bits: int, penalty: float, curvature: float
) -> np.ndarray:
    """float64 (K,), distance from a component beyond which a weight is cheaper as an outlier.

    An outlier has no error; its bits are those of the escape's code and of its value. So the distance r satisfies
    h r^2 = lambda (L_escape + bits - L_k).
    """
    return np.sqrt(np.maximum(escape_length + value_bits - lengths, 0.0) * penalty / curvature)


def refine(
    cells: Cells,
    groups: Groups,
    means: np.ndarray,
    counts: np.ndarray,
    *,
    penalty: float,
    value_bits: np.ndarray,
    iterations: int,
    limits: np.ndarray | None = None,
    trellis: np.ndarray | None = None,
) -> Codebook:
    """Alternate assignment and centroids.

    With a trellis, half of a cell's weights go to the even components, and half to the odd ones: states are about
    equally frequent. The choice of ways through the trellis then lowers the error by TRELLIS_GAIN.

    Args:
        cells: The weights.
        groups: Their runs.
        means: float64 (K,), strictly ascending.
        counts: float64 (T, K + 1), initial counts.
        penalty: lambda.
        value_bits: int64 (T,), bits of an outlier's value.
        iterations: Rounds; the last one only assigns.
        limits: See `Codebook`.
        trellis: See `Codebook`.

    Returns:
        The codebook, means not yet on the file's grid.
    """
    mass = cells.count * curvature_of(cells.levels)[cells.level]
    supersets = (None,) if trellis is None else (0, 1)
    whole, mass = cells, np.tile(mass / len(supersets), len(supersets))
    cells = _repeated(cells, len(supersets))
    for remaining in reversed(range(iterations)):
        ids = np.concatenate(
            [
                assign_cells(
                    whole,
                    groups,
                    means,
                    counts,
                    penalty=penalty,
                    value_bits=value_bits,
                    limits=limits,
                    trellis=trellis,
                    superset=superset,
                )
                for superset in supersets
            ]
        )
        size = len(means)
        counts = _table(cells, ids, cells.count, size)
        if not remaining:
            break
        used = np.flatnonzero(counts[:, :size].any(axis=0))
        if not used.size:
            break
        inside = ids < size
        total = np.bincount(ids[inside], weights=mass[inside], minlength=size)[used]
        centroids = np.bincount(ids[inside], weights=(mass * cells.x)[inside], minlength=size)[used] / total
        order = np.argsort(centroids, kind="stable")
        means = snap_to_zero(centroids[order])
        means, counts = _drop_coincident(means, counts[:, np.append(used[order], size)])
    error = np.where(ids < size, (cells.x - means[np.minimum(ids, size - 1)]) ** 2 + cells.spread, 0.0)
    distortion = np.bincount(cells.tensor, weights=mass * error, minlength=cells.n_tensors)
    if trellis is not None:
        distortion = np.where(trellis, TRELLIS_GAIN * distortion, distortion)
    return Codebook(Bank(means, _log_sigmas(cells, ids, size)), counts, penalty, distortion, limits, trellis)


def assign_cells(
    cells: Cells,
    groups: Groups,
    means: np.ndarray,
    counts: np.ndarray,
    *,
    penalty: float,
    value_bits: np.ndarray,
    limits: np.ndarray | None = None,
    trellis: np.ndarray | None = None,
    superset: int | None = None,
) -> np.ndarray:
    """int64 (n_cells,), the component of each cell, K for outliers.

    With `superset` 0 or 1, weights of tensors with a trellis go to the even or the odd components.
    """
    lengths, totals = ideal_lengths(counts, trellis), counts.sum(axis=1)
    if trellis is not None and superset is not None:
        lengths[trellis, 1 - superset : -1 : 2] = np.inf
    curvature = curvature_of(cells.levels)
    loops = compiled.loops("rate.assign_loops", work=len(cells.x))
    if loops is not None:
        escapes = np.array([escape_bits(row, total) for row, total in zip(lengths, totals.tolist(), strict=True)])
        return np.asarray(
            loops.assign_groups(
                cells.x,
                groups.tensors,
                groups.levels,
                groups.starts,
                means,
                lengths,
                escapes + value_bits,
                penalty,
                curvature,
                np.full(cells.n_tensors, -1.0) if limits is None else limits,
            )
        )
    ids = np.empty(len(cells.x), dtype=np.int64)
    for tensor, level, start, stop in zip(
        groups.tensors, groups.levels, groups.starts[:-1], groups.starts[1:], strict=True
    ):
        ids[start:stop] = assign(
            cells.x[start:stop],
            means,
            lengths[tensor],
            penalty=penalty,
            curvature=float(curvature[level]),
            value_bits=int(value_bits[tensor]),
            total=float(totals[tensor]),
            limit=None if limits is None else float(limits[tensor]),
        )
    return ids


def assign(
    x: np.ndarray,
    means: np.ndarray,
    lengths: np.ndarray,
    *,
    penalty: float,
    curvature: float,
    value_bits: int,
    total: float,
    limit: float | None = None,
    dtype: DTypeLike = np.int64,
) -> np.ndarray:
    """Components of weights of one tensor and level.

    Each component wins on one interval. Beyond its ends lie the neighbours' intervals, or outliers between them. So a
    binary search among all ends assigns every weight.

    Args:
        x: float64 (n,), mu / s_t.
        means: float64 (K,), strictly ascending.
        lengths: float64 (K + 1,), bits of each component in this tensor, infinite where unused, the escape last.
        penalty: lambda.
        curvature: h s_t^2 of these weights.
        value_bits: Bits of an outlier's value.
        total: Number of weights of the tensor, which sets the code length of its first outlier.
        limit: Magnitude beyond which a weight is an outlier; None: where that is cheaper.
        dtype: Of the result, holds K.

    Returns:
        (n,), the component of each weight, K for outliers.
    """
    size = len(means)
    live = np.flatnonzero(np.isfinite(lengths[:size]))
    escape = escape_bits(lengths, total)
    if not live.size:
        return np.full(len(x), size, dtype=dtype)
    winners, thresholds = decision_intervals(means[live], lengths[live], penalty=penalty / curvature)
    winners = live[winners]
    if limit is None:
        radius = outlier_radius(
            lengths[winners], escape_length=escape, value_bits=value_bits, penalty=penalty, curvature=curvature
        )
        first, last = means[winners] - radius, means[winners] + radius
    else:
        first, last = np.full(len(winners), -limit), np.full(len(winners), limit)
    starts, stops = np.append(-np.inf, thresholds), np.append(thresholds, np.inf)
    before = np.clip(np.nextafter(first, -np.inf), starts, stops)
    ends = np.stack([before, np.clip(last, before, stops), stops], axis=1)
    ids = np.stack([np.full_like(winners, size), winners, np.full_like(winners, size)], axis=1)
    ends, place = np.unique(ends, return_index=True)  # of equal ends the first; the other intervals are empty
    return ids.ravel()[place].astype(dtype).take(np.searchsorted(ends, x))


def escape_bits(lengths: np.ndarray, total: float) -> float:
    """Bits of an outlier's code, or of the first of `total` weights where none occurs. `lengths` float64 (K + 1,)."""
    return float(lengths[-1]) if np.isfinite(lengths[-1]) else float(np.log2(total + 1))


def noise_deviation(book: Codebook, *, relative: float, typical: float) -> float:
    """Posterior deviation of a shared value with one member, in units of its sigma.

    Precisions of members add up: a value shared by n members has the variance s^2 = noise^2 sigma^2 / n. So each
    component adds noise^2 to the curvature-weighted error of a tensor, for any number of members.

    Args:
        book: The codebook.
        relative: Root of the ratio of noise to quantisation error, both summed over all tensors.
        typical: Size that makes s_t^2 * typical the tensor's squared norm (`damage.relative_error`).

    Returns:
        The noise, rounded to 4 digits; the mean relative output error of the layers is at most NOISE_CEILING.
    """
    noisy = book.counts[:, :-1][:, book.bank.means != 0] > 0
    error = min(relative**2 * float(book.distortion.sum()), NOISE_CEILING * typical * len(book.counts))
    return float(f"{np.sqrt(error / max(int(noisy.sum()), 1)):.4g}")


def snap_to_zero(means: np.ndarray) -> np.ndarray:
    """Set the component nearest to zero to zero, if it is much nearer to zero than to its neighbours."""
    nearest = int(np.argmin(np.abs(means)))
    gaps = np.abs(np.delete(means, nearest) - means[nearest])
    if not gaps.size or abs(means[nearest]) > 0.25 * gaps.min():
        return means
    return np.where(np.arange(len(means)) == nearest, 0.0, means)


def _repeated(cells: Cells, times: int) -> Cells:
    """The cells that many times, each with as much smaller a count."""
    if times == 1:
        return cells
    return replace(
        cells,
        tensor=np.tile(cells.tensor, times),
        level=np.tile(cells.level, times),
        x=np.tile(cells.x, times),
        count=np.tile(cells.count / times, times),
        spread=np.tile(cells.spread, times),
    )


def _drop_coincident(means: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keep = np.append(True, np.diff(means) > 0)
    return means[keep], counts[:, np.append(keep, True)]


def _table(cells: Cells, ids: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    flat = np.bincount(cells.tensor * (size + 1) + ids, weights=weights, minlength=cells.n_tensors * (size + 1))
    return flat.reshape(cells.n_tensors, size + 1)


def _log_sigmas(cells: Cells, ids: np.ndarray, size: int) -> np.ndarray:
    """float64 (K,), mean log(sigma / s_t) of each component's members."""
    count = np.bincount(ids, weights=cells.count, minlength=size + 1)[:size]
    total = np.bincount(ids, weights=cells.count * cells.levels[cells.level], minlength=size + 1)[:size]
    return total / np.maximum(count, 1e-300)
