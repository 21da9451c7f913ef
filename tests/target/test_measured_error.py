"""`--max-error`, and `--max-drop` of a user's metric, for networks that are no classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gbnn_compress import compress, evaluate, load
from gbnn_compress.errors import GbnnError

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {"n_components": 64, "em_iterations": 3, "feedback": False}


class Regression(nn.Module):
    """Two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 96), nn.Tanh(), nn.Linear(96, 96), nn.Tanh())
        self.value, self.other = nn.Linear(96, 1), nn.Linear(96, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = self.body(x)
        return {"value": self.value(h), "other": self.other(h)}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Regression().eval()


def loader(seed: int, n: int = 160) -> list[torch.Tensor]:
    return list(torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)).split(32))


def within(network: nn.Module, folder: Path, name: str = "net", **options: Any) -> dict[str, Any]:
    return compress(network, output=folder / f"{name}.gbnn.safetensors", settings=SETTINGS, **options)


@pytest.mark.long
def test_the_error_is_that_of_the_file_and_a_larger_one_makes_it_smaller(network: nn.Module, tmp_path: Path) -> None:
    ratios = []
    for limit in (0.02, 0.1):
        report = within(network, tmp_path, str(limit), max_error=limit, val_data=loader(1))
        path = report["artifact"]["path"]
        measured = evaluate(path, loader(1), arch=network, reference=network, samples=1)["mean"]
        assert report["target_met"]
        assert report["max_error"] == limit
        assert report["damage"]["measured"]
        assert report["damage"]["relative_error"] == pytest.approx(measured["relative_error"], rel=1e-6)
        assert 0.5 * limit < report["damage"]["relative_error"] <= limit
        assert report["damage"]["outputs"].keys() == {"value", "other"}
        assert load(path).report()["target_met"]
        ratios.append(report["ratio"])
    assert ratios[1] > 1.2 * ratios[0]


def test_without_validation_data_a_part_of_the_data_is_held_out(network: nn.Module, tmp_path: Path) -> None:
    report = within(network, tmp_path, max_error=0.05, data=loader(1))
    held_out = loader(1)[-1:]
    path = report["artifact"]["path"]
    measured = evaluate(path, held_out, arch=network, reference=network, samples=1)["mean"]
    assert report["damage"]["relative_error"] == pytest.approx(measured["relative_error"], rel=1e-6)
    assert report["warnings"] == []


def metric(network: nn.Module, data: Any) -> float:
    """Minus the mean of the first output, over all inputs: 0 for a bias of 0."""
    return 100 - float(torch.cat([network(x)["value"] for x in data]).std())


def test_the_drop_of_a_metric(network: nn.Module, tmp_path: Path) -> None:
    report = within(network, tmp_path, max_drop=0.001, metric=metric, val_data=loader(1))
    numbers = report["damage"]["metric"]
    measured = evaluate(report["artifact"]["path"], loader(1), arch=network, reference=network, metric=metric)
    assert numbers == measured["metric"]
    assert report["target_met"]
    assert numbers["before"] - numbers["after"] <= 0.001
    assert report["damage"]["drop"] is None
    assert report["damage"]["relative_error"] > 0


def test_a_limit_that_nothing_meets_is_missed_and_the_file_is_written(network: nn.Module, tmp_path: Path) -> None:
    falling = iter(range(0, -1000, -10))
    report = within(network, tmp_path, max_drop=0.5, metric=lambda net, data: next(falling), val_data=loader(1))
    assert not report["target_met"]
    assert "target missed: metric lower by " in report["warnings"][0]
    assert Path(report["artifact"]["path"]).exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_error": 0.05}, "`--max-error`: the error is measured on inputs; give `--val-data` or `--data`"),
        ({"max_drop": 1.0}, "`--max-drop`"),
        ({"max_drop": 1.0, "val_data": loader(1)}, "`--max-drop`: expected a classifier.*`--max-error`"),
        ({"max_error": 0.05, "val_data": [torch.ones(4, 8)]}, "`--max-error`: the outputs of the network do not vary"),
        ({"max_drop": 1.0, "metric": lambda net, data: None, "val_data": loader(1)}, "`--metric`: expected a finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(network: nn.Module, tmp_path: Path, options: Any, words: str) -> None:
    with pytest.raises(GbnnError, match=words):
        within(network, tmp_path, **options)
    assert not list(tmp_path.iterdir())
