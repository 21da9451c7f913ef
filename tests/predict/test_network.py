"""A compressed network in Python: its module is the user's, its predictions are its own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import gbnn_compress
from gbnn_compress.errors import ArchitectureError, DataError, GbnnError
from gbnn_compress.predict.network import CompressedNetwork

pytestmark = pytest.mark.usefixtures("one_thread")


def small_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(0)
    torch.save(small_network().state_dict(), folder / "net.pth")
    gbnn_compress.compress(folder / "net.pth", target_ratio=4, output=folder / "net.gbnn.safetensors")
    return folder / "net.gbnn.safetensors"


@pytest.fixture
def network(artifact: Path) -> CompressedNetwork:
    loaded = gbnn_compress.load(artifact)
    loaded.to_module(small_network())
    return loaded


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.long
def test_probabilities_are_the_average_over_draws_of_the_module(artifact: Path, network, x):
    found = network.predict(x, samples=3, seed=7)
    assert found.dtype == torch.float64
    total = torch.zeros(11, 5, dtype=torch.float64)
    module = small_network().eval()
    for seed in (7, 8, 9):
        module.load_state_dict(gbnn_compress.load(artifact).state_dict(seed=seed))
        total += module(x).detach().double().softmax(dim=1)
    torch.testing.assert_close(found, total / 3)


def test_the_same_seed_gives_the_same_numbers(network, x):
    first, again, other = (network.predict(x, samples=2, seed=seed) for seed in (3, 3, 30))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_any_batch_size_gives_the_same(network, x):
    whole = network.predict_with_uncertainty(x, samples=3)
    parts = network.predict_with_uncertainty(x, samples=3, batch_size=4)
    for name in ("probabilities", "entropy", "mutual_information"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    assert torch.equal(network.predict(x, samples=3), whole.probabilities)
    assert (whole.mutual_information <= whole.entropy).all()
    assert whole.samples == 3


def test_no_samples_is_the_module_itself(network, artifact: Path, x):
    module = gbnn_compress.load(artifact).to_module(small_network())
    torch.testing.assert_close(network.predict(x, samples=0), module(x).detach().double().softmax(dim=1))


def test_the_users_module_is_left_as_it_was(artifact: Path, x):
    network = gbnn_compress.load(artifact)
    module = network.to_module(small_network()).train()
    with torch.no_grad():
        module[5].bias.add_(1)
    before, weight = copy.deepcopy(module.state_dict()), module[0].weight
    expected = gbnn_compress.load(artifact)
    expected.to_module(small_network())
    assert torch.equal(network.predict(x, samples=2), expected.predict(x, samples=2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(part.training for part in module.modules())
    assert module[0].weight is weight


def test_a_folded_temperature_is_applied(network, x):
    plain = network.predict_with_uncertainty(x, samples=2)
    artifact = copy.copy(network.artifact)
    object.__setattr__(artifact, "facts", {**artifact.facts, "temperature": 2.0})
    folded = CompressedNetwork(artifact)
    folded.to_module(small_network())
    found = folded.predict_with_uncertainty(x, samples=2)
    torch.testing.assert_close(found.probabilities, (plain.probabilities.log() / 2).softmax(dim=1))
    assert torch.equal(found.mutual_information, plain.mutual_information)


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (lambda x: x, {"samples": -1}, GbnnError, "`samples`: expected 0 or more, got -1"),
        (lambda x: x, {"batch_size": 0}, GbnnError, "`batch_size`: expected 1 or more, got 0"),
        (lambda x: x[:0], {}, DataError, "`x` is empty, expected at least one input"),
        (lambda x: x[:, :1], {}, DataError, "`x` has images with 1 channel(s), the network expects 3"),
        (lambda x: x[:1, :1], {}, DataError, "`x` has images with 1 channel(s), the network expects 3"),
        (lambda x: x * float("nan"), {}, DataError, "`x` has infinite or NaN values"),
        (lambda x: x[:1] * float("nan"), {}, DataError, "`x` has infinite or NaN values"),
        (lambda x: x[:, :, :2, :2], {}, ArchitectureError, "the network fails on a batch of shape (11, 3, 2, 2)"),
    ],
)
def test_bad_inputs_are_one_line(network, x, change, options, error, words):
    with pytest.raises(error) as caught:
        network.predict(change(x), **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_network_is_refused(artifact: Path, x):
    with pytest.raises(ArchitectureError, match="the architecture is not known"):
        gbnn_compress.load(artifact).predict(x)


def test_masks_come_back_bit_for_bit(tmp_path: Path):
    mask = torch.full((40, 40), float("-inf")).triu(1)
    torch.save({"a.weight": torch.randn(96, 64), "mask": mask}, tmp_path / "net.pth")
    gbnn_compress.compress(tmp_path / "net.pth", target_ratio=4, output=tmp_path / "net.gbnn.safetensors")
    assert torch.equal(gbnn_compress.load(tmp_path / "net.gbnn.safetensors").state_dict()["mask"], mask)
