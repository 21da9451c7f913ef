"""The walk of format version 2: contexts of ids in the order in which they are coded, sixteen rows side by side.

Rows are taken in groups of LANES. Within a group come the weights of a row in C order (column by column, and within a
column the taps of its kernel); at each *step*, that weight of every row of the group. The magnitudes read so far of a
row, a column, a tap and a kernel predict the magnitude of the next weight, and its neighbours in the kernel predict its
value, as in `contexts`. A *slot* is twice a context, plus the parity that the trellis allows.

All sums are float32 (the taps' are float64), added in a fixed order and rounded after each operation, so that every
machine finds the same slots. `lane_loops` does the same in compiled loops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gbnn_compress.compiled import loops
from gbnn_compress.format.contexts import (
    N_LEVELS,
    N_PREDICTIONS,
    REACH,
    ContextRule,
    exp16,
    kernel_of,
)
from gbnn_compress.format.trellis import next_states, superset_of

LANES = 16

N_SLOTS = 2 * N_LEVELS * N_PREDICTIONS

ROW_PRIOR, COLUMN_PRIOR, KERNEL_PRIOR, MEAN_PRIOR = 4, 4, 16, 32
"""Number of weights that the priors of a row, a column, a kernel and a tap count as."""

SLOWER = 64
"""About by how much numpy is slower here than in the jobs that `compiled.WORTHWHILE` is measured in."""

AT_ONCE = 1 << 18
"""About the number of weights that are put into coding order at once."""

_BIAS, _MOST = 127 << 4, 32 << 4

INVERSE_SCALES = np.float32(2) / exp16(4 * np.arange(N_LEVELS) + 2).astype(np.float32)
"""float32 (levels,), what turns a prediction into half scales."""

Visit = Callable[[int, np.ndarray], np.ndarray]
"""Number of the first weight, int (n,) slots of a column's rows -> int (n,) ids."""


def coding_order(ids: np.ndarray) -> np.ndarray:
    """int32 (n,), ids (rows, steps) that start at a group of rows, in the order in which they are coded."""
    whole = len(ids) // LANES * LANES
    groups = ids[:whole].reshape(-1, LANES, ids.shape[1]).transpose(0, 2, 1)
    return np.concatenate([groups.ravel(), ids[whole:].T.ravel()], dtype=np.int32, casting="unsafe")


def from_coding_order(ids: np.ndarray, into: np.ndarray) -> None:
    """The inverse of `coding_order`, into an array (rows, steps)."""
    rows, steps = into.shape
    whole = rows // LANES * LANES
    groups, rest = np.split(ids, [whole * steps])
    into[:whole] = groups.reshape(-1, steps, LANES).transpose(0, 2, 1).reshape(whole, steps)
    into[whole:] = rest.reshape(steps, rows - whole).T


def batches(shape: Sequence[int]) -> list[slice]:
    """Rows to put into coding order at once: whole groups."""
    group = LANES * math.prod(shape[1:])
    step = LANES * max(1, AT_ONCE // group)
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def by_row(ids: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Ids (n,) as (rows, steps)."""
    return ids.reshape(shape[0], math.prod(shape[1:]))


def slots_of(
    ids: np.ndarray, shape: Sequence[int], values: np.ndarray, rule: ContextRule | None, *, trellis: bool
) -> np.ndarray:
    """uint16 (n,), slots of known ids in coding order.

    Args:
        ids: (n,), C order.
        shape: Shape of the tensor, two dimensions or more.
        values: int64 (K + 1,), from `whole_values`.
        rule: Its rule; without one, all contexts are 0.
        trellis: Whether the parities are those of the trellis, instead of all 0.
    """
    walk, rows = Walk(shape, values, rule, trellis=trellis), by_row(ids, shape)
    return np.concatenate([walk.slots(coding_order(rows[batch])) for batch in batches(shape)])


class Walk:
    """What is learnt of a tensor from one group of rows to the next.

    Args:
        shape: Shape of the tensor.
        values: int64 (K + 1,).
        rule: Its rule, or None.
        trellis: Whether a row's weights follow the trellis.
    """

    def __init__(self, shape: Sequence[int], values: np.ndarray, rule: ContextRule | None, *, trellis: bool) -> None:
        self._columns, (height, self._width) = shape[1], kernel_of(shape)
        self._taps = height * self._width
        self._values, self._rule, self._trellis = values.astype(np.int32), rule, trellis
        start = 1.0 if rule is None else float(exp16(np.array([4 * rule.start]))[0])
        self._means, self._counts = np.zeros(self._taps), np.zeros(self._taps)
        self._means[0], self._counts[0] = MEAN_PRIOR * start, MEAN_PRIOR
        self._column_sums = np.full(self._columns, COLUMN_PRIOR * start, dtype=np.float32)
        self._column_usual = self._column_sums.copy()

    def slots(self, ids: np.ndarray) -> np.ndarray:
        """uint16 (n,), slots of the next groups' ids, int32 (n,) in coding order."""
        slots = np.empty(len(ids), dtype=np.uint16)
        compiled = loops("format.lane_loops", work=SLOWER * len(ids))
        if compiled is not None:
            compiled.walk(ids, slots, *self.compiled_arguments(len(ids)), compiled.nothing())
            return slots

        def visit(first: int, found: np.ndarray) -> np.ndarray:
            slots[first : first + len(found)] = found
            return ids[first : first + len(found)]

        self.visit(len(ids), visit)
        return slots

    def compiled_arguments(self, size: int) -> tuple[object, ...]:
        """What the compiled walk takes: the shape of the next `size` weights, the rule, and what was learnt."""
        neighbours = (0, 0, 0) if self._rule is None else self._rule.neighbours
        return (
            (size // (self._columns * self._taps), self._columns, self._taps, self._width),
            neighbours,
            self._values,
            INVERSE_SCALES,
            self._rule is not None,
            self._trellis,
            (self._means, self._counts, self._column_sums, self._column_usual),
        )

    def visit(self, size: int, visit: Visit) -> None:
        """Walk through the next groups, `size` weights, and ask `visit` for the ids of each column's rows."""
        place, rows = 0, size // (self._columns * self._taps)
        for first in range(0, rows, LANES):
            lanes = min(LANES, rows - first)
            group, states = _Group(self, lanes), np.zeros(lanes, dtype=np.int64)
            for column, tap in np.ndindex(self._columns, self._taps):
                slots = np.zeros(lanes, dtype=np.int64)
                if self._rule is not None:
                    slots += 2 * group.contexts(tap, column)
                if self._trellis:
                    slots += superset_of(states)
                ids = visit(place, slots)
                if self._trellis:
                    states = next_states(states, ids, escape=len(self._values) - 1)
                if self._rule is not None:
                    group.learn(tap, column, self._values[ids])
                place += lanes


class _Group:
    """What is learnt of the rows of one group, and of their kernels."""

    def __init__(self, walk: Walk, lanes: int) -> None:
        self._walk, self._lanes = walk, lanes
        self._neighbours = (0, 0, 0) if walk._rule is None else walk._rule.neighbours
        self._row_usual: np.ndarray | np.float32 = np.float32(ROW_PRIOR * max(1.0, walk._means[0] / walk._counts[0]))
        self._rows = np.full(lanes, self._row_usual, dtype=np.float32)
        self._kernels, self._kernel_usual = np.zeros(lanes, dtype=np.float32), np.zeros(lanes, dtype=np.float32)
        self._read = np.zeros((walk._taps, lanes), dtype=np.int32)
        self._predicts, self._nothing = any(self._neighbours), np.zeros(lanes, dtype=np.int32)

    def contexts(self, tap: int, column: int) -> np.ndarray:
        """int (lanes,), contexts of a column's rows."""
        walk = self._walk
        if not tap:
            self._kernels, self._kernel_usual = (np.zeros(self._lanes, dtype=np.float32) for _ in range(2))
        if not walk._counts[tap]:
            walk._means[tap] = MEAN_PRIOR * (walk._means[tap - 1] / walk._counts[tap - 1])
            walk._counts[tap] = MEAN_PRIOR
        mean = _lg(np.float32(max(1.0, walk._means[tap] / walk._counts[tap]))) - _BIAS
        self._row_levels = mean + _lg(self._rows) - _lg(self._row_usual)
        self._column_level = (
            _lg(walk._column_sums[column]) - _lg(walk._column_usual[column]) if walk._columns > 1 else 0
        )
        self._common_level = mean + self._column_level
        levels = _clipped(self._row_levels + self._column_level, 0, _MOST)
        if walk._taps > 1:
            self._usual = _ex(levels)
            prior = np.float32(KERNEL_PRIOR) * self._usual
            levels += _lg(prior + self._kernels) - _lg(prior + self._kernel_usual)
        levels = _clipped(levels, 0, 4 * N_LEVELS - 1) >> 2
        contexts = levels * N_PREDICTIONS + REACH
        if not tap or not self._predicts:
            self._expected = self._nothing
            return contexts
        self._expected = self._expectation(tap)
        halves = self._expected.astype(np.float32) * INVERSE_SCALES[levels] + np.float32(REACH + 0.5)
        return contexts - REACH + _clipped(halves, 0, 2 * REACH).astype(np.int64)

    def _expectation(self, tap: int) -> np.ndarray:
        """int32 (lanes,), values expected from the neighbours in the kernel."""
        y, x = divmod(tap, self._walk._width)
        places = ((x, tap - 1), (y, tap - self._walk._width), (x and y, tap - self._walk._width - 1))
        total = np.zeros(self._lanes, dtype=np.int32)
        for weight, (there, place) in zip(self._neighbours, places, strict=True):
            if there and weight:
                total += np.int32(weight) * self._read[place]
        return total >> 4

    def learn(self, tap: int, column: int, values: np.ndarray) -> None:
        """Learn the values of a column's rows."""
        walk = self._walk
        if self._predicts:
            self._read[tap] = values
        distance = np.abs(values - self._expected).astype(np.float32)
        if walk._taps > 1:
            self._kernels += distance
            self._kernel_usual += self._usual
        total = _sum(distance)
        walk._column_sums[column] += total
        walk._column_usual[column] += _sum(_ex(_clipped(self._row_levels, 0, _MOST)))
        walk._means[tap] += total
        walk._counts[tap] += self._lanes
        self._rows += distance
        self._row_usual = self._row_usual + _ex(_clipped(self._common_level, 0, _MOST))


def _lg(numbers: np.ndarray | np.float32) -> np.ndarray:
    """int32, sixteenths of octaves of float32 numbers > 0, plus `_BIAS`: the exponent and 4 bits of the mantissa."""
    return np.right_shift(numbers.view(np.int32), 19)


def _ex(levels: np.ndarray) -> np.ndarray:
    """float32, the inverse of `_lg`, without the bias."""
    return ((levels + _BIAS) << 19).astype(np.int32).view(np.float32)


def _clipped(numbers: np.ndarray, low: int, high: int) -> np.ndarray:
    """`numpy.clip`, which takes several times as long for so few numbers."""
    return np.minimum(np.maximum(numbers, low), high)


def _sum(numbers: np.ndarray) -> np.float32:
    """Sum of up to LANES float32 numbers: one half is added to the other, four times."""
    if len(numbers) < LANES:
        numbers = np.concatenate([numbers, np.zeros(LANES - len(numbers), dtype=np.float32)])
    eight = numbers[:8] + numbers[8:]
    four = eight[:4] + eight[4:]
    two = four[:2] + four[2:]
    total: np.float32 = two[0] + two[1]
    return total
