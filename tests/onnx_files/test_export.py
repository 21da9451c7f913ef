"""ONNX files of a small network with everything hard in it, run in ONNX Runtime."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx_networks import SHAPE, HardNetwork, compressed, hard_network
from torch import nn

import gbnn_compress
from gbnn_compress import GbnnError
from gbnn_compress.data.architectures import build_network
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.onnx_files import check, forms
from gbnn_compress.onnx_files import export as exporting
from gbnn_compress.predict.metrics import predictive_entropy
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.predict.running import logits
from gbnn_compress.predict.temperature import temperature_fact
from gbnn_compress.types import Ensemble

pytestmark = pytest.mark.long


SAMPLES, SEED = 3, 5

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed(hard_network(), tmp_path_factory.mktemp("artifact"), ratio=2, settings={"noise": 10.0})


@pytest.fixture(scope="module")
def files(artifact: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    return {form: export(artifact, folder / f"{form}.onnx", weights=form) for form in ("mean", "codebook", "samples")}


def export(artifact: Path, output: Path, **options: object) -> Path:
    options = {"arch": HardNetwork(), "input_shape": SHAPE, "samples": SAMPLES, "seed": SEED} | options
    report = gbnn_compress.export_onnx(artifact, output, **options)
    assert report["onnx"]["bytes"] == output.stat().st_size
    assert report["check"]["inputs"] == 64
    assert report["check"]["largest_relative_difference"] < 1e-5
    return output


def images(n: int) -> torch.Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(7))


def run(path: Path, x: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        ("input", "tensor(float)", ["batch", *SHAPE])
    ]
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": x.numpy()}), strict=True))


def initialisers(path: Path) -> dict[str, onnx.TensorProto]:
    graph = onnx.load(path).graph
    bodies = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return {tensor.name: tensor for each in (graph, *bodies) for tensor in each.initializer}


@pytest.mark.parametrize("form", ["mean", "codebook"])
@pytest.mark.parametrize("n", [1, 5])
def test_logits_are_those_of_the_posterior_mean(files: dict[str, Path], artifact: Path, form: str, n: int) -> None:
    expected = logits(gbnn_compress.load(artifact).to_module(HardNetwork()), [(images(n), None)])
    found = run(files[form], images(n))
    assert set(found) == {"logits"}
    np.testing.assert_allclose(found["logits"], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_samples_are_those_of_predict(files: dict[str, Path], artifact: Path) -> None:
    network = gbnn_compress.load(artifact)
    module, x = network.to_module(HardNetwork()), images(5)
    mean = network.predict(x, samples=SAMPLES, seed=SEED).numpy()
    within = []
    for draw in range(SAMPLES):
        module.load_state_dict(rebuild(network.artifact, seed=SEED + draw))
        within.append(predictive_entropy(logits(module, [(x, None)]).double().softmax(dim=1)))
    found = run(files["samples"], x)
    np.testing.assert_allclose(found["probabilities"], mean, rtol=1e-4)
    np.testing.assert_allclose(found["entropy"], predictive_entropy(mean), rtol=1e-4)
    information = predictive_entropy(mean) - np.mean(within, axis=0)
    np.testing.assert_allclose(found["mutual_information"], information, rtol=1e-3, atol=1e-6)
    assert found["mutual_information"].min() > 1e-5


@pytest.mark.parametrize("temperature", [0.5, 20.0])
@pytest.mark.parametrize("form", ["codebook", "samples"])
def test_a_folded_temperature_is_applied_as_predict_does(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, temperature: float
) -> None:
    held = read_artifact(artifact)
    held = replace(held, facts={**held.facts, **temperature_fact(temperature)})
    monkeypatch.setattr(exporting, "read_ensemble", lambda path: Ensemble((held,), held.size_bytes, held.sha256))
    network, x = gbnn_compress.CompressedNetwork(held), 30 * images(5)
    network.to_module(HardNetwork())
    found = run(export(artifact, tmp_path / "out.onnx", weights=form), x)
    expected = network.predict_with_uncertainty(x, samples=SAMPLES if form == "samples" else 0, seed=SEED)
    if form == "codebook":
        found["probabilities"] = torch.tensor(found["logits"]).softmax(dim=1).numpy()
    else:
        np.testing.assert_allclose(found["entropy"], expected.entropy, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found["mutual_information"], expected.mutual_information, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found["probabilities"], expected.probabilities, rtol=1e-3, atol=1e-9)


def test_only_a_folded_temperature_is_reported(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"weights": "mean", "arch": HardNetwork(), "input_shape": SHAPE}
    assert "temperature" not in gbnn_compress.export_onnx(artifact, tmp_path / "out.onnx", **options)
    held = read_artifact(artifact)
    held = replace(held, facts={**held.facts, **temperature_fact(1.5)})
    monkeypatch.setattr(exporting, "read_ensemble", lambda path: Ensemble((held,), held.size_bytes, held.sha256))
    assert gbnn_compress.export_onnx(artifact, tmp_path / "out.onnx", **options)["temperature"] == 1.5


@pytest.mark.parametrize("form", ["mean", "codebook", "samples"])
def test_file_is_valid_and_says_its_opset(files: dict[str, Path], form: str) -> None:
    onnx.checker.check_model(files[form], full_check=True)
    model = onnx.load(files[form])
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]


@pytest.mark.parametrize("form", ["codebook", "samples"])
def test_no_shared_tensor_is_dense_and_ties_are_there_once(files: dict[str, Path], form: str) -> None:
    held = initialisers(files[form])
    ids = {name.removesuffix("/ids"): math.prod(tensor.dims) for name, tensor in held.items() if name.endswith("/ids")}
    assert ids == {
        "conv.weight": 459,
        "depthwise.weight": 153,
        "signs.weight": 136,  # two components: one code for two weights
        "first.weight": 256,
        "classifier.weight": 272,
    }
    assert held["signs.weight/ids"].data_type == onnx.TensorProto.UINT4
    assert len(held["signs.weight/ids"].raw_data) == 68
    codebooks = [tensor for name, tensor in held.items() if "/codebook" in name]
    assert len(codebooks) == len(ids)
    assert {tensor.dims[0] for tensor in codebooks} == {SAMPLES} or form == "codebook"
    dense = {name for name, tensor in held.items() if len(tensor.dims) >= 2 and "/" not in name}
    assert dense == set()


def test_nodes_that_decode_come_first_so_that_a_run_holds_one_decoded_layer(files: dict[str, Path]) -> None:
    operators = [node.op_type for node in onnx.load(files["codebook"]).graph.node]
    decoding = operators[: operators.index("Conv")]
    assert set(decoding) == {"Cast", "Gather", "Reshape", "ScatterElements"}
    assert decoding.count("Gather") == operators.count("Gather") == 5


def test_samples_draw_nothing_in_the_graph(files: dict[str, Path]) -> None:
    assert b"Random" not in files["samples"].read_bytes()
    first, second = (run(files["samples"], images(2)) for _ in range(2))
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])


def test_same_bytes_again_and_no_paths_in_them(artifact: Path, files: dict[str, Path], tmp_path: Path) -> None:
    again = export(artifact, tmp_path / "again.onnx", weights="codebook").read_bytes()
    assert again == files["codebook"].read_bytes()
    assert b".py" not in again


@pytest.mark.long
def test_half_precision_becomes_float32_and_the_callers_module_stays(tmp_path: Path, one_thread: None) -> None:
    network = hard_network().bfloat16().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    export(compressed(network, tmp_path, ratio=2), tmp_path / "out.onnx", weights="codebook", arch=network)
    assert network.training
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


class Otherwise(HardNetwork):
    """Knows a layer by another name than its checkpoint does, and does not tie what that ties."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(16, 16, bias=False)
        self.head = self.classifier
        del self.classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(images)))
        x = self.signs(self.depthwise(x).mean(dim=(2, 3)))
        return self.head(self.second(torch.relu(self.first(x))))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: object) -> None:
        for kind in ("weight", "bias"):
            if f"classifier.{kind}" in state_dict:
                state_dict[f"head.{kind}"] = state_dict.pop(f"classifier.{kind}")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def test_a_module_may_rename_what_it_loads_and_tie_less(artifact: Path, tmp_path: Path) -> None:
    held = initialisers(export(artifact, tmp_path / "out.onnx", weights="samples", arch=Otherwise()))
    assert "classifier.weight/ids" in held
    assert "second.weight/ids" not in held


def test_a_file_that_fails_the_check_is_not_written(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.onnx").write_bytes(b"before")
    monkeypatch.setattr(check, "TOLERANCE", 0.0)
    with pytest.raises(GbnnError, match="nothing written: in ONNX Runtime the outputs differ by"):
        export(artifact, tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == b"before"


class Branching(HardNetwork):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = super().forward(images)
        return x * 2 if x.sum() > 0 else x


class OneBatchSize(HardNetwork):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = super().forward(images)
        return torch.cat([x[i : i + 1] for i in range(len(x))])


class NoSingleImage(HardNetwork):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).squeeze()


class Gambling(HardNetwork):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + torch.randn(5)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Branching(), r"`Branching` cannot be exported to ONNX \(.*data-dependent expression"),
        (OneBatchSize(), "can be exported for one batch size only"),
        (NoSingleImage(), r"of shape \(1, classes\) for 1 image\(s\), got shape \(17,\)"),
        pytest.param(Gambling(), "one with random outputs cannot be checked", marks=pytest.mark.slow),
    ],
    ids=["branching", "one batch size", "no single image", "gambling"],
)
def test_networks_that_cannot_be_exported(
    artifact: Path, tmp_path: Path, network: nn.Module, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GbnnError, match=message) as refusal:
        export(artifact, tmp_path / "out.onnx", arch=network)
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_file_too_large_for_onnx(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(forms, "LARGEST_FILE", 1000)
    with pytest.raises(GbnnError, match="give `--weights codebook`"):
        export(artifact, tmp_path / "out.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("timm/test_vit", None),
        ("timm/test_convnext", None),
        ("timm/test_efficientnet", None),
        ("timm/test_resnet", None),
        ("torchvision/mobilenet_v2", (3, 64, 96)),
        (f"{ROOT / 'benchmarks' / 'networks.py'}:resnet20", (3, 32, 32)),
        (f"{ROOT / 'tests' / 'onnx_files' / 'onnx_networks.py'}:vision_transformer", (3, 32, 32)),
    ],
    ids=["ViT of timm", "ConvNeXt", "EfficientNet", "ResNet of timm", "MobileNetV2", "ResNet-20", "ViT of torchvision"],
)
def test_families_of_architectures(tmp_path: Path, spec: str, shape: tuple[int, ...] | None, one_thread: None) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        path = compressed(build_network(spec), tmp_path, ratio=4)
    for weights in ("mean", "codebook", "samples"):
        export(path, tmp_path / "out.onnx", weights=weights, arch=spec, input_shape=shape)
