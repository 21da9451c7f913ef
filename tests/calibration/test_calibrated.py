"""Survey, posterior and damage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from gbnn_compress.calibration.calibrated import calibrate, measured_damage, single_thread
from gbnn_compress.calibration.posterior import calibrated_posterior
from gbnn_compress.calibration.survey import LayerStatistics
from gbnn_compress.variational import metrics
from gbnn_compress.weights.posterior import data_free_posterior, storable_scale

TENSORS = {"a": torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), "b": torch.ones(3, 8)}
PLAIN = data_free_posterior(TENSORS, ["a", "b"])


def statistics(*, column: float = 0.5, power: float = 2.0, gradient: np.ndarray | None = None) -> LayerStatistics:
    return LayerStatistics(column, np.full(4, power), gradient, 1)


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


def test_tensors_without_statistics_keep_their_posterior() -> None:
    changed, kept = calibrated_posterior(PLAIN, {"a": statistics()}, typical=20.0)
    assert kept is PLAIN[1]
    assert changed.name == "a"
    assert changed.scale != PLAIN[0].scale
    assert calibrated_posterior(PLAIN, {}, typical=20.0) == PLAIN


def test_the_scale_is_an_error_that_costs_a_share_of_the_output_power() -> None:
    """Unit errors (in s_t) in all of a typical tensor's n weights: n s^2 c of sum p, as in the formula."""
    changed, _ = calibrated_posterior(PLAIN, {"a": statistics(column=0.5, power=2.0)}, typical=20.0)
    rows = np.exp(-2 * changed.log_sigma)
    assert rows.mean() == pytest.approx(1, rel=1e-3)
    assert changed.scale == storable_scale(float(np.sqrt((rows * 2.0).sum() / (20.0 * 0.5))))


def test_filters_are_weighed_by_their_gradients() -> None:
    gradient = np.array([1.0, 2.0, 4.0, 0.0])
    changed, _ = calibrated_posterior(PLAIN, {"a": statistics(gradient=gradient)}, typical=20.0)
    rows = np.exp(-2 * changed.log_sigma)
    np.testing.assert_allclose(rows[1:3] / rows[0], [2, 4], rtol=1e-9)
    assert 0 < rows[3] < 0.5 * rows[0]


def test_layers_that_matter_more_are_kept_finer() -> None:
    tensors = {"a": TENSORS["a"], "b": TENSORS["a"].clone()}
    seen = {"a": statistics(gradient=np.ones(4)), "b": statistics(gradient=np.full(4, 100.0))}
    a, b = calibrated_posterior(data_free_posterior(tensors, ["a", "b"]), seen, typical=20.0)
    assert b.scale < a.scale


@pytest.mark.parametrize(
    "odd", [statistics(power=0.0), statistics(column=0.0), statistics(power=np.nan), statistics(power=np.inf)]
)
def test_statistics_that_say_nothing_change_nothing(odd: LayerStatistics) -> None:
    assert calibrated_posterior(PLAIN[:1], {"a": odd}, typical=20.0)[0] is PLAIN[0]


def test_gradients_that_say_nothing_are_ignored() -> None:
    silent = statistics(gradient=np.zeros(4))
    (with_zeros,) = calibrated_posterior(PLAIN[:1], {"a": silent}, typical=20.0)
    (without,) = calibrated_posterior(PLAIN[:1], {"a": replace(silent, gradient=None)}, typical=20.0)
    assert with_zeros.scale == without.scale
    np.testing.assert_array_equal(with_zeros.log_sigma, without.log_sigma)


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.again, self.head, self.unused = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(self.again(x).relu()))


@pytest.mark.parametrize("synthetic", [False, True])
def test_only_layers_that_run_once_are_calibrated(synthetic: bool) -> None:
    names = ("again.weight", "head.weight", "unused.weight", "foreign")
    calibration = calibrate(Reused().eval(), torch.randn(20, 4), names=names, synthetic=synthetic)
    assert calibration.layers.keys() == {"head.weight"}
    assert calibration.tensors.keys() == set(names[:3])
    assert (calibration.layers["head.weight"].gradient is None) == synthetic


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with single_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
