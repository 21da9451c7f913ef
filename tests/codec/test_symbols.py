"""Frequency tables and the entropy coder: exact integers, round trips, damage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gbnn_compress.codec.symbols import (
    PRECISION,
    coarse_levels,
    code_lengths,
    decode_maps,
    decode_tables,
    encode_maps,
    encode_tables,
    frequencies,
)
from gbnn_compress.errors import ArtifactError

ALPHABETS = (1, 2, 3, 255, 256, 5000, 65_536)


def random_map(alphabet: int, size: int, *, seed: int = 0) -> np.ndarray:
    """int64 (size,), skewed ids with one at each end of the alphabet."""
    random = np.random.default_rng(seed)
    ids = np.minimum(random.geometric(min(1.0, 8 / alphabet), size) - 1, alphabet - 1)
    ids[0], ids[-1] = 0, alphabet - 1
    return random.permutation(alphabet)[ids] if size > 1 else ids


def table_of(ids: np.ndarray, alphabet: int) -> np.ndarray:
    return coarse_levels(np.bincount(ids, minlength=alphabet))


def decoded(data: bytes, tables: list[np.ndarray], sizes: list[int]) -> list[np.ndarray]:
    got: list[np.ndarray] = []
    decode_maps(data, tables, sizes, consume=lambda index, ids: got.insert(index, ids))
    return got


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


@pytest.mark.parametrize("alphabet", ALPHABETS)
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


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_round_trip_of_every_alphabet(alphabet: int) -> None:
    maps = [random_map(alphabet, 3000, seed=seed) for seed in range(2)]
    tables = [table_of(ids, alphabet) for ids in maps]
    data = encode_tables(tables)
    for got, expected in zip(decode_tables(data, n_tables=2, alphabet=alphabet), tables, strict=True):
        np.testing.assert_array_equal(got, expected)
    for got, expected in zip(decoded(encode_maps(maps, tables), tables, [3000, 3000]), maps, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_full_table_of_the_largest_alphabet() -> None:
    ids = np.arange(65_536)
    table = table_of(ids, 65_536)
    np.testing.assert_array_equal(decoded(encode_maps([ids], [table]), [table], [65_536])[0], ids)


@st.composite
def map_lists(draw: st.DrawFn) -> tuple[int, list[np.ndarray]]:
    alphabet = draw(st.integers(1, 40))
    ids = st.lists(st.integers(0, alphabet - 1), min_size=1, max_size=60)
    return alphabet, [np.array(part) for part in draw(st.lists(ids, max_size=5))]


@given(map_lists())
@settings(max_examples=80, deadline=None)
def test_round_trip(data: tuple[int, list[np.ndarray]]) -> None:
    alphabet, maps = data
    tables = [table_of(ids, alphabet) for ids in maps]
    stored = decode_tables(encode_tables(tables), n_tables=len(maps), alphabet=alphabet)
    got = decoded(encode_maps(maps, tables), stored, [len(ids) for ids in maps])
    assert len(got) == len(maps)
    for part, expected in zip(got, maps, strict=True):
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("alphabet", [2, 20, 300])
def test_a_map_takes_its_code_lengths(alphabet: int) -> None:
    ids = random_map(alphabet, 20_000)
    table = table_of(ids, alphabet)
    ideal = code_lengths(table)[ids].sum() / 8
    entropy = -np.log2(np.bincount(ids)[ids] / len(ids)).sum() / 8
    assert len(encode_maps([ids], [table])) == pytest.approx(ideal, abs=8)
    assert entropy <= ideal <= 1.01 * entropy


def test_constant_maps_take_no_bits_and_empty_lists_nothing() -> None:
    constant = np.full(1000, 7)
    table = table_of(constant, 9)
    assert encode_maps([constant], [table]) == b""
    np.testing.assert_array_equal(decoded(b"", [table], [1000])[0], constant)
    assert encode_maps([], []) == encode_tables([]) == b""
    assert decoded(b"", [], []) == []


def test_a_stream_may_be_empty_although_maps_are_not_constant() -> None:
    ids = np.array([0])
    table = np.array([9, 1])
    np.testing.assert_array_equal(decoded(encode_maps([ids], [table]), [table], [1])[0], ids)


def test_same_maps_same_bytes_and_inputs_stay() -> None:
    ids = random_map(30, 500)
    table, before = table_of(ids, 30), ids.copy()
    assert encode_maps([ids], [table]) == encode_maps([ids.astype(np.uint8)], [table])
    np.testing.assert_array_equal(ids, before)


def test_a_shorter_or_longer_stream_is_noticed() -> None:
    ids = random_map(50, 400)
    table = table_of(ids, 50)
    data = encode_maps([ids], [table])
    for other in (data[4:], data[:-4], data + data[-4:]):
        with pytest.raises(ArtifactError, match="do not end where they should"):
            decoded(other, [table], [400])
    with pytest.raises(ArtifactError, match="do not end where they should"):
        decoded(data, [table], [399])


@pytest.mark.xfail(strict=True, raises=ValueError, reason="numpy's and constriction's errors come through")
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-4] + bytes(4)])
def test_a_stream_that_is_none_is_an_artifact_error(damage: object) -> None:
    ids = random_map(50, 400)
    table = table_of(ids, 50)
    with pytest.raises(ArtifactError):
        decoded(damage(encode_maps([ids], [table])), [table], [400])


def test_a_table_past_the_bank_is_an_error() -> None:
    data = encode_tables([table_of(np.array([0, 9]), 10)])
    with pytest.raises(ArtifactError, match="past the bank"):
        decode_tables(data, n_tables=1, alphabet=9)


def test_a_table_that_ends_early_is_an_error() -> None:
    data = encode_tables([table_of(random_map(40, 500), 40)])
    for length in range(len(data)):
        with pytest.raises(ArtifactError):
            decode_tables(data[:length], n_tables=1, alphabet=40)
