"""Inputs fitted to the statistics of batch norms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gbnn_compress.calibration.fitted import Descent, fitted_inputs
from gbnn_compress.calibration.synthetic import noise_inputs

QUICK = Descent(steps=20, batch=16)


def trained() -> nn.Sequential:
    """A network whose batch norms have seen striped images, in evaluation mode."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)]
    network = nn.Sequential(convolutions[0], nn.BatchNorm2d(4, momentum=None), nn.ReLU(inplace=True), convolutions[1])
    network.append(nn.BatchNorm2d(4, momentum=None))
    stripes = torch.sin(torch.arange(12.0) * torch.rand(64, 2, 1, 1) * 3).expand(64, 2, 12, 12)
    network(stripes)
    return network.eval()


def misfit(network: nn.Sequential, inputs: torch.Tensor) -> float:
    """Squared distance of the means from those of training, in deviations, over both batch norms."""
    with torch.no_grad():
        middle = network[0](inputs)
        seen = {network[1]: middle, network[4]: network[3](network[1](middle).relu())}
    return sum(
        float(((x.mean(dim=(0, 2, 3)) - norm.running_mean).square() / norm.running_var).mean())
        for norm, x in seen.items()
    )


def test_batch_norms_see_nearly_what_they_saw_in_training() -> None:
    network, noise = trained(), noise_inputs(16, channels=2, size=12)
    found = fitted_inputs(network, noise, descent=QUICK)
    assert found is not None
    assert found.shape == noise.shape
    assert found.dtype == noise.dtype
    assert misfit(network, found) < 0.5 * misfit(network, noise)


def test_nothing_is_changed_and_the_result_is_always_the_same() -> None:
    network, noise = trained(), noise_inputs(20, channels=2, size=12)
    before, kept = copy.deepcopy(network.state_dict()), noise.clone()
    torch.manual_seed(1)
    first = fitted_inputs(network, noise, descent=QUICK)
    torch.manual_seed(2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    second = fitted_inputs(network, noise, descent=QUICK)
    torch.set_num_threads(threads)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    assert torch.equal(noise, kept)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


class WithoutGradients(nn.Module):
    """A network that computes without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = trained()

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(2, 3, 3)),
        WithoutGradients(),
        nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)),
    ],
)
def test_networks_that_inputs_cannot_be_fitted_to(network: nn.Module) -> None:
    assert fitted_inputs(network.eval(), noise_inputs(4, channels=2, size=12), descent=QUICK) is None


def test_infinite_statistics_are_left_alone() -> None:
    network = trained()
    network[4].running_mean.fill_(torch.inf)
    assert fitted_inputs(network, noise_inputs(4, channels=2, size=12), descent=QUICK) is None
