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
    defaults = {"damping": 0.0, "match_batch_norm": False}
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


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.again, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.again(self.again(x).relu()))


def test_calls_are_counted() -> None:
    seen = surveyed(Twice(), torch.randn(20, 4))
    assert {name: layer.calls for name, layer in seen.items()} == {"again.weight": 2, "last.weight": 1}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_matching_batch_norms_normalise_with_the_inputs_own_statistics(generator: torch.Generator) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)).eval()
    nn.init.constant_(network[1].running_mean, 7.0)
    nn.init.constant_(network[1].running_var, 100.0)
    x = 5 * torch.randn(16, 3, 6, 6, generator=generator) + 2
    own, matched = (surveyed(network, x, match_batch_norm=match)["2.weight"] for match in (False, True))
    assert own.column * own.gain < 0.5 * matched.column * matched.gain
    assert matched.column * matched.gain == pytest.approx(1, rel=1e-2)


def test_nothing_is_changed(generator: torch.Generator) -> None:
    class InPlace(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.sub_(1).relu_())

    network, x = InPlace().eval(), torch.randn(5, 1, 5, 5, generator=generator)
    weights, inputs = {name: tensor.clone() for name, tensor in network.state_dict().items()}, x.clone()
    surveyed(network, x)
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
    assert np.linalg.eigvalsh(trusted(covariance(patches), n_samples=patches.shape[1], damping=0.01))[0, 0] > 0
    assert np.linalg.eigvalsh(trusted(covariance(0 * patches), n_samples=patches.shape[1], damping=0.0))[0, 0] > 0


@pytest.mark.parametrize("width", [1, 9, module.LONGEST_BLOCK, module.LONGEST_BLOCK + 1, 5 * module.LONGEST_BLOCK - 3])
def test_column_blocks_cover_every_column_once(width: int) -> None:
    blocks = column_blocks(width)
    assert [j for block in blocks for j in range(width)[block]] == list(range(width))
    lengths = [block.stop - block.start for block in blocks]
    assert max(lengths) <= module.LONGEST_BLOCK
    assert max(lengths) - min(lengths) <= 1
