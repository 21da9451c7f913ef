"""Uses caught in a forward pass, whatever the network's modules look like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from layer_kinds import KINDS
from lockstep_runs import read, twin_of
from torch import nn
from torch.nn import functional

from gbnn_compress.calibration.interceptor import intercepted, unfused
from gbnn_compress.calibration.uses import AnyUse, BiasUse, Lookup, NormUse, Use
from gbnn_compress.predict.forward import Forward

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:.*even kernel", "ignore:LSTM with projections"),
]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def answered(use: AnyUse) -> torch.Tensor | None:
    """As torch would."""
    if isinstance(use, NormUse):
        return use.normalise(use.mean, use.variance)
    return None if isinstance(use, Lookup) else use.run()


def caught(network: nn.Module, *inputs: Any, without: tuple[str, ...] = ()) -> tuple[list[AnyUse], Any]:
    """All uses in a forward pass, each answered as torch would, and the output."""
    uses: list[AnyUse] = []

    def on_use(use: AnyUse) -> torch.Tensor | None:
        uses.append(use)
        return answered(use)

    own = network.state_dict(keep_vars=True)
    with intercepted({name: tensor for name, tensor in own.items() if name not in without}, on_use):
        output = network(*inputs)
    return uses, output


def products(uses: list[AnyUse]) -> list[Use]:
    return [use for use in uses if isinstance(use, Use)]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_caught_uses_give_the_outputs_that_torch_gives(kind: Any) -> None:
    network, batch, forward = kind.network().eval(), read(kind.batches())[0], Forward()
    twin, uses = twin_of(network), list[AnyUse]()

    def on_use(use: AnyUse) -> torch.Tensor | None:
        uses.append(use)
        return answered(use)

    with torch.no_grad(), unfused():
        wanted = next(iter(forward.chosen(forward(network, batch)).values()))
        with intercepted(twin.tensors, on_use):
            got = next(iter(forward.chosen(forward(twin.copied(), batch)).values()))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert {use.name for use in products(uses)} == set(kind.reached)
    for use in products(uses):
        assert use.run().shape[use.axis] % use.weight.shape[-1 if use.transposed else 0] == 0 or use.geometry


class Functional(nn.Module):
    """Calls in all spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.matrix = nn.Parameter(torch.randn(5, 4))
        self.foreign = nn.Parameter(torch.randn(5, 5))
        self.register_buffer("running_mean", torch.randn(4))
        self.register_buffer("running_var", torch.rand(4) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.conv2d(input=x, weight=self.kernel, padding="valid")
        y = functional.batch_norm(y, self.running_mean, running_var=self.running_var)
        y = functional.linear(y.mean((2, 3)), self.matrix)
        return functional.linear(y, self.foreign * 2) + functional.linear(input=y, weight=self.foreign)


class Subclass(nn.Conv2d):
    """A layer by another name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(2 * x)


def test_functional_calls_are_caught_and_foreign_weights_are_not() -> None:
    network, x = Functional(), torch.randn(2, 3, 6, 6)
    uses, y = caught(network, x, without=("foreign",))
    assert [use.name for use in products(uses)] == ["kernel", "matrix"]
    assert [use.prefix for use in uses if isinstance(use, NormUse)] == [""]
    geometry = products(uses)[0].geometry
    assert geometry is not None
    assert (geometry.stride, geometry.padding, geometry.dilation, geometry.groups) == ((1, 1), (0, 0), (1, 1), 1)
    assert torch.equal(products(uses)[0].weight, network.kernel)
    torch.testing.assert_close(y, network(x))


def test_layers_are_known_by_their_weights_whatever_their_class() -> None:
    network = nn.Sequential(Subclass(3, 4, 3), nn.BatchNorm2d(4, eps=0.1), nn.Flatten(), nn.LazyLinear(2)).eval()
    network(torch.randn(2, 3, 5, 5))
    uses, y = caught(network, torch.ones(2, 3, 5, 5))
    assert [use.name for use in products(uses)] == ["0.weight", "3.weight"]
    assert [(use.prefix, use.eps) for use in uses if isinstance(use, NormUse)] == [("1.", 0.1)]
    assert torch.equal(products(uses)[0].x, torch.full((2, 3, 5, 5), 2.0))
    torch.testing.assert_close(y, network(torch.ones(2, 3, 5, 5)))


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Bilinear(3, 3, 4, bias=False), lambda: (torch.randn(2, 3), torch.randn(2, 3))),
        (nn.BatchNorm2d(3, track_running_stats=False), lambda: (torch.randn(2, 3, 8, 8),)),
        (nn.BatchNorm2d(3).train(), lambda: (torch.randn(2, 3, 8, 8),)),
        (nn.LayerNorm(8), lambda: (torch.randn(2, 3, 8),)),
        (nn.GroupNorm(1, 3), lambda: (torch.randn(2, 3, 8),)),
        (nn.PReLU(3), lambda: (torch.randn(2, 3, 8),)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_other_layers_are_left_alone(layer: nn.Module, inputs: Any) -> None:
    given = inputs()
    uses, y = caught(layer, *given)
    assert products(uses) == []
    assert not any(isinstance(use, NormUse) for use in uses)
    assert torch.equal(y, layer(*given))


class Queries(nn.Module):
    """Learned queries, which are the only inputs of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.layer = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.queries.expand(len(x), 3, 4)) + x[:, None]


def test_a_layer_may_see_parameters() -> None:
    uses, _ = caught(Queries(), torch.randn(2, 5))
    assert [use.name for use in products(uses)] == ["layer.weight"]


def test_of_two_factors_the_second_is_the_weight() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ (self.left @ self.right)

    uses, _ = caught(Both(), torch.randn(2, 3))
    assert [use.name for use in products(uses)] == ["right"]


def test_rows_that_are_looked_up() -> None:
    tokens = torch.tensor([[1, 2, 2], [5, 1, 0]])
    uses, _ = caught(nn.Embedding(6, 4), tokens)
    assert [(type(use), use.name) for use in uses] == [(Lookup, "weight")]
    assert torch.equal(uses[0].indices, tokens)
    uses, _ = caught(nn.EmbeddingBag(6, 4), tokens)
    assert [torch.equal(use.indices, tokens.reshape(-1)) for use in uses if isinstance(use, Lookup)] == [True]


def test_a_bias_that_is_added_by_itself() -> None:
    layer = nn.Linear(4, 3)
    uses, y = caught(layer, torch.randn(2, 4)[:, None].expand(2, 5, 4).transpose(0, 1))
    biases = [use.name for use in uses if isinstance(use, BiasUse)]
    biases += [use.name for use in products(uses) if use.bias is not None]
    assert biases in (["bias"], ["weight"])
    assert y.shape == (5, 2, 3)


def test_outside_the_context_nothing_is_caught() -> None:
    layer, seen = nn.Linear(2, 2), list[AnyUse]()
    with intercepted(layer.state_dict(keep_vars=True), seen.append):
        layer(torch.ones(1, 2))
    layer(torch.ones(1, 2))
    assert [use.name for use in products(seen)] == ["weight"]


def test_an_answer_takes_the_place_of_the_output() -> None:
    layer, answer = nn.Linear(2, 2), torch.full((1, 2), 7.0)
    with intercepted(layer.state_dict(keep_vars=True), lambda use: answer):
        assert torch.equal(layer(torch.ones(1, 2)), answer)


def test_no_gradients_are_kept_even_where_the_network_wants_them() -> None:
    layer = nn.Linear(2, 2)
    with intercepted(layer.state_dict(keep_vars=True), answered):
        assert not layer(torch.ones(1, 2)).requires_grad


def test_exceptions_of_the_network_come_through_and_end_the_interception() -> None:
    class Fails(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no")

    layer, seen = Fails(2, 2), list[AnyUse]()
    with pytest.raises(ValueError, match="no"), intercepted(layer.state_dict(keep_vars=True), seen.append):
        layer(torch.ones(1, 2))
    functional.linear(torch.ones(1, 2), layer.weight)
    assert seen == []


@pytest.mark.parametrize("enabled", [True, False])
def test_transformers_run_layer_by_layer_only_within_the_context(enabled: bool) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        with unfused():
            assert not torch.backends.mha.get_fastpath_enabled()
        assert torch.backends.mha.get_fastpath_enabled() is enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"bidirectional": True, "num_layers": 2}])
def test_steps_of_an_lstm_are_those_of_torch(options: dict[str, Any]) -> None:
    layer, x = nn.LSTM(5, 4, **options).eval(), torch.randn(7, 3, 5)
    uses, (y, (hidden, cell)) = caught(layer, x)
    wanted, (wanted_hidden, wanted_cell) = layer(x)
    for got, each in ((y, wanted), (hidden, wanted_hidden), (cell, wanted_cell)):
        torch.testing.assert_close(got, each, rtol=1e-5, atol=1e-6)
    assert sum(use.name == "weight_hh_l0" for use in products(uses)) == 7
