"""ONNX files of networks with other inputs and outputs than an image classifier's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from any_networks import Counts, Loops, Nested, Speaker
from onnx_networks import compressed
from torch import nn

import gbnn_compress
from gbnn_compress import GbnnError
from gbnn_compress.onnx_files.check import run_onnx
from gbnn_compress.predict.nesting import by_name

pytestmark = pytest.mark.long


SAMPLES = 3


def made(network: nn.Module, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return compressed(network, folder)


def export(artifact: Path, network: Any, **options: Any) -> dict[str, Any]:
    return gbnn_compress.export_onnx(artifact, artifact.parent / "out.onnx", arch=network, samples=SAMPLES, **options)


def run(artifact: Path, **feed: torch.Tensor) -> dict[str, np.ndarray]:
    (found,) = run_onnx(artifact.parent / "out.onnx", [{name: each.numpy() for name, each in feed.items()}])
    return found


def shapes(report: dict[str, Any]) -> dict[str, list[int | str]]:
    return {each["name"]: each["shape"] for each in report["inputs"]}


@pytest.mark.parametrize("form", ["mean", "codebook", "samples"])
def test_recurrent_layers_with_any_batch_size_and_length(tmp_path: Path, form: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the noise of the file depends on the weights
        network = Speaker()
    artifact = made(network, tmp_path)
    report = export(artifact, network, weights=form, inputs=["mels:float32:batch,time,10"])
    assert shapes(report) == {"mels": ["batch", "time", 10]}
    assert report["input_shape"] is None
    assert report["check"]["largest_relative_difference"] < 1e-5
    mels = torch.randn(7, 23, 10)
    found = run(artifact, mels=mels)
    loaded = gbnn_compress.load(artifact)
    loaded.to_module(Speaker())
    expected = loaded.predict_with_uncertainty(mels, samples=SAMPLES if form == "samples" else 0)
    np.testing.assert_allclose(found["output"], expected.mean, rtol=1e-4, atol=1e-5)
    if form == "samples":
        np.testing.assert_allclose(found["output.std"], expected.standard_deviation, rtol=1e-3, atol=1e-5)
        assert found["output.std"].min() > 0


@pytest.mark.parametrize("form", ["codebook", "samples"])
def test_every_output_has_its_name_in_the_nesting(tmp_path: Path, form: str) -> None:
    network = Nested()
    artifact = made(network, tmp_path)
    batches = [{"x": torch.randn(n, 8), "mask": torch.ones(n)} for n in (4, 3)]
    report = export(artifact, network, weights=form, data=batches)
    assert shapes(report) == {"x": ["batch", 8], "mask": ["batch"]}
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    names = ["value", "parts.0", "parts.1", "extra.x", "extra.best", "extra.active"]
    assert [name for name in report["outputs"] if not name.endswith(".std")] == names
    found = run(artifact, **batches[0])
    assert found["extra.best"].dtype == np.int64
    assert found["extra.active"].dtype == np.bool_
    if form == "codebook":
        with torch.no_grad():
            expected = by_name(gbnn_compress.load(artifact).to_module(Nested())(**batches[0]))
        for name, tensor in expected.items():
            np.testing.assert_allclose(found[name], tensor.numpy(), rtol=1e-4, atol=1e-5)
    else:
        assert found["extra.x.std"].max() < 1e-6


def test_one_output_is_chosen(tmp_path: Path) -> None:
    network = Nested()
    artifact = made(network, tmp_path)
    data = [{"x": torch.randn(4, 8), "mask": torch.ones(4)}]
    assert export(artifact, network, data=data, output="parts.0")["outputs"] == ["parts.0"]
    assert export(artifact, network, data=data, output=0)["outputs"] == ["value"]
    with pytest.raises(GbnnError, match=r"`--output nothing`: .* it has `value`, `parts.0`"):
        export(artifact, network, data=data, output="nothing")


def test_a_forward_of_the_user_and_targets_that_it_does_not_use(tmp_path: Path) -> None:
    network = Nested()
    artifact = made(network, tmp_path)
    data = [(torch.randn(4, 8), torch.randn(4)), (torch.randn(3, 8), torch.randn(3))]

    def forward(network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return network(batch[0], torch.ones_like(batch[0][:, 0])).value

    report = export(artifact, network, data=data, forward=forward)
    assert shapes(report) == {"input": ["batch", 8]}
    assert report["outputs"] == ["output"]


def test_the_task_decides_between_logits_and_outputs(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 5))
    artifact = made(network, tmp_path)
    labelled = [(torch.randn(6, 8), torch.arange(6) % 5)]
    form = {"weights": "samples"}
    assert export(artifact, network, data=[torch.randn(6, 8)])["outputs"] == ["output"]
    assert export(artifact, network, data=labelled)["outputs"] == ["logits"]
    assert export(artifact, network, data=labelled, task="other", **form)["outputs"] == ["output", "output.std"]
    classes = export(artifact, network, inputs=["x:float32:batch,8"], task="classifier", **form)
    assert classes["outputs"] == ["probabilities", "entropy", "mutual_information"]


def test_positions_of_a_segmentation_network_are_classified(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1))
    artifact = made(network, tmp_path)
    options = {"inputs": ["image:float32:batch,3,height,width"], "task": "classifier", "weights": "samples"}
    report = export(artifact, network, **options)
    assert shapes(report) == {"image": ["batch", 3, "height", "width"]}
    found = run(artifact, image=torch.randn(2, 3, 10, 12))
    assert found["probabilities"].shape == (2, 4, 10, 12)
    assert found["entropy"].shape == found["mutual_information"].shape == (2, 10, 12)
    np.testing.assert_allclose(found["probabilities"].sum(1), 1, rtol=1e-5)


def test_a_batch_size_that_cannot_be_free(tmp_path: Path) -> None:
    network = Loops()
    artifact = made(network, tmp_path)
    report = export(artifact, network, data=[torch.randn(5, 8), torch.randn(3, 8)])
    assert shapes(report) == {"input": [5, 8]}
    assert report["check"]["inputs"] == 5
    assert "batches of 5 input(s) only" in report["notes"][0]
    with pytest.raises(GbnnError, match=r"axis 0 \(`batch`\) of the input `x` .* give its size in place of its name"):
        export(artifact, network, inputs=["x:float32:batch,8"])
    assert shapes(export(artifact, network, inputs=["x:float32:4,8"])) == {"x": [4, 8]}


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (Counts(), {"data": [torch.randn(4, 8)]}, "returns another `output` when it is called again"),
        (Nested(), {"data": [torch.randn(4, 8)]}, r"fails on a batch from `--data` with `input` \[4, 8\] \(TypeError"),
        (Nested(), {"inputs": ["x:float32:batch,8", "msk:float32:batch"]}, "has no such argument; it has `x`, `mask`"),
        (Nested(), {"inputs": ["x"]}, "expected NAME:DTYPE:SHAPE"),
        (Loops(), {"inputs": ["x:float32:4,8"], "input_shape": [8]}, "expected one of `--input-shape`, `--input`"),
        (Loops(), {"data": [torch.randn(4, 8)], "forward": lambda n, b: b.argmax(1)}, "no floating tensor"),
        (Loops(), {"data": [torch.full((4, 8), torch.nan)]}, "only infinite or NaN values"),
    ],
)
def test_refusals(tmp_path: Path, network: nn.Module, options: dict[str, Any], message: str) -> None:
    artifact = made(network, tmp_path)
    with pytest.raises(GbnnError, match=message) as refusal:
        export(artifact, network, **options)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out.onnx").exists()


def test_the_callers_module_stays_as_it_is(tmp_path: Path) -> None:
    network = Speaker().double().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    artifact = made(network, tmp_path)
    report = export(artifact, network, inputs=["mels:float64:batch,6,10"])
    assert report["inputs"][0]["dtype"] == "float32"
    assert network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == torch.float64


@pytest.mark.long
@pytest.mark.parametrize("form", ["codebook", "samples"])
def test_bert(tmp_path: Path, form: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    network = transformers.BertModel(config)
    artifact = made(network, tmp_path)
    names = ("input_ids", "attention_mask")
    report = export(artifact, network, weights=form, inputs=[f"{name}:int64:batch,sequence" for name in names])
    assert shapes(report) == {name: ["batch", "sequence"] for name in names}
    means = [name for name in report["outputs"] if not name.endswith(".std")]
    assert means == ["last_hidden_state", "pooler_output"]
    ids = torch.randint(100, (3, 11))
    found = run(artifact, input_ids=ids, attention_mask=torch.ones_like(ids))
    assert found["last_hidden_state"].shape == (3, 11, 32)


@pytest.mark.long
def test_a_segmentation_network_of_torchvision(tmp_path: Path) -> None:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    artifact = made(network, tmp_path)
    report = export(artifact, network, weights="codebook", data=[torch.randn(3, 3, 64, 64)])
    assert report["outputs"] == ["out"]


@pytest.mark.long
def test_a_detector_is_refused_with_the_exporters_reason_and_exported_without_its_boxes(tmp_path: Path) -> None:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    network = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    artifact = made(network, tmp_path)
    with pytest.raises(GbnnError, match=r"`SSD` cannot be exported to ONNX \(.*data-dependent") as refusal:
        export(artifact, network, data=[([torch.rand(3, 320, 320)], [{}])])
    assert "\n" not in str(refusal.value)

    def heads(network: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return network.head(list(network.backbone(images).values()))

    report = export(artifact, network, inputs=["images:float32:batch,3,320,320"], forward=heads)
    assert report["outputs"] == ["bbox_regression", "cls_logits"]
