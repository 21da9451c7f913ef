"""The published method, and every other choice of a recipe, from checkpoint to report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gbnn_compress import compress, decompress, plan
from gbnn_compress.errors import GbnnError
from gbnn_compress.format.artifact import read_artifact


def network() -> dict[str, torch.Tensor]:
    """Two layers and a batch norm, 30 thousand weights of which some are large."""
    random = np.random.RandomState(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.from_numpy(0.05 * random.laplace(size=shape)).float()

    return {
        "conv.weight": tensor(32, 16, 3, 3),
        "bn.weight": torch.ones(32),
        "bn.bias": tensor(32),
        "bn.running_mean": tensor(32),
        "bn.running_var": tensor(32).abs() + 1,
        "fc.weight": tensor(80, 288),
        "fc.bias": tensor(80),
    }


def compressed(folder: Path, *, target_ratio: float = 8.0, **options: Any) -> dict[str, Any]:
    save_file(network(), folder / "net.safetensors")
    return compress(
        folder / "net.safetensors", target_ratio=target_ratio, output=folder / "out.gbnn.safetensors", **options
    )


def test_the_paper_meets_a_target_and_keeps_large_weights_exactly(tmp_path: Path) -> None:
    report = compressed(tmp_path, target_ratio=6, recipe="paper")
    assert report["target_met"]
    assert 6 <= report["ratio"] <= 6.2
    decompress(tmp_path / "out.gbnn.safetensors", output=tmp_path / "dense.safetensors")
    dense = load_file(tmp_path / "dense.safetensors")
    large = 0
    for name in ("conv.weight", "fc.weight"):
        weight = network()[name]
        chosen = weight.abs() > 0.2
        assert torch.equal(dense[name][chosen], weight[chosen])
        large += int(chosen.sum())
    assert report["weights"]["outliers"] >= large > 100


def test_blended_weights_are_counted(tmp_path: Path) -> None:
    report = compressed(tmp_path, target_ratio=24, recipe="paper")
    weights = report["weights"]
    assert weights["blended"] > 0
    assert sum(weights.values()) == sum(tensor.numel() for tensor in network().values())
    artifact = read_artifact(tmp_path / "out.gbnn.safetensors")
    assert all(0 <= k < len(artifact.bank.means) for k in artifact.facts["blends"])
    assert compressed(tmp_path)["weights"]["blended"] == 0


def test_a_target_that_large_weights_forbid_is_missed_and_said(tmp_path: Path) -> None:
    report = compressed(tmp_path, target_ratio=60, recipe="paper")
    assert not report["target_met"]
    assert "target missed" in report["warnings"][0]


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        {"refinements": 1},
        {"merging": "wasserstein"},
        {"blending": "all"},
        {"outliers": "magnitude", "outlier_threshold": 0.4},
        {"feedback": False},
    ],
    ids=str,
)
def test_every_choice_meets_the_target(tmp_path: Path, settings: dict[str, Any]) -> None:
    report = compressed(tmp_path, settings=settings)
    assert 8 <= report["ratio"] <= 8.24
    assert settings.items() <= report["recipe"].items()


def test_data_are_refused_where_nothing_is_calibrated(tmp_path: Path) -> None:
    with pytest.raises(GbnnError, match="`feedback: false`"):
        compressed(tmp_path, recipe="paper", data="digits:train")
    with pytest.raises(GbnnError, match="`feedback: false`"):
        plan(tmp_path / "net.safetensors", recipe="paper", data="digits:train")


def test_a_network_is_not_run_without_feedback(tmp_path: Path) -> None:
    told: list[str] = []
    compressed(tmp_path, recipe="paper", progress=told.append)
    assert not any("calibrating" in line for line in told)
