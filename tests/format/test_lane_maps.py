"""Index maps in format version 2: round trips, the same bytes compiled or not, lengths, damage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trellis_ids import trellis_ids

from gbnn_compress import compiled, parallel
from gbnn_compress.errors import ArtifactError
from gbnn_compress.format import lanes, streams
from gbnn_compress.format.bits import read_length
from gbnn_compress.format.contexts import ContextRule, whole_values
from gbnn_compress.format.lane_maps import decode_lane_maps, encode_lane_maps
from gbnn_compress.format.table_choice import choose
from gbnn_compress.format.tables import Table, decode_tables, encode_tables
from gbnn_compress.types import IndexMap

SHAPES = [(24, 20), (24, 20, 3), (33, 20, 3, 3), (200, 1, 3, 3), (20, 6, 2, 2, 3), (1, 480), (480, 1), (48, 40, 1, 1)]

Shapes = list[tuple[int, ...]]


def values_of(components: int = 41) -> np.ndarray:
    return whole_values(np.arange(components) - components // 2.0)


def index_map(ids: np.ndarray, *, trellis: bool = True) -> IndexMap:
    return IndexMap("weight", ids, np.empty(0, np.uint32), trellis)


@pytest.fixture(params=["compiled", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        without_loops(monkeypatch)
    monkeypatch.setenv(compiled.SWITCH, "1")
    if request.param == "compiled" and compiled.loops("format.lane_loops") is None:
        pytest.skip("needs numba")
    return str(request.param)


def without_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lanes, streams):
        monkeypatch.setattr(module, "loops", lambda name, work: None)


def decoded(data: bytes, tables: list[Table], shapes: Shapes, values: np.ndarray) -> list[np.ndarray]:
    got: list[np.ndarray] = []
    decode_lane_maps(data, tables, shapes, values, consume=lambda index, ids: got.insert(index, ids))
    return got


def round_trip(maps: list[IndexMap], shapes: Shapes, values: np.ndarray) -> tuple[list[Table], bytes]:
    tables, data = encode_lane_maps(maps, shapes, values)
    stored = encode_tables(tables, shapes, version=2)
    read = decode_tables(stored, shapes=shapes, alphabet=len(values), version=2)
    got = decoded(data, read, shapes, values)
    assert len(got) == len(maps)
    for part, expected in zip(got, maps, strict=True):
        np.testing.assert_array_equal(part, expected.ids)
    again = encode_lane_maps(
        [index_map(ids, trellis=t.trellis) for ids, t in zip(got, read, strict=True)], shapes, values
    )
    assert again[1] == data
    assert encode_tables(again[0], shapes, version=2) == stored
    return read, data


@pytest.mark.parametrize("trellis", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("way")
def test_round_trip(shape: tuple[int, ...], trellis: bool) -> None:
    ids = trellis_ids(shape, outliers=0.02)
    tables, _ = round_trip([index_map(ids, trellis=trellis)], [shape], values_of())
    assert tables[0].trellis == trellis


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_and_numpy_give_the_same_bytes(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    maps = [index_map(trellis_ids(shape, outliers=0.01)), index_map(trellis_ids(shape, seed=1), trellis=False)]
    monkeypatch.setenv(compiled.SWITCH, "1")
    first = round_trip(maps, [shape, shape], values_of())
    without_loops(monkeypatch)
    second = round_trip(maps, [shape, shape], values_of())
    assert first[1] == second[1]
    assert any(table.rule for table in first[0]) or min(shape[:2]) < 24


@pytest.mark.long
@pytest.mark.usefixtures("way")
def test_round_trip_with_several_states_in_batches_and_with_models_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: Shapes = [(33, 5, 3, 3), (40, 20)]
    maps = [index_map(trellis_ids(shape)) for shape in shapes]
    _, whole = round_trip(maps, shapes, values_of())
    monkeypatch.setattr(lanes, "AT_ONCE", 1)
    monkeypatch.setattr(streams, "KEPT_ENTRIES", 100)
    assert round_trip(maps, shapes, values_of())[1] == whole
    monkeypatch.setattr(streams, "MANY", 1000)
    tables, data = round_trip(maps, shapes, values_of())
    assert tables[0].rule is not None
    assert len(whole) < len(data) < len(whole) + 40


@st.composite
def map_lists(draw: st.DrawFn) -> tuple[list[IndexMap], Shapes, np.ndarray]:
    components, random = draw(st.integers(1, 40)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    maps, shapes = [], []
    for seed in range(draw(st.integers(0, 3))):
        shape = tuple(draw(st.lists(st.integers(1, 7), min_size=2, max_size=5)))
        fraction, trellis = draw(st.sampled_from([0.0, 0.3, 1.0])), components > 1 and draw(st.booleans())
        if trellis:
            step = draw(st.sampled_from([0.1, 1.0, 100.0]))
            ids = trellis_ids(shape, components=components, step=step, outliers=fraction, seed=seed)
        else:
            ids = random.integers(0, components + 1, math.prod(shape))
        maps.append(index_map(ids, trellis=trellis))
        shapes.append(shape)
    means = np.sort(random.standard_cauchy(components)) * draw(st.sampled_from([0.0, 1e-200, 1.0, 1e200]))
    return maps, shapes, whole_values(means)


@given(map_lists())
@settings(max_examples=60, deadline=None)
def test_round_trip_of_anything(data: tuple[list[IndexMap], Shapes, np.ndarray]) -> None:
    round_trip(*data)


@pytest.mark.long
@given(
    st.sampled_from(SHAPES[:5]),
    st.builds(
        ContextRule,
        st.integers(0, 127),
        st.tuples(*[st.integers(-32, 31)] * 3),
        st.integers(0, 3),
        st.integers(-5, 2),
        st.integers(0, 127),
    ),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_stream_under_any_rule_ends_or_is_refused_alike(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], rule: ContextRule, trellis: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = whole_values(np.sort(random.standard_cauchy(41)))
    levels = random.integers(0, 256, 42)
    levels[:2] = 1
    levels[1 : 1 + 20 * int(random.integers(0, 3)) : 2] = 0
    table = Table(levels, rule, trellis)
    words = random.integers(0, 2**32, random.integers(0, 300), dtype=np.uint32)
    results = []
    for loops in (lambda name, work: compiled.loops(name), lambda name, work: None):
        with monkeypatch.context() as patch:
            patch.setattr(lanes, "loops", loops)
            patch.setattr(streams, "loops", loops)
            reader = None
            try:
                reader = streams.Reader(words, math.prod(shape), streams.Models(table, values))
                walk = lanes.Walk(shape, values, rule, trellis=trellis)
                results.append(reader.read(walk, math.prod(shape), 0).tolist())
            except ArtifactError:
                results.append([])
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def example() -> tuple[list[Table], bytes, Shapes]:
    shapes: Shapes = [(48, 40, 3, 3), (10, 10), (48, 40)]
    maps = [index_map(trellis_ids(shapes[0])), index_map(np.full(100, 3)), index_map(trellis_ids(shapes[2]))]
    return (*encode_lane_maps(maps, shapes, values_of()), shapes)


def test_bits_of_the_maps_add_up_to_the_streams(example: tuple[list[Table], bytes, Shapes]) -> None:
    tables, data, shapes = example
    bits = decode_lane_maps(data, tables, shapes, values_of(), consume=lambda index, ids: None)
    assert bits.dtype == np.float64
    assert bits[1] == 0
    assert not tables[1].trellis
    assert bits.sum() == 8 * len(data)


def test_a_map_takes_what_was_foreseen_and_less_than_without() -> None:
    shape, values = (48, 40, 3, 3), values_of()
    ids = trellis_ids(shape)
    choice = choose(ids, shape, values, trellis=True)
    _, data = encode_lane_maps([index_map(ids)], [shape], values)
    assert choice.id_bits - 32 < 8 * len(data) < choice.id_bits + 100
    assert choice.id_bits < 0.95 * choice.plain_bits
    counts = [np.bincount(ids[ids % 2 == parity]) for parity in (0, 1)]
    plain = sum(-(count[count > 0] * np.log2(count[count > 0] / count.sum())).sum() for count in counts)
    assert plain < choice.plain_bits < 1.01 * plain
    assert choose(ids, shape, values, trellis=True, smooth=False).plain_bits == pytest.approx(plain, rel=0.005)


@pytest.mark.usefixtures("way")
def test_damaged_streams_are_noticed(example: tuple[list[Table], bytes, Shapes]) -> None:
    tables, data, shapes = example
    for other in (data[4:], data[:-4], data + bytes(4), data + b"\1", data[:-1], data[:1], b"", b"\0" + data[2:]):
        with pytest.raises(ArtifactError, match="damaged artifact"):
            decoded(other, tables, shapes, values_of())
    with pytest.raises(ArtifactError, match="do not end where they should"):
        decoded(data, tables, [(47, 40, 3, 3), *shapes[1:]], values_of())


@pytest.mark.usefixtures("way")
def test_a_state_without_symbols_is_refused() -> None:
    levels = np.zeros(42, dtype=np.int64)
    levels[[2, 4]] = 9
    words = np.random.default_rng(0).integers(1, 2**32, 60, dtype=np.uint32)
    data = bytes([len(words)]) + words.astype("<u4").tobytes()
    assert read_length(data, 0) == (60, 1)
    with pytest.raises(ArtifactError, match="do not end where they should"):
        decoded(data, [Table(levels, None, True)], [(10, 200)], values_of())


def test_same_bytes_at_any_number_of_threads_and_inputs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: Shapes = [(24, 20, 3, 3), (30, 100), (9, 11, 1, 1)]
    maps = [index_map(trellis_ids(shape, seed=seed).astype(np.uint8)) for seed, shape in enumerate(shapes)]
    before = [part.ids.copy() for part in maps]
    _, alone = encode_lane_maps(maps, shapes, values_of())
    monkeypatch.setattr(parallel, "WORTHWHILE", 0)
    monkeypatch.setattr(parallel, "usable_threads", lambda: 2)
    assert encode_lane_maps(maps, shapes, values_of())[1] == alone
    for part, ids in zip(maps, before, strict=True):
        np.testing.assert_array_equal(part.ids, ids)


def test_an_empty_list_is_empty() -> None:
    assert encode_lane_maps([], [], values_of()) == ([], b"")
    assert decoded(b"", [], [], values_of()) == []
