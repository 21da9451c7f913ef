"""Bit strings: fixed-width integers and Exp-Golomb codes, most significant bit first."""

from __future__ import annotations

import numpy as np

from gbnn_compress.errors import ArtifactError

RICE_LIMIT = 6
"""Quotients of Rice codes below this are unary."""


class BitWriter:
    """Packs unsigned integers of given widths into bytes."""

    def __init__(self) -> None:
        self._values: list[np.ndarray] = []
        self._widths: list[np.ndarray] = []

    def write(self, values: np.ndarray | int, *, width: int) -> None:
        """Append integers of `width` bits each (0 to 64)."""
        array = np.atleast_1d(np.asarray(values, dtype=np.uint64))
        self._values.append(array)
        self._widths.append(np.full(len(array), width, dtype=np.int64))

    def write_exp_golomb(self, values: np.ndarray | int, *, order: int) -> None:
        """Append Exp-Golomb codes: v = value + 2^order in 2 * bitlength(v) - 1 - order bits."""
        array = np.atleast_1d(np.asarray(values, dtype=np.uint64)) + np.uint64(1 << order)
        self._values.append(array)
        self._widths.append(2 * _bit_length(array) - 1 - order)

    def write_rice(self, values: np.ndarray, *, order: int) -> None:
        """Append Rice codes: the quotients value >> order of all values, then the `order` low bits of each.

        A quotient q < RICE_LIMIT is q zeros and a one; else the zeros are RICE_LIMIT and an Exp-Golomb code follows.
        """
        array = np.asarray(values, dtype=np.uint64)
        quotients = (array >> np.uint64(order)).astype(np.int64)
        past = np.maximum(quotients - RICE_LIMIT + 1, 1)
        extra = _bit_length(past.astype(np.uint64)) - 1
        self._values.append(past.astype(np.uint64))
        self._widths.append(np.minimum(quotients, RICE_LIMIT) + 1 + 2 * extra)
        self.write(array & np.uint64((1 << order) - 1), width=order)

    def __len__(self) -> int:
        """Bits written so far."""
        return int(sum(widths.sum() for widths in self._widths))

    def getvalue(self) -> bytes:
        """All bits, padded with zeros to a whole byte."""
        if not len(self):
            return b""
        values, widths = np.concatenate(self._values), np.concatenate(self._widths)
        ends = np.cumsum(widths)
        bits = np.zeros(int(ends[-1]), dtype=np.uint8)
        for place in range(min(64, int(widths.max(initial=0)))):
            wide = widths > place
            bits[ends[wide] - 1 - place] = (values[wide] >> np.uint64(place)) & np.uint64(1)
        return np.packbits(bits).tobytes()


class BitReader:
    """Reads the bits that a BitWriter wrote.

    Raises:
        ArtifactError: A read goes past the end.
    """

    def __init__(self, data: bytes) -> None:
        self._bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
        self._digits = (self._bits + np.uint8(ord("0"))).tobytes()
        self._position = 0

    def read(self, count: int, *, width: int) -> np.ndarray:
        """uint64 (count,), integers of `width` bits each."""
        bits = self._bits[self._taken(count * width)].reshape(count, width)
        values = np.zeros(count, dtype=np.uint64)
        for place in range(width):
            values = (values << np.uint64(1)) | bits[:, place]
        return values

    def read_int(self, *, width: int) -> int:
        """One integer of `width` bits."""
        return int(self._digits[self._taken(width)], 2) if width else 0

    def read_exp_golomb(self, *, order: int) -> int:
        """One Exp-Golomb code."""
        zeros = self._zeros()
        if zeros > 64:
            raise ArtifactError("damaged artifact: an Exp-Golomb code is too large")
        return (1 << (zeros + order)) - (1 << order) + self.read_int(width=zeros + order)

    def read_rice(self, count: int, *, order: int) -> np.ndarray:
        """int64 (count,), Rice codes."""
        quotients = np.array([self._quotient() for _ in range(count)], dtype=np.int64)
        return (quotients << order) + self.read(count, width=order).astype(np.int64)

    def _quotient(self) -> int:
        zeros = self._zeros()
        extra = zeros - RICE_LIMIT
        if extra <= 0:
            return zeros
        if extra > 53:
            raise ArtifactError("damaged artifact: a Rice code is too large")
        return RICE_LIMIT - 1 + (1 << extra) + self.read_int(width=extra)

    def _zeros(self) -> int:
        """Number of zeros before the next one; moves past that one."""
        zeros = self._digits.find(b"1", self._position) - self._position
        self._taken(zeros + 1 if zeros >= 0 else len(self._bits) + 1)
        return zeros

    def _taken(self, count: int) -> slice:
        """Positions of the next bits; moves past them."""
        start, self._position = self._position, self._position + count
        if self._position > len(self._bits):
            raise ArtifactError("damaged artifact: a bit string ends too early")
        return slice(start, self._position)


def write_length(number: int) -> bytes:
    """An integer >= 0, 7 bits per byte, the lowest first; the top bit is set in all bytes but the last."""
    head = bytearray()
    while number >= 128:
        head.append(number & 127 | 128)
        number >>= 7
    return bytes([*head, number])


def read_length(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """Read what `write_length` wrote: the integer, and the position after it.

    Raises:
        ArtifactError: The bytes end early, or the integer has no end.
    """
    number = 0
    for shift in range(0, 63, 7):
        if position >= len(data):
            raise ArtifactError("damaged artifact: a length is cut short")
        byte, position = data[position], position + 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
    raise ArtifactError("damaged artifact: a length has no end")


def rice_bits(values: np.ndarray, *, order: int) -> int:
    """Bits that `BitWriter.write_rice` takes for all values together."""
    quotients = values.astype(np.int64) >> order
    past = quotients[quotients >= RICE_LIMIT] - RICE_LIMIT + 1
    bits = int(np.minimum(quotients, RICE_LIMIT).sum()) + (1 + order) * len(values)
    if past.size:
        bits += 2 * int((np.frexp(past.astype(np.float64))[1] - 1).sum())  # exact below 2^53
    return bits


def exp_golomb_bits(values: np.ndarray | int, *, order: int) -> int:
    """Bits that `BitWriter.write_exp_golomb` takes for all values together."""
    if isinstance(values, int):
        return 2 * (values + (1 << order)).bit_length() - 1 - order
    return int((2 * _bit_length(values.astype(np.uint64) + np.uint64(1 << order)) - 1 - order).sum())


def zigzag(values: np.ndarray) -> np.ndarray:
    """Signed to unsigned: 0, -1, 1, -2, ... -> 0, 1, 2, 3, ..."""
    signed = np.asarray(values, dtype=np.int64)
    return ((signed << 1) ^ (signed >> 63)).astype(np.uint64)


def zigzag_int(value: int) -> int:
    """`zigzag` of one integer."""
    return -2 * value - 1 if value < 0 else 2 * value


def unzigzag(value: int) -> int:
    """The inverse of `zigzag`, for one integer."""
    return -(value + 1) // 2 if value & 1 else value // 2


def _bit_length(values: np.ndarray) -> np.ndarray:
    """int64, bits needed for each positive integer below 2^63."""
    # A float64 holds each half exactly, so its exponent is exact.
    upper, lower = (
        np.frexp(half.astype(np.float64))[1] for half in (values >> np.uint64(32), values & np.uint64(2**32 - 1))
    )
    return np.where(upper > 0, upper + 32, lower).astype(np.int64)
