"""What goes into an artifact comes out of it; what does not fit together is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codec_facts import FACTS
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format import container
from gbnn_compress.format.artifact import encode_artifact, header_bytes, read_artifact
from gbnn_compress.format.bank import round_bank
from gbnn_compress.format.dictionary import DICTIONARY
from gbnn_compress.format.manifest import (
    MOST_BYTES,
    decode_manifest,
    deflate,
    encode_manifest,
    inflate,
    inflate_manifest,
)
from gbnn_compress.format.vectors import Vector, dequantise, quantise
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.predict.temperature import folded_temperature, temperature_fact
from gbnn_compress.report.sizes import report
from gbnn_compress.types import Bank, IndexMap, TensorInfo

GOLDEN = Path(__file__).parents[1] / "golden" / "version1.gbnn.safetensors"
WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `encode_artifact`: a few tensors of any kind, dtype and size."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.sampled_from([1, 2, 7, 255, 256, 300]))
    exponent = draw(st.integers(-20, 3))
    bank = round_bank(Bank(np.sort(random.normal(size=size)), random.normal(size=size)), exponent=exponent)
    tensors: list[TensorInfo] = []
    maps: list[IndexMap] = []
    vectors: list[Vector] = []
    raw: list[bytes] = []
    for index in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["shared", "unshared", "raw"])) if index else "shared"
        dtype = "int64" if kind == "raw" else draw(st.sampled_from(sorted(WIDTHS)))
        shape = tuple(draw(st.lists(st.integers(1, 6), min_size=2 if kind == "shared" else 0, max_size=3)))
        count = int(np.prod(shape))
        tensors.append(TensorInfo(f"{kind}.{index}", shape, dtype, kind))
        if kind == "shared":
            ids = random.integers(0, draw(st.integers(1, size + 1)), count).astype(np.min_scalar_type(size))
            outliers = random.integers(0, 255, int((ids == size).sum())).astype(f"u{WIDTHS[dtype]}")
            maps.append(IndexMap(tensors[-1].name, ids, outliers))
            tensors.append(TensorInfo(f"tied.{index}", shape, dtype, "tied", tensors[-1].name))
        elif kind == "unshared":
            exact = random.integers(0, 255, count).astype(f"u{WIDTHS[dtype]}")
            step = draw(st.sampled_from([1e-30, 1e-2, 10.0]))
            vectors.append(quantise(random.normal(size=count), step=step, logarithmic=False, exact=exact))
        else:
            raw.append(random.integers(-9, 9, count).astype(np.int64).tobytes())
    return {
        "tensors": tensors,
        "bank": bank,
        "exponent": exponent,
        "scales": np.exp2(random.integers(-9, 9, len(maps))).astype(np.float64),
        "relative_rmse": np.exp2(-random.integers(0, 9, len(maps))).astype(np.float64),
        "maps": maps,
        "vectors": vectors,
        "raw": raw,
        "facts": {**FACTS, "note": draw(st.text(max_size=5))},
    }


@pytest.mark.long
@given(networks())
@settings(max_examples=50, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, network: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("round") / "net.gbnn.safetensors"
    path.write_bytes(encode_artifact(**network))
    artifact = read_artifact(path)
    assert list(artifact.tensors) == network["tensors"]
    assert artifact.facts == network["facts"]
    np.testing.assert_array_equal(artifact.bank.means, network["bank"].means)
    np.testing.assert_array_equal(artifact.bank.log_sigmas, network["bank"].log_sigmas)
    np.testing.assert_array_equal(artifact.scales, network["scales"])
    np.testing.assert_array_equal(artifact.relative_rmse, network["relative_rmse"])
    for got, expected in zip(artifact.maps, network["maps"], strict=True):
        assert got.name == expected.name
        assert got.ids.dtype == expected.ids.dtype
        np.testing.assert_array_equal(got.ids, expected.ids)
        np.testing.assert_array_equal(got.outliers, expected.outliers)
    for got, vector in zip(artifact.values.values(), network["vectors"], strict=True):
        np.testing.assert_array_equal(got, dequantise(vector))
    assert list(artifact.raw.values()) == network["raw"]
    assert sum(artifact.sections.values()) == path.stat().st_size == artifact.size_bytes
    assert artifact.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert artifact.table_bytes <= artifact.sections["index_maps"]
    dense = rebuild(artifact)
    assert [(name, tuple(tensor.shape)) for name, tensor in dense.items()] == [
        (info.name, info.shape) for info in network["tensors"]
    ]


def test_known_maps_are_those_of_the_artifact_and_not_copied() -> None:
    known = read_artifact(GOLDEN).maps
    for got, expected in zip(read_artifact(GOLDEN, known=known).maps, known, strict=True):
        assert got.ids is expected.ids
        np.testing.assert_array_equal(got.outliers, expected.outliers)


@pytest.mark.parametrize("part", ["ids", "outliers"])
def test_maps_that_are_not_the_known_ones_are_an_artifact_error(part: str) -> None:
    known = list(read_artifact(GOLDEN).maps)
    place = next(i for i, m in enumerate(known) if len(m.outliers))
    other = getattr(known[place], part).copy()
    other[-1] ^= 1
    known[place] = replace(known[place], **{part: other})
    message = f"ids or outliers of `{known[place].name}` differ from those that were written; try again"
    with pytest.raises(ArtifactError, match=message):
        read_artifact(GOLDEN, known=known)


@pytest.mark.parametrize("blends", [3, ["0"], [0.5], [True]])
def test_blends_that_are_no_ids_are_an_artifact_error(tmp_path: Path, blends: object) -> None:
    path = forged(tmp_path / "file", manifest=as_section({**golden_manifest(), "blends": blends}))
    with pytest.raises(ArtifactError, match="contradicts itself"):
        read_artifact(path)


@pytest.mark.parametrize("temperature", [0, -1.5, "1", None, True, float("inf"), float("nan")])
def test_a_temperature_that_is_no_positive_number_is_an_artifact_error(tmp_path: Path, temperature: object) -> None:
    path = forged(tmp_path / "file", manifest=as_section({**golden_manifest(), "temperature": temperature}))
    with pytest.raises(ArtifactError, match=r"contradicts itself .*`temperature` is"):
        read_artifact(path)


def test_a_temperature_survives_and_the_report_names_it(tmp_path: Path) -> None:
    path = forged(tmp_path / "file", manifest=as_section({**golden_manifest(), **temperature_fact(1.66441)}))
    artifact = read_artifact(path)
    assert folded_temperature(artifact) == report(artifact)["temperature"] == 1.664
    assert folded_temperature(read_artifact(GOLDEN)) == 1.0
    assert "temperature" not in report(read_artifact(GOLDEN))


@pytest.mark.parametrize("name", FACTS)
def test_a_missing_fact_is_an_artifact_error(tmp_path: Path, name: str) -> None:
    manifest = golden_manifest()
    manifest.pop(name)
    path = forged(tmp_path / "file", manifest=as_section(manifest))
    with pytest.raises(ArtifactError, match="contradicts itself"):
        read_artifact(path)


def forged(path: Path, **sections: bytes) -> Path:
    """The golden file with some sections replaced and every checksum right."""
    path.write_bytes(container.pack({**golden_sections(), **sections}))
    return path


def golden_sections() -> dict[str, bytes]:
    return container.unpack(GOLDEN)[0]


def golden_manifest() -> dict[str, Any]:
    """The manifest's JSON."""
    return json.loads(inflate(golden_sections()["manifest"][32:], most=MOST_BYTES, dictionary=DICTIONARY))


def as_section(manifest: dict[str, Any]) -> bytes:
    return bytes(32) + deflate(json.dumps(manifest).encode(), dictionary=DICTIONARY)


def with_row(place: int, row: Any) -> dict[str, Any]:
    """The golden manifest with one tensor described otherwise."""
    manifest = golden_manifest()
    manifest["tensors"][place] = row
    return manifest


@pytest.mark.parametrize(("name", "keep"), [("bank", 5), ("bank", 0), ("maps", -4), ("maps", 9), ("values", 20)])
def test_a_section_too_short_is_an_artifact_error(tmp_path: Path, name: str, keep: int) -> None:
    path = forged(tmp_path / "file", **{name: golden_sections()[name][:keep]})
    with pytest.raises(ArtifactError, match="damaged artifact"):
        read_artifact(path)


@pytest.mark.parametrize("rows", [7, 9])
def test_shapes_that_do_not_fit_the_maps_are_an_artifact_error(tmp_path: Path, rows: int) -> None:
    path = forged(tmp_path / "file", manifest=as_section(with_row(0, f"0s{rows},3,3,3:float32 tête.weight")))
    with pytest.raises(ArtifactError, match="do not end where they should"):
        read_artifact(path)


def test_header_bytes_are_told_before_anything_is_encoded() -> None:
    artifact = read_artifact(GOLDEN)
    told = header_bytes(artifact.tensors, artifact.facts)
    # Nobody knows yet whether there will be outliers: their length and their checksum are not counted.
    assert told - 4 <= artifact.sections["header"] <= told + 8


FORGERIES = {
    "no-tensors": {**golden_manifest(), "tensors": []},
    "number-for-tensors": {**golden_manifest(), "tensors": 3},
    "nothing-for-tensors": {**golden_manifest(), "tensors": None},
    "a-number-for-a-tensor": with_row(0, 3),
    "no-space": with_row(0, "0s8,3,3,3:float32"),
    "no-count": with_row(0, "s8,3,3,3:float32 a"),
    "negative-count": with_row(1, "-1u8:float32 bn.weight"),
    "count-past-the-name": with_row(1, "3u8:float32 bn.weight"),
    "count-of-the-first": with_row(0, "1s8,3,3,3:float32 weight"),
    "nothing-before-the-first": with_row(0, "0 tête.weight"),
    "unknown-kind": with_row(1, "0x8:float32 bn.weight"),
    "unknown-dtype": with_row(1, "0u8:int8 bn.weight"),
    "negative-shape": with_row(0, "0s-8,3,3,3:float32 a"),
    "words-for-shape": with_row(0, "0sa:float32 a"),
    "shape-of-fractions": with_row(0, "0s8.0,3,3,3:float32 a"),
    "huge-shape": with_row(0, f"0s{2**40},{2**40}:float32 a"),
    "endless-number": with_row(0, f"0s{'9' * 5000},3:float32 a"),
    "name-twice": with_row(2, "1 weight"),
    "flat-and-shared": with_row(0, "0s216:float32 a"),
    "too-few-raw": with_row(16, "0r2,2:bool mask"),
    "raw-too-long": with_row(16, "0r2,4:bool mask"),
    "ties-that-are-no-object": {**golden_manifest(), "ties": []},
    "tie-to-nothing": {**golden_manifest(), "ties": {"half.tied": "nowhere"}},
    "tie-to-a-later-name": {**golden_manifest(), "ties": {"half.tied": "bf.weight"}},
    "tie-missing": {**golden_manifest(), "ties": {}},
    "raw-dtype-that-is-none": with_row(5, "1r:save num_batches_tracked"),
    "raw-dtype-of-another-size": with_row(5, "1r:int32 num_batches_tracked"),
    "raw-shape-of-another-size": with_row(5, "1r3:int64 num_batches_tracked"),
    "unshared-dtype-that-is-none": with_row(1, "0u8:int7 bn.weight"),
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_manifest_is_an_artifact_error(tmp_path: Path, forgery: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError):
        read_artifact(forged(tmp_path / "file", manifest=as_section(forgery)))


def test_the_forgeries_start_from_a_manifest_that_is_read(tmp_path: Path) -> None:
    artifact = read_artifact(forged(tmp_path / "file", manifest=as_section(golden_manifest())))
    assert artifact.tensors == read_artifact(GOLDEN).tensors


@pytest.mark.parametrize("name", ["maps", "values"])
def test_a_part_longer_than_its_section_is_an_artifact_error(tmp_path: Path, name: str) -> None:
    path = forged(tmp_path / "file", **{name: b"\xff\x7f" + golden_sections()[name][2:]})
    with pytest.raises(ArtifactError):
        read_artifact(path)


@pytest.mark.parametrize(("name", "keep"), [("outliers", -1), ("maps", -1), ("values", -1)])
def test_a_section_without_its_last_byte_is_an_artifact_error(tmp_path: Path, name: str, keep: int) -> None:
    path = forged(tmp_path / "file", **{name: golden_sections()[name][:keep]})
    with pytest.raises(ArtifactError):
        read_artifact(path)


def test_outliers_past_the_last_are_an_artifact_error(tmp_path: Path) -> None:
    path = forged(tmp_path / "file", outliers=golden_sections()["outliers"] + b"\0\0")
    with pytest.raises(ArtifactError):
        read_artifact(path)


names = st.lists(st.sampled_from(["layer1", "0", "", "conv", "é", " ", '"', "1 x"]), min_size=1, max_size=4).map(
    ".".join
)


@given(st.lists(names, min_size=1, max_size=12, unique=True), st.data())
@settings(max_examples=100, deadline=None)
def test_tensors_survive_the_manifest(given_names: list[str], data: st.DataObject) -> None:
    shapes, dtypes = st.lists(st.integers(0, 300), max_size=3), st.sampled_from(["float32", "bool", "float8_e4m3fn"])
    kinds = st.sampled_from(["shared", "unshared", "raw"])
    infos = [TensorInfo(n, tuple(data.draw(shapes)), data.draw(dtypes), data.draw(kinds)) for n in given_names]
    infos.append(TensorInfo("tied.a", infos[0].shape, infos[0].dtype, "tied", infos[0].name))
    got, facts = decode_manifest(*inflate_manifest(encode_manifest(infos, FACTS)))
    assert list(got) == infos
    assert facts == FACTS
