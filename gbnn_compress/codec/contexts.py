"""What the ids of a tensor say of its next ids: a scale and a prediction, in exact integers.

A tensor (rows, columns, *kernel) is read tap by tap of its kernel, and each tap in a few parts that every row and every
column has its share in. The magnitudes read so far tell how large the next weight is, by its row, its column and its
kernel; the neighbours within its kernel tell around which value. Both together, rounded, are its *context*.

Writer and reader walk the same way (`walk`), and nothing in it is a floating-point result that two machines could
disagree about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

VALUE_BITS = 24
"""Magnitudes of components are integers below 2 ** VALUE_BITS here."""

N_LEVELS = 112
"""Scales of a context, a quarter octave apart."""

REACH = 8
"""Predictions of a context, in half scales on either side of zero."""

N_PREDICTIONS = 2 * REACH + 1

FACTOR_BITS = 30
"""A factor of 1 is 2 ** FACTOR_BITS."""

PHASES = 16
FIRST_PARTS, NEXT_PARTS = (1, 2, 4, 8, 16), (2, 16)
"""Phases before which the parts of the first tap, and of any other, end."""

BAND = 1 << 20
"""Weights that are read without learning from each other, at most, if a row has not more."""

_RATIO_BITS = 12
_LARGEST_SUM = 1 << 50
_ROW_PRIOR, _KERNEL_PRIOR, _MEAN_PRIOR = 8, 16, 8
"""Weights whose say a row (or column), a kernel and a tap start with."""


@dataclass(frozen=True)
class Rule:
    """How a tensor makes use of contexts.

    Attributes:
        start: Quarter octaves (0 to 127), the magnitude that its first weights are expected to have.
        neighbours: Weights of the left, the upper and the upper left neighbour, in sixteenths, -32 to 31.
        tail: Degrees of freedom 2^(tail + 2) - 1 of the components' factors, tail 0 to 3.
        offset: Quarter octaves (-5 to 2) from a context's scale to that of the factors.
        floor: Quarter octaves (0 to 127), added to it as a magnitude.
    """

    start: int
    neighbours: tuple[int, int, int]
    tail: int
    offset: int
    floor: int


Visit = Callable[[int, slice, np.ndarray, np.ndarray], np.ndarray]
"""Tap, rows, bool (rows, columns) of the block within them, uint16 (n,) contexts -> int (n,) ids."""


def log16(numbers: np.ndarray) -> np.ndarray:
    """Sixteenths of octaves of integers from 1 to 2^53: 16 log2 at the powers of two, and linear between."""
    exponents = np.frexp(numbers.astype(np.float64))[1].astype(np.int64) - 1
    return 16 * exponents + ((numbers << 4) >> exponents) - 16


def exp16(levels: np.ndarray) -> np.ndarray:
    """The inverse of `log16`, for levels >= 0."""
    return ((16 + (levels & 15)) << (levels >> 4)) >> 4


def _magnitude(quarter_octaves: int) -> int:
    return int(exp16(np.array([4 * quarter_octaves]))[0])


def whole_values(means: np.ndarray) -> np.ndarray:
    """int64 (K + 1,), the components' means in units that make the largest a number of VALUE_BITS bits, and 0 for K."""
    exponent = int(np.frexp(np.abs(means).max(initial=0.0))[1])
    return np.append(np.trunc(np.ldexp(means, VALUE_BITS - exponent)), 0.0).astype(np.int64)


def kernel_of(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of a tensor's kernel: the last dimension is the width, what lies between is the height."""
    return math.prod(shape[2:-1]), shape[-1] if len(shape) > 2 else 1


def walk(shape: Sequence[int], values: np.ndarray, rule: Rule, visit: Visit) -> np.ndarray:
    """Go through a tensor block by block, asking for the ids of each.

    Args:
        shape: Of the tensor, two dimensions or more.
        values: int64 (K + 1,), from `whole_values`.
        rule: Its rule.
        visit: Is told a block and its weights' contexts; returns their ids.

    Returns:
        (taps, rows, columns), all ids, in the smallest unsigned integers that hold K.
    """
    rows, columns = shape[:2]
    height, width = kernel_of(shape)
    taps = height * width
    ids = np.zeros((taps, rows, columns), dtype=np.min_scalar_type(len(values) - 1))
    down, right = ((np.arange(size) % PHASES).astype(np.int8) for size in (rows, columns))
    phase = (down[:, None] + right) % PHASES
    state = _State(rows, columns, taps, mean=_magnitude(rule.start))
    for tap in range(taps):
        expected = _expected(ids, tap, width, values, rule.neighbours)
        state.next_tap()
        low = 0
        for high in NEXT_PARTS if tap else FIRST_PARTS:
            for band in _bands(rows, columns):
                chosen = (phase[band] >= low) & (phase[band] < high)
                if not chosen.any():
                    continue
                levels = state.levels(tap, band, chosen)
                contexts = levels * N_PREDICTIONS + REACH
                if tap:
                    contexts += _prediction(expected[band][chosen], levels)
                part = visit(tap, band, chosen, contexts.astype(np.uint16))
                ids[tap, band][chosen] = part
                state.learn(band, chosen, np.abs(values[part] - expected[band][chosen]))
            low = high
    return ids


def factors(contexts: np.ndarray, symbols: np.ndarray, values: np.ndarray, rule: Rule) -> np.ndarray:
    """How likely symbols are, by their distance from what a context predicts.

    With u the distance over the scale, (1 + u^2 / nu) ^ -((nu + 1) / 2), the density of Student's t without its
    constant: near a normal in the middle, heavier in its tail, and for these nu it takes whole numbers alone. An
    outlier may be anywhere: 1.

    Args:
        contexts: (n,) contexts.
        symbols: int (m,), components, or K for the outlier.
        values: int64 (K + 1,), from `whole_values`.
        rule: The tensor's rule.

    Returns:
        int64 (n, m), in 2 ** -FACTOR_BITS.
    """
    levels, predictions = np.divmod(contexts.astype(np.int64), N_PREDICTIONS)
    centre = ((predictions - REACH) * exp16(4 * levels + 2)) >> 1
    scale = exp16(np.maximum(4 * (levels + rule.offset) + 2, 0)) + _magnitude(rule.floor)
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


def _expected(
    ids: np.ndarray, tap: int, width: int, values: np.ndarray, neighbours: tuple[int, int, int]
) -> np.ndarray:
    """int64 (rows, columns), what the taps to the left, above and above to the left say of this one."""
    if not tap:
        return np.broadcast_to(np.int64(0), ids.shape[1:])
    y, x = divmod(tap, width)
    left, above, corner = neighbours
    total = np.zeros(ids.shape[1:], dtype=np.int64)
    if x and left:
        total += left * values[ids[tap - 1]]
    if y and above:
        total += above * values[ids[tap - width]]
    if x and y and corner:
        total += corner * values[ids[tap - width - 1]]
    return total >> 4


def _prediction(expected: np.ndarray, levels: np.ndarray) -> np.ndarray:
    scale = exp16(4 * levels + 2)
    return np.clip((4 * expected + scale) // (2 * scale), -REACH, REACH)


class _State:
    """Magnitudes learnt so far: the tap's mean, and rows, columns and kernels relative to it."""

    def __init__(self, rows: int, columns: int, taps: int, *, mean: int) -> None:
        unit = _ROW_PRIOR << _RATIO_BITS
        self._mean = mean
        self._rows, self._row_counts = np.full(rows, unit), np.full(rows, _ROW_PRIOR)
        self._columns, self._column_counts = np.full(columns, unit), np.full(columns, _ROW_PRIOR)
        self._kernels = np.zeros((rows, columns), dtype=np.int64) if taps > 1 else None

    def next_tap(self) -> None:
        """A new tap has the last one's mean until it is known better."""
        self._total, self._count = _MEAN_PRIOR * self._mean, _MEAN_PRIOR

    def levels(self, tap: int, band: slice, chosen: np.ndarray) -> np.ndarray:
        """int64 (n,), expected magnitudes of the chosen weights of a band, in quarter octaves."""
        row = log16(self._rows[band]) - log16(self._row_counts[band] << _RATIO_BITS)
        column = log16(self._columns) - log16(self._column_counts << _RATIO_BITS)
        if len(column) == 1:
            column = np.zeros_like(column)
        ratio = row[:, None] + column
        if tap and self._kernels is not None:
            unit = 16 * _RATIO_BITS
            linear = exp16(np.clip(ratio[chosen] + unit, 0, 36 * 16))
            linear = (_KERNEL_PRIOR * linear + self._kernels[band][chosen]) // (_KERNEL_PRIOR + tap)
            level = log16(np.maximum(linear, 1)) - unit
        else:
            level = ratio[chosen]
        mean = int(log16(np.array([self._mean]))[0])
        return np.clip((level + mean) >> 2, 0, N_LEVELS - 1)

    def learn(self, band: slice, chosen: np.ndarray, magnitudes: np.ndarray) -> None:
        """Take in the magnitudes (n,) of the chosen weights of a band."""
        self._total += int(magnitudes.sum())
        self._count += len(magnitudes)
        self._mean = max(1, self._total // self._count)
        table = np.zeros(chosen.shape, dtype=np.int64)
        table[chosen] = magnitudes
        self._rows[band] += (np.minimum(table.sum(axis=1), _LARGEST_SUM) << _RATIO_BITS) // self._mean
        self._row_counts[band] += chosen.sum(axis=1)
        self._columns += (np.minimum(table.sum(axis=0), _LARGEST_SUM) << _RATIO_BITS) // self._mean
        self._column_counts += chosen.sum(axis=0)
        if self._kernels is not None:
            self._kernels[band] += (table << _RATIO_BITS) // self._mean
