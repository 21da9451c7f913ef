"""Bit strings: round trips, exact bits, and ends that come too early."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format.bits import BitReader, BitWriter, unzigzag, zigzag


def bits_of(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


@st.composite
def fields(draw: st.DrawFn) -> list[tuple[str, int, list[int]]]:
    """Runs of fixed-width integers and of Exp-Golomb codes."""
    result = []
    for _ in range(draw(st.integers(0, 6))):
        if draw(st.booleans()):
            width = draw(st.integers(0, 64))
            values = st.integers(0, 2**width - 1)
            result.append(("fixed", width, draw(st.lists(values, max_size=8))))
        else:
            order = draw(st.integers(0, 47))
            result.append(("golomb", order, draw(st.lists(st.integers(0, 2**60), max_size=8))))
    return result


@given(fields())
@settings(max_examples=80, deadline=None)
def test_round_trip(runs: list[tuple[str, int, list[int]]]) -> None:
    writer = BitWriter()
    writer.write(0, width=0)
    for kind, size, values in runs:
        array = np.array(values, dtype=np.uint64)
        if kind == "fixed":
            writer.write(array, width=size)
        else:
            writer.write_exp_golomb(array, order=size)
    data = writer.getvalue()
    assert len(data) == -(-len(writer) // 8)
    reader = BitReader(data)
    for kind, size, values in runs:
        if kind == "fixed":
            assert reader.read(len(values), width=size).tolist() == values
        else:
            assert [reader.read_exp_golomb(order=size) for _ in values] == values
    assert not any(reader.read_int(width=1) for _ in range(8 * len(data) - len(writer)))


@pytest.mark.parametrize(
    ("order", "value", "code"),
    [
        (0, 0, "1"),
        (0, 1, "010"),
        (0, 2, "011"),
        (0, 3, "00100"),
        (1, 0, "10"),
        (1, 2, "0100"),
        (4, 15, "11111"),
    ],
)
def test_exp_golomb_codes(order: int, value: int, code: str) -> None:
    writer = BitWriter()
    writer.write_exp_golomb(value, order=order)
    assert len(writer) == len(code)
    assert bits_of(writer.getvalue()) == code.ljust(8, "0")


def test_most_significant_bit_first_padded_with_zeros() -> None:
    writer = BitWriter()
    writer.write(0b101, width=3)
    writer.write(np.array([1, 2]), width=4)
    assert bits_of(writer.getvalue()) == "1010001001000000"
    assert BitWriter().getvalue() == b""


@given(st.integers(-(2**62), 2**62))
@settings(max_examples=60, deadline=None)
def test_zigzag_round_trip(value: int) -> None:
    assert unzigzag(int(zigzag(np.array([value]))[0])) == value


def test_zigzag_order() -> None:
    assert zigzag(np.array([0, -1, 1, -2, 2])).tolist() == [0, 1, 2, 3, 4]


def test_nothing_but_empty_arrays_is_no_bytes() -> None:
    writer = BitWriter()
    writer.write(np.empty(0), width=5)
    assert writer.getvalue() == b""


@pytest.mark.parametrize("read", [lambda r: r.read_int(width=9), lambda r: r.read(3, width=4)])
def test_reading_past_the_end_is_an_error(read: object) -> None:
    with pytest.raises(ArtifactError, match="ends too early"):
        read(BitReader(b"\xff"))


def test_an_exp_golomb_code_without_an_end_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="ends too early"):
        BitReader(b"\0").read_exp_golomb(order=0)
    with pytest.raises(ArtifactError, match="is too large"):
        BitReader(bytes(20) + b"\xff" * 40).read_exp_golomb(order=0)
