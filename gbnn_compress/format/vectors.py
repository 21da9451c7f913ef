"""Unshared values (norms, biases, buffers): each vector on its own uniform grid, with Rice codes.

Vectors of one role (`weight`, `bias`, `running_var`, ...: the last part of a tensor's name) are similar in all layers.
So the parameters of a vector are written as differences from those of the last vector of its role.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format.bits import BitReader, BitWriter, exp_golomb_bits, rice_bits, unzigzag, zigzag, zigzag_int

LINEAR, LOGARITHMIC, EXACT, RELATIVE = 0, 1, 2, 3

_LARGEST_EXPONENT = 4096
_LARGEST_ORDER = 52


@dataclass(frozen=True)
class Vector:
    """One coded vector.

    Attributes:
        mode: LINEAR (value = code * step), LOGARITHMIC (value = 2 ^ (code * step)), EXACT (the bits as they are), or
            RELATIVE (value = code * step * sqrt(value of the module's running_var)).
        exponent: step = 2 ^ (exponent / 2); 0 when EXACT.
        codes: int64 (n,), or the values' bit patterns as unsigned integers when EXACT.
        width: Bits of an EXACT value; 0 otherwise.
    """

    mode: int
    exponent: int
    codes: np.ndarray
    width: int = 0


_LARGEST = float(np.finfo(np.float64).max)


def step_of(exponent: int) -> float:
    """2 ^ (exponent / 2), at most the largest float64."""
    with np.errstate(over="ignore"):
        step = float(np.ldexp(1.0 if exponent % 2 == 0 else np.sqrt(2.0), exponent // 2))
    return min(step, _LARGEST)


def exactly(bits: np.ndarray) -> Vector:
    """A vector from bit patterns (n,), unsigned integers as wide as the tensor's dtype."""
    return Vector(EXACT, 0, bits, 8 * bits.dtype.itemsize)


def quantise(values: np.ndarray, *, step: float, logarithmic: bool, exact: np.ndarray) -> Vector:
    """Round values to the coarsest grid with a step of at most `step`, in half octaves.

    Args:
        values: float64 (n,).
        step: Largest step, in units of the values, or in octaves if logarithmic.
        logarithmic: Whether the grid is one of log2(value); the values must be > 0.
        exact: Bit patterns (n,) of the values at their stored dtype, used where the grid would cost more.

    Returns:
        The coded vector.
    """
    width, fallback = 8 * exact.dtype.itemsize, exactly(exact)
    exponent = int(np.floor(2 * np.log2(step))) if 0 < step < np.inf else -_LARGEST_EXPONENT
    if abs(exponent) >= _LARGEST_EXPONENT:
        return fallback
    with np.errstate(over="ignore"):
        coordinates = (np.log2(values) if logarithmic else values) / step_of(exponent)
    if not np.abs(coordinates).max() < 2.0**51:
        return fallback
    codes = np.rint(coordinates).astype(np.int64)
    spread = int(codes.max() - codes.min()).bit_length()
    return fallback if spread >= width else Vector(LOGARITHMIC if logarithmic else LINEAR, exponent, codes)


def dequantise(vector: Vector, *, variance: Vector | None = None) -> np.ndarray:
    """Values on the grid.

    Args:
        vector: The vector.
        variance: The running variances of the same module, for a RELATIVE one.

    Returns:
        float64 (n,), finite; the bit patterns themselves when EXACT.

    Raises:
        ArtifactError: The variances of a RELATIVE vector are missing.
    """
    if vector.mode == EXACT:
        return vector.codes
    with np.errstate(over="ignore"):
        return np.clip(_on_grid(vector, variance), -_LARGEST, _LARGEST)


def _on_grid(vector: Vector, variance: Vector | None) -> np.ndarray:
    """float64 (n,), infinite on overflow."""
    coordinates = vector.codes * step_of(vector.exponent)
    if vector.mode == LOGARITHMIC:
        return np.exp2(coordinates)
    if vector.mode == LINEAR:
        return coordinates
    if variance is None or variance.mode != LOGARITHMIC or len(variance.codes) != len(vector.codes):
        raise ArtifactError("damaged artifact: means are relative to variances that are missing")
    return coordinates * np.sqrt(dequantise(variance))


def dequantise_all(names: Sequence[str], vectors: Sequence[Vector]) -> dict[str, np.ndarray]:
    """Name -> values of every vector."""
    by_name = dict(zip(names, vectors, strict=True))
    prefixes = (name.removesuffix(role(name)) for name in names)
    return {
        name: dequantise(vector, variance=by_name.get(f"{prefix}running_var"))
        for (name, vector), prefix in zip(by_name.items(), prefixes, strict=True)
    }


def role(name: str) -> str:
    """The role of a tensor in its module: the last part of its name."""
    return name.rpartition(".")[2]


def encode_vectors(vectors: Sequence[Vector], *, roles: Sequence[str]) -> bytes:
    """Write vectors one after the other.

    Each vector: mode (2 bits). If EXACT: the width (7 bits) and the values. Otherwise: exponent, order and centre as
    zigzag steps from those of the last vector of the same role (Exp-Golomb of orders 0, 0 and 2). With order 0 all
    codes equal the centre. Otherwise zigzag(code - centre * unit) follows for all values, in Rice codes of order
    `order - 1`; the unit is 2 ^ (order - 3), at least 1.

    Args:
        vectors: The vectors.
        roles: Role of each.
    """
    writer = BitWriter()
    for vector, parameters, steps, _ in _described(vectors, roles):
        writer.write(vector.mode, width=2)
        if parameters is None:
            writer.write(vector.width, width=7)
            writer.write(vector.codes, width=vector.width)
            continue
        for step, step_order in zip(steps, _STEP_ORDERS, strict=True):
            writer.write_exp_golomb(step, order=step_order)
        if parameters.order:
            writer.write_rice(_rest(vector.codes, parameters), order=parameters.order - 1)
    return writer.getvalue()


def vector_bits(vectors: Sequence[Vector], *, roles: Sequence[str]) -> int:
    """Bits that `encode_vectors` will write."""
    total = 2 * len(vectors)
    for vector, parameters, steps, rest_bits in _described(vectors, roles):
        if parameters is None:
            total += 7 + vector.width * len(vector.codes)
            continue
        total += sum(exp_golomb_bits(step, order=order) for step, order in zip(steps, _STEP_ORDERS, strict=True))
        total += rest_bits
    return total


def decode_vectors(data: bytes, *, sizes: Sequence[int], roles: Sequence[str]) -> list[Vector]:
    """Read what `encode_vectors` wrote.

    Args:
        data: The bytes.
        sizes: Number of values of each vector.
        roles: Role of each.

    Raises:
        ArtifactError: The bytes are damaged.
    """
    reader = BitReader(data)
    last: dict[str, Parameters] = {}
    return [_decode_vector(reader, size, key, last) for size, key in zip(sizes, roles, strict=True)]


def _decode_vector(reader: BitReader, size: int, key: str, last: dict[str, Parameters]) -> Vector:
    mode = reader.read_int(width=2)
    if mode == EXACT:
        width = reader.read_int(width=7)
        return Vector(EXACT, 0, reader.read(size, width=width), width)
    steps = [unzigzag(reader.read_exp_golomb(order=order)) for order in _STEP_ORDERS]
    parameters = Parameters(*(a + b for a, b in zip(last.get(key, _FIRST), steps, strict=True)))
    if (
        abs(parameters.exponent) >= _LARGEST_EXPONENT
        or not 0 <= parameters.order <= _LARGEST_ORDER
        or abs(parameters.centre) >= 1 << 52
    ):
        raise ArtifactError("damaged artifact: a vector has an impossible grid")
    last[key] = parameters
    rest = reader.read_rice(size, order=parameters.order - 1) if parameters.order else np.zeros(size, dtype=np.int64)
    signed = np.where(rest & 1, -((rest + 1) >> 1), rest >> 1)
    return Vector(mode, parameters.exponent, signed + parameters.centre * _unit(parameters.order))


class Parameters(NamedTuple):
    """Parameters of a vector on a grid."""

    exponent: int
    order: int
    centre: int


_FIRST = Parameters(-16, 3, 0)
"""Parameters that those of the first vector of a role are differences from."""

_STEP_ORDERS = (0, 0, 2)


def _described(
    vectors: Sequence[Vector], roles: Sequence[str]
) -> Iterator[tuple[Vector, Parameters | None, list[int], int]]:
    """Each vector, its parameters (None when EXACT), zigzag steps from the last of its role, and bits of its codes."""
    last: dict[str, Parameters] = {}
    for vector, key in zip(vectors, roles, strict=True):
        if vector.mode == EXACT:
            yield vector, None, [], 0
            continue
        bits, parameters = _cheapest(vector)
        steps = [zigzag_int(a - b) for a, b in zip(parameters, last.get(key, _FIRST), strict=True)]
        last[key] = parameters
        yield vector, parameters, steps, bits


def _cheapest(vector: Vector) -> tuple[int, Parameters]:
    """The order and the centre with about the fewest bits, and these.

    The best order of a Golomb code is near log2(ln 2 * mean); neighbouring orders are tried too.
    """
    codes = vector.codes
    if (codes == codes[0]).all():
        return 0, Parameters(vector.exponent, 0, int(codes[0]))
    median = _median(codes)
    mean = 2 * float(np.abs(codes - median).mean())
    near = 1 + int(np.log2(max(mean * np.log(2), 1.0)))
    choices = [
        Parameters(vector.exponent, order, round(median / _unit(order)))
        for order in range(max(near - 1, 1), min(near + 2, _LARGEST_ORDER) + 1)
    ]
    bits = [_rest_bits(codes, parameters) for parameters in choices]
    best = min(range(len(choices)), key=bits.__getitem__)
    return bits[best], choices[best]


def _median(codes: np.ndarray) -> float:
    """`np.median` without its detours: most vectors are short, and many are coded."""
    half = len(codes) // 2
    parts = np.partition(codes, (half - 1, half) if len(codes) % 2 == 0 else half)
    return float(parts[half]) if len(codes) % 2 else (float(parts[half - 1]) + float(parts[half])) / 2


def _rest(codes: np.ndarray, parameters: Parameters) -> np.ndarray:
    return zigzag(codes - parameters.centre * _unit(parameters.order))


def _rest_bits(codes: np.ndarray, parameters: Parameters) -> int:
    return rice_bits(_rest(codes, parameters), order=parameters.order - 1) if parameters.order else 0


def _unit(order: int) -> int:
    return 1 << max(order - 3, 0)
