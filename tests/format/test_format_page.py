"""The decoder written from docs/format.md must agree with the library bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from codec_facts import FACTS
from format_page import decode, decode_members, dictionary, rounded
from trellis_ids import trellis_ids

if TYPE_CHECKING:
    from gbnn_compress.types import Artifact

GOLDEN = Path(__file__).parents[1] / "golden" / "version1.gbnn.safetensors"


def assert_agrees(path: Path, *, by_context: set[str] | None = None) -> None:
    """The page's decoder and the library's give the same ids and weights; some tensors at least have a rule."""
    from gbnn_compress.format.artifact import read_artifact

    assert_same(decode(path.read_bytes()), read_artifact(path), by_context=by_context)


def assert_same(page: dict[str, Any], artifact: Artifact, *, by_context: set[str] | None = None) -> None:
    """What the page's decoder gives of a network is what the library reads; some tensors at least have a rule."""
    from gbnn_compress.checkpoint.arrays import bit_patterns, raw_bytes_of
    from gbnn_compress.predict.rebuild import component_deviations, rebuild

    library = rebuild(artifact)
    kinds = {info.name: info.kind for info in artifact.tensors}
    assert page["by_context"] >= (by_context or set())
    assert page["bank"]["means"] == artifact.bank.means.tolist()
    assert page["bank"]["logs"] == artifact.bank.log_sigmas.tolist()
    assert page["bank"]["scales"] == artifact.scales.tolist()
    assert page["bank"]["errors"] == artifact.relative_rmse.tolist()
    for index, index_map in enumerate(artifact.maps):
        ids = page["ids"][index_map.name]
        assert ids == index_map.ids.tolist()
        deviations = posterior_deviations(page, ids, page["bank"]["scales"][index])
        np.testing.assert_allclose(component_deviations(artifact, index), deviations, rtol=1e-12)
    assert list(page["dense"]) == list(library)
    for name, tensor in library.items():
        got = page["dense"][name]
        if kinds[name] == "raw":
            assert got == raw_bytes_of(tensor), name
            continue
        assert got.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(got, bit_patterns(tensor).reshape(tensor.shape), err_msg=name)


def posterior_deviations(page: dict[str, Any], ids: list[int], scale: float) -> list[float]:
    bank = page["bank"]
    members = [ids.count(k) for k in range(len(bank["means"]))]
    return [
        page["noise"] * scale * math.exp(log) / math.sqrt(count) if count and mean else 0.0
        for mean, log, count in zip(bank["means"], bank["logs"], members, strict=True)
    ]


def test_dictionary_is_that_of_the_page() -> None:
    from gbnn_compress.format.dictionary import DICTIONARY

    assert dictionary() == DICTIONARY


def test_golden_file() -> None:
    assert_agrees(GOLDEN, by_context={"tête.weight"})


def test_golden_ensemble() -> None:
    from gbnn_compress.format.ensembles import read_ensemble

    path = GOLDEN.with_name("ensemble.gbnn.safetensors")
    pages, members = decode_members(path.read_bytes()), read_ensemble(path).members
    assert [page["version"] for page in pages] == [1, 2, 1]
    for page, artifact in zip(pages, members, strict=True):
        assert_same(page, artifact, by_context={"tête.weight"})


def test_golden_file_of_version_2() -> None:
    path = GOLDEN.with_name("version2.gbnn.safetensors")
    assert decode(path.read_bytes())["version"] == 2
    assert_agrees(path, by_context={"tête.weight"})


@pytest.mark.parametrize(
    "shape",
    [
        *[(40, 12), (35, 9, 3, 3), (20, 1, 2, 3, 2), (1, 60), (300, 1)],
        pytest.param((2**7, 2**10), marks=pytest.mark.long),  # several states
    ],
)
def test_streams_of_version_2(tmp_path: Path, shape: tuple[int, ...]) -> None:
    from gbnn_compress.format.artifact import encode_artifact
    from gbnn_compress.format.bank import round_bank
    from gbnn_compress.types import Bank, IndexMap, TensorInfo

    components, names = 33, ["followed", "free"]
    ids = trellis_ids(shape, components=components, outliers=0.01, seed=5).astype(np.uint8)
    outliers = np.full(int((ids == components).sum()), 3, dtype=np.uint32)
    data = encode_artifact(
        tensors=[TensorInfo(name, shape, "float32", "shared") for name in names],
        bank=round_bank(Bank(np.linspace(-1, 1, components), np.zeros(components)), exponent=-12),
        exponent=-12,
        scales=np.ones(2),
        relative_rmse=np.zeros(2),
        maps=[IndexMap("followed", ids, outliers, trellis=True), IndexMap("free", ids, outliers)],
        vectors=[],
        raw=[],
        facts=FACTS,
    )
    path = tmp_path / "net.gbnn.safetensors"
    path.write_bytes(data)
    page = decode(data)
    assert page["version"] == 2
    assert page["ids"] == {name: ids.tolist() for name in names}
    if ids.size < 2**17:
        assert_agrees(path, by_context=set(names) if min(shape[:2]) > 8 else None)


@pytest.mark.parametrize(
    "dtype",
    ["bfloat16", *(pytest.param(each, marks=pytest.mark.long) for each in ("float16", "float32", "float64"))],
)
def test_compressed_network(tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file

    from gbnn_compress.pipeline.compress import compress

    random = np.random.RandomState(7)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.from_numpy(random.laplace(size=shape)).to(getattr(torch, dtype))

    network = {
        "conv.weight": tensor(16, 8, 3, 3),
        "bn.weight": tensor(16),
        "bn.bias": tensor(16),
        "bn.running_mean": tensor(16),
        "bn.running_var": tensor(16).abs() + 0.1,
        "bn.num_batches_tracked": torch.tensor(7),
        "zeros.weight": torch.zeros(3, 5, dtype=getattr(torch, dtype)),
        "fc.weight": tensor(20, 64),
        "fc.bias": tensor(20),
    }
    network["fc.weight"][0, 0] = 3e4
    network["conv.weight"] += 3 * tensor(16, 8, 1, 1)
    network["deep.weight"] = tensor(4, 3, 2, 3, 2) + 3 * tensor(4, 3, 1, 1, 1)
    network["depthwise.weight"] = tensor(40, 1, 5, 5) * tensor(40, 1, 1, 1).exp()
    save_file(network, tmp_path / "net.safetensors")
    path = tmp_path / "net.gbnn.safetensors"
    compress(tmp_path / "net.safetensors", target_ratio=4, output=path)
    assert_agrees(path, by_context={"conv.weight", "depthwise.weight"})


def test_a_bank_of_many_components(tmp_path: Path) -> None:
    from gbnn_compress.format.artifact import encode_artifact
    from gbnn_compress.format.bank import round_bank
    from gbnn_compress.types import Bank, IndexMap, TensorInfo

    random = np.random.RandomState(3)
    bank = round_bank(Bank(np.sort(random.normal(size=700)), random.normal(size=700)), exponent=-14)
    maps = [
        IndexMap("wide", random.randint(0, 700, 600).astype(np.uint16), np.empty(0, np.uint16)),
        IndexMap("few", random.choice([3, 650], 40, p=[0.95, 0.05]).astype(np.uint16), np.empty(0, np.uint32)),
        IndexMap("outliers", np.full(6, 700, dtype=np.uint16), random.randint(0, 99, 6).astype(np.uint64)),
    ]
    data = encode_artifact(
        tensors=[
            TensorInfo("wide", (20, 30), "bfloat16", "shared"),
            TensorInfo("few", (4, 10), "float32", "shared"),
            TensorInfo("outliers", (2, 3), "float64", "shared"),
        ],
        bank=bank,
        exponent=-14,
        scales=np.array([0.0625, 3.0, 1.0]),
        relative_rmse=np.zeros(3),
        maps=maps,
        vectors=[],
        raw=[],
        facts=FACTS,
    )
    path = tmp_path / "net.gbnn.safetensors"
    path.write_bytes(data)
    assert_agrees(path)


@pytest.mark.parametrize(
    ("value", "dtype", "pattern"),
    [
        # One and a half steps, and a little: rounding twice loses the little.
        (1 + 2.0**-11 + 2.0**-40, "float16", 0x3C00),
        (1 + 2.0**-8 + 2.0**-40, "bfloat16", 0x3F80),
        (1 + 2.0**-24, "float32", 0x3F800000),
        (7e4, "float16", 0x7BFF),
        (-65519.0, "float16", 0xFBFF),
        (1e39, "bfloat16", 0x7F7F),
        (-1e39, "float32", 0xFF7FFFFF),
        (math.inf, "float64", 0x7FEFFFFFFFFFFFFF),
    ],
)
def test_rounding_is_that_of_the_library(value: float, dtype: str, pattern: int) -> None:
    import torch

    from gbnn_compress.checkpoint.arrays import bit_patterns
    from gbnn_compress.checkpoint.arrays import rounded as library

    tensor = library(torch.full((33,), value, dtype=torch.float64), getattr(torch, dtype))
    assert rounded([value], dtype).tolist() == [pattern]
    assert set(bit_patterns(tensor).tolist()) == {pattern}
