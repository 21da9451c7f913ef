"""Original and compressed network side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from lockstep_runs import (
    COARSE,
    Snapshot,
    compressed,
    correlated,
    in_lockstep,
    names_of,
    nearest,
    outputs_of,
    sharing_of,
)
from torch import nn

from gbnn_compress.calibration.side_by_side import VARIANCE_RANGE, SideBySide
from gbnn_compress.predict.forward import Forward

pytestmark = pytest.mark.usefixtures("one_thread")


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


def logits(outcome: SideBySide) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of both networks, over all batches."""
    before, after = (torch.cat([each["output"] for each in side]) for side in (outcome.before, outcome.after))
    return before, after


def with_state(network: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    other = type(network)().eval()
    other.load_state_dict(state)
    return other


def channel_means(y: torch.Tensor) -> torch.Tensor:
    return y.transpose(0, 1).reshape(y.shape[1], -1).mean(dim=1)


@pytest.mark.parametrize("match", [False, True])
def test_weights_on_the_bank_change_nothing(match: bool) -> None:
    network, x = Small(), images()
    sharing = sharing_of(network)
    outcome = in_lockstep(network, x, sharing, synthetic=match)
    assert outcome.ids.keys() == sharing.keys()
    state = compressed(network, sharing, outcome)
    for name, tensor in network.state_dict().items():
        assert torch.equal(state[name], tensor)
    before, after = logits(outcome)
    assert torch.equal(before, after)
    if not match:
        torch.testing.assert_close(before, network(x).detach())


def test_the_second_half_is_the_compressed_network() -> None:
    network, x = Small(), images()
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, x, sharing)
    before, after = logits(outcome)
    torch.testing.assert_close(before, network(x).detach())
    other = with_state(network, compressed(network, sharing, outcome))
    torch.testing.assert_close(after, other(x).detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after, atol=1e-2)


def test_batch_norms_give_the_mean_that_they_gave() -> None:
    network, x = Small().eval(), images() + 1
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, x, sharing)
    other = with_state(network, compressed(network, sharing, outcome))
    wanted, got = (channel_means(each.features(x).detach()) for each in (network, other))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_noise_moves_means_by_as_much_as_the_inputs_own_mean_moves() -> None:
    network, x = Small().eval(), images() + 1
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, x, sharing, synthetic=True)
    other = with_state(network, compressed(network, sharing, outcome))
    before, after = (channel_means(each.conv(x).detach()) for each in (network, other))
    moved = outcome.statistics["norm.running_mean"] - network.norm.running_mean
    torch.testing.assert_close(moved, after - before, rtol=1e-4, atol=1e-4)


def test_variances_follow_the_inputs_within_bounds() -> None:
    network, x = Small().eval(), images()
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, x, sharing)
    other = with_state(network, compressed(network, sharing, outcome))
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
    outcome = in_lockstep(network, images(), sharing_of(network, means=COARSE))
    assert outcome.statistics["norm.running_var"][3] == network.norm.running_var[3]


def test_biases_give_the_mean_that_they_gave() -> None:
    network, x = Small().eval(), images()
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, x, sharing)
    assert outcome.statistics.keys() == {"norm.running_mean", "norm.running_var", "grouped.bias", "head.bias"}
    before, after = logits(outcome)
    torch.testing.assert_close(after.mean(dim=0), before.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_feedback_comes_nearer_than_the_nearest_components() -> None:
    network, x = Small().eval(), images(60)
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, x, sharing, sweeps=2)
    before, after = logits(outcome)
    other = with_state(network, nearest(network, sharing))
    assert (after - before).square().sum() < 0.3 * (other(x).detach() - before).square().sum()


def test_exact_weights_stay() -> None:
    network, x = Small(), images()
    sharing = sharing_of(network, means=COARSE)
    for each in sharing.values():
        each.exact[::5] = True
    outcome = in_lockstep(network, x, sharing)
    state = compressed(network, sharing, outcome)
    for name, each in sharing.items():
        assert ((outcome.ids[name] == len(COARSE)) == each.exact).all()
        assert torch.equal(state[name].ravel()[::5], network.state_dict()[name].ravel()[::5])


def test_layers_that_are_not_to_be_shared_keep_their_weights() -> None:
    network = Small()
    sharing = sharing_of(network, means=COARSE, without=("grouped.weight",))
    assert in_lockstep(network, images(), sharing).ids.keys() == {"conv.weight", "head.weight"}


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


def test_any_leading_axes_will_do() -> None:
    network, x = Folded(), torch.randn(10, 6, 3, 4)
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, x, sharing)
    assert outcome.ids.keys() == {"window.weight", "other.weight", "head.weight"}
    before, after = logits(outcome)
    torch.testing.assert_close(before, network(x).detach())
    other = with_state(network, compressed(network, sharing, outcome))
    torch.testing.assert_close(after, other(x).detach(), rtol=1e-4, atol=1e-4)


class Reused(nn.Module):
    """One layer twice, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.again(self.again(x).relu()).relu()).relu())


class Looked(nn.Module):
    """A table that is looked up first and multiplied last, with a layer in between."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle, self.head = nn.Embedding(12, 6), nn.Linear(6, 6), nn.Linear(6, 12)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.table(x.long().abs() % 12).mean(1)).tanh())


class Turned(nn.Module):
    """A matrix and its transpose (an autoencoder with tied weights)."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.between = nn.Parameter(torch.randn(4, 6)), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.between((x @ self.matrix.T).relu()).relu() @ self.matrix


@pytest.mark.parametrize(
    ("network", "reached"),
    [
        (Reused, {"again.weight", "first.weight"}),
        (Looked, {"table.weight", "middle.weight"}),
        (Turned, {"matrix", "between.weight"}),
    ],
)
def test_tensors_used_twice_have_the_same_ids_both_times(network: Any, reached: set[str]) -> None:
    network, x = network().eval(), 10 * torch.randn(40, 6)
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, x, sharing)
    assert outcome.ids.keys() == reached
    other = with_state(network, compressed(network, sharing, outcome))
    before, after = logits(outcome)
    torch.testing.assert_close(before, network(x).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after, other(x).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("match", [False, True])
def test_the_network_and_the_inputs_are_not_changed(match: bool) -> None:
    network, x = Small().eval(), images()
    untouched, inputs = Snapshot.of(network), x.clone()
    in_lockstep(network, x, sharing_of(network, means=COARSE), synthetic=match)
    assert torch.equal(x, inputs)
    assert untouched.equals(network)


class Untidy(nn.Module):
    """Overwrites its inputs, and keeps a state from call to call in an attribute, a buffer and a closure."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("offset", torch.zeros(4))
        self.calls: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.sub_(0.5).relu_()
        self.offset += 1
        self.calls.append(x)
        y = self.first(x + self.offset).relu_()
        y *= len(self.calls)
        return self.second(y)


def test_networks_that_overwrite_inputs_and_keep_states_run_anew_on_each_batch() -> None:
    network, batches = Untidy().eval(), [torch.randn(n, 4) for n in (6, 3, 9)]
    untouched, inputs = Snapshot.of(network), [x.clone() for x in batches]
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, batches, sharing)
    assert outcome.ids.keys() == {"first.weight", "second.weight"}
    assert untouched.equals(network)
    assert network.calls == []
    assert all(torch.equal(x, before) for x, before in zip(batches, inputs, strict=True))
    other = compressed(network, sharing, outcome) | {"offset": torch.zeros(4)}
    for i, x in enumerate(inputs):
        torch.testing.assert_close(outcome.before[i]["output"], with_state(network, network.state_dict())(x.clone()))
        torch.testing.assert_close(outcome.after[i]["output"], with_state(network, other)(x.clone()))


def test_the_mode_and_gradients_of_the_users_network_stay() -> None:
    network, x = Small().eval(), images()
    network.conv.weight.requires_grad_(requires_grad=False)
    network.norm.register_forward_hook(lambda module, inputs, output: output)
    network.head.register_forward_pre_hook(lambda module, inputs: None)
    untouched = Snapshot.of(network)
    in_lockstep(network, x, sharing_of(network, means=COARSE))
    assert untouched.equals(network)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_batches_of_different_length_are_as_one() -> None:
    network, x = Small().eval(), images(30)
    sharing = sharing_of(network, means=COARSE)
    one, several = (in_lockstep(network, each, sharing) for each in (x, [x[:7], x[7:8], x[8:]]))
    same = [float((one.ids[name] == several.ids[name]).mean()) for name in sharing]
    assert min(same) > 0.95  # sums in another order may tip a choice
    assert [len(each["output"]) for each in several.after] == [7, 1, 22]
    for name, vector in one.statistics.items():
        torch.testing.assert_close(several.statistics[name], vector, rtol=0.2, atol=0.1)


class Branching(nn.Module):
    """Layers that only some batches reach, in another order for some, and one more often for longer batches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.even, self.odd, self.last = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        steps = [self.even, self.odd] if len(x) % 2 == 0 else [self.odd]
        for step in reversed(steps) if len(x) > 20 else steps:
            y = step(y.relu())
        return self.last(y.relu())


def test_ways_may_differ_between_batches() -> None:
    network = Branching().eval()
    batches = [correlated(n, 6) for n in (12, 7, 30, 9)]
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, batches, sharing)
    assert outcome.ids.keys() == sharing.keys()
    other = with_state(network, compressed(network, sharing, outcome))
    for i, x in enumerate(batches):
        torch.testing.assert_close(outcome.before[i]["output"], network(x).detach(), rtol=1e-4, atol=1e-5)
    same = [torch.allclose(outcome.after[i]["output"], other(x), atol=1e-4) for i, x in enumerate(batches)]
    assert same[0]


class Steps(nn.Module):
    """As many steps as a batch is long."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.step = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.start(x)
        for _ in range(len(x) // 4):
            y = self.step(y).tanh()
        return y


def test_the_number_of_steps_may_differ_between_batches() -> None:
    network, batches = Steps().eval(), [correlated(n, 6) for n in (4, 12, 8)]
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, batches, sharing)
    assert outcome.ids.keys() == sharing.keys()
    other = with_state(network, compressed(network, sharing, outcome))
    wanted, got = (torch.cat([each(x).detach() for x in batches]) for each in (network, other))
    plain = torch.cat([with_state(network, nearest(network, sharing))(x).detach() for x in batches])
    torch.testing.assert_close(logits(outcome)[1], got, rtol=1e-3, atol=1e-4)
    assert (got - wanted).square().sum() < (plain - wanted).square().sum()


class Deciding(nn.Module):
    """Which layer is used depends on what the layer before gives: the compressed network may go another way."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.gate(x)
        return self.left(y) if bool(y.sum() > 0) else self.right(y)


def test_the_networks_may_go_different_ways() -> None:
    network = Deciding().eval()
    batches = [torch.randn(2, 4) for _ in range(40)]
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, batches, sharing)
    assert outcome.ids.keys() == sharing.keys()
    for i, x in enumerate(batches):
        torch.testing.assert_close(outcome.before[i]["output"], network(x).detach())


def test_a_network_that_draws_random_numbers_draws_the_same_in_both() -> None:
    class Noisy(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + torch.randn_like(x)) + torch.randn(6)

    network, x, state = Noisy().eval(), torch.randn(20, 6), torch.random.get_rng_state()
    before, after = logits(in_lockstep(network, x, sharing_of(network)))
    assert torch.equal(before, after)
    torch.random.set_rng_state(state)
    in_lockstep(network, x, sharing_of(network, means=COARSE))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_exception_of_the_network_comes_through_and_leaves_it_alone() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            if len(x) == 3:
                raise ValueError("three is too few")
            return self.second(y)

    network = Fails().eval()
    untouched = Snapshot.of(network)
    with pytest.raises(ValueError, match="three is too few"):
        in_lockstep(network, [torch.randn(5, 4), torch.randn(3, 4)], sharing_of(network, means=COARSE))
    assert untouched.equals(network)


def test_a_forward_of_the_users_own_and_chosen_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.trunk(left - right)
            return {"a": self.a(y), "b": self.b(y)}

    network, pairs = Two().eval(), [{"u": torch.randn(6, 4), "v": torch.randn(6, 4)} for _ in range(2)]
    forward = Forward(lambda network, batch: network(batch["u"], batch["v"]), output="b")
    outcome = in_lockstep(network, pairs, sharing_of(network, means=COARSE), forward=forward)
    assert outcome.ids.keys() == {"trunk.weight", "a.weight", "b.weight"}
    assert [list(each) for each in outcome.after] == [["b"], ["b"]]
    both = in_lockstep(network, pairs, sharing_of(network), forward=Forward(forward.function))
    assert [list(each) for each in both.after] == [["a", "b"], ["a", "b"]]
    assert torch.equal(outputs_of(both.before), outputs_of(both.after))


def test_names_of_the_checkpoint_may_differ_from_the_networks() -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()
    x, own = torch.randn(30, 6), names_of(network)
    names = {f"module.{name}": mine for name, mine in own.items()}
    plain = in_lockstep(network, x, sharing_of(network, means=COARSE))
    outcome = in_lockstep(network, x, sharing_of(network, means=COARSE, names=names), names=names)
    assert outcome.ids.keys() == {f"module.{name}" for name in plain.ids}
    assert outcome.statistics.keys() == {f"module.{name}" for name in plain.statistics}
    for name, ids in plain.ids.items():
        assert np.array_equal(outcome.ids[f"module.{name}"], ids)


def test_vectors_that_may_not_be_touched_are_not_corrected() -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()
    names = {name: mine for name, mine in names_of(network).items() if name in ("0.weight", "2.weight", "2.bias")}
    outcome = in_lockstep(network, torch.randn(30, 6), sharing_of(network, means=COARSE, names=names), names=names)
    assert outcome.statistics.keys() == {"2.bias"}


def test_a_table_gets_the_ids_without_feedback() -> None:
    network = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 4)).eval()
    tokens = torch.randint(0, 9, (20, 5))
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, tokens, sharing)
    assert outcome.ids.keys() == {"1.weight"}
    other = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 4)).eval()
    other.load_state_dict(compressed(network, sharing, outcome))
    torch.testing.assert_close(logits(outcome)[1], other(tokens).detach(), rtol=1e-4, atol=1e-5)


def test_recurrent_biases_keep_the_mean_of_the_gates() -> None:
    torch.manual_seed(1)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0]

    network, x = Recurrent().eval(), correlated(12, 8, 4, along=(0,)) + 1
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, x, sharing)
    assert {"lstm.bias_ih_l0", "lstm.bias_hh_l0"} >= outcome.statistics.keys()
    assert outcome.statistics
    other = with_state(network, compressed(network, sharing, outcome))
    torch.testing.assert_close(logits(outcome)[1], other(x).detach(), rtol=1e-3, atol=1e-4)


def test_threads_change_no_bit() -> None:
    network = Small()
    sharing = sharing_of(network, means=COARSE)
    batches = list(images(40).split(8))
    one, two = (in_lockstep(network, batches, sharing, threads=threads) for threads in (1, 3))
    assert all(np.array_equal(one.ids[name], two.ids[name]) for name in sharing)
    assert all(torch.equal(vector, two.statistics[name]) for name, vector in one.statistics.items())
    assert all(torch.equal(a, b) for a, b in zip(logits(one), logits(two), strict=True))


def test_how_inputs_are_cut_into_batches_changes_nothing_but_rounding() -> None:
    network, x = Small(), images(40)
    sharing = sharing_of(network, means=COARSE)
    whole, parts = (in_lockstep(network, each, sharing) for each in (x, list(x.split(7))))
    same = [np.mean(whole.ids[name] == parts.ids[name]) for name in sharing]
    assert min(same) > 0.95
    for name, vector in whole.statistics.items():
        torch.testing.assert_close(parts.statistics[name], vector, rtol=0.1, atol=0.05)


def test_batches_beyond_the_memory_take_part_in_later_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gbnn_compress.calibration.tracing.find_stays", late)
    network, x = Small(), images(40)
    sharing = sharing_of(network, means=COARSE)
    outcome = in_lockstep(network, list(x.split(8)), sharing)
    before, after = logits(outcome)
    assert len(before) == 32  # one batch ends after the first layer
    other = with_state(network, compressed(network, sharing, outcome))
    kept = torch.cat([x[:8], x[16:]])
    torch.testing.assert_close(before, network(kept).detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after, other(kept).detach(), rtol=1e-4, atol=1e-4)


def late(held: np.ndarray, weights: np.ndarray) -> list[range]:
    """The first batch everywhere, one only in the first layer, and the others only from the second layer on."""
    places = held.shape[1]
    return [range(places), range(1), *[range(2, places)] * (len(held) - 2)]
