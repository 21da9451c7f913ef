"""Networks of a single layer, one for every kind of layer that owns a matrix, with correlated inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lockstep_runs import COARSE, correlated
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations


@dataclass(frozen=True)
class LayerKind:
    """One kind of layer.

    Attributes:
        network: Makes the network.
        batches: Makes inputs.
        reached: Names of the weights that feedback is to reach.
        factor: Most of the nearest components' output error that is left with feedback.
        means: Components, in units of the weights' deviation.
    """

    network: Callable[[], nn.Module]
    batches: Callable[[], Any]
    reached: tuple[str, ...] = ("weight",)
    factor: float = 0.7
    means: np.ndarray = field(default_factory=lambda: COARSE)


class Applied(nn.Module):
    """A layer applied by a function."""

    def __init__(self, layer: nn.Module, function: Callable[[nn.Module, torch.Tensor], Any]) -> None:
        super().__init__()
        self.layer, self._function = layer, function

    def forward(self, x: torch.Tensor) -> Any:
        return self._function(self.layer, x)


class Own(nn.Module):
    """A matrix of its own."""

    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *shape: int) -> None:
        super().__init__()
        self.matrix, self._function = nn.Parameter(torch.randn(*shape)), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._function(x, self.matrix)


class Attention(nn.Module):
    """Attention of some queries to other keys."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, bias=False, **options)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return self.attention(queries, keys, keys, need_weights=False)[0]


class Cell(nn.Module):
    """A recurrent cell called step by step."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, outputs = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs)


class Twice(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(x).relu())


class Tied(nn.Module):
    """An embedding whose table is the output layer's matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, 16), nn.Linear(16, 30, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(tokens).cumsum(dim=1).tanh())


class Inference(nn.Module):
    """A layer in inference mode."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            y = self.layer(x)
            return y[0] if isinstance(y, tuple) else y


class ScaledRows(nn.Module):
    """A parametrisation that scales the rows."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * torch.linspace(0.5, 2.0, len(weight))[:, None]


def seen_by(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = layer(x)
    return y[0] if isinstance(y, tuple) else y


def first_output(layer: nn.Module) -> nn.Module:
    return Applied(layer, seen_by)


def scaled_rows(layer: nn.Linear) -> nn.Module:
    nn.utils.parametrize.register_parametrization(layer, "weight", ScaledRows())
    return layer


def trained(layer: nn.Module, *shape: int) -> nn.Module:
    """After some passes in training mode, in which the largest singular value is found."""
    for _ in range(30):
        layer(torch.ones(2, *shape))
    return layer


def vectors(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: correlated(*shape)


def signals(*shape: int) -> Callable[[], torch.Tensor]:
    """Correlated along all axes but the first two."""
    return lambda: correlated(*shape, along=tuple(range(2, len(shape)))) + torch.randn(shape[0], 1, *shape[2:])


def recurrent(layer: nn.Module) -> nn.Module:
    """With larger weights than torch's, so that states matter."""
    for name, weight in layer.named_parameters():
        if "weight" in name:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return layer


def recurrent_names(prefix: str, layers: int, *, both: bool = False) -> tuple[str, ...]:
    ends = ("", "_reverse") if both else ("",)
    return tuple(f"{prefix}weight_{which}_l{i}{end}" for i in range(layers) for end in ends for which in ("ih", "hh"))


FINE = np.linspace(-2, 2, 17)
"""Components so near that sharing hardly changes a filter's norm."""

STEPS = vectors(12, 10, 8)

KINDS: dict[str, LayerKind] = {
    "linear": LayerKind(lambda: nn.Linear(16, 8), vectors(200, 16)),
    "linear without bias": LayerKind(lambda: nn.Linear(16, 8, bias=False), vectors(200, 16)),
    "linear, 3-D": LayerKind(lambda: nn.Linear(16, 8), vectors(20, 10, 16)),
    "linear, 4-D": LayerKind(lambda: nn.Linear(16, 8), vectors(5, 4, 10, 16)),
    "linear, one vector": LayerKind(lambda: nn.Linear(16, 8, bias=False), lambda: [correlated(16) for _ in range(60)]),
    "linear, transposed input": LayerKind(
        lambda: Applied(nn.Linear(16, 8), lambda layer, x: layer(x.transpose(1, 2))),
        lambda: correlated(20, 16, 10, along=(1,)),
        ("layer.weight",),
    ),
    "linear, expanded input": LayerKind(
        lambda: Applied(nn.Linear(16, 8), lambda layer, x: layer(x[:, None].expand(-1, 3, -1))),
        vectors(100, 16),
        ("layer.weight",),
    ),
    "linear, every other input": LayerKind(
        lambda: Applied(nn.Linear(16, 8), lambda layer, x: layer(x[:, ::2, 3:19])),
        vectors(40, 10, 24),
        ("layer.weight",),
    ),
    "conv1d": LayerKind(lambda: nn.Conv1d(4, 8, 5), signals(8, 4, 40)),
    "conv1d, one signal": LayerKind(lambda: nn.Conv1d(4, 8, 5), lambda: correlated(4, 200)),
    "conv1d, all options": LayerKind(
        lambda: nn.Conv1d(4, 16, 5, stride=2, padding=3, dilation=2, groups=2), signals(16, 4, 40), factor=0.9
    ),
    "conv1d, reflected": LayerKind(lambda: nn.Conv1d(4, 8, 5, padding=2, padding_mode="reflect"), signals(8, 4, 40)),
    "conv2d": LayerKind(lambda: nn.Conv2d(3, 8, 3, padding=1), signals(8, 3, 9, 9)),
    "conv2d, groups": LayerKind(lambda: nn.Conv2d(4, 8, 3, groups=2, stride=2), signals(8, 4, 12, 12)),
    "conv2d, depthwise": LayerKind(lambda: nn.Conv2d(4, 16, 3, groups=4), signals(8, 4, 9, 9), factor=0.9),
    "conv2d, same": LayerKind(lambda: nn.Conv2d(3, 8, (3, 5), padding="same"), signals(8, 3, 9, 9)),
    "conv2d, same, even": LayerKind(lambda: nn.Conv2d(3, 8, 4, padding="same"), signals(8, 3, 9, 9)),
    "conv2d, channels last": LayerKind(
        lambda: nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last), signals(8, 3, 9, 9)
    ),
    "conv3d": LayerKind(lambda: nn.Conv3d(2, 8, 3, padding=(0, 1, 0)), signals(4, 2, 7, 7, 7)),
    "conv3d, all options": LayerKind(
        lambda: nn.Conv3d(4, 16, (1, 3, 3), stride=(1, 2, 1), dilation=(1, 1, 2), groups=2),
        signals(4, 4, 5, 9, 9),
        factor=0.9,
    ),
    "transposed conv1d": LayerKind(lambda: nn.ConvTranspose1d(4, 8, 5), signals(8, 4, 40)),
    "transposed conv1d, stride": LayerKind(lambda: nn.ConvTranspose1d(4, 8, 4, stride=2, padding=1), signals(8, 4, 40)),
    "transposed conv1d, all options": LayerKind(
        lambda: nn.ConvTranspose1d(4, 8, 5, stride=3, padding=1, output_padding=1, groups=2),
        signals(16, 4, 40),
        factor=0.9,
    ),
    "transposed conv1d, dilated": LayerKind(
        lambda: nn.ConvTranspose1d(6, 8, 3, dilation=2), signals(8, 6, 40), factor=0.9
    ),
    "transposed conv2d": LayerKind(lambda: nn.ConvTranspose2d(3, 8, 3), signals(8, 3, 9, 9)),
    "transposed conv2d, stride": LayerKind(
        lambda: nn.ConvTranspose2d(4, 8, 4, stride=2, padding=1, output_padding=1, groups=2),
        signals(8, 4, 9, 9),
        factor=0.9,
    ),
    "transposed conv2d, kernel as stride": LayerKind(
        lambda: nn.ConvTranspose2d(8, 4, 2, stride=2), signals(8, 8, 9, 9)
    ),
    "transposed conv3d": LayerKind(lambda: nn.ConvTranspose3d(3, 4, 3, stride=2), signals(4, 3, 4, 4, 4), factor=0.9),
    "attention, packed": LayerKind(
        lambda: Applied(
            nn.MultiheadAttention(16, 2, batch_first=True), lambda layer, x: layer(x, x, x, need_weights=False)[0]
        ),
        vectors(20, 10, 16),
        ("layer.in_proj_weight", "layer.out_proj.weight"),
    ),
    "attention, other keys": LayerKind(
        lambda: Attention(),
        lambda: {"queries": correlated(20, 6, 16), "keys": correlated(20, 9, 16)},
        ("attention.in_proj_weight", "attention.out_proj.weight"),
    ),
    "attention, separate": LayerKind(
        lambda: Attention(kdim=12, vdim=12),
        lambda: {"queries": correlated(20, 6, 16), "keys": correlated(20, 9, 12)},
        ("attention.out_proj.weight", *(f"attention.{each}_proj_weight" for each in "qkv")),
    ),
    "transformer": LayerKind(
        lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        vectors(20, 10, 16),
        ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"),
    ),
    "lstm": LayerKind(
        lambda: first_output(recurrent(nn.LSTM(8, 12, batch_first=True))), STEPS, recurrent_names("layer.", 1)
    ),
    "lstm, two layers, both ways": LayerKind(
        lambda: first_output(recurrent(nn.LSTM(8, 6, num_layers=2, bidirectional=True))),
        STEPS,
        recurrent_names("layer.", 2, both=True),
        factor=0.9,
    ),
    "lstm without bias": LayerKind(
        lambda: first_output(recurrent(nn.LSTM(8, 12, bias=False))), STEPS, recurrent_names("layer.", 1)
    ),
    "lstm, projected": LayerKind(
        lambda: first_output(recurrent(nn.LSTM(8, 12, proj_size=5))),
        STEPS,
        (*recurrent_names("layer.", 1), "layer.weight_hr_l0"),
        factor=0.8,
    ),
    "gru": LayerKind(lambda: first_output(recurrent(nn.GRU(8, 12))), STEPS, recurrent_names("layer.", 1)),
    "gru, both ways": LayerKind(
        lambda: first_output(recurrent(nn.GRU(8, 6, bidirectional=True))),
        STEPS,
        recurrent_names("layer.", 1, both=True),
        factor=0.9,
    ),
    "rnn": LayerKind(lambda: first_output(recurrent(nn.RNN(8, 12))), STEPS, recurrent_names("layer.", 1)),
    "rnn, relu, both ways": LayerKind(
        lambda: first_output(nn.RNN(8, 6, nonlinearity="relu", bidirectional=True)),
        STEPS,
        recurrent_names("layer.", 1, both=True),
        factor=0.9,
    ),
    "packed lstm": LayerKind(
        lambda: Applied(
            recurrent(nn.LSTM(8, 12, batch_first=True)),
            lambda layer, x: (
                layer(nn.utils.rnn.pack_padded_sequence(x, torch.arange(len(x), 0, -1).clamp(3, 10), batch_first=True))[
                    0
                ].data
            ),
        ),
        STEPS,
        recurrent_names("layer.", 1),
    ),
    "lstm cell": LayerKind(lambda: Cell(recurrent(nn.LSTMCell(8, 12))), STEPS, ("cell.weight_ih", "cell.weight_hh")),
    "gru cell": LayerKind(lambda: Cell(recurrent(nn.GRUCell(8, 12))), STEPS, ("cell.weight_ih", "cell.weight_hh")),
    "rnn cell": LayerKind(lambda: Cell(recurrent(nn.RNNCell(8, 12))), STEPS, ("cell.weight_ih", "cell.weight_hh")),
    "twice": LayerKind(Twice, vectors(200, 16), ("layer.weight",), factor=0.9),
    "tied": LayerKind(Tied, lambda: torch.randint(0, 30, (40, 12)), ("table.weight",), factor=1.1, means=FINE),
    "weight norm": LayerKind(
        lambda: parametrizations.weight_norm(nn.Linear(16, 8)),
        vectors(200, 16),
        ("parametrizations.weight.original1",),
        means=FINE,
    ),
    "weight norm, old": LayerKind(
        lambda: nn.utils.weight_norm(nn.Conv1d(4, 8, 5)), signals(8, 4, 40), ("weight_v",), means=FINE
    ),
    "weight norm, transposed": LayerKind(
        lambda: nn.utils.weight_norm(nn.ConvTranspose1d(4, 8, 4, stride=2)),
        signals(8, 4, 40),
        ("weight_v",),
        means=FINE,
    ),
    "spectral norm": LayerKind(
        lambda: trained(parametrizations.spectral_norm(nn.Linear(16, 8)), 16),
        vectors(200, 16),
        ("parametrizations.weight.original",),
        means=FINE,
    ),
    "spectral norm, old": LayerKind(
        lambda: trained(nn.utils.spectral_norm(nn.Conv2d(3, 8, 3)), 3, 5, 5),
        signals(8, 3, 9, 9),
        ("weight_orig",),
        means=FINE,
    ),
    "parametrised": LayerKind(
        lambda: scaled_rows(nn.Linear(16, 8)), vectors(200, 16), ("parametrizations.weight.original",)
    ),
    "traced": LayerKind(
        lambda: torch.jit.trace(nn.Sequential(nn.Linear(16, 8)).eval(), torch.randn(3, 16)),
        vectors(200, 16),
        ("0.weight",),
    ),
    "scripted": LayerKind(
        lambda: torch.jit.script(nn.Sequential(nn.Conv1d(4, 8, 5)).eval()), signals(8, 4, 40), ("0.weight",)
    ),
    "inference mode": LayerKind(lambda: Inference(nn.Linear(16, 8)), vectors(200, 16), ("layer.weight",)),
    "inference mode, convolution": LayerKind(
        lambda: Inference(nn.Conv2d(3, 8, 3, padding="same")), signals(8, 3, 9, 9), ("layer.weight",)
    ),
    "inference mode, lstm": LayerKind(
        lambda: Inference(recurrent(nn.LSTM(8, 12))), STEPS, recurrent_names("layer.", 1)
    ),
    "product": LayerKind(lambda: Own(torch.matmul, 16, 8), vectors(200, 16), ("matrix",)),
    "product from the left": LayerKind(
        lambda: Own(lambda x, matrix: matrix @ x.T, 8, 16), vectors(200, 16), ("matrix",)
    ),
    "product, transposed": LayerKind(
        lambda: Own(lambda x, matrix: x @ matrix.T, 8, 16), vectors(40, 5, 16), ("matrix",)
    ),
    "matrices of many groups": LayerKind(lambda: Own(torch.bmm, 3, 16, 8), lambda: correlated(3, 100, 16), ("matrix",)),
    "shared by all of a batch": LayerKind(
        lambda: Own(lambda x, matrix: matrix @ x, 8, 16), lambda: correlated(20, 16, 10, along=(1,)), ("matrix",)
    ),
    "einsum": LayerKind(
        lambda: Own(lambda x, matrix: torch.einsum("btd,kd->bkt", x, matrix), 8, 16), vectors(20, 10, 16), ("matrix",)
    ),
    "einsum, heads": LayerKind(
        lambda: Own(lambda x, matrix: torch.einsum("bthd,hdk->bthk", x, matrix), 2, 16, 4),
        vectors(20, 10, 2, 16),
        ("matrix",),
    ),
    "part of a matrix": LayerKind(
        lambda: Own(lambda x, matrix: functional.linear(x, matrix[:, 4:]), 8, 20), vectors(200, 16), ("matrix",)
    ),
    "addmm": LayerKind(
        lambda: Own(lambda x, matrix: torch.addmm(torch.ones(8), x, matrix), 16, 8), vectors(200, 16), ("matrix",)
    ),
    "tensordot": LayerKind(
        lambda: Own(lambda x, matrix: torch.tensordot(x, matrix, dims=1), 16, 8), vectors(20, 5, 16), ("matrix",)
    ),
}
