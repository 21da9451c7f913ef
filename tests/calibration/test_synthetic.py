"""Noise in place of inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gbnn_compress.calibration.synthetic import FEWEST_INPUTS, SIZES, WANTED_MAP, noise_inputs, synthetic_inputs


def inputs_for(network: nn.Module, *, channels: int) -> torch.Tensor | None:
    return synthetic_inputs(network.eval(), network.state_dict(keep_vars=True), channels=channels)


def test_noise_is_normalised_and_always_the_same() -> None:
    noise = noise_inputs(8, channels=3, size=32)
    assert noise.shape == (8, 3, 32, 32)
    assert noise.dtype == torch.float32
    assert float(noise.mean()) == pytest.approx(0, abs=1e-5)
    assert float(noise.std()) == pytest.approx(1, abs=1e-2)
    torch.random.manual_seed(123)
    assert torch.equal(noise, noise_inputs(8, channels=3, size=32))


def test_noise_does_not_depend_on_the_number_of_threads() -> None:
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found.append(noise_inputs(64, channels=3, size=64))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)


def test_neighbouring_pixels_are_alike() -> None:
    noise = noise_inputs(8, channels=1, size=64)
    assert float((noise[..., 1:] * noise[..., :-1]).mean()) > 0.4


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_smallest_size_whose_maps_are_large_enough(channels: int) -> None:
    network = nn.Sequential(*(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(5)))
    found = inputs_for(network, channels=channels)
    assert found is not None
    assert found.shape[1] == channels
    assert found.shape[2] == next(size for size in SIZES if size // 2**4 >= WANTED_MAP)
    assert len(found) >= FEWEST_INPUTS


@pytest.mark.parametrize("size", [28, 8])
def test_a_network_of_one_small_size_gets_it(size: int) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * (size - 2) ** 2, 3))
    found = inputs_for(network, channels=1)
    assert found is not None
    assert found.shape[1:] == (1, size, size)


@pytest.mark.long
def test_a_network_of_one_size_gets_it() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 62 * 62, 4))
    found = inputs_for(network, channels=3)
    assert found is not None
    assert found.shape[2] == 64


@pytest.mark.parametrize(
    ("network", "channels"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 5 * 5, 4)), 1),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)), 1),
        (nn.Sequential(nn.Conv2d(3, 2, 3).double(), nn.BatchNorm2d(2)), 3),
    ],
)
def test_a_network_that_runs_on_no_noise_gets_none(network: nn.Module, channels: int) -> None:
    assert inputs_for(network, channels=channels) is None


class Root(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sqrt()


def test_a_network_that_noise_makes_infinite_gets_none() -> None:
    assert inputs_for(nn.Sequential(Root(), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)), channels=3) is None
