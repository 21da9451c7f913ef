"""Which of the network's tensors an operation uses, and how."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional

from gbnn_compress.calibration.interceptor import intercepted
from gbnn_compress.calibration.uses import AnyUse, NormUse, Owners, Use

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def uses_of(network: nn.Module, *inputs: torch.Tensor) -> list[AnyUse]:
    uses: list[AnyUse] = []
    with intercepted(network.state_dict(keep_vars=True), uses.append):
        network(*inputs)
    return uses


def test_owners_find_tensors_and_views_of_them() -> None:
    whole = torch.randn(6, 4)
    tensors = {"first": whole[:3], "second": whole[3:], "turned": torch.randn(5, 3).T}
    owners = Owners(tensors)
    assert owners.name_of(whole[1]) == "first"
    assert owners.name_of(whole[4:, 1:].T) == "second"
    assert owners.name_of(tensors["turned"][1:]) == "turned"
    for other in (whole.clone(), torch.randn(3), 3.0, None, whole[:0]):
        assert owners.name_of(other) is None


def test_a_use_runs_with_the_weights_that_there_are() -> None:
    layer, x = nn.Linear(3, 2), torch.randn(5, 3)
    (use,) = uses_of(layer, x)
    assert isinstance(use, Use)
    torch.testing.assert_close(use.run(), layer(x).detach())
    with torch.no_grad():
        layer.weight.zero_()
        torch.testing.assert_close(use.run(), layer.bias.detach().expand(5, 2))


class Halves(nn.Module):
    """Two parts of one matrix, one of them twice, and once turned."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        upper, lower = self.matrix.chunk(2)
        y = functional.linear(functional.linear(functional.linear(x, upper), lower), upper)
        return y @ upper


def test_equal_parts_in_equal_orientation_are_one_piece() -> None:
    uses = [use for use in uses_of(Halves(), torch.randn(5, 4)) if isinstance(use, Use)]
    first, second, third, fourth = (use.piece for use in uses)
    assert first == third
    assert len({first, second, fourth}) == 3
    assert all(use.name == "matrix" for use in uses)


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (nn.Linear(4, 3), (6, 4), 1),
        (nn.Conv1d(4, 3, 1), (2, 4, 6), 1),
        (nn.Conv2d(4, 3, 1), (2, 4, 6, 6), 1),
        (nn.ConvTranspose1d(4, 3, 1), (2, 4, 6), 1),
    ],
)
def test_the_bias_and_the_axis_of_the_rows(layer: nn.Module, shape: tuple[int, ...], axis: int) -> None:
    (use,) = (each for each in uses_of(layer, torch.randn(*shape)) if isinstance(each, Use))
    assert use.axis == axis
    assert use.bias is not None
    assert torch.equal(use.bias, layer.bias)
    assert use.run().shape[axis] == 3


def test_other_values_added_to_a_product_are_no_bias() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.addmm(x[:, :3].mean(0), x, self.matrix)

    (use,) = uses_of(Sum(), torch.randn(5, 4))
    assert isinstance(use, Use)
    assert use.bias is None


def test_scaled_sums_are_left_alone() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.addmm(x[:, :3], x, self.matrix, beta=2, alpha=0.5)

    assert not any(isinstance(use, Use) for use in uses_of(Scaled(), torch.randn(5, 4)))


@pytest.mark.parametrize("affine", [False, True])
def test_a_batch_norm_normalises_with_any_statistics(affine: bool) -> None:
    layer, x = nn.BatchNorm1d(3, affine=affine).eval(), torch.randn(10, 3)
    (use,) = uses_of(layer, x)
    assert isinstance(use, NormUse)
    torch.testing.assert_close(use.normalise(use.mean, use.variance), layer(x).detach())
    mean, variance = x.mean(0), x.var(0, correction=0)
    torch.testing.assert_close(use.normalise(mean, variance), (x - mean) / (variance + use.eps).sqrt())
