"""Points of accuracy are said of classifiers only; of other networks what is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gbnn_compress_cli.report_view import report_view
from torch import nn

import gbnn_compress
from gbnn_compress.errors import GbnnError
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.predict.differences import OutputDifference, compared, lost_warnings
from gbnn_compress.report import page, sizes
from gbnn_compress.report.statements import damage as damage_lines

QUICK = {"n_components": 128, "em_iterations": 4}
POINTS = ("drop", "agreement", "logit_kl", "safe_ratio")


class Sentences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(200, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, dim_feedforward=64)


class Graphs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.energy = nn.Linear(64, 1)


OTHERS: dict[str, Any] = {
    "regression": lambda: nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)),
    "speech": lambda: nn.Sequential(nn.Conv1d(1, 32, 9), nn.ReLU(), nn.Conv1d(32, 64, 5)),
    "recurrent": lambda: nn.LSTM(40, 64),
    "sentences": Sentences,
    "graphs": Graphs,
}


def compressed(network: nn.Module, folder: Path, *, ratio: float = 6, **options: Any) -> dict[str, Any]:
    torch.save(network.state_dict(), folder / "net.pth")
    path = folder / "net.gbnn.safetensors"
    return gbnn_compress.compress(
        folder / "net.pth", target_ratio=ratio, output=path, settings=QUICK, html=folder / "page.html", **options
    )


def text_of(report: dict[str, Any]) -> str:
    from gbnn_compress_cli import console

    return console.render(*report_view(report, name="net"))


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("ratio", [6, 30])
def test_only_layers_are_known_of_what_is_no_image_classifier(name: str, ratio: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = compressed(OTHERS[name](), tmp_path, ratio=ratio)
    assert [report["damage"][key] for key in POINTS] == [None] * 4
    assert report["damage"]["relative_error"] > 0
    assert not report["damage"]["measured"]
    for text in (text_of(report), (tmp_path / "page.html").read_text(), json.dumps(report["warnings"])):
        assert "points" not in text
        assert "unchanged" not in text
    assert "worst layer: `" in text_of(report)
    assert any("relative output error" in warning for warning in report["warnings"]) is (
        report["damage"]["relative_error"] > 0.3
    )
    again = sizes.report(read_artifact(tmp_path / "net.gbnn.safetensors"))
    assert again["damage"] == report["damage"]


@pytest.mark.long
def test_what_looks_like_an_image_classifier_is_forecast_under_that_condition(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 20))
    report = compressed(network, tmp_path, ratio=4)
    assert report["damage"]["assumes"] == "image classifier"
    assert report["damage"]["drop"] > 0
    assert report["task"] is None
    first, second = damage_lines(report)
    assert first.startswith("predicted if this is an image classifier: ")
    assert second.startswith("if so, predicted safe ratio of about ")
    assert "if this is an image classifier" in (tmp_path / "page.html").read_text()
    said = compressed(network, tmp_path, ratio=4, task="classifier")
    assert (said["task"], "assumes" in said["damage"]) == ("classifier", False)
    assert said["damage"]["drop"] == pytest.approx(report["damage"]["drop"], rel=0.01)
    other = compressed(network, tmp_path, ratio=4, task="other")
    assert (other["task"], other["damage"]["drop"]) == ("other", None)


def test_max_drop_needs_a_known_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 20))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    options = {"max_drop": 1.0, "output": tmp_path / "net.gbnn.safetensors", "settings": QUICK}
    for call in (gbnn_compress.compress, gbnn_compress.plan):
        with pytest.raises(GbnnError, match="--task classifier"):
            call(tmp_path / "net.pth", **options)
    assert not (tmp_path / "net.gbnn.safetensors").exists()
    report = gbnn_compress.compress(tmp_path / "net.pth", task="classifier", **options)
    assert report["target_met"]
    assert report["damage"]["drop"] <= 1


def test_a_plan_of_another_network_has_errors_of_layers_and_no_points(tmp_path: Path) -> None:
    torch.save(OTHERS["recurrent"]().state_dict(), tmp_path / "net.pth")
    plan = gbnn_compress.plan(tmp_path / "net.pth", ratios=(4.0, 8.0), settings=QUICK)
    assert (plan["safe_ratio"], plan["task"], plan["assumes"]) == (None, None, None)
    assert [rate["drop"] for rate in plan["rates"]] == [None, None]
    errors = [rate["relative_error"] for rate in plan["rates"]]
    assert 0 < errors[0] < errors[1]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with one output for each image, and images."""
    folder = tmp_path_factory.mktemp("single")
    (folder / "models.py").write_text(
        "from torch import nn\n"
        "def single():\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(576, 24), nn.ReLU(), nn.Linear(24, 1))\n"
    )
    random = np.random.RandomState(0)
    np.savez(folder / "images.npz", x=random.randint(0, 256, (60, 8, 8, 3)).astype(np.uint8), y=np.zeros(60, np.int64))
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    exec((folder / "models.py").read_text(), namespace)
    torch.save(namespace["single"]().state_dict(), folder / "net.pth")
    return folder


@pytest.mark.long
def test_one_output_is_never_all_unchanged(single: Path) -> None:
    arch, data = f"{single / 'models.py'}:single", f"npz:{single / 'images.npz'}"
    report = gbnn_compress.compress(
        single / "net.pth", target_ratio=8, output=single / "net.gbnn.safetensors", arch=arch, data=data, settings=QUICK
    )
    assert report["task"] == "other"
    assert [report["damage"][key] for key in POINTS] == [None] * 4
    assert report["damage"]["measured"]
    assert 0 < report["damage"]["relative_error"] < 1
    assert 0.5 < report["damage"]["cosine"] <= 1
    assert "relative output error" in text_of(report)
    assert "unchanged" not in text_of(report)
    for model in ("net.gbnn.safetensors", "net.pth"):
        with pytest.raises(GbnnError, match=r"is no classifier.*`--reference`.*`--metric`"):
            gbnn_compress.evaluate(single / model, data, arch=arch)
    found = gbnn_compress.diff(single / "net.pth", single / "net.gbnn.safetensors", data=data, arch=arch)
    assert 0 < found["relative_error"] < 1
    report = gbnn_compress.compress(
        single / "net.pth", target_ratio=8, output=single / "x.gbnn.safetensors", arch=arch, eval_data=data
    )
    assert [report["damage"][key] for key in POINTS] == [None] * 4
    assert 0 < report["damage"]["relative_error"] < 1
    network = gbnn_compress.load(single / "net.gbnn.safetensors")
    network.to_module(arch)
    assert network.predict(torch.zeros(2, 3, 8, 8)).shape == (2, 1)


def test_a_file_of_the_first_release_shows_no_points_of_an_unknown_network(tmp_path: Path) -> None:
    """It says that it loses 0.8 points, of a network that nobody looked at."""
    torch.manual_seed(0)
    compressed(OTHERS["recurrent"](), tmp_path)
    artifact = read_artifact(tmp_path / "net.gbnn.safetensors")
    guess = {"drop": 30.0, "agreement": 0.6, "logit_kl": 0.5, "measured": False, "safe_ratio": 7.5}
    warning = "predicted accuracy drop of 30 points: without data this network is thought safe up to about 7.5x"
    old = replace(artifact, facts={**artifact.facts, "damage": guess, "warnings": [warning]})
    report = sizes.report(old)
    assert [report["damage"][key] for key in POINTS] == [None] * 4
    assert report["warnings"] == []
    assert "points" not in text_of(report)
    assert "points" not in page.render(page.file_page(old, name="net"))
    named = {**old.facts, "checkpoint": {**old.facts["checkpoint"], "architecture": "torchvision/resnet18"}}
    assert sizes.report(replace(old, facts=named))["damage"] == guess


def test_outputs_that_are_not_finite_are_a_warning_and_null_in_the_facts(
    single: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gbnn_compress.calibration import calibrated

    arch, data = f"{single / 'models.py'}:single", f"npz:{single / 'images.npz'}"
    monkeypatch.setattr(
        calibrated,
        "compared",
        lambda pairs: compared((before, {name: torch.nan * y for name, y in after.items()}) for before, after in pairs),
    )
    options = {"arch": arch, "data": data, "settings": QUICK}
    report = gbnn_compress.compress(single / "net.pth", target_ratio=8, output=single / "nan.gbnn", **options)
    assert report["damage"]["relative_error"] is None
    assert any("its outputs are not finite" in warning for warning in report["warnings"])


@pytest.mark.parametrize(("error", "warned"), [(None, False), (0.9, False), (1.0, True), (7.0, True)])
def test_a_lost_network_is_warned_of(error: float | None, warned: bool) -> None:
    assert len(lost_warnings(OutputDifference(error, 0.5), inputs="noise")) == warned
