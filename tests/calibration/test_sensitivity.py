"""What errors cost: against KL divergences that are known, or measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gbnn_compress.calibration import sensitivity
from gbnn_compress.calibration.sensitivity import error_costs

pytestmark = pytest.mark.usefixtures("one_thread")


def inputs(count: int) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1))


class Deep(nn.Module):
    """Two layers that matter and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out, self.idle = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * self.out(torch.tanh(self.hidden(x)))


def noise(network: nn.Module, *, size: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        name: size * torch.randn(tensor.shape, generator=generator)
        for name, tensor in network.named_parameters()
        if tensor.dim() == 2
    }


@torch.no_grad()
def measured(network: nn.Module, x: torch.Tensor, name: str, error: torch.Tensor) -> float:
    """KL that an error brings about."""
    before = network(x).double().log_softmax(dim=1)
    moved = torch.func.functional_call(network, {name: network.get_parameter(name) + error}, (x,))
    return float((before.exp() * (before - moved.double().log_softmax(dim=1))).sum(dim=1).mean())


def test_small_errors_cost_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "MOST_GRADIENTS", 2048)
    network, x = Deep().eval(), inputs(2048)
    errors = noise(network, size=0.02)
    costs, count = error_costs(network, dict(network.named_parameters()), x, errors)
    assert count == len(x)
    assert set(costs) == {"hidden.weight", "out.weight"}  # `idle.weight` is not used
    for name, cost in costs.items():
        assert cost == pytest.approx(measured(network, x, name, errors[name]), rel=0.2)


def test_costs_go_with_the_square_of_the_error() -> None:
    network, x = Deep().eval(), inputs(16)
    tensors = dict(network.named_parameters())
    (small, _), (large, _) = (error_costs(network, tensors, x, noise(network, size=s)) for s in (0.01, 0.02))
    assert {name: 4 * cost for name, cost in small.items()} == pytest.approx(large, rel=1e-4)


def test_few_pixels_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "MOST_PIXELS", 12 * 25)
    network = nn.Sequential(nn.Conv2d(2, 3, 5), nn.Flatten()).eval()
    x = torch.randn(20, 2, 5, 5)
    errors = {"0.weight": torch.ones(3, 2, 5, 5)}
    assert error_costs(network, dict(network.named_parameters()), x, errors)[1] == 12


def test_a_network_without_gradients_has_no_costs() -> None:
    class Frozen(Deep):
        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    network = Frozen().eval()
    assert error_costs(network, dict(network.named_parameters()), inputs(8), noise(network, size=1)) == ({}, 8)


def test_a_network_that_overwrites_what_gradients_need_has_no_costs() -> None:
    class Overwriting(Deep):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x -= 0.5
            y = torch.sigmoid(self.hidden(x))
            y *= 2
            return self.out(y)

    network, x = Overwriting().eval(), inputs(8)
    before = x.clone()
    assert error_costs(network, dict(network.named_parameters()), x, noise(network, size=1)) == ({}, 8)
    assert torch.equal(x, before)


def test_a_network_that_fails_where_gradients_are_wanted_has_no_costs() -> None:
    class Inference(Deep):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                y = torch.tanh(x)
            return self.out(torch.tanh(self.hidden(y)))

    network = Inference().eval()
    with torch.no_grad():
        assert network(inputs(8)).shape == (8, 3)
    assert error_costs(network, dict(network.named_parameters()), inputs(8), noise(network, size=1)) == ({}, 8)


def test_no_tensor_costs_nothing() -> None:
    assert error_costs(Deep().eval(), {}, inputs(8), {"other.weight": torch.ones(3, 3)}) == ({}, 8)


def test_the_network_is_left_alone() -> None:
    network = Deep().eval().requires_grad_(requires_grad=False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.random.get_rng_state()
    error_costs(network, dict(network.named_parameters()), inputs(8), noise(network, size=1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(tensor.grad is None and not tensor.requires_grad for tensor in network.parameters())
