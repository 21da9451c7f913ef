"""Averages over posterior draws: the draws of `rebuild`, however they get into the network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from gbnn_compress.data.architectures import load_weights
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.pipeline.compress import compress
from gbnn_compress.predict import metrics, monte_carlo
from gbnn_compress.predict.draws import place, sampler, stacked
from gbnn_compress.predict.prediction import Prediction, average
from gbnn_compress.predict.rebuild import rebuild

if TYPE_CHECKING:
    from pathlib import Path

    from gbnn_compress.types import Artifact

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = [5, 6, 7]


class Network(nn.Module):
    """A convolution, a batch norm, and two layers of one storage; what it does besides is up to the test."""

    def __init__(self, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, dtype=dtype)
        self.norm = nn.BatchNorm2d(16, dtype=dtype)
        self.first = nn.Linear(16, 16, dtype=dtype)
        self.second = nn.Linear(16, 16, dtype=dtype)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.conv(x.to(self.conv.weight.dtype))).mean(dim=(2, 3))
        return 4 * self.second(torch.relu(self.first(features)))


class Branching(Network):
    """Control flow that depends on data, which `vmap` cannot follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = super().forward(x)
        return outputs if outputs.sum() > 0 else outputs + 0.0


class Recurrent(nn.Module):
    """Weights that `functional_call` does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 9 * self.head(self.lstm(x)[0][:, -1])


class Renamed(Network):
    """Keeps the convolution's weights under a name of its own, as torchvision's vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self.conv
        del self.conv
        self._register_load_state_dict_pre_hook(self._rename)

    @staticmethod
    def _rename(state: dict[str, torch.Tensor], *_: object) -> None:
        for name in [name for name in state if name.startswith("conv.")]:
            state[name.replace("conv.", "stem.")] = state.pop(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.norm(self.stem(x)).mean(dim=(2, 3))
        return 4 * self.second(torch.relu(self.first(features)))


@dataclass(frozen=True)
class Case:
    artifact: Artifact
    x: torch.Tensor


def compressed(network: nn.Module, folder: Path) -> Artifact:
    torch.save(network.state_dict(), folder / "net.pth")
    compress(folder / "net.pth", target_ratio=1.5, output=folder / "net.gbnn.safetensors", settings={"noise": 0.35})
    artifact = read_artifact(folder / "net.gbnn.safetensors")
    return replace(artifact, facts={**artifact.facts, "noise": 100 * artifact.facts["noise"]})


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Case:
    torch.manual_seed(0)
    artifact = compressed(Network(), tmp_path_factory.mktemp("case"))
    return Case(artifact, torch.randn(7, 3, 6, 6))


def bound(artifact: Artifact, network: nn.Module):
    return sampler(artifact, network, load=lambda tensors: load_weights(network, tensors, spec="m:f"))


def batches(x: torch.Tensor, size: int = 3):
    return [(part, None) for part in x.split(size)]


def expected(artifact: Artifact, network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The plain way: rebuild, load, run."""
    found = []
    for seed in SEEDS:
        network.load_state_dict(rebuild(artifact, seed=seed))
        with torch.no_grad():
            found.append(network.eval()(x).double().softmax(dim=1))
    return found


def assert_same(found: Prediction, draws: list[torch.Tensor], **tolerance: float) -> None:
    plain = average(draws)
    for name in ("probabilities", "entropy", "mutual_information"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_placing_a_draw_is_loading_what_rebuild_gives(case, seed, dtype):
    placed, loaded = Network(dtype=dtype), Network(dtype=dtype)
    source = bound(case.artifact, placed)
    assert source.names is not None
    place(source, 3)
    place(source, seed)
    loaded.load_state_dict(rebuild(case.artifact, seed=seed))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(placed.state_dict()[name], tensor), name


def test_placing_reaches_tensors_that_are_not_contiguous(case):
    placed = Network().to(memory_format=torch.channels_last)
    place(bound(case.artifact, placed), 4)
    assert torch.equal(placed.conv.weight, rebuild(case.artifact, seed=4)["conv.weight"])


def test_untied_copies_each_get_the_draw(case):
    placed = Network()
    placed.second.weight = nn.Parameter(placed.first.weight.detach().clone())
    source = bound(case.artifact, placed)
    place(source, 4)
    assert ("first.weight", "second.weight") in [tuple(sorted(names)) for names in source.names]
    assert torch.equal(placed.first.weight, placed.second.weight)


def test_stacked_draws_are_those_of_each_seed(case):
    source = bound(case.artifact, Network())
    for name, values in stacked(source, SEEDS).items():
        for row, seed in zip(values, SEEDS, strict=True):
            assert torch.equal(row, rebuild(case.artifact, seed=seed)[name])


def test_predictions_are_averages_over_consecutive_seeds_exactly(case):
    found = monte_carlo.monte_carlo(bound(case.artifact, Network()), [(case.x, None)], samples=3, seed=5)
    assert_same(found, expected(case.artifact, Network(), case.x))
    assert found.samples == 3
    assert found.mutual_information.max() > 1e-4


@pytest.mark.parametrize("network", [Network, Branching, Renamed])
@pytest.mark.parametrize("n_inputs", [1, 4, 7])
def test_batches_and_side_by_side_draws_change_nothing(case, network, n_inputs, monkeypatch):
    x = case.x[:n_inputs]
    monkeypatch.setattr(monte_carlo, "BLOCK_BYTES", 4 * x[0].nbytes)
    found = monte_carlo.monte_carlo(bound(case.artifact, network()), batches(x, 4), samples=3, seed=5)
    assert_same(found, expected(case.artifact, Network(), x), rtol=1e-5, atol=1e-8)


def count_side_by_side(monkeypatch) -> list[int]:
    counted: list[int] = []
    plain = monte_carlo._side_by_side

    def counting(source, images, seeds):
        outputs = plain(source, images, seeds)
        counted.append(len(seeds))
        return outputs

    monkeypatch.setattr(monte_carlo, "_side_by_side", counting)
    return counted


def test_draws_of_few_inputs_run_side_by_side_within_the_bound(case, monkeypatch):
    counted = count_side_by_side(monkeypatch)
    source = bound(case.artifact, Network())
    monkeypatch.setattr(monte_carlo, "STACK_BYTES", 2 * monte_carlo.stacked_bytes(source))
    few, many = case.x[:1], case.x
    monte_carlo.monte_carlo(source, [(few, None)], samples=3)
    assert counted == [2, 1]
    monte_carlo.monte_carlo(source, [(many, None)], samples=3)
    assert counted == [2, 1]
    monkeypatch.setattr(monte_carlo, "STACK_BYTES", 0)
    monte_carlo.monte_carlo(source, [(few, None)], samples=3)
    assert counted == [2, 1]


def test_networks_that_vmap_cannot_run_go_one_draw_at_a_time(case, monkeypatch):
    counted = count_side_by_side(monkeypatch)
    monte_carlo.monte_carlo(bound(case.artifact, Branching()), [(case.x[:1], None)], samples=3)
    assert counted == []


def test_recurrent_networks_are_sampled_too(tmp_path):
    torch.manual_seed(0)
    artifact, x = compressed(Recurrent(), tmp_path), torch.randn(2, 4, 8)
    found = monte_carlo.monte_carlo(bound(artifact, Recurrent()), [(x, None)], samples=3, seed=5)
    assert_same(found, expected(artifact, Recurrent(), x))


def test_no_draws_is_the_posterior_mean(case):
    found = monte_carlo.monte_carlo(bound(case.artifact, Network()), [(case.x, None)], samples=0, seed=5)
    network = Network().eval()
    network.load_state_dict(rebuild(case.artifact))
    assert torch.equal(found.probabilities, network(case.x).detach().double().softmax(dim=1))
    assert found.samples == 1
    assert not found.mutual_information.any()


def test_doubt_by_hand():
    certain_each_way = [torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()]
    unsure_always = [torch.tensor([[0.5, 0.5]]).double()] * 2
    for draws, information in ((certain_each_way, np.log(2)), (unsure_always, 0.0)):
        found = average(iter(draws))
        assert float(found.entropy) == pytest.approx(np.log(2))
        assert float(found.mutual_information) == pytest.approx(information)


def test_mutual_information_is_the_mean_divergence_of_the_draws(case):
    draws = expected(case.artifact, Network(), case.x)
    found = average(draws)
    mean = found.probabilities
    each = [(draw * (draw.log() - mean.log())).sum(dim=1) for draw in draws]
    torch.testing.assert_close(found.mutual_information, torch.stack(each).mean(dim=0))
    np.testing.assert_allclose(found.entropy, metrics.predictive_entropy(mean))
