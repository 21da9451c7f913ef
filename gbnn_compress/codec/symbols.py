"""Integers <-> bits: frequency tables and the entropy coder. The only user of constriction.

Frequencies are exact integers that sum to 2^24. constriction is handed `frequency - 1` as probabilities: its leaky
fixed-point rule then gives back exactly these integers, since every cumulative sum is a whole number that a
float64 holds, whatever the rounding (`perfect=False`, stated in docs/format.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import constriction
import numpy as np

from gbnn_compress.codec.bits import BitReader, BitWriter, exp_golomb_bits, unzigzag, zigzag
from gbnn_compress.errors import ArtifactError

PRECISION = 24
"""Frequencies of a table sum to 2 ** PRECISION."""

_QUARTER_OCTAVES = (16, 19, 23, 27)
"""16 * 2^(i/4), rounded: the mantissas of the coarse frequencies."""


def coarse_levels(counts: np.ndarray) -> np.ndarray:
    """Counts in quarter octaves, as a table stores them.

    Args:
        counts: int64 (K,), >= 0.

    Returns:
        int64 (K,), 0 for a symbol that does not occur, else 1 + round(4 log2 count).
    """
    return np.where(counts > 0, 1 + np.rint(4 * np.log2(np.maximum(counts, 1))), 0).astype(np.int64)


def frequencies(levels: np.ndarray) -> np.ndarray:
    """Integer frequencies of the symbols that occur.

    With weight w = (16, 19, 23, 27)[(level - 1) mod 4] << ((level - 1) div 4), a symbol gets
    1 + floor(w (2^24 - n) / sum w), and the most frequent symbol (the first of them) what is left.

    Args:
        levels: int64 (n,), all >= 1, n < 2^24.

    Returns:
        int64 (n,), all >= 1, sum 2^24.
    """
    mantissas = np.array(_QUARTER_OCTAVES, dtype=object)
    weights = np.array(
        [int(mantissas[(level - 1) % 4]) << int((level - 1) // 4) for level in levels.tolist()], dtype=object
    )
    free = (1 << PRECISION) - len(levels)
    result = (1 + weights * free // weights.sum()).astype(np.int64)
    result[int(np.argmax(levels))] += (1 << PRECISION) - int(result.sum())
    return result


def code_lengths(levels: np.ndarray) -> np.ndarray:
    """float64 (n,), bits of each symbol of a table; infinite where it does not occur."""
    lengths = np.full(len(levels), np.inf)
    live = levels > 0
    if live.sum() == 1:
        lengths[live] = 0.0
    elif live.any():
        lengths[live] = PRECISION - np.log2(frequencies(levels[live]))
    return lengths


def encode_tables(tables: Sequence[np.ndarray]) -> bytes:
    """Write the coarse levels of one table a tensor.

    Each: first symbol that occurs and number of symbols up to the last (Exp-Golomb of order 4), the Exp-Golomb
    order of what follows (2 bits), the first level (8 bits), then the steps from level to level, zigzag.
    """
    writer = BitWriter()
    for levels in tables:
        live = np.flatnonzero(levels)
        first, last = int(live[0]), int(live[-1])
        steps = zigzag(np.diff(levels[first : last + 1]))
        order = min(range(4), key=lambda order: exp_golomb_bits(steps, order=order))
        writer.write_exp_golomb(first, order=4)
        writer.write_exp_golomb(last - first, order=4)
        writer.write(order, width=2)
        writer.write(int(levels[first]), width=8)
        writer.write_exp_golomb(steps, order=order)
    return writer.getvalue()


def decode_tables(data: bytes, *, n_tables: int, alphabet: int) -> list[np.ndarray]:
    """Read what `encode_tables` wrote: int64 (alphabet,) levels for each tensor.

    Raises:
        ArtifactError: The tables do not fit the alphabet, or end early.
    """
    reader = BitReader(data)
    tables = []
    for _ in range(n_tables):
        first, extra = reader.read_exp_golomb(order=4), reader.read_exp_golomb(order=4)
        if first + extra >= alphabet:
            raise ArtifactError("damaged artifact: a frequency table names a component past the bank")
        order = reader.read_int(width=2)
        levels = [reader.read_int(width=8)]
        for _ in range(extra):
            levels.append(levels[-1] + unzigzag(reader.read_exp_golomb(order=order)))
        table = np.zeros(alphabet, dtype=np.int64)
        table[first : first + extra + 1] = levels
        if min(levels) < 0 or not any(levels):
            raise ArtifactError("damaged artifact: a frequency table holds an impossible level")
        tables.append(table)
    return tables


def encode_maps(maps: Sequence[np.ndarray], tables: Sequence[np.ndarray]) -> bytes:
    """Entropy-code index maps into one ANS stream of little-endian 32-bit words.

    Args:
        maps: One integer array (n_t,) a tensor.
        tables: Coarse levels (alphabet,) a tensor; every symbol of its map must occur.
    """
    coder = constriction.stream.stack.AnsCoder()
    for ids, levels in zip(reversed(maps), reversed(tables), strict=True):
        live = np.flatnonzero(levels)
        if len(live) > 1:
            positions = np.zeros(len(levels), dtype=np.int32)
            positions[live] = np.arange(len(live), dtype=np.int32)
            coder.encode_reverse(positions[ids], _model(levels[live]))
    return coder.get_compressed().astype("<u4").tobytes()


def decode_maps(
    data: bytes,
    tables: Sequence[np.ndarray],
    sizes: Sequence[int],
    *,
    consume: Callable[[int, np.ndarray], None],
) -> None:
    """Decode index maps, handing each to `consume(tensor index, int32 ids)` in order.

    Raises:
        ArtifactError: The stream is not exactly used up.
    """
    coder = constriction.stream.stack.AnsCoder(np.frombuffer(data, dtype="<u4").astype(np.uint32))
    for index, (levels, size) in enumerate(zip(tables, sizes, strict=True)):
        live = np.flatnonzero(levels).astype(np.int32)
        if len(live) == 1:
            consume(index, np.full(size, live[0], dtype=np.int32))
        else:
            consume(index, live[coder.decode(_model(levels[live]), size)])
    if not coder.is_empty():
        raise ArtifactError("damaged artifact: the index maps do not end where they should")


def _model(levels: np.ndarray) -> object:
    probabilities = (frequencies(levels) - 1).astype(np.float64)
    return constriction.stream.model.Categorical(probabilities, perfect=False)
