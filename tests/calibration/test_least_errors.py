"""Feedback against the least output error over all assignments of tiny layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from lockstep_runs import COARSE, correlated, in_lockstep, sharing_of
from torch import nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("one_thread")

CLOSE = {"damping": 1e-6, "paths": 16, "sweeps": 4}

NEAR = 1.05
"""Feedback's error over the least error there is, summed over the rows."""


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


Outputs = Callable[[torch.Tensor], torch.Tensor]


def least_error(weight: torch.Tensor, scale: float, outputs: Outputs, parts: list[Any]) -> float:
    """Least squared output error over all assignments of the components, part by part.

    Args:
        weight: The layer's weight, float64.
        scale: Unit of the components.
        outputs: Outputs of the layer with a weight; linear in it.
        parts: Indices of parts of the weight whose errors reach no common output.
    """
    total = 0.0
    for part in parts:
        size = weight[part].numel()
        errors = []
        for ids in itertools.product(range(len(COARSE)), repeat=size):
            error = torch.zeros_like(weight)
            error[part] = scale * torch.from_numpy(COARSE[list(ids)]).reshape(weight[part].shape) - weight[part]
            errors.append(float(outputs(error).square().sum()))
        total += min(errors)
    return total


def errors_of(layer: nn.Module, name: str, x: torch.Tensor, outputs: Outputs, parts: list[Any]) -> tuple[float, ...]:
    """Squared output errors: with feedback, the least, and of the nearest components."""
    weight = layer.state_dict()[name].double()
    sharing = sharing_of(layer, means=COARSE)
    kept = {name: sharing[name]}
    outcome = in_lockstep(layer, x, kept, **CLOSE)
    scale = sharing[name].scale
    made, nearest = (
        scale * torch.from_numpy(COARSE[ids]).reshape(weight.shape) for ids in (outcome.ids[name], sharing[name].ids)
    )
    errors = (float(outputs(each - weight).square().sum()) for each in (made, nearest))
    fed_back, plain = errors
    return fed_back, least_error(weight, scale, outputs, parts), plain


def linear(x: torch.Tensor) -> tuple[nn.Module, Outputs, list[Any]]:
    return nn.Linear(5, 2, bias=False), lambda w: functional.linear(x.double(), w), [0, 1]


def conv1d(x: torch.Tensor) -> tuple[nn.Module, Outputs, list[Any]]:
    return nn.Conv1d(1, 2, 5, bias=False), lambda w: functional.conv1d(x.double(), w), [0, 1]


def transposed(x: torch.Tensor) -> tuple[nn.Module, Outputs, list[Any]]:
    """Two phases of two taps: every output belongs to one phase of one channel."""
    layer = nn.ConvTranspose1d(3, 2, 4, stride=2, bias=False)
    parts = [(slice(None), channel, slice(phase, None, 2)) for channel in (0, 1) for phase in (0, 1)]
    return layer, lambda w: functional.conv_transpose1d(x.double(), w, stride=2), parts


CASES = {
    "linear": (linear, lambda: correlated(3000, 5), lambda: torch.randn(40_000, 5)),
    "conv1d": (conv1d, lambda: correlated(10, 1, 400), lambda: torch.randn(10, 1, 4000)),
    "transposed conv1d": (
        transposed,
        lambda: correlated(10, 3, 100, along=(1, 2)),
        lambda: torch.randn(10, 3, 2000),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("seed", range(3))
def test_correlated_inputs(case: Any, seed: int) -> None:
    torch.manual_seed(seed)
    make, inputs, _ = case
    x = inputs()
    layer, outputs, parts = make(x)
    fed_back, least, plain = errors_of(layer, "weight", x, outputs, parts)
    assert least * (1 - 1e-6) <= fed_back <= NEAR * least
    assert fed_back < 0.8 * plain


@pytest.mark.long
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_white_inputs_leave_nothing_to_compensate(case: Any) -> None:
    make, _, inputs = case
    x = inputs()
    layer, outputs, parts = make(x)
    fed_back, least, plain = errors_of(layer, "weight", x, outputs, parts)
    assert fed_back == pytest.approx(least, rel=1e-6)
    assert plain == pytest.approx(least, rel=0.02)


class States(nn.Module):
    """An LSTM's states at all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


@pytest.mark.parametrize("seed", range(2))
def test_the_hidden_matrix_of_an_lstm(seed: int) -> None:
    """The least error of the gates over all time steps, given the original network's states."""
    torch.manual_seed(seed)
    network, x = States().eval(), 2 * correlated(30, 20, 4, along=(0, 2))
    weight, name = network.lstm.weight_hh_l0.detach().double(), "lstm.weight_hh_l0"
    states = torch.cat([torch.zeros(1, 20, 5), network(x).detach()[:-1]]).reshape(-1, 5).double()
    sharing = {name: sharing_of(network, means=COARSE)[name]}
    ids = in_lockstep(network, x, sharing, **CLOSE).ids[name]
    made, nearest = (
        sharing[name].scale * torch.from_numpy(COARSE[each]).reshape(weight.shape) for each in (ids, sharing[name].ids)
    )
    covariance = (states.T @ states).numpy()

    def error(values: torch.Tensor) -> np.ndarray:
        missing = (values - weight).numpy()
        return np.einsum("rj,jk,rk->r", missing, covariance, missing)

    every = sharing[name].scale * torch.tensor(list(itertools.product(COARSE.tolist(), repeat=5)))
    least = np.min([error(each.expand(20, 5)) for each in every], axis=0)
    assert (error(made) >= least * (1 - 1e-6)).all()
    assert error(made).sum() <= NEAR * least.sum()
    assert error(made).sum() < 0.7 * error(nearest).sum()
