"""Layers caught in a forward pass, and what their filters see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from gbnn_compress.calibration import interceptor
from gbnn_compress.calibration.interceptor import Call, Interceptor, NormCall, channel_moments, sampled_patches


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def caught(network: nn.Module, *inputs: Any, without: tuple[str, ...] = ()) -> tuple[list[Call], list[NormCall], Any]:
    """All calls in a forward pass, each answered as torch would, and the output."""
    layers: list[Call] = []
    norms: list[NormCall] = []

    def on_layer(call: Call) -> torch.Tensor:
        layers.append(call)
        return call.run(call.x, call.weight, call.bias)

    def on_norm(call: NormCall) -> torch.Tensor:
        norms.append(call)
        return call.normalise(call.x, call.mean, call.variance)

    own = network.state_dict(keep_vars=True)
    tensors = {name: tensor for name, tensor in own.items() if name not in without}
    with torch.no_grad(), Interceptor(tensors, on_layer=on_layer, on_norm=on_norm):
        output = network(*inputs)
    return layers, norms, output


def outputs_from_patches(call: Call, patches: torch.Tensor) -> torch.Tensor:
    """float64 (n, rows): what filters make of the patches (groups, n, d)."""
    groups, n, width = patches.shape
    filters = call.weight.detach().double().reshape(groups, -1, width)
    return torch.einsum("gnd,grd->ngr", patches.double(), filters).reshape(n, -1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"stride": (1, 3), "padding": (2, 0)},
        {"padding": 1, "dilation": 2},
        {"padding": "valid", "dilation": (1, 2)},
        {"groups": 2, "padding": 1},
        {"groups": 4, "stride": 2, "padding": 1},
    ],
)
@pytest.mark.parametrize("kernel", [3, (2, 3), 1])
def test_patches_of_a_convolution_are_those_of_unfold(kernel: Any, options: dict[str, Any]) -> None:
    layer = nn.Conv2d(4, 8, kernel, bias=False, **options)
    x = torch.randn(3, 4, 9, 10)
    (call,), _, y = caught(layer, x)
    assert torch.equal(y, layer(x))
    (patches,) = sampled_patches(call, [x], seed=0)
    groups, width = layer.groups, layer.weight[0].numel()
    assert patches.shape == (groups, y[:, 0].numel(), width)
    assert patches.dtype == x.dtype
    padding = 0 if layer.padding == "valid" else layer.padding
    unfolded = functional.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)  # n, groups * d, places
    expected = unfolded.reshape(3, groups, width, -1).permute(1, 0, 3, 2).reshape(groups, -1, width)
    assert torch.equal(patches, expected)
    made = outputs_from_patches(call, patches)
    torch.testing.assert_close(made, y.double().permute(0, 2, 3, 1).reshape(len(made), -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 6), (5, 7, 6), (2, 3, 4, 6)])
def test_patches_of_a_linear_layer_are_its_inputs(shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape)
    (call,), _, _ = caught(nn.Linear(6, 2), x)
    (patches,) = sampled_patches(call, [x], seed=0)
    assert call.geometry is None
    assert call.groups == 1
    assert torch.equal(patches, x.reshape(1, -1, 6))


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.Linear(11, 3)])
def test_many_positions_are_sampled_alike_in_every_input(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "FEWEST_SAMPLES", 0)
    monkeypatch.setattr(interceptor, "SAMPLES_PER_WEIGHT", 2)
    x = torch.randn(8, 2, 11, 11)
    (call,), _, y = caught(layer, x)
    first, second = sampled_patches(call, [x, 4 * x], seed=0)
    assert first.shape[1] == 2 * call.weight[0].numel()
    assert torch.equal(second, 4 * first)
    assert torch.equal(first, sampled_patches(call, [x], seed=0)[0])
    assert not torch.equal(first, sampled_patches(call, [x], seed=1)[0])
    everything = y.movedim(1, -1) if call.geometry else y
    made = outputs_from_patches(call, first) + layer.bias.detach().double()
    distances = torch.cdist(made, everything.reshape(-1, 3).double()).min(dim=1).values
    assert float(distances.max()) < 1e-5


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
    layers, norms, y = caught(network, x, without=("foreign",))
    assert [call.name for call in layers] == ["kernel", "matrix"]
    assert [norm.prefix for norm in norms] == [""]
    assert layers[0].geometry == ((1, 1), (0, 0), (1, 1), 1)
    assert layers[0].weight is network.kernel
    assert torch.equal(y, network(x))


def test_layers_are_known_by_their_weights_whatever_their_class() -> None:
    network = nn.Sequential(Subclass(3, 4, 3), nn.BatchNorm2d(4, eps=0.1), nn.Flatten(), nn.LazyLinear(2)).eval()
    network(torch.randn(2, 3, 5, 5))
    layers, norms, y = caught(network, torch.ones(2, 3, 5, 5))
    assert [call.name for call in layers] == ["0.weight", "3.weight"]
    assert [(norm.prefix, norm.eps) for norm in norms] == [("1.", 0.1)]
    assert torch.equal(layers[0].x, torch.full((2, 3, 5, 5), 2.0))
    assert torch.equal(y, network(torch.ones(2, 3, 5, 5)))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 4, 3), (2, 3, 8)),
        (nn.Conv3d(3, 4, 3), (2, 3, 5, 5, 5)),
        (nn.ConvTranspose2d(3, 4, 3), (2, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3), (3, 8, 8)),
        (nn.Bilinear(3, 3, 4), None),
        (nn.BatchNorm2d(3, track_running_stats=False), (2, 3, 8, 8)),
        (nn.LayerNorm(8), (2, 3, 8)),
    ],
)
def test_other_layers_are_left_alone(layer: nn.Module, shape: tuple[int, ...] | None) -> None:
    inputs = (torch.randn(2, 3), torch.randn(2, 3)) if shape is None else (torch.randn(*shape),)
    layers, norms, y = caught(layer, *inputs)
    assert (layers, norms) == ([], [])
    assert torch.equal(y, layer(*inputs))


def test_outside_the_context_nothing_is_caught() -> None:
    layer, seen = nn.Linear(2, 2), []

    def on_layer(call: Call) -> torch.Tensor:
        seen.append(call.name)
        return call.x

    interceptor = Interceptor(layer.state_dict(keep_vars=True), on_layer=on_layer, on_norm=lambda call: call.x)
    with interceptor:
        layer(torch.ones(1, 2))
    layer(torch.ones(1, 2))
    assert seen == ["weight"]


@pytest.mark.parametrize(
    ("shape", "linear", "axis"), [((4, 3, 5, 5), False, 1), ((4, 5, 3), True, 2), ((6, 3), True, 1)]
)
def test_channel_moments(shape: tuple[int, ...], linear: bool, axis: int) -> None:
    y = torch.randn(*shape) + torch.arange(3.0).reshape([3 if i == axis else 1 for i in range(len(shape))])
    mean, variance = channel_moments(y, linear=linear)
    channels = y.double().movedim(axis, 0).reshape(3, -1)
    torch.testing.assert_close(mean, channels.mean(dim=1))
    torch.testing.assert_close(variance, channels.var(dim=1, correction=0))
