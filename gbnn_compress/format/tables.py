"""Frequency tables: the frequency of each symbol in a tensor, and how it depends on the context.

Frequencies are exact integers that sum to 2^24.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format.bits import BitReader, BitWriter, exp_golomb_bits, unzigzag, zigzag, zigzag_int
from gbnn_compress.format.contexts import FACTOR_BITS, ContextRule, kernel_of

PRECISION = 24
"""Frequencies of a table sum to 2 ** PRECISION."""

_QUARTER_OCTAVES = np.array([16, 19, 23, 27])
"""16 * 2^(i/4), rounded: the mantissas of the coarse frequencies."""

_TOP = 25
"""Exponent of the largest weights; with mantissas of 5 bits they have 30 bits."""

_OFFSET = 5
_NEIGHBOUR = 32

_STEPS = (*range(1 << 9), *range(-(1 << 9), 0))
_STEP_BITS = np.array([[exp_golomb_bits(zigzag_int(step), order=order) for step in _STEPS] for order in range(4)])
"""int64 (4, 1024), bits of a step between two levels in Exp-Golomb codes of order 0 to 3; negative steps count from the
end."""


@dataclass(frozen=True)
class Table:
    """The frequencies of one tensor, which a file holds before its ids.

    Attributes:
        levels: int64 (K + 1,), frequency of each symbol in quarter octaves, from 1; 0 if it does not occur.
        rule: How frequencies depend on the context; None if they do not.
        trellis: Whether a weight has only symbols of the parity that the trellis allows, and outliers.
    """

    levels: np.ndarray
    rule: ContextRule | None = None
    trellis: bool = False


def coarse_levels(counts: np.ndarray) -> np.ndarray:
    """Counts in quarter octaves, as in a table.

    Args:
        counts: int64 (K,), >= 0.

    Returns:
        int64 (K,), 0 for a symbol that does not occur, else 1 + round(4 log2 count).
    """
    return np.where(counts > 0, 1 + np.rint(4 * np.log2(np.maximum(counts, 1))), 0).astype(np.int64)


def symbol_weights(levels: np.ndarray) -> np.ndarray:
    """int64 (n,), (16, 19, 23, 27)[(level - 1) mod 4] * 2^((level - 1) div 4) for levels >= 1.

    All are scaled by a power of two so that the largest take 30 bits.
    """
    exponents = (levels - 1) // 4
    exponents = exponents - exponents.max() + _TOP
    return (_QUARTER_OCTAVES[(levels - 1) % 4] << np.maximum(exponents, 0)) >> np.minimum(np.maximum(-exponents, 0), 63)


def frequencies(levels: np.ndarray, factors: np.ndarray | None = None) -> np.ndarray:
    """Integer frequencies of the symbols that occur.

    A level has the weight (16, 19, 23, 27)[(level - 1) mod 4] * 2^((level - 1) div 4), scaled by a power of two so that
    the largest take 30 bits, and multiplied by its factor. The frequency of a symbol is 1 + floor(w (2^24 - n) /
    sum w); the first symbol of the largest weight gets the remainder.

    Args:
        levels: int64 (n,), all >= 1, n < 2^24.
        factors: int64 (m, n), in units of 2 ** -FACTOR_BITS; None: all are 1.

    Returns:
        int64 (n,) or (m, n), all >= 1, the last axis summing to 2^24.
    """
    weights = symbol_weights(levels)
    if factors is not None:
        weights = (weights * factors) >> (FACTOR_BITS - 4)
    free = (1 << PRECISION) - len(levels)
    result = 1 + weights * free // np.maximum(weights.sum(axis=-1, keepdims=True), 1)
    top = np.argmax(weights, axis=-1)[..., None]
    rest = (1 << PRECISION) - result.sum(axis=-1, keepdims=True)
    np.put_along_axis(result, top, np.take_along_axis(result, top, axis=-1) + rest, axis=-1)
    return result


def code_lengths(levels: np.ndarray) -> np.ndarray:
    """float64 (n,), bits of each symbol of a table without contexts; infinite for symbols that do not occur."""
    lengths = np.full(len(levels), np.inf)
    live = levels > 0
    if live.sum() == 1:
        lengths[live] = 0.0
    elif live.any():
        lengths[live] = PRECISION - np.log2(frequencies(levels[live]))
    return lengths


def encode_tables(tables: Sequence[Table], shapes: Sequence[Sequence[int]], *, version: int = 1) -> bytes:
    """Write one table per tensor.

    Each table: the first symbol that occurs and the number of symbols up to the last (Exp-Golomb of order 4), the
    Exp-Golomb order of the steps (2 bits), the first level (8 bits), then the steps from level to level, zigzag. If
    more than one symbol occurs: in version 2 whether there is a trellis (1 bit); whether there is a rule (1 bit), and
    if so its start (7 bits), for a kernel the neighbours' weights + 32 (6 bits each), tail (2 bits), offset + 5
    (3 bits) and floor (7 bits).
    """
    writer = BitWriter()
    for table, shape in zip(tables, shapes, strict=True):
        _write_levels(writer, table.levels)
        if np.count_nonzero(table.levels) > 1:
            if version > 1:
                writer.write(int(table.trellis), width=1)
            writer.write(int(table.rule is not None), width=1)
            if table.rule is not None:
                _write_rule(writer, table.rule, has_kernel=kernel_of(shape) != (1, 1))
    return writer.getvalue()


def decode_tables(data: bytes, *, shapes: Sequence[Sequence[int]], alphabet: int, version: int = 1) -> list[Table]:
    """Read what `encode_tables` wrote.

    Raises:
        ArtifactError: The tables do not fit the alphabet, or end early.
    """
    reader = BitReader(data)
    tables = []
    for shape in shapes:
        levels = _read_levels(reader, alphabet)
        several = np.count_nonzero(levels) > 1
        trellis = bool(version > 1 and several and reader.read_int(width=1))
        has_rule = several and reader.read_int(width=1)
        rule = _read_rule(reader, has_kernel=kernel_of(shape) != (1, 1)) if has_rule else None
        tables.append(Table(levels, rule, trellis))
    return tables


def table_bits(levels: np.ndarray) -> int:
    """Bits that the levels of one table take."""
    live = np.flatnonzero(levels)
    first, last = int(live[0]), int(live[-1])
    bits = exp_golomb_bits(first, order=4) + exp_golomb_bits(last - first, order=4)
    return bits + 2 + 8 + int(_bits_by_order(np.diff(levels[first : last + 1])).min())


def rule_bits(shape: Sequence[int]) -> int:
    """Bits that a rule takes."""
    return 19 if kernel_of(shape) == (1, 1) else 37


def _bits_by_order(steps: np.ndarray) -> np.ndarray:
    """int64 (4,), bits of the steps between levels in Exp-Golomb codes of order 0 to 3."""
    return _STEP_BITS[:, steps].sum(axis=1)


def _write_levels(writer: BitWriter, levels: np.ndarray) -> None:
    live = np.flatnonzero(levels)
    first, last = int(live[0]), int(live[-1])
    steps = np.diff(levels[first : last + 1])
    order = int(_bits_by_order(steps).argmin())
    writer.write_exp_golomb(first, order=4)
    writer.write_exp_golomb(last - first, order=4)
    writer.write(order, width=2)
    writer.write(int(levels[first]), width=8)
    writer.write_exp_golomb(zigzag(steps), order=order)


def _read_levels(reader: BitReader, alphabet: int) -> np.ndarray:
    first, extra = reader.read_exp_golomb(order=4), reader.read_exp_golomb(order=4)
    if first + extra >= alphabet:
        raise ArtifactError("damaged artifact: a frequency table names a component past the bank")
    order = reader.read_int(width=2)
    levels = [reader.read_int(width=8)]
    for _ in range(extra):
        levels.append(levels[-1] + unzigzag(reader.read_exp_golomb(order=order)))
    if min(levels) < 0 or not any(levels):
        raise ArtifactError("damaged artifact: a frequency table holds an impossible level")
    table = np.zeros(alphabet, dtype=np.int64)
    table[first : first + extra + 1] = levels
    return table


def _write_rule(writer: BitWriter, rule: ContextRule, *, has_kernel: bool) -> None:
    writer.write(rule.start, width=7)
    if has_kernel:
        writer.write(np.array(rule.neighbours) + _NEIGHBOUR, width=6)
    writer.write(rule.tail, width=2)
    writer.write(rule.offset + _OFFSET, width=3)
    writer.write(rule.floor, width=7)


def _read_rule(reader: BitReader, *, has_kernel: bool) -> ContextRule:
    start = reader.read_int(width=7)
    left, above, corner = (reader.read_int(width=6) - _NEIGHBOUR if has_kernel else 0 for _ in range(3))
    tail, offset = reader.read_int(width=2), reader.read_int(width=3) - _OFFSET
    return ContextRule(start, (left, above, corner), tail, offset, reader.read_int(width=7))
