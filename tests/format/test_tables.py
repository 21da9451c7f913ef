"""Frequency tables: exact integers, with and without factors; what is written is read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format.contexts import FACTOR_BITS, ContextRule
from gbnn_compress.format.tables import (
    PRECISION,
    Table,
    coarse_levels,
    code_lengths,
    decode_tables,
    encode_tables,
    frequencies,
    rule_bits,
    table_bits,
)


def test_coarse_levels_are_quarter_octaves() -> None:
    counts = np.array([0, 1, 2, 3, 4, 5, 1000, 2**40])
    np.testing.assert_array_equal(coarse_levels(counts), [0, 1, 5, 7, 9, 10, 41, 161])


@given(st.lists(st.integers(1, 255), min_size=1, max_size=300))
@example([255, 1])
@example([1, 255, 255])
@example([128] * 256)
@settings(max_examples=60, deadline=None)
def test_frequencies_are_positive_and_sum_to_a_power_of_two(levels: list[int]) -> None:
    result = frequencies(np.array(levels))
    assert result.sum() == 1 << PRECISION
    assert result.min() >= 1
    most = int(np.argmax(levels))
    rest = np.delete(result, most)
    assert (np.diff(rest[np.argsort(np.delete(levels, most), kind="stable")]) >= 0).all()


@pytest.mark.parametrize("alphabet", [1, 2, 3, 255, 256, 5000, 65_536])
def test_frequencies_of_large_alphabets(alphabet: int) -> None:
    result = frequencies(np.random.default_rng(alphabet).integers(1, 120, alphabet))
    assert result.sum() == 1 << PRECISION
    assert result.min() >= 1


def test_frequencies_by_hand() -> None:
    # Weights 16, 19 and 32 of 67; 2^24 - 3 are free, and the most frequent takes what is left.
    free = (1 << 24) - 3
    first, second = 1 + 16 * free // 67, 1 + 19 * free // 67
    np.testing.assert_array_equal(frequencies(np.array([1, 2, 5])), [first, second, (1 << 24) - first - second])


def test_code_lengths_are_those_of_the_frequencies() -> None:
    lengths = code_lengths(np.array([0, 5, 5, 0]))
    np.testing.assert_allclose(lengths, [np.inf, 1, 1, np.inf])
    np.testing.assert_array_equal(code_lengths(np.array([0, 9])), [np.inf, 0.0])
    assert np.isinf(code_lengths(np.zeros(3, dtype=np.int64))).all()


@given(
    st.lists(st.tuples(st.integers(1, 255), st.integers(0, 1 << FACTOR_BITS)), min_size=1, max_size=40),
    st.integers(1, 3),
)
@example([(255, 0), (1, 1 << FACTOR_BITS)], 1)
@example([(1, 0), (1, 0)], 2)
@settings(max_examples=100, deadline=None)
def test_frequencies_with_factors_are_those_of_exact_integers(symbols: list[tuple[int, int]], rows: int) -> None:
    levels, factors = (np.array(column) for column in zip(*symbols, strict=True))
    largest = (int(levels.max()) - 1) // 4
    weights = [(((16, 19, 23, 27)[(level - 1) % 4] << 25) >> (largest - (level - 1) // 4)) for level, _ in symbols]
    weights = [weight * factor >> 26 for weight, (_, factor) in zip(weights, symbols, strict=True)]
    expected = [1 + weight * ((1 << 24) - len(symbols)) // max(1, sum(weights)) for weight in weights]
    expected[weights.index(max(weights))] += (1 << 24) - sum(expected)
    for row in frequencies(levels, np.tile(factors, (rows, 1))):
        assert row.tolist() == expected


def test_levels_far_below_the_largest_still_occur() -> None:
    result = frequencies(np.array([1, 255]))
    np.testing.assert_array_equal(result, [1, (1 << PRECISION) - 1])


@st.composite
def rules(draw: st.DrawFn, *, has_kernel: bool) -> ContextRule | None:
    neighbour = st.integers(-32, 31) if has_kernel else st.just(0)
    if not draw(st.booleans()):
        return None
    return ContextRule(
        start=draw(st.integers(0, 127)),
        neighbours=(draw(neighbour), draw(neighbour), draw(neighbour)),
        tail=draw(st.integers(0, 3)),
        offset=draw(st.integers(-5, 2)),
        floor=draw(st.integers(0, 127)),
    )


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_tables_round_trip(data: st.DataObject) -> None:
    alphabet = data.draw(st.integers(1, 30))
    tables, shapes = [], []
    for _ in range(data.draw(st.integers(0, 4))):
        levels = data.draw(st.lists(st.integers(0, 255), min_size=alphabet, max_size=alphabet).filter(any))
        shapes.append(data.draw(st.sampled_from([(4, 4), (4, 4, 1, 1), (4, 4, 3), (2, 1, 1, 2), (2, 2, 2, 2, 2)])))
        has_kernel = int(np.prod(shapes[-1][2:])) > 1
        several = np.count_nonzero(levels) > 1
        tables.append(Table(np.array(levels), data.draw(rules(has_kernel=has_kernel)) if several else None))
    coded = encode_tables(tables, shapes)
    got = decode_tables(coded, shapes=shapes, alphabet=alphabet)
    for one, other in zip(got, tables, strict=True):
        np.testing.assert_array_equal(one.levels, other.levels)
        assert one.rule == other.rule
    bits = sum(table_bits(table.levels) for table in tables)
    bits += sum(int(np.count_nonzero(table.levels) > 1) for table in tables)
    bits += sum(rule_bits(shape) for table, shape in zip(tables, shapes, strict=True) if table.rule)
    assert len(coded) == -(-bits // 8)


def test_the_bytes_of_a_table_and_a_rule() -> None:
    rule = ContextRule(start=88, neighbours=(14, 7, -11), tail=1, offset=-4, floor=70)
    coded = encode_tables([Table(np.array([0, 9, 12, 0]), rule)], [(4, 4, 3, 3)])
    fields = (
        "10001",
        "10001",
        "11",
        "00001001",
        "1110",
        "1",
        "1011000",
    )  # f, n, r, level, step 3 by zz(3), rule, start
    fields += ("101110", "100111", "010101", "01", "001", "1000110")
    bits = "".join(fields)
    assert f"{int.from_bytes(coded, 'big'):0{8 * len(coded)}b}".rstrip("0") == bits.rstrip("0")


def test_a_table_past_the_bank_is_an_error() -> None:
    data = encode_tables([Table(np.array([1, *[0] * 8, 1]))], [(2, 2)])
    with pytest.raises(ArtifactError, match="past the bank"):
        decode_tables(data, shapes=[(2, 2)], alphabet=9)


def test_an_impossible_level_is_an_error() -> None:
    data = encode_tables([Table(np.array([1, -3, 2]))], [(2, 2)])
    with pytest.raises(ArtifactError, match="impossible level"):
        decode_tables(data, shapes=[(2, 2)], alphabet=3)


def test_tables_that_end_early_are_an_error() -> None:
    rule = ContextRule(start=1, neighbours=(1, 2, 3), tail=3, offset=2, floor=127)
    data = encode_tables([Table(np.random.default_rng(0).integers(1, 99, 40), rule)], [(4, 4, 3, 3)])
    for length in range(len(data)):
        with pytest.raises(ArtifactError):
            decode_tables(data[:length], shapes=[(4, 4, 3, 3)], alphabet=40)
