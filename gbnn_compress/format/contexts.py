"""Contexts of the ids of a tensor: a scale and a prediction from the ids before, in exact integers.

A tensor (rows, columns, *kernel) is read tap by tap of its kernel, and each tap in a few parts, each with weights of
all rows and columns. The magnitudes read so far predict the magnitude of the next weight by its row, column and
kernel. The neighbours within its kernel predict its value. Both together, rounded, are its *context*.

Writer and reader walk in the same order (`walk`). No step depends on a floating-point result that may differ between
machines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

VALUE_BITS = 24
"""Magnitudes of components are integers below 2 ** VALUE_BITS."""

N_LEVELS = 112
"""Number of scales, a quarter octave apart."""

REACH = 8
"""Predictions range over this many half scales on either side of zero."""

N_PREDICTIONS = 2 * REACH + 1

FACTOR_BITS = 30
"""A factor of 1 is 2 ** FACTOR_BITS."""

PHASES = 16
FIRST_PARTS, NEXT_PARTS = (1, 2, 4, 8, 16), (2, 16)
"""End phases of the parts of the first tap, and of all others."""

BAND = 1 << 20
"""Largest number of weights that are read without learning from each other, or one row if that is more."""

_RATIO_BITS = 12
_LARGEST_SUM = 1 << 50
_ROW_PRIOR, _KERNEL_PRIOR, _MEAN_PRIOR = 8, 16, 8
"""Number of weights that the prior of a row (or column), a kernel and a tap counts as."""


@dataclass(frozen=True)
class ContextRule:
    """How the frequencies of a tensor depend on contexts.

    Attributes:
        start: Quarter octaves (0 to 127), the expected magnitude of its first weights.
        neighbours: Weights of the left, the upper and the upper left neighbour, in sixteenths, -32 to 31.
        tail: Degrees of freedom 2^(tail + 2) - 1 of the components' factors, tail 0 to 3.
        offset: Quarter octaves (-5 to 2) from a context's scale to that of the factors.
        floor: Quarter octaves (0 to 127), a magnitude that is added to the scale of the factors.
    """

    start: int
    neighbours: tuple[int, int, int]
    tail: int
    offset: int
    floor: int


Visit = Callable[[int, slice, np.ndarray, np.ndarray], np.ndarray]
"""Tap, rows, int64 (n,) positions within those rows (C order), uint16 (n,) contexts -> int (n,) ids."""


def log16(numbers: np.ndarray) -> np.ndarray:
    """Sixteenths of octaves of integers from 1 to 2^53: 16 log2 at the powers of two, and linear between.

    The bits of a float64 hold this number: its exponent plus 1023, followed by the mantissa, here cut to four bits.
    """
    return (numbers.astype(np.float64).view(np.int64) >> 48) - (1023 << 4)


def exp16(levels: np.ndarray) -> np.ndarray:
    """The inverse of `log16`, for levels >= 0."""
    return ((16 + (levels & 15)) << (levels >> 4)) >> 4


_SCALES = exp16(4 * np.arange(N_LEVELS) + 2).astype(np.float64)
"""Expected magnitude of a weight by its level: whole numbers."""

_RATIOS = _KERNEL_PRIOR * exp16(np.arange(36 * 16 + 1))
"""Prior of a kernel, by sixteenths of octaves."""


def magnitude_of(quarter_octaves: int) -> int:
    """The magnitude that a rule's `start` or `floor` stands for."""
    return int(exp16(np.array([4 * quarter_octaves]))[0])


def whole_values(means: np.ndarray) -> np.ndarray:
    """int64 (K + 1,), the components' means scaled so that the largest has VALUE_BITS bits; 0 for K."""
    exponent = int(np.frexp(np.abs(means).max(initial=0.0))[1])
    return np.append(np.trunc(np.ldexp(means, VALUE_BITS - exponent)), 0.0).astype(np.int64)


def kernel_of(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of a tensor's kernel: the width is the last dimension, the height all between."""
    return math.prod(shape[2:-1]), shape[-1] if len(shape) > 2 else 1


def walk(shape: Sequence[int], values: np.ndarray, rule: ContextRule, visit: Visit) -> np.ndarray:
    """Walk through a tensor block by block, and ask `visit` for the ids of each.

    Args:
        shape: Shape of the tensor, two dimensions or more.
        values: int64 (K + 1,), from `whole_values`.
        rule: Its rule.
        visit: Called with a block and the contexts of its weights; returns their ids.

    Returns:
        (taps, rows, columns), all ids, in the smallest unsigned integers that hold K.
    """
    rows, columns = shape[:2]
    height, width = kernel_of(shape)
    taps = height * width
    ids = np.zeros((taps, rows, columns), dtype=np.min_scalar_type(len(values) - 1))
    # 32 bits suffice: values are below 2^24, and a sum of three, each times at most 32, is below 2^31.
    values = values.astype(np.int32)
    n_read = (width + 1 if height > 1 else 1) if any(rule.neighbours) else 0  # as far back as neighbours lie
    read = np.empty((n_read, rows, columns), dtype=np.int32)
    state = _State(rows, columns, taps, mean=magnitude_of(rule.start))
    # All taps but the first have the same parts. With many bands, making them again is cheaper than keeping them.
    kept = list(_parts(rows, columns, NEXT_PARTS)) if taps > 1 and rows * columns <= BAND else []
    for tap in range(taps):
        expected = _expected(read, tap, width, rule.neighbours)
        state.next_tap()
        for part in kept if tap and kept else _parts(rows, columns, NEXT_PARTS if tap else FIRST_PARTS):
            levels = state.levels(tap, part)
            contexts = levels * N_PREDICTIONS + REACH
            centre = None if expected is None else part.pick(expected)
            if centre is not None:
                contexts += _prediction(centre, levels)
            found = visit(tap, part.band, part.places, contexts.view(np.uint16))
            part.put(found, ids[tap])
            known = values.take(found)
            if n_read:
                part.put(known, read[tap % n_read])
            state.learn(part, np.abs(known if centre is None else known - centre))
    return ids


def factors(contexts: np.ndarray, symbols: np.ndarray, values: np.ndarray, rule: ContextRule) -> np.ndarray:
    """Relative likelihood of symbols by their distance from a context's prediction.

    With u the distance over the scale: (1 + u^2 / nu) ^ -((nu + 1) / 2), the density of Student's t without its
    constant. It is close to a normal in the middle and heavier in the tails, and for these nu integers suffice.
    Outliers have the factor 1.

    Args:
        contexts: (n,) contexts.
        symbols: int (m,), components, or K for outliers.
        values: int64 (K + 1,), from `whole_values`.
        rule: The tensor's rule.

    Returns:
        int64 (n, m), in units of 2 ** -FACTOR_BITS.
    """
    levels, predictions = np.divmod(contexts.astype(np.int64), N_PREDICTIONS)
    centre = ((predictions - REACH) * exp16(4 * levels + 2)) >> 1
    scale = exp16(np.maximum(4 * (levels + rule.offset) + 2, 0)) + magnitude_of(rule.floor)
    distance = np.minimum((np.abs(values[symbols] - centre[:, None]) << 10) // scale[:, None], 1 << 20)
    freedom = ((4 << rule.tail) - 1) << 20
    result = (freedom << FACTOR_BITS) // (freedom + distance**2)
    for _ in range(rule.tail + 1):
        result = (result * result) >> FACTOR_BITS
    result[:, symbols == len(values) - 1] = 1 << FACTOR_BITS
    return result


def _bands(rows: int, columns: int) -> list[slice]:
    step = max(1, BAND // columns)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


@dataclass(frozen=True)
class _Part:
    """The weights of some rows whose phase, row plus column, is within limits.

    Attributes:
        band: The rows.
        places: int64 (n,), positions of the weights within these rows, C order.
        in_rows: int64 (rows,), number of weights in each row.
        in_columns: int64 (columns,), number of weights in each column.
    """

    band: slice
    places: np.ndarray
    in_rows: np.ndarray
    in_columns: np.ndarray

    def pick(self, table: np.ndarray) -> np.ndarray:
        """(n,), the entries of a table (all rows, columns) for the part's weights."""
        return table[self.band].reshape(-1).take(self.places)

    def put(self, numbers: np.ndarray, table: np.ndarray) -> None:
        """Write the entries that `pick` reads into a table in C order."""
        table[self.band].reshape(-1)[self.places] = numbers


def _parts(rows: int, columns: int, ends: Sequence[int]) -> Iterator[_Part]:
    """The parts of a tap, with phases up to each of `ends`; empty ones are left out."""
    for low, high in pairwise((0, *ends)):
        for band in _bands(rows, columns):
            part = _part(band, columns, low, high)
            if len(part.places):
                yield part


def _part(band: slice, columns: int, low: int, high: int) -> _Part:
    rows = band.stop - band.start
    phase = (np.arange(band.start, band.start + PHASES)[:, None] + np.arange(columns)) % PHASES
    cycle = (phase >= low) & (phase < high)  # repeats every PHASES rows
    places = (columns * np.arange(0, rows, PHASES)[:, None] + np.flatnonzero(cycle)).reshape(-1)
    whole, rest = divmod(rows, PHASES)
    return _Part(
        band,
        places[: np.searchsorted(places, rows * columns)].copy(),  # far fewer if there are fewer rows than phases
        in_rows=np.resize(np.count_nonzero(cycle, axis=1), rows),
        in_columns=whole * (high - low) + np.count_nonzero(cycle[:rest], axis=0),
    )


def _expected(read: np.ndarray, tap: int, width: int, neighbours: tuple[int, int, int]) -> np.ndarray | None:
    """int32 (rows, columns), prediction from the taps to the left, above, and above to the left; None for 0.

    `read` holds the values of the last taps, each at its tap modulo the length of `read`.
    """
    y, x = divmod(tap, width)
    places = ((x, tap - 1), (y, tap - width), (x and y, tap - width - 1))
    parts = [
        weight * read[place % len(read)]
        for weight, (there, place) in zip(neighbours, places, strict=True)
        if there and weight
    ]
    return sum(parts[1:], start=parts[0]) >> 4 if parts else None


def _prediction(expected: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """int16 (n,), to the nearest half scale; floored float64 quotients of integers this small are exact."""
    scale = _SCALES.take(levels)
    halves = 4.0 * expected
    halves += scale
    scale *= 2.0
    halves /= scale
    return np.clip(np.floor(halves, out=halves), -REACH, REACH, out=halves).astype(np.int16)


class _State:
    """Magnitudes learnt so far: the mean of the tap, and rows, columns and kernels relative to it."""

    def __init__(self, rows: int, columns: int, taps: int, *, mean: int) -> None:
        unit = _ROW_PRIOR << _RATIO_BITS
        self._mean = mean
        self._rows, self._row_counts = np.full(rows, unit), np.full(rows, _ROW_PRIOR)
        self._columns, self._column_counts = np.full(columns, unit), np.full(columns, _ROW_PRIOR)
        self._kernels = np.zeros((rows, columns), dtype=np.int64) if taps > 1 else None

    def next_tap(self) -> None:
        """Start a tap with the mean of the last one as its prior."""
        self._total, self._count = _MEAN_PRIOR * self._mean, _MEAN_PRIOR

    def levels(self, tap: int, part: _Part) -> np.ndarray:
        """int16 (n,), expected magnitudes of a part's weights in quarter octaves; sums stay below 2^12."""
        row = log16(self._rows[part.band]) - log16(self._row_counts[part.band] << _RATIO_BITS)
        column = log16(self._columns) - log16(self._column_counts << _RATIO_BITS)
        if len(column) == 1:
            column = np.zeros_like(column)
        level = np.add.outer(row.astype(np.int16), column.astype(np.int16)).reshape(-1).take(part.places)
        mean = int(log16(np.array([self._mean]))[0])
        if tap and self._kernels is not None:
            unit = 16 * _RATIO_BITS
            level += unit
            linear = _RATIOS.take(level, mode="clip")
            linear += part.pick(self._kernels)
            linear //= _KERNEL_PRIOR + tap
            level = log16(np.maximum(linear, 1, out=linear)).astype(np.int16)
            mean -= unit
        level += mean
        level >>= 2
        return np.clip(level, 0, N_LEVELS - 1, out=level)

    def learn(self, part: _Part, magnitudes: np.ndarray) -> None:
        """Learn from the magnitudes, int32 (n,), of a part's weights."""
        self._total += int(magnitudes.sum(dtype=np.int64))
        self._count += len(magnitudes)
        self._mean = max(1, self._total // self._count)
        table = np.zeros((len(part.in_rows), len(part.in_columns)), dtype=np.int32)
        table.reshape(-1)[part.places] = magnitudes
        in_rows, in_columns = (table.sum(axis=axis, dtype=np.int64) for axis in (1, 0))
        self._rows[part.band] += (np.minimum(in_rows, _LARGEST_SUM) << _RATIO_BITS) // self._mean
        self._row_counts[part.band] += part.in_rows
        self._columns += (np.minimum(in_columns, _LARGEST_SUM) << _RATIO_BITS) // self._mean
        self._column_counts += part.in_columns
        if self._kernels is not None:
            ratios = magnitudes.astype(np.int64)
            ratios <<= _RATIO_BITS
            ratios //= self._mean
            ratios += part.pick(self._kernels)
            part.put(ratios, self._kernels)
