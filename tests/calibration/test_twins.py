"""Copies of a network that share weights with it, or have their own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lockstep_runs import Snapshot, names_of, twin_of
from torch import nn
from torch.nn.utils import parametrizations, parametrize

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*deprecated"),
]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Counter(nn.Module):
    """State in a buffer, in an attribute and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))
        self.last: torch.Tensor | None = None
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(len(x))
        self.last = self.layer(x) if self.last is None else self.layer(x) + self.last.mean()
        return self.last


class Triangular(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.tril()


def triangular(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Triangular())
    return layer


def twice_parametrised() -> nn.Module:
    return parametrizations.weight_norm(triangular(nn.Linear(4, 4)), name="bias")


COMPUTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "parametrizations.weight.original1"),
    "weight norm, old": (lambda: nn.utils.weight_norm(nn.Linear(4, 4)), "weight_v"),
    "weight norm, dim 1, old": (lambda: nn.utils.weight_norm(nn.Linear(4, 4), dim=1), "weight_v"),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), "parametrizations.weight.original"),
    "spectral norm, old": (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), "weight_orig"),
    "own": (lambda: triangular(nn.Linear(4, 4)), "parametrizations.weight.original"),
    "two weights": (twice_parametrised, "parametrizations.weight.original"),
    "inside": (
        lambda: nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4))),
        "1.parametrizations.weight.original1",
    ),
}


def test_a_twin_shares_weights_or_has_its_own() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    shared, own = (twin_of(network, own_weights=each) for each in (False, True))
    assert shared.tensors["0.weight"] is network[0].weight
    assert own.tensors["0.weight"] is not network[0].weight
    assert torch.equal(own.tensors["0.weight"], network[0].weight)
    for twin in (shared, own):
        assert twin.copied().get_parameter("0.weight") is twin.tensors["0.weight"]
        assert twin.copied().get_buffer("1.running_mean") is twin.tensors["1.running_mean"]
        assert twin.copied() is not twin.network


def test_names_of_the_checkpoint_lead_to_the_networks_tensors() -> None:
    twin = twin_of(nn.Linear(3, 2), {"module.w": "weight"})
    assert twin.tensors.keys() == {"module.w"}


def test_copies_have_states_of_their_own() -> None:
    network, x = Counter().eval(), torch.randn(3, 4)
    twin = twin_of(network, {"layer.weight": "layer.weight"})
    first, second = twin.copied(), twin.copied()
    for _ in range(2):
        first(x)
    assert (float(first.calls), float(second.calls), float(network.calls)) == (2, 0, 0)
    assert (first.seen, second.seen, network.seen) == ([3, 3], [], [])
    assert network.last is None


def test_a_replaced_tensor_is_replaced_in_all_copies() -> None:
    network = nn.Linear(3, 2)
    before, twin = network.weight.detach().clone(), twin_of(network, own_weights=True)
    copied = twin.copied()
    twin.replace("weight", torch.ones(2, 3))
    assert torch.equal(copied.get_parameter("weight"), torch.ones(2, 3))
    assert torch.equal(twin.copied().get_parameter("weight"), torch.ones(2, 3))
    assert torch.equal(network.weight, before)


@pytest.mark.parametrize("case", COMPUTED.values(), ids=COMPUTED)
@pytest.mark.parametrize("own", [False, True])
def test_computed_weights_are_plain_and_follow_their_sources(case: Any, own: bool) -> None:
    make, source = case
    network, x = make().eval(), torch.randn(5, 4)
    untouched, wanted = Snapshot.of(network), network(x).detach()
    twin = twin_of(network, own_weights=own)
    assert source in twin.sources
    torch.testing.assert_close(twin.copied()(x).detach(), wanted)
    values = torch.randn(4, 4)
    if own:
        twin.replace(source, values)
        state = network.state_dict()
        state[source] = values
        other = make().eval()
        other.load_state_dict(state)
        torch.testing.assert_close(twin.copied()(x).detach(), other(x).detach())
    assert untouched.equals(network)
    assert torch.equal(network(x).detach(), wanted)


@pytest.mark.parametrize("case", COMPUTED.values(), ids=COMPUTED)
def test_the_users_network_can_still_be_trained_and_saved(case: Any) -> None:
    network = case[0]().train()
    twin_of(network, own_weights=True)
    network.train()(torch.randn(5, 4)).sum().backward()
    assert all(tensor.grad is not None for tensor in network.parameters())
    other = case[0]()
    other.load_state_dict(network.state_dict())


def test_tied_tensors_stay_tied() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    twin = twin_of(network, own_weights=True)
    twin.replace("0.weight", torch.eye(4))
    made = twin.copied()
    assert made.get_parameter("1.weight") is made.get_parameter("0.weight")
    assert torch.equal(made.get_parameter("1.weight"), torch.eye(4))


@pytest.mark.parametrize("make", [torch.jit.script, lambda layer: torch.jit.trace(layer, torch.randn(2, 4))])
def test_scripted_networks_share_weights_too(make: Any) -> None:
    network = make(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval())
    twin, x = twin_of(network, own_weights=True), torch.randn(5, 4)
    copied, before = twin.copied(), network(x).detach()
    twin.replace("0.weight", torch.zeros(3, 4))
    for made in (copied, twin.copied()):
        torch.testing.assert_close(made(x).detach(), network(0 * x).detach())
    assert torch.equal(network(x).detach(), before)


def test_a_view_is_the_same_part_of_the_other_networks_tensor() -> None:
    network = nn.Linear(6, 4)
    first, second = (twin_of(network, own_weights=own) for own in (False, True))
    operand = first.tensors["weight"].detach()[1:3, 2:].T
    part = second.view(operand, "weight", first)
    assert torch.equal(part, operand)
    second.replace("weight", torch.zeros(4, 6))
    assert not part.any()
    assert operand.any()


def test_the_network_is_left_alone() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.LSTM(4, 4)).requires_grad_(requires_grad=False).eval()
    network[0].register_forward_hook(lambda module, x, y: y)
    network[0].weight.requires_grad_()
    before = Snapshot.of(network)
    for own in (False, True):
        twin_of(network, names_of(network), own_weights=own).copied()
    assert before.equals(network)


def test_weights_in_unusual_layouts_are_copied_with_them() -> None:
    network = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    twin = twin_of(network, own_weights=True)
    twin.replace("weight", torch.arange(108.0).reshape(4, 3, 3, 3))
    assert torch.equal(twin.tensors["weight"].detach(), torch.arange(108.0).reshape(4, 3, 3, 3))
    assert copy.deepcopy(network).weight.stride() == twin.tensors["weight"].stride()
