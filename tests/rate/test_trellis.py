"""Ways through the trellis without a network, and which tensors get one."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gbnn_compress import compress
from gbnn_compress.compiled import SWITCH
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.format.trellis import next_states
from gbnn_compress.rate import trellis_paths
from gbnn_compress.rate.trellis_paths import cheapest_paths


def costs(x: np.ndarray, ids: np.ndarray, means: np.ndarray, lengths: np.ndarray, penalty: float) -> np.ndarray:
    """float64 (rows,), at curvature 1; outliers cost nothing."""
    errors = np.where(ids == len(means), 0.0, np.append(means, 0.0)[ids] - x)
    return (errors**2 + penalty * np.append(lengths, 0.0)[ids]).sum(axis=1)


def follows(ids: np.ndarray, escape: int) -> bool:
    states = np.zeros(len(ids), dtype=np.int64)
    for column in ids.T:
        if not ((column == escape) | (column % 2 == states % 2)).all():
            return False
        states = next_states(states, column, escape=escape)
    return True


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_compiled_loops_and_numpy_find_the_same_cheapest_way(seed: int) -> None:
    random = np.random.default_rng(seed)
    size, rows, width = int(random.integers(2, 8)), int(random.integers(1, 5)), int(random.integers(1, 5))
    means, lengths = np.sort(random.normal(size=size)), random.random(size) * 3
    x, exact = random.normal(size=(rows, width)), random.random((rows, width)) < 0.2
    given_ = {"curvature": np.ones(1), "means": means, "lengths": lengths, "penalty": 0.1}
    found = []
    for loops in (trellis_paths.loops, lambda name, work: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(SWITCH, "1")
            patch.setattr(trellis_paths, "loops", loops)
            found.append(cheapest_paths(x, np.zeros(rows, dtype=np.int64), exact, **given_))
    np.testing.assert_array_equal(*found)
    assert follows(found[0], size)
    for row in range(rows):
        every = np.array(list(itertools.product(range(size), repeat=width)))
        every = np.where(exact[row], size, every)
        allowed = np.array([follows(ids[None], size) for ids in every])
        least = costs(np.repeat(x[row : row + 1], allowed.sum(), axis=0), every[allowed], means, lengths, 0.1).min()
        assert costs(x[row : row + 1], found[0][row : row + 1], means, lengths, 0.1)[0] == pytest.approx(least)


@pytest.mark.long
@pytest.mark.parametrize("levels", [[-0.03, 0.03], [-0.03, 0, 0.03], [-0.09, -0.03, 0.03, 0.09]])
def test_tensors_of_few_values_stay_exact_beside_a_trellis(levels: list[float], tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    few = torch.tensor(levels)[torch.randint(0, len(levels), (64, 128), generator=random)]
    tensors = {"a.weight": 0.05 * torch.randn(128, 256, generator=random), "b.weight": few}
    compress(tensors, target_ratio=8, output=tmp_path / "net.gbnn.safetensors")
    artifact = read_artifact(tmp_path / "net.gbnn.safetensors")
    assert [each.trellis for each in artifact.maps] == [True, False]
    assert not len(artifact.maps[1].outliers)
    assert artifact.relative_rmse[1] < 0.005


class Experts(nn.Module):
    """Matrices in one tensor of three axes, which is used through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.out = nn.Parameter(torch.randn(8, 24, 64) / 8), nn.Linear(192, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(x @ self.w.reshape(192, 64).T))


@pytest.mark.long
def test_a_weight_that_is_used_through_a_view_has_no_trellis(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, data = Experts().eval(), [torch.randn(32, 64) for _ in range(4)]
    compress(network, target_ratio=5, output=tmp_path / "net.gbnn.safetensors", data=data)
    artifact = read_artifact(tmp_path / "net.gbnn.safetensors")
    assert {each.name: each.trellis for each in artifact.maps}["w"] is False
