"""The C decoder gives the weights that the Python reader gives, bit for bit."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from artifacts import GOLDEN, LAST_BIT, ensemble, ensemble_of_parts, of_everything, python_reads
from codec_facts import FACTS
from mutations import manifest_of, sections_of, with_manifest
from native import Decoded, Library, Refused
from trellis_ids import trellis_ids

from gbnn_compress.format.artifact import encode_artifact
from gbnn_compress.format.bank import round_bank
from gbnn_compress.format.checks import RAW_BYTES
from gbnn_compress.format.container import pack
from gbnn_compress.types import Bank, IndexMap, TensorInfo


def assert_same(got: dict[str, Decoded], expected: dict[str, Decoded], *, last_bit: tuple[str, ...] = ()) -> None:
    """Names, dtypes, shapes and bits are the same; tensors named like this may differ in the last bit."""
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert got[name][:2] == tensor[:2], name
        if tensor.dtype == "float64" and name.startswith(last_bit) and last_bit:
            ours, theirs = (np.frombuffer(each.data, np.int64) for each in (got[name], tensor))
            assert np.abs(ours - theirs).max() <= 1, name
        else:
            assert got[name].data == tensor.data, name


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name.partition(".")[0])
def test_golden_files(library: Library, path: Path) -> None:
    assert_same(library.decode(path.read_bytes()), python_reads(path))


@pytest.mark.long
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("components", "outliers"), [(33, 0.01), (2, 0.5), (1, 0.0), (700, 0.0)])
def test_tensors_of_every_kind_and_dtype(
    library: Library, tmp_path: Path, version: int, components: int, outliers: float
) -> None:
    path = tmp_path / "net.gbnn.safetensors"
    data = of_everything(version, components=components, outliers=outliers)
    path.write_bytes(data)
    expected = python_reads(path)
    assert {tensor.dtype for tensor in expected.values()} == set(RAW_BYTES)
    assert_same(library.decode(data), expected, last_bit=LAST_BIT)
    assert_same(library.decode(data, backwards=True), expected, last_bit=LAST_BIT)


@pytest.mark.parametrize("version", [1, 2])
def test_draws_from_given_normals(library: Library, tmp_path: Path, version: int) -> None:
    path = tmp_path / "net.gbnn.safetensors"
    path.write_bytes(of_everything(version, seed=3))
    generator = np.random.default_rng(8)
    normals = (float(generator.standard_normal()) for _ in itertools.count())
    got, expected = library.decode(path.read_bytes(), normals=normals), python_reads(path, seed=8)
    shared = [name for name in expected if name.endswith(".weight") and "bn" not in name]
    mean = library.decode(path.read_bytes())
    for name in shared:
        assert got[name].data != mean[name].data, name
        kind = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
        ours, theirs = (np.frombuffer(each[name].data, kind[expected[name].dtype]) for each in (got, expected))
        finite = np.isfinite(theirs.astype(np.float64))
        if expected[name].dtype == "bfloat16":
            finite = (theirs & 0x7F80) != 0x7F80
        if expected[name].dtype == "float64":
            np.testing.assert_allclose(ours[finite], theirs[finite], rtol=1e-15, atol=0)
        else:
            np.testing.assert_array_equal(ours[finite], theirs[finite], err_msg=name)


def test_tied_tensors_are_not_drawn(library: Library) -> None:
    data = of_everything(2)
    with pytest.raises(Refused, match="a tied tensor is drawn"):
        library.decode(data, normals=itertools.repeat(0.0), draw_ties=True)


def test_ids_that_are_wider_than_weights(library: Library, tmp_path: Path) -> None:
    size = 70_000
    codes = np.arange(size) - 35_000.0
    ids = np.random.RandomState(0).choice([3, 60_000, 69_999, size], 60).astype(np.uint32)
    data = encode_artifact(
        tensors=[TensorInfo(name, (6, 10), name, "shared") for name in ("float16", "float32")],
        bank=Bank(np.ldexp(codes, -16), np.zeros(size)),
        exponent=-16,
        scales=np.ones(2),
        relative_rmse=np.zeros(2),
        maps=[
            IndexMap("float16", ids, np.full((ids == size).sum(), 7, np.uint16)),
            IndexMap("float32", ids, np.full((ids == size).sum(), 7, np.uint32)),
        ],
        vectors=[],
        raw=[],
        facts=FACTS,
    )
    path = tmp_path / "net.gbnn.safetensors"
    path.write_bytes(data)
    assert_same(library.decode(data), python_reads(path))


def test_several_states(library: Library, tmp_path: Path) -> None:
    shape = (130, 1024)
    ids = trellis_ids(shape, components=17, seed=1).astype(np.uint8)
    data = encode_artifact(
        tensors=[TensorInfo("w", shape, "float32", "shared")],
        bank=round_bank(Bank(np.linspace(-1, 1, 17), np.zeros(17)), exponent=-12),
        exponent=-12,
        scales=np.ones(1),
        relative_rmse=np.zeros(1),
        maps=[IndexMap("w", ids, np.empty(0, np.uint32), trellis=True)],
        vectors=[],
        raw=[],
        facts=FACTS,
    )
    path = tmp_path / "net.gbnn.safetensors"
    path.write_bytes(data)
    assert_same(library.decode(data), python_reads(path))


def test_members_of_an_ensemble(library: Library) -> None:
    members = [of_everything(1, seed=1), GOLDEN[-1].read_bytes(), of_everything(2, seed=2)]
    data = ensemble(members)
    assert library.members(data) == 3
    for number, member in enumerate(members):
        assert library.decode(data, member=number) == library.decode(member)


def test_the_damaged_member_is_named(library: Library) -> None:
    data = bytearray(ensemble([of_everything(1), of_everything(2)]))
    data[-40] ^= 1
    with pytest.raises(Refused, match="checksum") as caught:
        library.decode(bytes(data))
    assert caught.value.member == 1


@pytest.mark.parametrize("count", [0, 1, 65])
def test_an_ensemble_has_2_to_64_members(library: Library, count: int) -> None:
    with pytest.raises(Refused):
        library.decode(ensemble_of_parts([b""] * count, [1] * count))


def test_values_of_all_members_count(library: Library) -> None:
    sections = sections_of(GOLDEN[1].read_bytes())
    manifest = manifest_of(sections)
    manifest["tensors"].append(f"0r{40_000_000}:bool claimed")
    single = pack(with_manifest(sections, manifest))
    for data, reason in [(single, "raw tensors"), (ensemble([single, single]), "raw tensors")]:
        with pytest.raises(Refused, match=reason):
            library.decode(data)
    manifest["tensors"][-1] = f"0t{40_000_000}:bool claimed"
    manifest["ties"]["claimed"] = manifest["tensors"][0].partition(" ")[2]
    single = pack(with_manifest(sections, manifest))
    assert len(library.decode(single)) == len(manifest["tensors"])
    with pytest.raises(Refused, match="far more values") as caught:
        library.decode(ensemble([single, single]))
    assert caught.value.member == 1


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"x" * 100, b"\xff" * 8 + b"{}"])
def test_other_files(library: Library, data: bytes) -> None:
    with pytest.raises(Refused, match="not a safetensors file"):
        library.decode(data)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name.partition(".")[0])
def test_a_file_that_is_cut_off(library: Library, path: Path) -> None:
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        with pytest.raises(Refused):
            library.decode(data[:size])
