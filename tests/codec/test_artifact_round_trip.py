"""What goes into an artifact comes out of it; what does not fit together is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gbnn_compress.codec import container
from gbnn_compress.codec.artifact import encode_artifact, header_bytes, read_artifact
from gbnn_compress.codec.bank import round_bank
from gbnn_compress.codec.values import Vector, dequantise, quantise
from gbnn_compress.errors import ArtifactError
from gbnn_compress.types import Bank, IndexMap, TensorInfo
from gbnn_compress.weights.rebuild import rebuild

GOLDEN = Path(__file__).parents[1] / "golden" / "version0.gbnn.safetensors"
WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


FACTS = {
    **{name: {} for name in ("checkpoint", "recipe", "versions", "damage")},
    "seed": 0,
    "components_before_merging": 1,
    "target_ratio": None,
    "max_drop": 1.0,
    "ratio_of": "artifact",
    "warnings": [],
    "noise": 0.5,
}


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


@pytest.mark.parametrize("name", FACTS)
def test_a_missing_fact_is_an_artifact_error(tmp_path: Path, name: str) -> None:
    manifest, sections, _ = container.unpack(GOLDEN)
    manifest.pop(name)
    path = tmp_path / "forged.gbnn.safetensors"
    path.write_bytes(container.pack(manifest, sections))
    with pytest.raises(ArtifactError, match="contradicts itself"):
        read_artifact(path)


def forged(path: Path, *, manifest: dict[str, Any] | None = None, **sections: bytes) -> Path:
    """The golden file with some entries replaced and every checksum right."""
    old, parts, _ = container.unpack(GOLDEN)
    path.write_bytes(container.pack({**old, **(manifest or {})}, {**parts, **sections}))
    return path


def golden_sections() -> dict[str, bytes]:
    return container.unpack(GOLDEN)[1]


@pytest.mark.parametrize(("name", "keep"), [("bank", 5), ("bank", 0), ("maps", -4), ("maps", 9), ("values", 20)])
def test_a_section_too_short_is_an_artifact_error(tmp_path: Path, name: str, keep: int) -> None:
    path = forged(tmp_path / "file", **{name: golden_sections()[name][:keep]})
    with pytest.raises(ArtifactError, match="damaged artifact"):
        read_artifact(path)


@pytest.mark.parametrize("rows", [7, 9])
def test_shapes_that_do_not_fit_the_maps_are_an_artifact_error(tmp_path: Path, rows: int) -> None:
    shapes = container.unpack(GOLDEN)[0]["shapes"]
    path = forged(tmp_path / "file", manifest={"shapes": [[rows, 3, 3, 3], *shapes[1:]]})
    with pytest.raises(ArtifactError, match="do not end where they should"):
        read_artifact(path)


def test_header_bytes_are_told_before_anything_is_encoded() -> None:
    artifact = read_artifact(GOLDEN)
    told = header_bytes(artifact.tensors, artifact.facts)
    # Nobody knows yet whether there will be outliers: their entry and their checksum are not counted.
    assert told <= artifact.sections["header"] <= told + 120


FORGERIES = {
    "no-names": {"names": []},
    "unknown-kind": {"kinds": "x" * 18},
    "unknown-dtype": {"dtypes": ["int8"] * 18},
    "negative-shape": {"shapes": [[-8, 3, 3, 3]] * 18},
    "words-for-shape": {"shapes": [["a"]] * 18},
    "three-splits": {"split": [1, 2, 3]},
    "too-few-raw": {"raw": [1]},
    "raw-too-long": {"raw": [8, 6, 1]},
    "words-for-raw": {"raw": ["8", "6", "0"]},
    "name-twice": {"names": ["a"] * 18},
    "number-for-names": {"names": 3},
    "nothing-for-shapes": {"shapes": None},
    "split-past-the-end": {"split": [10**6, 10**6]},
    "words-for-split": {"split": ["a", "b"]},
    "huge-shape": {"shapes": [[2**40, 2**40]] * 18},
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_manifest_is_an_artifact_error(tmp_path: Path, forgery: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError):
        read_artifact(forged(tmp_path / "file", manifest=forgery))


def test_ties_that_are_no_object_are_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        read_artifact(forged(tmp_path / "file", manifest={"ties": []}))


UNBUILDABLE = {
    "tie-to-nothing": ("ties", None, {"half.tied": "nowhere"}),
    "tie-to-a-later-name": ("ties", None, {"half.tied": "bf.weight"}),
    "tie-missing": ("ties", None, {}),
    "raw-dtype-that-is-none": ("dtypes", 5, "save"),
    "raw-dtype-of-another-size": ("dtypes", 5, "int32"),
    "raw-shape-of-another-size": ("shapes", 5, [3]),
    "raw-sizes-that-cancel": ("raw", None, [20, -6, 0]),
    "unshared-dtype-that-is-none": ("dtypes", 1, "int7"),
    "shape-of-fractions": ("shapes", 0, [8.0, 3, 3, 3]),
    "names-that-are-numbers": ("names", None, list(range(18))),
}


@pytest.mark.parametrize(("key", "place", "value"), UNBUILDABLE.values(), ids=UNBUILDABLE)
def test_what_cannot_be_rebuilt_is_an_artifact_error(tmp_path: Path, key: str, place: int | None, value: Any) -> None:
    entry = container.unpack(GOLDEN)[0][key]
    if place is not None:
        entry[place] = value
    path = forged(tmp_path / "file", manifest={key: value if place is None else entry})
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
