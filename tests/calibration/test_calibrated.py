"""Calibration as a whole, and damage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lockstep_runs import Snapshot, correlated, names_of, read
from torch import nn

from gbnn_compress.calibration.calibrated import (
    FEWEST_PATHS,
    HELD_OUT,
    MOST_PATHS,
    PATH_WEIGHTS,
    calibrate,
    compress_in_lockstep,
    measured_damage,
    measured_difference,
    n_paths,
    single_thread,
)
from gbnn_compress.calibration.side_by_side import SideBySide
from gbnn_compress.predict import metrics
from gbnn_compress.predict.forward import Forward
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.rate.posterior import data_free_posterior
from gbnn_compress.types import Bank, IndexMap


def outcome_of(before: torch.Tensor, after: torch.Tensor, *, name: str = "output") -> SideBySide:
    sides = ([{name: part} for part in each.split(64)] for each in (before, after))
    return SideBySide({}, {}, *sides)


def test_measured_damage_agrees_with_the_metrics() -> None:
    before, after = torch.randn(2, 200, 5, generator=torch.Generator().manual_seed(0))
    damage = measured_damage(outcome_of(before, after))
    p, q = (each.double().softmax(dim=1) for each in (before, after))
    assert damage.agreement == pytest.approx(metrics.agreement(p, q))
    assert damage.logit_kl == pytest.approx(metrics.logit_kl(p, q))
    assert damage.drop > 0


def test_no_change_is_no_damage() -> None:
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    damage = measured_damage(outcome_of(logits, logits))
    assert (damage.drop, damage.agreement, damage.logit_kl) == (0, 1, 0)
    assert measured_difference(outcome_of(logits, logits)).relative_error == 0


def test_measured_difference_is_over_all_batches() -> None:
    before, after = torch.randn(2, 200, 5, generator=torch.Generator().manual_seed(0)).double()
    found = measured_difference(outcome_of(before, after, name="scores"))
    spread = (before - before.mean(dim=0)).square().sum()
    assert found.relative_error == pytest.approx(float(((after - before).square().sum() / spread).sqrt()))
    assert found.outputs.keys() == {"scores"}


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.again, self.head, self.unused = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(self.again(x).relu()))


@pytest.mark.parametrize("synthetic", [False, True])
def test_layers_that_the_inputs_reach_are_calibrated(synthetic: bool) -> None:
    names = {f"module.{name}": name for name in ("again.weight", "head.weight", "unused.weight")}
    calibration = calibrate(Reused().eval(), read(torch.randn(20, 4)), names=names, synthetic=synthetic)
    assert {name: layer.calls for name, layer in calibration.layers.items()} == {
        "module.again.weight": 2,
        "module.head.weight": 1,
    }
    assert calibration.columns == 3


@pytest.mark.parametrize(
    ("outputs", "columns"),
    [
        (lambda y: y, 3),
        (lambda y: {"logits": y}, 3),
        (lambda y: (y, y.argmax(1)), 3),
        (lambda y: (y, y), 0),
        (lambda y: y[:, 0], 0),
        (lambda y: y[:, :, None], 0),
        (lambda y: y[:2], 0),
    ],
)
def test_columns_are_those_of_one_output_with_a_row_for_each_input(
    outputs: Callable[[torch.Tensor], Any], columns: int
) -> None:
    network = nn.Linear(4, 3)
    forward = Forward(lambda network, x: outputs(network(x)))
    assert calibrate(network.eval(), read(torch.randn(7, 4)), names={}, forward=forward).columns == columns


def test_a_network_without_layers_gains_nothing() -> None:
    calibration = calibrate(nn.Softplus().eval(), read(torch.randn(5, 4)), names={})
    assert calibration.layers == {}
    assert calibration.gain == 1


class Mixed(nn.Module):
    """A convolution, a recurrent layer, a table and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.conv, self.lstm, self.head = nn.Conv1d(8, 8, 3), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, tokens: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        y = self.table(tokens) + offset[:, None]
        y = self.conv(y.transpose(1, 2)).transpose(1, 2)
        return self.head(self.lstm(y)[0][:, -1])


def test_compression_in_lockstep_from_posteriors_and_a_bank() -> None:
    torch.manual_seed(0)
    network = Mixed().eval()
    batches = read([{"tokens": torch.randint(0, 20, (n, 9)), "offset": correlated(n, 8)} for n in (30, 11)])
    untouched, inputs = Snapshot.of(network), batches[0].inputs["offset"].clone()
    names = names_of(network)
    calibration = calibrate(network, batches, names=names)
    tensors = {name: tensor for name, tensor in network.state_dict().items() if tensor.dim() > 1}
    posteriors = data_free_posterior(tensors, list(tensors))
    means = np.linspace(-2, 2, 9)
    bank = Bank(means, np.full(9, -3.0))
    maps = []
    for posterior in posteriors:
        units = tensors[posterior.name].double().numpy().ravel() / posterior.scale
        ids = np.abs(units[:, None] - means).argmin(axis=1)
        ids[::7] = len(means)  # outliers
        maps.append(IndexMap(posterior.name, ids, np.zeros(0)))
    book = Codebook(bank, np.full((len(maps), 10), 5.0), penalty=0.01, distortion=np.ones(len(maps)))
    outcome = compress_in_lockstep(calibration, book, posteriors, maps)
    assert untouched.equals(network)
    assert torch.equal(batches[0].inputs["offset"], inputs)
    assert outcome.ids.keys() == tensors.keys() - {"table.weight"}
    for index_map in maps:
        if index_map.name in outcome.ids:
            assert ((outcome.ids[index_map.name] == len(means)) == (index_map.ids == len(means))).all()
    assert measured_difference(outcome).relative_error < 0.5
    again = compress_in_lockstep(calibration, book, posteriors, maps)
    assert all(np.array_equal(ids, again.ids[name]) for name, ids in outcome.ids.items())


@pytest.mark.parametrize(("norm", "synthetic"), [(False, True), (True, True), (False, False)])
def test_biases_follow_means_unless_nothing_says_that_noise_is_like_the_data(norm: bool, synthetic: bool) -> None:
    torch.manual_seed(0)
    middle = nn.BatchNorm2d(4) if norm else nn.Identity()
    network = nn.Sequential(nn.Conv2d(2, 4, 3), middle, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    calibration = calibrate(network, read(torch.randn(20, 2, 8, 8) + 1), names=names_of(network), synthetic=synthetic)
    assert calibration.has_norms == norm
    tensors = {name: tensor for name, tensor in network.state_dict().items() if tensor.dim() > 1}
    posteriors, means = data_free_posterior(tensors, list(tensors)), np.linspace(-2, 2, 5)
    maps = [IndexMap(each.name, np.full(tensors[each.name].numel(), 2), np.zeros(0)) for each in posteriors]
    bank = Bank(means, np.full(5, -3.0))
    book = Codebook(bank, np.full((len(maps), 6), 5.0), penalty=0.01, distortion=np.ones(len(maps)))
    outcome = compress_in_lockstep(calibration, book, posteriors, maps)
    assert {"4.bias"} <= outcome.statistics.keys() if norm or not synthetic else outcome.statistics == {}


def test_of_many_batches_some_are_held_out() -> None:
    torch.manual_seed(0)
    network, batches = Reused().eval(), read([torch.randn(n, 4) for n in range(1, 2 * HELD_OUT + 1)])
    calibration = calibrate(network, iter(batches), names=names_of(network))
    assert [batch.size for batch in calibration.held] == [HELD_OUT, 2 * HELD_OUT]
    assert len(calibration.batches) == 2 * HELD_OUT - 2
    book = Codebook(Bank(np.linspace(-2, 2, 9), np.full(9, -3.0)), np.zeros((0, 10)), 0.0, np.ones(0))
    weight = IndexMap("again.weight", np.full(16, 9), np.zeros(0))
    outcome = compress_in_lockstep(calibration, book, (), (weight,))
    for before, batch in zip(outcome.before, calibration.held, strict=True):
        torch.testing.assert_close(before["output"], network(batch.inputs).detach())


class Stream(nn.Module):
    """A matrix that each pass changes in place, and one that none changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("state", torch.zeros(4, 4))
        self.register_buffer("basis", torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x) @ self.basis + x @ self.state
        self.state.mul_(0.5).add_(y.mean())
        return y


def test_matrices_that_a_pass_changes_are_states_of_each_run() -> None:
    torch.manual_seed(0)
    network, batches = Stream().eval(), read([correlated(n, 4) for n in (6, 9, 6)])
    untouched = Snapshot.of(network)
    calibration = calibrate(network, batches, names=names_of(network))
    assert calibration.layers.keys() == {"layer.weight", "basis"}
    assert "state" not in calibration.names
    assert untouched.equals(network)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with single_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("n_weights", "expected"), [(1, 16), (2**23, 16), (2**23 + 1, 15), (2**24, 8), (2**30, 8)])
def test_paths_times_weights_are_bounded(n_weights: int, expected: int) -> None:
    assert n_paths(n_weights) == expected
    assert expected in (FEWEST_PATHS, MOST_PATHS) or expected * n_weights <= PATH_WEIGHTS
