"""The component bank and the tensors' scales <-> bytes."""

from __future__ import annotations

import numpy as np

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format.bits import BitReader, BitWriter, exp_golomb_bits, unzigzag, zigzag
from gbnn_compress.types import Bank

LOG_SIGMA_STEPS = 8
"""Log deviations are stored in steps of 1 / LOG_SIGMA_STEPS nat."""

_LARGEST_CODE = 1 << 62
"""Largest code of a mean, so that other decoders can count in 64 bits."""

_LARGEST_LOG_SIGMA = 700.0
"""Larger log deviations overflow float64."""

_EXPONENT_OFFSET = 2048

_FRACTION_BITS = 4

_ONE = _EXPONENT_OFFSET << _FRACTION_BITS

_LARGEST = ((1024 + _EXPONENT_OFFSET) << _FRACTION_BITS) - 1
"""Largest code of a finite float64."""


def short_float_codes(numbers: np.ndarray) -> np.ndarray:
    """int64 codes of float64 numbers >= 0: the nearest (1 + m / 16) 2^e, as (e + 2048) << 4 | m; 0 for zero."""
    fraction, exponent = np.frexp(numbers)
    scaled = np.rint(np.ldexp(fraction, _FRACTION_BITS + 1)).astype(np.int64)  # 16 to 32; 32 carries into the exponent
    codes = ((exponent.astype(np.int64) - 1 + _EXPONENT_OFFSET) << _FRACTION_BITS) + scaled - (1 << _FRACTION_BITS)
    return np.where(numbers > 0, codes, 0)


def short_floats(codes: np.ndarray) -> np.ndarray:
    """float64 numbers of `short_float_codes`."""
    fraction = 1 + np.ldexp((codes & (1 << _FRACTION_BITS) - 1).astype(np.float64), -_FRACTION_BITS)
    return np.where(codes > 0, np.ldexp(fraction, (codes >> _FRACTION_BITS) - _EXPONENT_OFFSET), 0.0)


def short_floats_bits(numbers: np.ndarray) -> int:
    """Bits that a list of short floats takes in the bank."""
    writer = BitWriter()
    _write_short_floats(writer, numbers)
    return len(writer)


def round_bank(bank: Bank, *, exponent: int) -> Bank:
    """Round a bank to the grid of the file: means to multiples of 2 ^ exponent, log deviations to 1/8 nat.

    Components that would round to the same mean are placed one step apart.
    """
    codes = np.rint(np.ldexp(bank.means, -exponent)).astype(np.int64)
    apart = np.arange(len(codes))
    codes = np.maximum.accumulate(codes - apart) + apart
    log_sigmas = np.clip(np.rint(bank.log_sigmas * LOG_SIGMA_STEPS), -127, 127) / LOG_SIGMA_STEPS
    return Bank(np.ldexp(codes.astype(np.float64), exponent), log_sigmas)


def encode_bank(bank: Bank, *, exponent: int, scales: np.ndarray, relative_rmse: np.ndarray) -> bytes:
    """Write a bank that `round_bank` made, then the scale and the error of each shared tensor.

    exponent + 2048 (12 bits); K - 1 (Exp-Golomb of order 8); the first mean's code (zigzag, order 8); the Exp-Golomb
    order of the steps (6 bits); code[k] - code[k-1] - 1 for each next component; log deviations in 1/8 nat as zigzag
    steps from the one before (order 1; before the first: 0); then the tensors' scales and their relative errors: for
    each of the two lists the Exp-Golomb order of its steps (4 bits), then the `short_float_codes` as zigzag steps from
    the one before (before the first: that of 1).
    """
    writer = BitWriter()
    codes = np.rint(np.ldexp(bank.means, -exponent)).astype(np.int64)
    gaps = (np.diff(codes) - 1).astype(np.uint64)
    order = min(range(48), key=lambda order: exp_golomb_bits(gaps, order=order))
    writer.write(exponent + _EXPONENT_OFFSET, width=12)
    writer.write_exp_golomb(len(codes) - 1, order=8)
    writer.write_exp_golomb(zigzag(codes[:1]), order=8)
    writer.write(order, width=6)
    writer.write_exp_golomb(gaps, order=order)
    deviations = np.rint(bank.log_sigmas * LOG_SIGMA_STEPS).astype(np.int64)
    writer.write_exp_golomb(zigzag(np.diff(deviations, prepend=0)), order=1)
    for numbers in (scales, relative_rmse):
        _write_short_floats(writer, numbers)
    return writer.getvalue()


def decode_bank(data: bytes, *, n_tensors: int) -> tuple[Bank, np.ndarray, np.ndarray]:
    """Read what `encode_bank` wrote.

    Returns:
        The bank, scales float64 (n_tensors,) and relative errors float64 (n_tensors,).

    Raises:
        ArtifactError: The bytes are damaged.
    """
    reader = BitReader(data)
    exponent = reader.read_int(width=12) - _EXPONENT_OFFSET
    size = reader.read_exp_golomb(order=8) + 1
    if size > 1 << 17:
        raise ArtifactError("damaged artifact: the bank is too large")
    codes = [unzigzag(reader.read_exp_golomb(order=8))]
    order = reader.read_int(width=6)
    for _ in range(size - 1):
        codes.append(codes[-1] + 1 + reader.read_exp_golomb(order=order))
    if max(-codes[0], codes[-1]) > _LARGEST_CODE:
        raise ArtifactError("damaged artifact: the code of a component is too large")
    steps = np.array([unzigzag(reader.read_exp_golomb(order=1)) for _ in range(size)], dtype=np.float64)
    scales, errors = (_read_short_floats(reader, n_tensors) for _ in range(2))
    means = np.ldexp(np.array(codes, dtype=np.float64), exponent)
    log_sigmas = np.cumsum(steps) / LOG_SIGMA_STEPS
    if not (np.isfinite(means).all() and (np.diff(means) > 0).all() and np.abs(log_sigmas).max() < _LARGEST_LOG_SIGMA):
        raise ArtifactError("damaged artifact: the bank holds impossible components")
    return Bank(means, log_sigmas), scales, errors


def _write_short_floats(writer: BitWriter, numbers: np.ndarray) -> None:
    steps = zigzag(np.diff(short_float_codes(numbers), prepend=_ONE))
    order = min(range(16), key=lambda order: exp_golomb_bits(steps, order=order))
    writer.write(order, width=4)
    writer.write_exp_golomb(steps, order=order)


def _read_short_floats(reader: BitReader, count: int) -> np.ndarray:
    order = reader.read_int(width=4)
    codes = np.cumsum([_ONE, *(unzigzag(reader.read_exp_golomb(order=order)) for _ in range(count))])[1:]
    if count and not (codes.min() >= 0 and codes.max() <= _LARGEST):
        raise ArtifactError("damaged artifact: a scale is out of range")
    return short_floats(codes)
