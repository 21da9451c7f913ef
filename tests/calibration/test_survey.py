"""What a survey sees, against loops, autograd and formulas by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lockstep_runs import Snapshot, correlated, read, twin_of
from torch import nn

from gbnn_compress.calibration.blocks import LONGEST_BLOCK, Block, column_blocks
from gbnn_compress.calibration.channels import channel_moments
from gbnn_compress.calibration.feedback import inverse_factor
from gbnn_compress.calibration.interceptor import intercepted
from gbnn_compress.calibration.moments import collected, whole
from gbnn_compress.calibration.positions import Sampler
from gbnn_compress.calibration.survey import LayerStatistics, survey, trusted
from gbnn_compress.calibration.together import Inputs
from gbnn_compress.calibration.tracing import Trace, trace
from gbnn_compress.calibration.uses import Use
from gbnn_compress.predict.forward import Forward

pytestmark = pytest.mark.usefixtures("one_thread")


def surveyed(network: nn.Module, batches: Any, **options: Any) -> dict[str, LayerStatistics]:
    defaults = {"damping": 0.0, "match_batch_norm": False}
    twin = twin_of(network)
    traced, _ = trace(twin, read(batches), Forward())
    return survey(twin, Inputs(read(batches), Forward(), traced), **{**defaults, **options})


def traced(network: nn.Module, batches: Any) -> Trace:
    return trace(twin_of(network), read(batches), Forward())[0]


def sampled(network: nn.Module, batches: Any, name: str) -> torch.Tensor:
    """All patches that a weight sees, (groups, n, d)."""
    twin, forward = twin_of(network), Forward()
    (piece,) = (each for each in trace(twin, read(batches), forward)[0].pieces.values() if each.name == name)
    sampler = Sampler(piece)
    for i, batch in enumerate(read(batches)):

        def on_use(use: Any, i: int = i) -> None:
            if isinstance(use, Use) and use.name == name:
                sampler.add(i, use)

        with intercepted(twin.tensors, on_use):
            forward(twin.copied(), batch)
    assert sampler.complete
    return sampler.patches(0)


def covariance(patches: torch.Tensor) -> np.ndarray:
    """Centred, float64 (G, d, d), of patches (G, n, d)."""
    block = Block(lambda operand: operand, patches.shape[2], lambda use: 0, lambda use, positions: patches)
    return whole(collected(block, None, patches, centred=True), 0).covariance(0, centred=True)


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
    seen = surveyed(Twice().eval(), torch.randn(20, 4))
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
    untouched, inputs = Snapshot.of(network), x.clone()
    surveyed(network, x)
    assert torch.equal(x, inputs)
    assert untouched.equals(network)


def test_covariance(generator: torch.Generator) -> None:
    a, b = (torch.randn(2, 50, 3, generator=generator).double() + 4 for _ in range(2))
    for g in range(2):
        both = np.cov(a[g].numpy().T, b[g].numpy().T, bias=True)
        np.testing.assert_allclose(covariance(a)[g], both[:3, :3], atol=1e-12)


def test_few_samples_are_trusted_less_and_none_fails() -> None:
    patches = torch.randn(1, 2, 30, generator=torch.Generator().manual_seed(0)).double()
    assert np.linalg.eigvalsh(trusted(covariance(patches), n_samples=patches.shape[1], damping=0.01))[0, 0] > 0
    assert np.linalg.eigvalsh(trusted(covariance(0 * patches), n_samples=patches.shape[1], damping=0.0))[0, 0] > 0


@pytest.mark.parametrize("width", [1, 9, LONGEST_BLOCK, LONGEST_BLOCK + 1, 5 * LONGEST_BLOCK - 3])
def test_column_blocks_cover_every_column_once(width: int) -> None:
    blocks = column_blocks(width)
    assert [j for block in blocks for j in range(width)[block]] == list(range(width))
    lengths = [block.stop - block.start for block in blocks]
    assert max(lengths) <= LONGEST_BLOCK
    assert max(lengths) - min(lengths) <= 1


class States(nn.Module):
    """An LSTM's outputs at all steps."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


def states_in_a_loop(layer: nn.LSTM, x: torch.Tensor) -> torch.Tensor:
    """The hidden states that an LSTM's hidden matrix sees, (T * B, H), step by step."""
    w_input, w_hidden, b_input, b_hidden = (each.detach() for each in layer.all_weights[0])
    hidden = cell = torch.zeros(x.shape[1], layer.hidden_size)
    seen = []
    for step in x:
        seen.append(hidden)
        i, f, g, o = (step @ w_input.T + b_input + hidden @ w_hidden.T + b_hidden).chunk(4, dim=1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
    return torch.cat(seen)


@pytest.mark.parametrize("several", [False, True])
def test_an_lstms_covariance_is_that_of_its_states_over_all_steps(generator: torch.Generator, several: bool) -> None:
    torch.manual_seed(0)
    network = States().eval()
    lengths = (7, 3, 9) if several else (8,)
    batches = [torch.randn(length, 4, 5, generator=generator).cumsum(0) for length in lengths]
    states = torch.cat([states_in_a_loop(network.lstm, x) for x in batches])
    patches = sampled(network, batches, "lstm.weight_hh_l0")
    torch.testing.assert_close(patches[0], states, rtol=1e-5, atol=1e-6)
    expected = np.cov(states.double().numpy().T, bias=True)
    np.testing.assert_allclose(covariance(patches)[0], expected, rtol=1e-4, atol=1e-7)
    inputs = sampled(network, batches, "lstm.weight_ih_l0")
    torch.testing.assert_close(inputs[0], torch.cat([x.reshape(-1, 5) for x in batches]))
    seen = surveyed(network, batches)["lstm.weight_hh_l0"]
    hessian = trusted(expected[None], n_samples=len(states), damping=0.0)
    factor = inverse_factor(hessian)
    assert seen.column == pytest.approx(float((1 / np.diag(factor[0]) ** 2).mean()), rel=1e-3)
    assert seen.column * seen.gain == pytest.approx(float(np.diag(hessian[0]).mean()), rel=1e-3)
    assert seen.calls == max(lengths)


def test_batches_count_as_one(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    network = nn.Conv1d(2, 3, 3)
    x = torch.randn(9, 2, 12, generator=generator)
    whole, parts = surveyed(network, x)["weight"], surveyed(network, [x[:2], x[2:7], x[7:]])["weight"]
    assert parts.column == pytest.approx(whole.column)
    assert parts.gain == pytest.approx(whole.gain)
    assert parts.calls == whole.calls == 1


def test_many_patches_are_sampled_alike(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gbnn_compress.calibration.blocks.FEWEST_SAMPLES", 0)
    monkeypatch.setattr("gbnn_compress.calibration.blocks.SAMPLES_PER_WEIGHT", 2)
    torch.manual_seed(0)
    layer, x = nn.Conv2d(2, 3, 3, padding=1, stride=2), torch.randn(8, 2, 11, 11, generator=generator)
    first, second = sampled(layer, [x[:3], x[3:]], "weight"), sampled(layer, [4 * x[:3], 4 * x[3:]], "weight")
    assert first.shape[1] == 2 * layer.weight[0].numel()
    assert torch.equal(second, 4 * first)
    everything = (layer(x) - layer.bias[:, None, None]).detach().movedim(1, -1).reshape(-1, 3)
    made = first[0] @ layer.weight.detach().reshape(3, -1).T
    assert float(torch.cdist(made.double(), everything.double()).min(dim=1).values.max()) < 1e-5


def test_the_order_is_that_of_the_calls() -> None:
    found = traced(Small(), torch.randn(4, 1, 5, 5))
    assert [found.pieces[key].name if key in found.pieces else key for key in found.order] == [
        "conv.weight",
        ("norm", "norm."),
        "head.weight",
    ]
    assert found.outputs["output"].shape == (4, 4)


def test_what_the_inputs_do_not_reach_is_not_traced() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.idle(x) if len(x) > 100 else self.used(x)

    assert surveyed(Branch(), torch.randn(20, 3)).keys() == {"used.weight"}
    assert surveyed(Branch(), [torch.randn(20, 3), torch.randn(101, 3)]).keys() == {"used.weight", "idle.weight"}


def test_rows_of_tables_are_counted() -> None:
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    batches = [torch.tensor([[0, 1, 1]]), torch.tensor([[4, 1, 0]])]
    assert traced(network, batches).lookups["0.weight"].tolist() == [2, 3, 0, 0, 1]


def test_a_mean_that_nothing_corrects_counts(generator: torch.Generator) -> None:
    x = torch.randn(2000, 4, generator=generator) + 3
    for network, expected in ((nn.Linear(4, 3), 1), (nn.Linear(4, 3, bias=False), 10)):
        seen = surveyed(network, x)["weight"]
        assert seen.column * seen.gain == pytest.approx(expected, rel=0.1)
    normed = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3))
    seen = surveyed(normed, x)["0.weight"]
    assert seen.column * seen.gain == pytest.approx(1, rel=0.1)


def test_a_bias_that_is_added_by_itself_corrects_the_mean(generator: torch.Generator) -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.matrix + self.bias

    seen = surveyed(Apart(), torch.randn(2000, 4, generator=generator) + 3)["matrix"]
    assert seen.column * seen.gain == pytest.approx(1, rel=0.1)


def test_errors_of_a_computed_weights_source_cost_what_they_do_to_the_weight(generator: torch.Generator) -> None:
    """Rows of a source that is ten times the weight: a unit error of the source is a tenth of the weight's."""
    torch.manual_seed(0)
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    x = torch.randn(500, 6, generator=generator)
    first = surveyed(layer, x)["parametrizations.weight.original1"]
    with torch.no_grad():
        layer.parametrizations.weight.original1.mul_(10)
    second = surveyed(layer, x)["parametrizations.weight.original1"]
    assert second.column == pytest.approx(first.column / 100, rel=1e-3)
    assert second.gain == pytest.approx(first.gain, rel=1e-3)


@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 5, 5), 1), ((4, 5, 3), -1), ((6, 3), 1)])
def test_channel_moments(generator: torch.Generator, shape: tuple[int, ...], axis: int) -> None:
    offset = torch.arange(3.0).reshape([3 if i == axis % len(shape) else 1 for i in range(len(shape))])
    y = torch.randn(*shape, generator=generator) + offset
    channels = y.double().movedim(axis, 0).reshape(3, -1)
    for parts in ([y], [y[:1], y[1:3], y[3:]]):
        mean, variance = channel_moments(parts, axis=axis)
        torch.testing.assert_close(mean, channels.mean(dim=1))
        torch.testing.assert_close(variance, channels.var(dim=1, correction=0))


def test_correlated_inputs_are_cheaper_by_the_gain() -> None:
    torch.manual_seed(0)
    assert surveyed(nn.Linear(16, 4), correlated(400, 16))["weight"].gain > 2
    assert surveyed(nn.Linear(16, 4), torch.randn(4000, 16))["weight"].gain == pytest.approx(1, abs=0.05)


def test_covariance_of_inputs_that_all_but_vanish_keeps_its_digits() -> None:
    inputs = torch.randn(1, 50, 6, generator=torch.Generator().manual_seed(0))
    expected = covariance(inputs.double())
    np.testing.assert_allclose(covariance(1e-22 * inputs) * 1e44, expected, rtol=1e-5)
