"""The entropy coder: round trips, lengths, damage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress import parallel
from gbnn_compress.errors import ArtifactError
from gbnn_compress.format import contexts, symbols, table_choice
from gbnn_compress.format.contexts import ContextRule, whole_values
from gbnn_compress.format.symbols import decode_maps, encode_maps
from gbnn_compress.format.table_choice import choose
from gbnn_compress.format.tables import Table, coarse_levels, code_lengths, decode_tables, encode_tables

ALPHABETS = (1, 2, 3, 255, 256, 5000, 65_536)


def values_of(alphabet: int) -> np.ndarray:
    """Components evenly spaced around 0, and the outlier."""
    return whole_values(np.arange(alphabet - 1) - (alphabet - 1) / 2)


def random_map(alphabet: int, size: int, *, seed: int = 0) -> np.ndarray:
    """int64 (size,), skewed ids with one at each end of the alphabet."""
    random = np.random.default_rng(seed)
    ids = np.minimum(random.geometric(min(1.0, 8 / alphabet), size) - 1, alphabet - 1)
    ids[0], ids[-1] = 0, alphabet - 1
    return random.permutation(alphabet)[ids] if size > 1 else ids


def smooth_map(shape: tuple[int, ...], *, alphabet: int = 42, seed: int = 0) -> np.ndarray:
    """Ids of kernels alike within themselves, rows of different scales."""
    random = np.random.default_rng(seed)
    taps = math.prod(shape[2:])
    x = random.normal(size=(*shape[:2], 1)) + 0.4 * random.normal(size=(*shape[:2], taps))
    x = x * np.exp2(random.normal(size=(shape[0], 1, 1)))
    return np.clip(np.rint(4 * x + (alphabet - 2) / 2), 0, alphabet - 2).astype(np.int64).ravel()


def decoded(data: bytes, tables: list[Table], shapes: list[tuple[int, ...]], values: np.ndarray) -> list[np.ndarray]:
    got: list[np.ndarray] = []
    decode_maps(data, tables, shapes, values, consume=lambda index, ids: got.insert(index, ids))
    return got


def assert_round_trip(maps: list[np.ndarray], shapes: list[tuple[int, ...]], values: np.ndarray) -> list[Table]:
    tables, data = encode_maps(maps, shapes, values)
    stored = decode_tables(encode_tables(tables, shapes), shapes=shapes, alphabet=len(values))
    got = decoded(data, stored, shapes, values)
    assert len(got) == len(maps)
    for part, expected in zip(got, maps, strict=True):
        np.testing.assert_array_equal(part, expected)
    return tables


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_round_trip_of_every_alphabet(alphabet: int) -> None:
    maps = [random_map(alphabet, 3000, seed=seed) for seed in range(2)]
    assert_round_trip(maps, [(30, 100), (10, 30, 10)], values_of(alphabet))


@pytest.mark.long
def test_a_full_table_of_the_largest_alphabet() -> None:
    assert_round_trip([np.arange(65_536)], [(256, 256)], values_of(65_536))


SHAPES = [(24, 20), (24, 20, 3), (24, 20, 3, 3), (200, 1, 3, 3), (20, 6, 2, 2, 3), (1, 480), (480, 1), (48, 40, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_by_context(shape: tuple[int, ...]) -> None:
    ids = smooth_map(shape)
    if math.prod(shape[2:]) > 1:
        assert assert_round_trip([ids, ids[::-1]], [shape, shape], values_of(42))[0].rule is not None
    else:
        assert_round_trip([ids], [shape], values_of(42))


def test_round_trip_in_bands_and_with_models_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "BAND", 50)
    monkeypatch.setattr(symbols, "KEPT_ENTRIES", 100)
    monkeypatch.setattr(symbols, "MODEL_ENTRIES", 100)
    shape = (24, 20, 3, 3)
    assert assert_round_trip([smooth_map(shape)], [shape], values_of(42))[0].rule is not None


def test_the_stream_depends_neither_on_parts_nor_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(24, 20, 3, 3), (30, 100), (9, 11, 1, 1)]
    maps = [smooth_map(shapes[0]), random_map(42, 3000), random_map(42, 99)]
    _, alone = encode_maps(maps, shapes, values_of(42))
    monkeypatch.setattr(symbols, "CODED_AT_ONCE", 1000)
    monkeypatch.setattr(parallel, "WORTHWHILE", 0)
    monkeypatch.setattr(parallel, "usable_threads", lambda: 2)
    tables, together = encode_maps(maps, shapes, values_of(42))
    assert together == alone
    assert [table.rule is None for table in tables] == [False, True, True]
    for got, expected in zip(decoded(together, tables, shapes, values_of(42)), maps, strict=True):
        np.testing.assert_array_equal(got, expected)


@st.composite
def map_lists(draw: st.DrawFn) -> tuple[list[np.ndarray], list[tuple[int, ...]], np.ndarray]:
    alphabet, random = draw(st.integers(1, 40)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    maps, shapes = [], []
    for _ in range(draw(st.integers(0, 4))):
        shape = tuple(draw(st.lists(st.integers(1, 7), min_size=2, max_size=5)))
        low, high = sorted(draw(st.tuples(st.integers(0, alphabet - 1), st.integers(0, alphabet - 1))))
        ids = random.integers(low, high + 1, shape)
        if draw(st.booleans()):
            ids = np.broadcast_to(ids[:, :1], shape)
        maps.append(ids.ravel())
        shapes.append(shape)
    means = np.sort(random.standard_cauchy(alphabet - 1)) * draw(st.sampled_from([0.0, 1e-200, 1.0, 1e200]))
    return maps, shapes, whole_values(means)


@given(map_lists())
@settings(max_examples=100, deadline=None)
def test_round_trip(data: tuple[list[np.ndarray], list[tuple[int, ...]], np.ndarray]) -> None:
    assert_round_trip(*data)


@given(
    st.sampled_from(SHAPES),
    st.builds(
        ContextRule,
        st.integers(0, 127),
        st.tuples(*[st.integers(-32, 31)] * 3),
        st.integers(0, 3),
        st.integers(-5, 2),
        st.integers(0, 127),
    ),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_stream_under_any_rule_ends_or_is_refused(shape: tuple[int, ...], rule: ContextRule, seed: int) -> None:
    random = np.random.default_rng(seed)
    levels = random.integers(0, 256, 42)
    levels[:2] = 1
    data = random.integers(1, 2**32, random.integers(0, 300), dtype=np.uint32).astype("<u4").tobytes()
    try:
        got = decoded(data, [Table(levels, rule)], [shape], values_of(42))
    except ArtifactError:
        return
    assert len(got[0]) == math.prod(shape)


@pytest.mark.parametrize("alphabet", [2, 20, 300])
def test_a_map_takes_its_code_lengths(alphabet: int) -> None:
    ids = random_map(alphabet, 20_000)
    tables, data = encode_maps([ids], [(100, 200)], values_of(alphabet))
    assert tables[0].rule is None
    ideal = code_lengths(tables[0].levels)[ids].sum() / 8
    entropy = -np.log2(np.bincount(ids)[ids] / len(ids)).sum() / 8
    assert len(data) == pytest.approx(ideal, abs=8)
    assert entropy <= ideal <= 1.01 * entropy


def test_a_map_by_context_takes_what_was_foreseen_and_less_than_without() -> None:
    shape, values = (48, 40, 3, 3), values_of(42)
    ids = smooth_map(shape)
    choice = choose(ids, shape, values)
    _, data = encode_maps([ids], [shape], values)
    assert 8 * len(data) == pytest.approx(choice.id_bits, abs=70)
    assert choice.id_bits < 0.8 * choice.plain_bits
    plain = code_lengths(coarse_levels(np.bincount(ids, minlength=42)))[ids].sum()
    assert choice.plain_bits == pytest.approx(plain, rel=0.001)
    assert choose(ids, shape, values, smooth=False).plain_bits == plain


def test_bits_of_the_maps_add_up_to_the_stream() -> None:
    shapes: list[tuple[int, ...]] = [(48, 40, 3, 3), (10, 10), (48, 40)]
    maps = [smooth_map(shapes[0]), np.full(100, 3), smooth_map((48, 40, 1, 1))]
    tables, data = encode_maps(maps, shapes, values_of(42))
    bits = decode_maps(data, tables, shapes, values_of(42), consume=lambda index, ids: None)
    assert bits.dtype == np.float64
    assert bits[1] == 0
    assert 8 * len(data) - 32 < bits.sum() <= 8 * len(data)


def test_contexts_are_not_used_where_they_do_not_pay() -> None:
    ids = np.random.default_rng(0).integers(0, 42, 48 * 40)
    assert encode_maps([ids], [(48, 40)], values_of(42))[0][0].rule is None


@pytest.mark.parametrize("taps", [1, 9])
def test_a_large_map_is_judged_by_a_part(monkeypatch: pytest.MonkeyPatch, taps: int) -> None:
    monkeypatch.setattr(table_choice, "LARGE", 4000)
    shape = (48, 40, taps)
    random = np.random.default_rng(0).integers(0, 42, math.prod(shape))
    ids = smooth_map(shape) if taps > 1 else random
    assert (assert_round_trip([ids], [shape], values_of(42))[0].rule is not None) == (taps > 1)


def test_a_large_kernel_is_its_own_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_choice, "LARGE", 100)
    assert_round_trip([random_map(42, 200)], [(1, 1, 20, 10)], values_of(42))


def test_constant_maps_take_no_bits_and_empty_lists_nothing() -> None:
    constant, values = np.full(1000, 7), values_of(9)
    tables, data = encode_maps([constant], [(10, 100)], values)
    assert data == b""
    np.testing.assert_array_equal(decoded(b"", tables, [(10, 100)], values)[0], constant)
    assert encode_maps([], [], values) == ([], b"")
    assert encode_tables([], []) == b""
    assert decoded(b"", [], [], values) == []


def test_a_stream_may_be_empty_although_maps_are_not_constant() -> None:
    np.testing.assert_array_equal(decoded(b"", [Table(np.array([9, 1]))], [(1, 1)], values_of(2))[0], [0])


def test_same_maps_same_bytes_and_inputs_stay() -> None:
    shape = (24, 20, 3, 3)
    ids = smooth_map(shape)
    before = ids.copy()
    first, second = (encode_maps([part], [shape], values_of(42)) for part in (ids, ids.astype(np.uint8)))
    assert first[1] == second[1]
    assert encode_tables(first[0], [shape]) == encode_tables(second[0], [shape])
    np.testing.assert_array_equal(ids, before)


@pytest.mark.parametrize("ids", [random_map(42, 4320), smooth_map((24, 20, 3, 3))], ids=["plain", "by-context"])
def test_a_shorter_or_longer_stream_is_noticed(ids: np.ndarray) -> None:
    shape, values = (24, 20, 3, 3), values_of(42)
    tables, data = encode_maps([ids], [shape], values)
    for other in (data[4:], data[:-4], data + data[-4:]):
        with pytest.raises(ArtifactError, match="do not end where they should"):
            decoded(other, tables, [shape], values)
    with pytest.raises(ArtifactError, match="do not end where they should"):
        decoded(data, tables, [(23, 20, 3, 3)], values)


@pytest.mark.xfail(strict=True, raises=ValueError, reason="numpy's and constriction's errors come through")
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-4] + bytes(4)])
def test_a_stream_that_is_none_is_an_artifact_error(damage: object) -> None:
    tables, data = encode_maps([random_map(50, 400)], [(20, 20)], values_of(50))
    with pytest.raises(ArtifactError):
        decoded(damage(data), tables, [(20, 20)], values_of(50))


@pytest.mark.parametrize("allowed", [True, False])
def test_contexts_may_be_forbidden(allowed: bool) -> None:
    random = np.random.default_rng(0)
    spread = np.exp(random.normal(size=(40, 1)))
    ids = np.clip(np.rint(10 + 3 * spread * random.normal(size=(40, 500))), 0, 20).astype(np.uint8).ravel()
    values = values_of(22)
    tables, data = encode_maps([ids], [(40, 500)], values, contexts=allowed)
    assert (tables[0].rule is not None) == allowed
    decoded: list[np.ndarray] = []
    decode_maps(data, tables, [(40, 500)], values, consume=lambda i, part: decoded.append(part))
    np.testing.assert_array_equal(decoded[0], ids)
