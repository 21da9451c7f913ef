"""What errors cost: against KL divergences that are known, or measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from lockstep_runs import Snapshot, names_of, read
from torch import nn

from gbnn_compress.calibration import sensitivity
from gbnn_compress.calibration.calibrated import calibrate
from gbnn_compress.calibration.sensitivity import error_costs
from gbnn_compress.predict.forward import Forward

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


def costs_of(
    network: nn.Module, batches: Any, errors: Mapping[str, torch.Tensor], *, classifier: bool = True, **options: Any
) -> tuple[Mapping[str, float], int]:
    calibration = calibrate(network, read(batches), names=names_of(network), **options)
    found = error_costs(calibration, errors, classifier=classifier)
    return found.costs, found.n_inputs


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
    costs, count = costs_of(network, x, errors)
    assert count == len(x)
    assert set(costs) == {"hidden.weight", "out.weight"}  # `idle.weight` is not used
    for name, cost in costs.items():
        assert cost == pytest.approx(measured(network, x, name, errors[name]), rel=0.2)


def test_costs_go_with_the_square_of_the_error() -> None:
    network, x = Deep().eval(), inputs(16)
    (small, _), (large, _) = (costs_of(network, x, noise(network, size=s)) for s in (0.01, 0.02))
    assert {name: 4 * cost for name, cost in small.items()} == pytest.approx(large, rel=1e-4)


def test_few_pixels_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "MOST_PIXELS", 12 * 25)
    network = nn.Sequential(nn.Conv2d(2, 3, 5), nn.Flatten()).eval()
    x = torch.randn(20, 2, 5, 5)
    errors = {"0.weight": torch.ones(3, 2, 5, 5)}
    assert costs_of(network, x, errors)[1] == 12


def test_a_network_without_gradients_has_no_costs() -> None:
    class Frozen(Deep):
        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    network = Frozen().eval()
    assert costs_of(network, inputs(8), noise(network, size=1)) == ({}, 8)


def test_a_network_that_overwrites_what_gradients_need_has_no_costs() -> None:
    class Overwriting(Deep):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x -= 0.5
            y = torch.sigmoid(self.hidden(x))
            y *= 2
            return self.out(y)

    network, x = Overwriting().eval(), inputs(8)
    before = x.clone()
    assert costs_of(network, x, noise(network, size=1)) == ({}, 8)
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
    assert costs_of(network, inputs(8), noise(network, size=1)) == ({}, 8)


def test_no_tensor_costs_nothing() -> None:
    assert costs_of(Deep().eval(), inputs(8), {"other.weight": torch.ones(3, 3)}) == ({}, 8)


def test_the_network_is_left_alone() -> None:
    network = Deep().eval().requires_grad_(requires_grad=False)
    before, state = Snapshot.of(network), torch.random.get_rng_state()
    costs_of(network, inputs(8), noise(network, size=1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert before.equals(network)
    assert all(tensor.grad is None for tensor in network.parameters())


@torch.no_grad()
def half_squared_change(network: nn.Module, x: torch.Tensor, name: str, error: torch.Tensor) -> float:
    """Half the squared change of the output over its variance, both summed over the output's places."""
    before = network(x).double()
    moved = torch.func.functional_call(network, {name: network.get_parameter(name) + error}, (x,)).double()
    return float((moved - before).square().sum() / (before - before.mean(dim=0)).square().sum()) / 2


class Regression(nn.Module):
    """Outputs (N, 2, 3) of very different size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = nn.Linear(4, 16), nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 100 * self.out(torch.tanh(self.hidden(x))).reshape(-1, 2, 3)


@pytest.mark.long
@pytest.mark.parametrize("several", [False, True])
def test_errors_of_other_networks_cost_half_the_squared_relative_change(
    several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "MOST_GRADIENTS", 2048)
    monkeypatch.setattr(sensitivity, "FEWEST_GRADIENTS", 2048)
    network, x = Regression().eval(), inputs(1024)
    errors = noise(network, size=0.02)
    costs, _ = costs_of(network, list(x.split(64)) if several else x, errors, classifier=False)
    assert set(costs) == {"hidden.weight", "out.weight"}
    for name, cost in costs.items():
        assert cost == pytest.approx(half_squared_change(network, x, name, errors[name]), rel=0.25)


def test_large_outputs_count_no_more_than_small_ones() -> None:
    network, x = Regression().eval(), inputs(64)
    forward = Forward(lambda network, x: 1e-3 * network(x))
    errors = noise(network, size=0.02)
    plain, _ = costs_of(network, x, errors, classifier=False)
    scaled, _ = costs_of(network, [x], errors, classifier=False, forward=forward)
    assert scaled == pytest.approx(plain, rel=0.7)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.out = nn.LSTM(4, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        y, (hidden, _) = self.lstm(x[None].expand(4, -1, -1))
        return self.out(hidden[0]), {"all": y}


@pytest.mark.parametrize(
    ("network", "names"),
    [
        (Recurrent, {"lstm.weight_ih_l0", "lstm.weight_hh_l0", "out.weight"}),
        (
            lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
            {"parametrizations.weight.original0", "parametrizations.weight.original1"},
        ),
    ],
)
def test_every_weight_that_outputs_depend_on_has_a_cost(network: Any, names: set[str]) -> None:
    made = network().eval()
    before = Snapshot.of(made)
    costs, _ = costs_of(made, inputs(8), noise(made, size=0.1), classifier=False)
    assert set(costs) == names
    assert all(cost > 0 for cost in costs.values())
    assert before.equals(made)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_errors_of_a_traced_network_cost_what_they_cost_in_its_source() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    traced, errors = torch.jit.trace(network, inputs(8)), noise(network, size=0.1)
    before = Snapshot.of(traced)
    costs, _ = costs_of(traced, inputs(8), errors)
    assert costs == pytest.approx(costs_of(network, inputs(8), errors)[0], rel=1e-4)
    assert before.equals(traced)


def test_a_network_that_draws_random_numbers_takes_none_of_the_users() -> None:
    class Noisy(Deep):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + torch.randn_like(x))

    network, state = Noisy().eval(), torch.random.get_rng_state()
    first = costs_of(network, inputs(8), noise(network, size=1))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert costs_of(network, inputs(8), noise(network, size=1)) == first


def test_rows_that_are_hardly_heard_cost_little() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        network[1].weight[:, :2] *= 0.01
    calibration = calibrate(network, read(inputs(64)), names=names_of(network))
    rows = error_costs(calibration, noise(network, size=0.1), classifier=False).rows["0.weight"]
    assert rows.shape == (6,)
    assert rows[:2].max() < 1e-2 * rows[2:].min()


@pytest.mark.parametrize(
    ("layer", "x", "expected"),
    [
        (nn.Linear(4, 3), torch.randn(5, 4), True),
        (nn.Conv1d(4, 6, 3, groups=2), torch.randn(2, 4, 9), True),
        (nn.ConvTranspose1d(4, 3, 2, stride=2), torch.randn(2, 4, 9), False),
    ],
)
def test_rows_are_filters_except_in_transposed_layers(layer: nn.Module, x: torch.Tensor, expected: bool) -> None:
    calibration = calibrate(layer.eval(), read(x), names=names_of(layer))
    assert ("weight" in calibration.filters) == expected
