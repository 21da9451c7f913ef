"""What a survey sees, against autograd and against formulas by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gbnn_compress.calibration import survey as module
from gbnn_compress.calibration.survey import LayerStatistics, column_blocks, covariance, survey, trusted


def surveyed(network: nn.Module, inputs: torch.Tensor, **options: Any) -> dict[str, LayerStatistics]:
    defaults = {"damping": 0.0, "match_batch_norm": False, "gradients": False}
    return survey(network.eval(), network.state_dict(keep_vars=True), inputs, **{**defaults, **options})


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_column_of_white_inputs_costs_their_variance(generator: torch.Generator) -> None:
    for deviation in (0.5, 3.0):
        seen = surveyed(nn.Linear(8, 4), deviation * torch.randn(4000, 8, generator=generator))
        assert seen["weight"].column == pytest.approx(deviation**2, rel=0.05)


def test_a_column_that_the_others_make_good_costs_little(generator: torch.Generator) -> None:
    common, own = torch.randn(4000, 1, generator=generator), torch.randn(4000, 8, generator=generator)
    seen = surveyed(nn.Linear(8, 4), common + 0.1 * own)
    assert seen["weight"].column < 0.25  # of a variance of 1.01; the last column has nothing after it


def test_power_is_the_variance_of_the_outputs(generator: torch.Generator) -> None:
    layer, x = nn.Conv2d(3, 5, 3), torch.randn(6, 3, 8, 8, generator=generator)
    seen = surveyed(layer, x)
    expected = layer(x).detach().double().transpose(0, 1).reshape(5, -1).var(dim=1, correction=0)
    np.testing.assert_allclose(seen["weight"].power, expected.numpy(), rtol=1e-6)
    assert seen["weight"].gradient is None
    assert seen["weight"].calls == 1


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.again, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.again(self.again(x).relu()))


@pytest.mark.parametrize("gradients", [False, True])
def test_calls_are_counted(gradients: bool) -> None:
    seen = surveyed(Twice(), torch.randn(20, 4), gradients=gradients)
    assert {name: layer.calls for name, layer in seen.items()} == {"again.weight": 2, "last.weight": 1}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_squared_gradients_are_those_of_the_expected_label(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Many draws from the model's prediction against the exact expectation over labels, input by input."""
    monkeypatch.setattr(module, "LABELS_DRAWN", 300)
    network, x = Small().eval(), torch.randn(5, 1, 5, 5, generator=generator)
    seen = surveyed(network, x, gradients=True)
    expected = {"conv.weight": torch.zeros(3), "head.weight": torch.zeros(4)}
    for each in x:
        y = network.conv(each[None])
        logits = network.head(network.norm(y).relu().mean((2, 3)))
        logs = logits.log_softmax(dim=1)[0]
        for label in range(4):
            by_conv, by_head = torch.autograd.grad(logs[label], (y, logits), retain_graph=True)
            weight = logs[label].exp().detach() / len(x)
            expected["conv.weight"] += weight * (by_conv**2).sum(dim=(0, 2, 3))
            expected["head.weight"] += weight * (by_head**2)[0]
    for name, gradient in expected.items():
        found = seen[name].gradient
        assert found is not None
        np.testing.assert_allclose(found, gradient.numpy(), rtol=0.2)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_frozen_weights_have_gradients_by_their_outputs(generator: torch.Generator) -> None:
    network = Small().requires_grad_(False)
    seen = surveyed(network, torch.randn(5, 1, 5, 5, generator=generator), gradients=True)
    gradient = seen["conv.weight"].gradient
    assert gradient is not None
    assert (gradient > 0).any()


def test_matching_batch_norms_normalise_with_the_inputs_own_statistics(generator: torch.Generator) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)).eval()
    nn.init.constant_(network[1].running_mean, 7.0)
    nn.init.constant_(network[1].running_var, 100.0)
    x = 5 * torch.randn(16, 3, 6, 6, generator=generator) + 2
    own, matched = (surveyed(network, x, match_batch_norm=match)["2.weight"].power for match in (False, True))
    filters = network[2].weight.detach()[:, :, 0, 0].double()
    normalised = network.train()[1](network[0](x)).detach().double().transpose(0, 1).reshape(4, -1)
    np.testing.assert_allclose(matched, (filters @ normalised).var(dim=1, correction=0).numpy(), rtol=1e-3)
    assert (own < 0.5 * matched).all()


def test_nothing_is_changed(generator: torch.Generator) -> None:
    class InPlace(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.sub_(1).relu_())

    network, x = InPlace().eval(), torch.randn(5, 1, 5, 5, generator=generator)
    weights, inputs = {name: tensor.clone() for name, tensor in network.state_dict().items()}, x.clone()
    surveyed(network, x, gradients=True)
    assert torch.equal(x, inputs)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


def test_covariance(generator: torch.Generator) -> None:
    a, b = (torch.randn(2, 50, 3, generator=generator).double() + 4 for _ in range(2))
    for g in range(2):
        both = np.cov(a[g].numpy().T, b[g].numpy().T, bias=True)
        np.testing.assert_allclose(covariance(a)[g], both[:3, :3], atol=1e-12)
        np.testing.assert_allclose(covariance(a, b)[g], both[:3, 3:], atol=1e-12)


def test_few_samples_are_trusted_less_and_none_fails() -> None:
    patches = torch.randn(1, 2, 30, generator=torch.Generator().manual_seed(0)).double()
    assert np.linalg.eigvalsh(trusted(patches, damping=0.01))[0, 0] > 0
    assert np.linalg.eigvalsh(trusted(0 * patches, damping=0.0))[0, 0] > 0


@pytest.mark.parametrize("width", [1, 9, module.LONGEST_BLOCK, module.LONGEST_BLOCK + 1, 5 * module.LONGEST_BLOCK - 3])
def test_column_blocks_cover_every_column_once(width: int) -> None:
    blocks = column_blocks(width)
    assert [j for block in blocks for j in range(width)[block]] == list(range(width))
    lengths = [block.stop - block.start for block in blocks]
    assert max(lengths) <= module.LONGEST_BLOCK
    assert max(lengths) - min(lengths) <= 1
