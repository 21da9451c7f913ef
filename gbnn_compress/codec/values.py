"""Unshared values (norms, biases, buffers): each vector on its own uniform grid, in as few bits as it needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gbnn_compress.codec.bits import BitReader, BitWriter, unzigzag, zigzag
from gbnn_compress.errors import ArtifactError

LINEAR, LOGARITHMIC, EXACT = 0, 1, 2

_EXPONENT_OFFSET = 4096
_EXPONENT_WIDTH = 13


@dataclass(frozen=True)
class Vector:
    """One coded vector.

    Attributes:
        mode: LINEAR (value = code * step), LOGARITHMIC (value = 2 ^ (code * step)) or EXACT (the bits as they are).
        exponent: step = 2 ^ (exponent / 2); 0 when EXACT.
        codes: int64 (n,), or the values' bit patterns as unsigned integers when EXACT.
        width: Bits of an EXACT value; 0 otherwise.
    """

    mode: int
    exponent: int
    codes: np.ndarray
    width: int = 0


def step_of(exponent: int) -> float:
    """2 ^ (exponent / 2)."""
    return float(np.ldexp(1.0 if exponent % 2 == 0 else np.sqrt(2.0), exponent // 2))


def quantise(values: np.ndarray, *, step: float, logarithmic: bool, exact: np.ndarray) -> Vector:
    """Put values on the coarsest half-octave grid that is no coarser than `step`.

    Args:
        values: float64 (n,).
        step: Largest grid step allowed, in units of the values, or in octaves when logarithmic.
        logarithmic: Grid on log2(value); the values must be > 0.
        exact: The same values at their stored dtype as unsigned integers (n,), for when the grid would cost more.

    Returns:
        The coded vector.
    """
    width = 8 * exact.dtype.itemsize
    fallback = Vector(EXACT, 0, exact, width)
    exponent = int(np.floor(2 * np.log2(step))) if step > 0 else -_EXPONENT_OFFSET
    if abs(exponent) >= _EXPONENT_OFFSET:
        return fallback
    with np.errstate(over="ignore"):
        coordinates = (np.log2(values) if logarithmic else values) / step_of(exponent)
    if not np.abs(coordinates).max() < 2.0**52:
        return fallback
    vector = Vector(LOGARITHMIC if logarithmic else LINEAR, exponent, np.rint(coordinates).astype(np.int64))
    return vector if _grid_width(vector.codes) < width else fallback


def dequantise(vector: Vector) -> np.ndarray:
    """float64 (n,) values on the grid; the bit patterns themselves when EXACT."""
    if vector.mode == EXACT:
        return vector.codes
    coordinates = vector.codes * step_of(vector.exponent)
    return np.exp2(coordinates) if vector.mode == LOGARITHMIC else coordinates


def encode_vectors(vectors: list[Vector]) -> bytes:
    """Write vectors one after the other.

    Each: mode (2 bits); when EXACT the width (7 bits) and the values; else exponent + 4096 (13 bits), the smallest
    code (zigzag, Exp-Golomb of order 8), the width of the rest (6 bits) and code - smallest in so many bits.
    """
    writer = BitWriter()
    for vector in vectors:
        writer.write(vector.mode, width=2)
        if vector.mode == EXACT:
            writer.write(vector.width, width=7)
            writer.write(vector.codes, width=vector.width)
            continue
        low, width = int(vector.codes.min()), _grid_width(vector.codes)
        writer.write(vector.exponent + _EXPONENT_OFFSET, width=_EXPONENT_WIDTH)
        writer.write_exp_golomb(zigzag(np.array([low])), order=8)
        writer.write(width, width=6)
        writer.write(vector.codes - low, width=width)
    return writer.getvalue()


def vector_bits(vectors: list[Vector]) -> int:
    """Bits that `encode_vectors` will write."""
    return sum(_bits(vector) for vector in vectors)


def decode_vectors(data: bytes, *, sizes: list[int]) -> list[Vector]:
    """Read what `encode_vectors` wrote.

    Args:
        data: The bytes.
        sizes: Number of values of each vector.

    Raises:
        ArtifactError: The bytes are damaged.
    """
    reader = BitReader(data)
    return [_decode_vector(reader, size) for size in sizes]


def _decode_vector(reader: BitReader, size: int) -> Vector:
    mode = reader.read_int(width=2)
    if mode == EXACT:
        width = reader.read_int(width=7)
        return Vector(EXACT, 0, reader.read(size, width=width), width)
    if mode not in (LINEAR, LOGARITHMIC):
        raise ArtifactError("damaged artifact: a vector has an unknown mode")
    exponent = reader.read_int(width=_EXPONENT_WIDTH) - _EXPONENT_OFFSET
    low = unzigzag(reader.read_exp_golomb(order=8))
    width = reader.read_int(width=6)
    return Vector(mode, exponent, reader.read(size, width=width).astype(np.int64) + low)


def _bits(vector: Vector) -> int:
    if vector.mode == EXACT:
        return 2 + 7 + vector.width * len(vector.codes)
    low = int(zigzag(vector.codes.min())) + 256
    return 2 + _EXPONENT_WIDTH + 2 * low.bit_length() - 9 + 6 + _grid_width(vector.codes) * len(vector.codes)


def _grid_width(codes: np.ndarray) -> int:
    return int(codes.max() - codes.min()).bit_length()
