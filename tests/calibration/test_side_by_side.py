"""Original and compressed network side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gbnn_compress.calibration.feedback import Alphabet
from gbnn_compress.calibration.side_by_side import VARIANCE_RANGE, LockstepOptions, Sharing, SideBySide, run_in_lockstep

COARSE = np.array([-1.0, 0.0, 1.0])


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Small(nn.Module):
    """A convolution, a batch norm with other statistics than the inputs', a grouped convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped, self.head = nn.Conv2d(8, 8, 3, groups=4), nn.Linear(8, 5)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.grouped(self.features(x).relu()).relu().mean((2, 3)))


def images(n: int = 24) -> torch.Tensor:
    return torch.randn(n, 3, 7, 7) + torch.randn(n, 3, 1, 1)


def sharing_of(
    network: nn.Module, *, means: np.ndarray | None = None, without: tuple[str, ...] = ()
) -> dict[str, Sharing]:
    """Every weight onto `means` (default: its own values, all of them), in units of the tensor's deviation."""
    result = {}
    for name, tensor in network.state_dict().items():
        if tensor.dim() < 2 or name in without:
            continue
        scale = 1.0 if means is None else float(tensor.std())
        values = np.unique(tensor.double().numpy()) if means is None else means
        result[name] = Sharing(
            alphabet=Alphabet(values, np.ones(len(values))),
            scale=scale,
            rows=np.ones(len(tensor)),
            unit=1.0,
            exact=np.zeros(tensor.numel(), dtype=bool),
        )
    return result


def run(network: nn.Module, x: torch.Tensor, sharing: Mapping[str, Sharing], **options: Any) -> SideBySide:
    defaults: dict[str, Any] = {"penalty": 0.0, "damping": 0.02, "paths": 2, "sweeps": 1, "synthetic": False}
    chosen = LockstepOptions(**{**defaults, **options})
    return run_in_lockstep(network.eval(), network.state_dict(keep_vars=True), x, sharing, chosen)


def compressed(network: nn.Module, sharing: Mapping[str, Sharing], outcome: SideBySide) -> dict[str, torch.Tensor]:
    """The state dict that an outcome stands for."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name, ids in outcome.ids.items():
        each = sharing[name]
        values = np.append(each.alphabet.means, np.nan)[ids] * each.scale
        original = state[name].double().numpy().ravel()
        state[name] = torch.from_numpy(np.where(each.exact, original, values)).float().reshape(state[name].shape)
    return state | outcome.statistics


def channel_means(y: torch.Tensor) -> torch.Tensor:
    return y.transpose(0, 1).reshape(y.shape[1], -1).mean(dim=1)


@pytest.mark.parametrize("match", [False, True])
def test_weights_on_the_bank_change_nothing(match: bool) -> None:
    network, x = Small(), images()
    sharing = sharing_of(network)
    outcome = run(network, x, sharing, synthetic=match)
    assert outcome.ids.keys() == sharing.keys()
    state = compressed(network, sharing, outcome)
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    before, after = outcome.logits.chunk(2)
    assert torch.equal(before, after)
    if not match:
        torch.testing.assert_close(before, network(x).detach())


def test_the_second_half_is_the_compressed_network() -> None:
    network, x = Small(), images()
    sharing = sharing_of(network, means=COARSE)
    outcome = run(network, x, sharing)
    before, after = outcome.logits.chunk(2)
    torch.testing.assert_close(before, network(x).detach())
    other = Small().eval()
    other.load_state_dict(compressed(network, sharing, outcome))
    torch.testing.assert_close(after, other(x).detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after, atol=1e-2)


def test_batch_norms_give_the_mean_that_they_gave() -> None:
    network, x = Small().eval(), images() + 1
    sharing = sharing_of(network, means=COARSE)
    outcome = run(network, x, sharing)
    other = Small().eval()
    other.load_state_dict(compressed(network, sharing, outcome))
    wanted, got = (channel_means(each.features(x).detach()) for each in (network, other))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_noise_moves_means_by_as_much_as_the_inputs_own_mean_moves() -> None:
    network, x = Small().eval(), images() + 1
    sharing = sharing_of(network, means=COARSE)
    outcome = run(network, x, sharing, synthetic=True)
    other = Small().eval()
    other.load_state_dict(compressed(network, sharing, outcome))
    before, after = (channel_means(each.conv(x).detach()) for each in (network, other))
    moved = outcome.statistics["norm.running_mean"] - network.norm.running_mean
    torch.testing.assert_close(moved, after - before, rtol=1e-4, atol=1e-4)


def test_variances_follow_the_inputs_within_bounds() -> None:
    network, x = Small().eval(), images()
    sharing = sharing_of(network, means=COARSE)
    outcome = run(network, x, sharing)
    other = Small().eval()
    other.load_state_dict(compressed(network, sharing, outcome))
    before, after = (
        each.conv(x).detach().double().transpose(0, 1).reshape(8, -1).var(dim=1, correction=0)
        for each in (network, other)
    )
    factor = (outcome.statistics["norm.running_var"] / network.norm.running_var).double()
    torch.testing.assert_close(factor, (after / before).clamp(*VARIANCE_RANGE), rtol=1e-4, atol=1e-5)


def test_a_channel_that_is_constant_here_keeps_its_variance() -> None:
    network = Small()
    with torch.no_grad():
        network.conv.weight[3] = 0.0
    outcome = run(network, images(), sharing_of(network, means=COARSE))
    assert outcome.statistics["norm.running_var"][3] == network.norm.running_var[3]


def test_biases_give_the_mean_that_they_gave() -> None:
    network, x = Small().eval(), images()
    sharing = sharing_of(network, means=COARSE)
    outcome = run(network, x, sharing)
    assert outcome.statistics.keys() == {"norm.running_mean", "norm.running_var", "grouped.bias", "head.bias"}
    before, after = outcome.logits.chunk(2)
    torch.testing.assert_close(after.mean(dim=0), before.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_feedback_comes_nearer_than_the_nearest_components() -> None:
    network, x = Small().eval(), images(60)
    sharing = sharing_of(network, means=COARSE)
    outcome = run(network, x, sharing, sweeps=2)
    before, after = outcome.logits.chunk(2)
    rounded = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name, each in sharing.items():
        units = rounded[name].double().numpy() / each.scale
        values = COARSE[np.abs(units[..., None] - COARSE).argmin(axis=-1)] * each.scale
        rounded[name] = torch.from_numpy(values).float()
    other = Small().eval()
    other.load_state_dict(rounded)
    assert (after - before).square().sum() < 0.3 * (other(x).detach() - before).square().sum()


def test_exact_weights_stay() -> None:
    network, x = Small(), images()
    sharing = sharing_of(network, means=COARSE)
    for each in sharing.values():
        each.exact[::5] = True
    outcome = run(network, x, sharing)
    state = compressed(network, sharing, outcome)
    for name, each in sharing.items():
        assert ((outcome.ids[name] == len(COARSE)) == each.exact).all()
        assert torch.equal(state[name].ravel()[::5], network.state_dict()[name].ravel()[::5])


def test_layers_that_are_not_to_be_shared_keep_their_weights() -> None:
    network = Small()
    sharing = sharing_of(network, means=COARSE, without=("grouped.weight",))
    assert run(network, images(), sharing).ids.keys() == {"conv.weight", "head.weight"}


class Folded(nn.Module):
    """The batch in windows before one layer, and no batch at all before another and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.window, self.other, self.norm = nn.Linear(4, 4), nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.window(x.reshape(-1, 3, 4)).reshape(len(x), 6, 3, 4)
        bias = self.norm(self.other(torch.ones(1, 4)))
        return self.head(y.mean((2, 3)) + bias)


def test_only_what_has_the_batch_first_is_shared() -> None:
    network, x = Folded(), torch.randn(10, 6, 3, 4)
    outcome = run(network, x, sharing_of(network, means=COARSE))
    assert outcome.ids.keys() == {"window.weight", "head.weight"}
    assert outcome.statistics.keys() == {"window.bias", "head.bias"}
    torch.testing.assert_close(outcome.logits.chunk(2)[0], network(x).detach())


class Reused(nn.Module):
    """One layer twice, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.again(self.again(x).relu()).relu()).relu())


def test_layers_used_twice_keep_the_ids_of_the_first_time() -> None:
    network, x = Reused().eval(), torch.randn(40, 6)
    own = network.state_dict(keep_vars=True)
    tensors = {name: tensor for name, tensor in own.items() if name != "second.weight"}
    sharing = {name: each for name, each in sharing_of(network, means=COARSE).items() if name in tensors}
    options = LockstepOptions(penalty=0.0, damping=0.02, paths=2, sweeps=1, synthetic=False)
    outcome = run_in_lockstep(network, tensors, x, sharing, options)
    assert outcome.ids.keys() == {"again.weight", "first.weight"}
    state = compressed(network, sharing, outcome)
    other = Reused().eval()
    other.load_state_dict(state | {"second.weight": state["first.weight"]})
    torch.testing.assert_close(outcome.logits.chunk(2)[1], other(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("match", [False, True])
def test_the_network_and_the_inputs_are_not_changed(match: bool) -> None:
    network, x = Small(), images()
    weights, inputs = {name: tensor.clone() for name, tensor in network.state_dict().items()}, x.clone()
    run(network, x, sharing_of(network, means=COARSE), synthetic=match)
    assert torch.equal(x, inputs)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert not any(module.training for module in network.modules())
