"""What a written file is compared with, in numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.pipeline.compress import compress
from gbnn_compress.target.faults import find_faults
from gbnn_compress.types import Artifact

STEP = 0.01


@pytest.fixture(scope="module")
def network() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    return {
        "first.weight_g": normal(32, 1).abs(),
        "first.weight_v": normal(32, 40),
        "bn.weight": normal(32) + 2,
        "bn.bias": normal(32),
        "bn.running_mean": normal(32),
        "bn.running_var": normal(32).exp(),
        "bn.num_batches_tracked": torch.tensor(3),
        "inv_freq": 1e4 ** -(torch.arange(0, 64, 2) / 64),
        "fc.weight": normal(200, 32),
        "fc.bias": normal(200),
    }


@pytest.fixture(scope="module")
def artifact(network: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder: Path = tmp_path_factory.mktemp("faults")
    torch.save(network, folder / "net.pth")
    compress(folder / "net.pth", target_ratio=4, output=folder / "net.gbnn.safetensors")
    return read_artifact(folder / "net.gbnn.safetensors")


def with_values(artifact: Artifact, name: str, values: np.ndarray) -> Artifact:
    return replace(artifact, values={**artifact.values, name: values})


@pytest.mark.long
def test_a_right_file_has_none(artifact: Artifact, network: dict[str, torch.Tensor]) -> None:
    assert find_faults(artifact, network, relative_step=STEP) == {}


def test_a_norm_that_puts_out_something_else(artifact: Artifact, network: dict[str, torch.Tensor]) -> None:
    shifted = artifact.values["bn.running_mean"].copy()
    shifted[5] += 3
    wrong = find_faults(with_values(artifact, "bn.running_mean", shifted), network, relative_step=STEP)
    assert set(wrong) == {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}


def test_rows_that_vanished(artifact: Artifact, network: dict[str, torch.Tensor]) -> None:
    smallest = int(np.abs(artifact.bank.means).argmin())
    means = np.where(np.arange(len(artifact.bank.means)) == smallest, 0.0, artifact.bank.means)
    index_map = artifact.maps[0]
    assert index_map.name == "first.weight_v"
    ids = index_map.ids.copy()
    ids[40:80] = smallest
    bank = replace(artifact.bank, means=means)
    broken = replace(
        artifact, bank=bank, maps=(replace(index_map, ids=ids, outliers=index_map.outliers[:0]), *artifact.maps[1:])
    )
    assert set(find_faults(broken, network, relative_step=STEP)) == {"first.weight_v"}


def test_kept_bits_that_changed(artifact: Artifact, network: dict[str, torch.Tensor]) -> None:
    assert {"inv_freq", "first.weight_g"} <= set(artifact.raw)
    frequencies = (network["inv_freq"] * (1 + 1e-6)).numpy().tobytes()
    broken = replace(artifact, raw={**artifact.raw, "inv_freq": frequencies})
    assert set(find_faults(broken, network, relative_step=STEP)) == {"inv_freq"}


def test_values_that_are_not_finite(artifact: Artifact, network: dict[str, torch.Tensor]) -> None:
    values = artifact.values["fc.bias"].copy()
    values[0] = np.nan
    assert set(find_faults(with_values(artifact, "fc.bias", values), network, relative_step=STEP)) == {"fc.bias"}


def test_a_checkpoint_may_hold_infinity_where_it_is_kept(artifact: Artifact, network: dict[str, torch.Tensor]) -> None:
    mask = torch.full((4, 4), float("-inf")).triu(1)
    infos = (*artifact.tensors, replace(artifact.tensors[0], name="mask", shape=(4, 4), kind="raw"))
    held = replace(artifact, tensors=infos, raw={**artifact.raw, "mask": mask.numpy().tobytes()})
    assert find_faults(held, {**network, "mask": mask}, relative_step=STEP) == {}
