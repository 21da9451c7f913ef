"""Graphs without weights: each initialiser of the network is a tensor of the artifact, at a location of its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from any_networks import Nested, Speaker
from gbnn_compress_cli.main import main
from onnx_networks import SHAPE, HardNetwork, compressed, hard_network
from torch import nn

import gbnn_compress
from gbnn_compress import GbnnError
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.onnx_files import check
from gbnn_compress.onnx_files.external import can_be_external
from gbnn_compress.predict.nesting import by_name
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.report import words
from gbnn_compress.types import TensorInfo

pytestmark = pytest.mark.long


INSIDE = 64
"""Largest constant that stays in a graph, in bytes."""

HARD = {"arch": HardNetwork(), "input_shape": SHAPE}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    return compressed(hard_network(), tmp_path_factory.mktemp("artifact"), ratio=2)


def export(artifact: Path, **options: object) -> Path:
    graph = artifact.with_name("graph.onnx")
    report = gbnn_compress.export_onnx(artifact, graph, weights="external", **options)
    assert report["onnx"]["bytes"] == graph.stat().st_size
    assert report["onnx"]["artifact_bytes"] == artifact.stat().st_size
    assert report["check"]["largest_relative_difference"] < 1e-5
    return graph


def session(graph: Path, tensors: dict[str, torch.Tensor]) -> onnxruntime.InferenceSession:
    """The graph, beside one file of raw values per tensor."""
    for name, tensor in tensors.items():
        values = tensor.contiguous().reshape(-1).view(torch.uint8)
        (graph.parent / name).write_bytes(values.numpy().tobytes())
    onnx.checker.check_model(graph, full_check=True)
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


def outside(graph: Path) -> dict[str, onnx.TensorProto]:
    """The external initialisers by location; the others are small."""
    held = onnx.load(graph, load_external_data=False).graph.initializer
    found = {}
    for each in held:
        entries = {entry.key: entry.value for entry in each.external_data}
        if entries:
            assert entries["offset"] == "0"
            found[entries["location"]] = each
        else:
            assert each.ByteSize() < INSIDE, each.name
    return found


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.long)])
def test_initialisers_are_the_artifacts_tensors_and_a_draw_is_a_change_of_files(
    tmp_path: Path, dtype: torch.dtype, one_thread: None
) -> None:
    held = read_artifact(compressed(hard_network().to(dtype), tmp_path, ratio=2, settings={"noise": 10.0}))
    graph = export(tmp_path / "net.gbnn.safetensors", **HARD)
    found, decoded = outside(graph), rebuild(held)
    unused = {"norm.num_batches_tracked", "unused.weight", "unused.bias", "steps", "second.weight", "second.bias"}
    assert set(found) == decoded.keys() - unused
    for name, each in found.items():
        assert tuple(each.dims) == tuple(decoded[name].shape)
        assert onnx.helper.tensor_dtype_to_np_dtype(each.data_type).itemsize == decoded[name].itemsize
    assert "BatchNormalization" in [node.op_type for node in onnx.load(graph, load_external_data=False).graph.node]
    x = torch.randn(5, *SHAPE)
    for seed in (None, 3):
        tensors = rebuild(held, seed=seed)
        (logits,) = session(graph, tensors).run(["logits"], {"input": x.numpy()})
        network = HardNetwork().eval()
        network.load_state_dict(tensors)
        with torch.no_grad():
            np.testing.assert_allclose(logits, network(x).numpy(), rtol=1e-3, atol=1e-4)


def test_the_command_says_both_sizes(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = tmp_path / "graph.onnx"
    arch = f"{Path(__file__).with_name('onnx_networks.py')}:HardNetwork"
    line = ["export", artifact, "-o", graph, "--weights", "external", "--input-shape", "3,8,8", "--arch", arch, "-q"]
    assert main([str(each) for each in line]) == 0
    said, (mine, its) = capsys.readouterr().out, (words.size(path.stat().st_size) for path in (graph, artifact))
    assert f"graph.onnx: {mine}, the graph alone; its weights are in the artifact, {its}\n" in said


def test_a_graph_that_fails_the_check_is_not_written(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TOLERANCE", 0.0)
    graph = artifact.with_name("refused.onnx")
    with pytest.raises(GbnnError, match="nothing written: in ONNX Runtime the outputs differ by"):
        gbnn_compress.export_onnx(artifact, graph, weights="external", **HARD)
    assert not graph.exists()


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        pytest.param(Speaker(), ["mels:float32:batch,time,10"], marks=pytest.mark.long),
        (Nested(), ["x:float32:batch,8", "mask:float32:batch"]),
    ],
    ids=["recurrent layers", "nested outputs"],
)
def test_networks_that_are_no_classifiers(tmp_path: Path, network: nn.Module, inputs: list[str]) -> None:
    artifact = compressed(network, tmp_path)
    graph = export(artifact, arch=network, inputs=inputs)
    tensors = rebuild(read_artifact(artifact))
    assert set(outside(graph)) == set(tensors)
    shapes = {"mels": (3, 7, 10), "x": (3, 8), "mask": (3,)}
    feed = {name: torch.randn(shapes[name]) for name in (each.partition(":")[0] for each in inputs)}
    run = session(graph, tensors)
    names = [output.name for output in run.get_outputs()]
    found = dict(zip(names, run.run(names, {name: each.numpy() for name, each in feed.items()}), strict=True))
    network.load_state_dict(tensors)
    with torch.no_grad():
        expected = by_name(network(**feed))
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor.numpy(), rtol=1e-4, atol=1e-5)


class Windowed(nn.Module):
    """An index that is a buffer, and a tensor whose name is that of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 16))
        self.input = nn.Parameter(torch.randn(16, 16))
        self.register_buffer("index", torch.arange(36).reshape(6, 6) % 9)
        self.register_buffer("mask", torch.eye(16, dtype=torch.bool))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bias = self.table[self.index].mean(dim=(0, 1))
        return images.flatten(1)[:, :16] @ self.input.masked_fill(self.mask, 0.0) + bias


def test_integer_and_boolean_buffers_are_external_too(tmp_path: Path) -> None:
    network = Windowed()
    artifact = compressed(network, tmp_path)
    graph = export(artifact, arch=network, input_shape=SHAPE)
    assert set(outside(graph)) == {"table", "input", "index", "mask"}
    tensors, x = rebuild(read_artifact(artifact)), torch.randn(2, *SHAPE)
    network.load_state_dict(tensors)
    (logits,) = session(graph, tensors).run(["logits"], {"input": x.numpy()})
    np.testing.assert_allclose(logits, network(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["../out", "/out", "a/../b", "a//b", "", ".", "a\0b", "a\\b", "n" * 300])
def test_a_tensor_whose_name_is_no_place_below_the_graph_stays_inside(name: str) -> None:
    assert not can_be_external(TensorInfo(name, (2, 2), "float32", "shared"))


@pytest.mark.parametrize("name", ["conv.weight", "blocks/0.weight", "..weight", "größe"])
def test_names_that_are_locations(name: str) -> None:
    assert can_be_external(TensorInfo(name, (2, 2), "float32", "shared"))
    assert not can_be_external(TensorInfo(name, (2, 2), "float8_e4m3fn", "raw"))
