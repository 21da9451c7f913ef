"""Survey and damage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gbnn_compress.calibration.calibrated import (
    MOST_PATHS,
    PATH_WEIGHTS,
    calibrate,
    measured_damage,
    n_paths,
    single_thread,
)
from gbnn_compress.predict import metrics


def test_measured_damage_agrees_with_the_metrics() -> None:
    before, after = torch.randn(2, 200, 5, generator=torch.Generator().manual_seed(0))
    damage = measured_damage(torch.cat([before, after]))
    p, q = (each.double().softmax(dim=1) for each in (before, after))
    assert damage.agreement == pytest.approx(metrics.agreement(p, q))
    assert damage.logit_kl == pytest.approx(metrics.logit_kl(p, q))
    assert damage.drop > 0


def test_no_change_is_no_damage() -> None:
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    damage = measured_damage(torch.cat([logits, logits]))
    assert (damage.drop, damage.agreement, damage.logit_kl) == (0, 1, 0)


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.again, self.head, self.unused = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(self.again(x).relu()))


@pytest.mark.parametrize("synthetic", [False, True])
def test_only_layers_that_run_once_are_calibrated(synthetic: bool) -> None:
    names = {f"module.{name}": name for name in ("again.weight", "head.weight", "unused.weight")}
    calibration = calibrate(Reused().eval(), torch.randn(20, 4), names=names, synthetic=synthetic)
    assert calibration.layers.keys() == {"module.head.weight"}
    assert calibration.tensors.keys() == set(names)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with single_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("n_weights", "expected"), [(1, 16), (2**20, 16), (2**20 + 1, 15), (2**24, 1), (2**25, 1)])
def test_paths_times_weights_are_bounded(n_weights: int, expected: int) -> None:
    assert n_paths(n_weights) == expected
    assert expected in (1, MOST_PATHS) or expected * n_weights <= PATH_WEIGHTS
