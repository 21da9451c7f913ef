"""`evaluate`, `diff` and `export` of ensembles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ensemble_files import NETWORKS, artifact, narrow, three, wide, write_inputs

import gbnn_compress
from gbnn_compress.errors import ArchitectureError, GbnnError
from gbnn_compress.predict.bench import Evaluation, open_bench
from gbnn_compress.predict.models import read_model

pytestmark = pytest.mark.usefixtures("one_thread")

ARCH = list(NETWORKS)


class Files:
    """Three artifacts, their ensemble, a checkpoint, and data."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.parts = folder, three(folder)
        self.ensemble = folder / "ensemble.gbnn.safetensors"
        gbnn_compress.ensemble(self.parts, self.ensemble)
        write_inputs(folder)
        self.labelled, self.other = f"npz:{folder / 'labelled.npz'}", f"npz:{folder / 'other.npz'}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Files:
    return Files(tmp_path_factory.mktemp("on_data"))


@pytest.mark.long
def test_evaluate_measures_the_averaged_probabilities(files: Files) -> None:
    found = gbnn_compress.evaluate(files.ensemble, files.labelled, arch=ARCH, samples=2, ood=files.other)
    each = []
    for path, make in zip(files.parts, NETWORKS, strict=True):
        model = read_model(path)
        bench = open_bench(model, Evaluation(files.labelled, samples=2), make)
        each.append(bench.predict(model).probabilities)
    labels = torch.arange(40) % 5
    mean = sum(each) / 3
    assert found["nll"] == pytest.approx(float(torch.nn.functional.nll_loss(mean.log(), labels)))
    assert found["accuracy"] == float((mean.argmax(dim=1) == labels).double().mean())
    assert (found["members"], found["samples"]) == (3, 2)
    assert 0 <= found["ood"]["mutual_information"]["auroc"] <= 1
    assert found["ood"]["auroc"] == 1 or found["ood"]["auroc"] > 0


def test_one_draw_of_several_members_has_mutual_information(files: Files) -> None:
    found = gbnn_compress.evaluate(files.ensemble, files.labelled, arch=ARCH, samples=1, ood=files.other)
    assert "mutual_information" in found["ood"]


def test_a_temperature_is_fitted_to_the_whole_ensemble(files: Files) -> None:
    found = gbnn_compress.evaluate(files.ensemble, files.labelled, arch=ARCH, samples=1, val_data=files.labelled)
    assert found["scaled"]["nll"] <= found["nll"]


def test_other_networks_are_compared_with_a_reference_that_fits_one_of_them(files: Files) -> None:
    state = gbnn_compress.load(files.parts[2]).state_dict()
    found = gbnn_compress.evaluate(files.ensemble, files.labelled, arch=ARCH, task="other", reference=state, samples=2)
    assert found["relative_error"] > 0
    assert found["members"] == 3
    with pytest.raises(GbnnError, match="got an ensemble"):
        gbnn_compress.evaluate(files.ensemble, files.labelled, arch=ARCH, task="other", reference=files.ensemble)
    with pytest.raises(ArchitectureError, match="--reference"):
        gbnn_compress.evaluate(
            files.ensemble, files.labelled, arch=ARCH, task="other", reference=narrow(7).state_dict(), samples=2
        )


@pytest.mark.parametrize("option", ["metric", "loss"])
def test_measures_of_one_network_are_refused(files: Files, option: str) -> None:
    functions: dict[str, Any] = {option: lambda *arguments: 0.0}
    with pytest.raises(GbnnError, match=f"`--{option}`: it is measured on one network"):
        gbnn_compress.evaluate(files.ensemble, files.labelled, arch=ARCH, samples=1, **functions)


def test_members_of_other_outputs_are_refused_before_the_data_are_run(tmp_path: Path, files: Files) -> None:
    ten = artifact(tmp_path / "ten.gbnn.safetensors", narrow(classes=10), seed=3)
    gbnn_compress.ensemble([files.parts[0], ten], tmp_path / "e.gbnn.safetensors")
    with pytest.raises(ArchitectureError, match="member 1 returns logits 1x10, and member 0 logits 1x5"):
        gbnn_compress.evaluate(
            tmp_path / "e.gbnn.safetensors", files.labelled, arch=[narrow, lambda: narrow(classes=10)]
        )


def test_diff_of_one_network_and_an_ensemble(files: Files) -> None:
    state = gbnn_compress.load(files.parts[0]).state_dict()
    found = gbnn_compress.diff(state, files.ensemble, data=files.labelled, arch=ARCH, samples=1)
    names = {each["name"]: each for each in found["tensors"]}
    assert names["0.5.weight"]["max_error"] == 0
    assert names["1.5.weight"]["max_error"] > 0
    assert len(names["2.5.weight"]["shapes"]) == 2
    assert found["bytes"][1] == files.ensemble.stat().st_size
    assert len(found["metrics"]) == 2
    assert found["logit_kl"] > 0


def test_diff_of_two_ensembles(tmp_path: Path, files: Files) -> None:
    gbnn_compress.ensemble(files.parts[:2], tmp_path / "two.gbnn.safetensors")
    found = gbnn_compress.diff(files.ensemble, tmp_path / "two.gbnn.safetensors")
    assert all(each["max_error"] == 0 for each in found["tensors"])
    assert {name.partition(".")[0] for name in found["only_in_first"]} == {"2"}
    assert found["only_in_second"] == []
    same = gbnn_compress.diff(files.ensemble, files.ensemble, data=files.labelled, arch=ARCH, task="other")
    assert same["relative_error"] == 0


@pytest.mark.long
@pytest.mark.parametrize("task", ["classifier", "other"])
def test_one_graph_with_all_members(tmp_path: Path, files: Files, task: str) -> None:
    from gbnn_compress.onnx_files.check import run_onnx

    path = tmp_path / "ensemble.onnx"
    report = gbnn_compress.export_onnx(
        files.ensemble, path, weights="samples", arch=ARCH, input_shape=(1, 8, 8), samples=2, seed=3, task=task
    )
    assert (report["members"], report["samples"]) == (3, 2)
    network = gbnn_compress.load(files.ensemble)
    network.to_module([narrow, narrow, wide])
    x = torch.randn(5, 1, 8, 8)
    (got,) = run_onnx(path, [{"input": x.numpy()}])
    found = network.predict_with_uncertainty(x, samples=2, seed=3, task=task)
    names = (
        {"output": "mean", "output.std": "standard_deviation"} if task == "other" else dict.fromkeys(report["outputs"])
    )
    for name, own in names.items():
        torch.testing.assert_close(
            torch.from_numpy(got[name]).double(), getattr(found, own or name).double(), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("weights", ["mean", "codebook"])
def test_forms_of_one_set_of_weights_are_refused(tmp_path: Path, files: Files, weights: str) -> None:
    with pytest.raises(
        GbnnError, match="an ensemble of 3 networks has no one set of weights; give `--weights samples`"
    ):
        gbnn_compress.export_onnx(files.ensemble, tmp_path / "x.onnx", weights=weights, arch=ARCH)


@pytest.mark.long
def test_a_graph_of_members_of_other_outputs_is_refused(tmp_path: Path, files: Files) -> None:
    ten = artifact(tmp_path / "ten.gbnn.safetensors", narrow(classes=10), seed=3)
    gbnn_compress.ensemble([files.parts[0], ten], tmp_path / "e.gbnn.safetensors")
    with pytest.raises(ArchitectureError, match=r"^member 1: expected the inputs and outputs of member 0"):
        gbnn_compress.export_onnx(
            tmp_path / "e.gbnn.safetensors",
            tmp_path / "x.onnx",
            weights="samples",
            arch=[narrow, lambda: narrow(classes=10)],
            input_shape=(1, 8, 8),
            samples=1,
        )
