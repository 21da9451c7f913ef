"""Outputs of any nesting, averaged over draws and put back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from gbnn_compress.data.batches import read_batch
from gbnn_compress.errors import ArchitectureError
from gbnn_compress.predict.forward import Forward
from gbnn_compress.predict.outputs import Weights, averaged, joined, mean_outputs, of_network, prediction


@dataclass
class Structured:
    """A result as transformers have it."""

    value: torch.Tensor
    parts: tuple[torch.Tensor, ...]
    count: torch.Tensor | None = None


class Pair(NamedTuple):
    """A named tuple."""

    first: torch.Tensor
    second: torch.Tensor


class Network(nn.Module):
    """Returns functions of the inputs times one weight."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x, self.weight)


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
DRAWS = (1.0, 2.0, 4.0)


def draws_of(function: Any) -> Weights:
    network = Network(function)

    def place(seed: int | None) -> None:
        network.weight.data.fill_(1.0 if seed is None else DRAWS[seed])

    return Weights(network, place, (0, 1, 2))


NESTINGS = {
    "tensor": lambda x, w: w * x,
    "tuple": lambda x, w: (w * x, (w * w * x, torch.arange(len(x)))),
    "list": lambda x, w: [w * x, w**2 * x],
    "mapping": lambda x, w: {"a": w * x, "b": {"c": w + x}},
    "dataclass": lambda x, w: Structured(w * x, (w + x, w * w * x)),
    "named tuple": lambda x, w: Pair(w * x, w - x),
    "half": lambda x, w: (w * x).half(),
}


def leaves(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif isinstance(value, Structured):
        value = (value.value, value.parts)
    return [leaf for each in value for leaf in leaves(each)]


@pytest.mark.parametrize("function", NESTINGS.values(), ids=NESTINGS)
def test_mean_and_deviation_in_the_same_nesting(function: Any) -> None:
    (found,) = averaged(draws_of(function), [read_batch(X)], forward=Forward())
    made = prediction(found, forward=Forward())
    expected = [function(X, torch.tensor(weight)) for weight in DRAWS]
    assert made.samples == 3
    for result in (made.mean, made.standard_deviation):
        assert type(result) is type(expected[0])
    parts = zip(*map(leaves, expected), strict=True)
    for mean, deviation, each in zip(leaves(made.mean), leaves(made.standard_deviation), parts, strict=True):
        assert mean.dtype == each[0].dtype
        if mean.is_floating_point():
            stack = torch.stack(each).double()
            torch.testing.assert_close(mean, stack.mean(dim=0).to(mean.dtype))
            torch.testing.assert_close(deviation, stack.std(dim=0).to(mean.dtype))
        else:
            assert torch.equal(mean, each[0])


def test_the_mean_alone_for_losses() -> None:
    (found,) = averaged(draws_of(NESTINGS["mapping"]), [read_batch(X)], forward=Forward())
    torch.testing.assert_close(mean_outputs(found)["a"], 7 / 3 * X)


def test_one_output_is_chosen() -> None:
    for output in ("b.c", 1):
        (found,) = averaged(draws_of(NESTINGS["mapping"]), [read_batch(X)], forward=Forward(output=output))
        torch.testing.assert_close(prediction(found, forward=Forward(output=output)).mean, X + 7 / 3)


def test_several_batches_are_joined() -> None:
    for name in ("tensor", "mapping", "dataclass"):
        network, sizes = Network(NESTINGS[name]), (2, 2, 1)
        parts = averaged(of_network(network), [read_batch(part) for part in X.split(2)], forward=Forward())
        made = joined([prediction(part, forward=Forward()) for part in parts], sizes)
        for one, other in zip(leaves(made.mean), leaves(network(X)), strict=True):
            torch.testing.assert_close(one, other.detach())


def test_a_list_with_one_element_per_input_is_joined() -> None:
    network = Network(lambda x, w: [{"boxes": row[None]} for row in x])
    parts = averaged(of_network(network), [read_batch(part) for part in X.split(2)], forward=Forward())
    made = joined([prediction(part, forward=Forward()) for part in parts], (2, 2, 1))
    assert torch.equal(torch.cat([each["boxes"] for each in made.mean]), X)


def test_outputs_without_an_axis_of_inputs_are_not_joined() -> None:
    parts = averaged(of_network(Network(lambda x, w: x.sum())), [read_batch(x) for x in X.split(2)], forward=Forward())
    with pytest.raises(ArchitectureError, match="`batch_size=5`"):
        joined([prediction(part, forward=Forward()) for part in parts], (2, 2, 1))


def test_shapes_that_differ_between_draws_have_no_average() -> None:
    weights = draws_of(lambda x, w: {"boxes": x[: int(w)], "features": w * x})
    (found,) = averaged(weights, [read_batch(X)], forward=Forward())
    assert found.differing == ("boxes",)
    torch.testing.assert_close(found.mean["features"].float(), 7 / 3 * X)
    with pytest.raises(ArchitectureError, match=r"`boxes` differ between draws.*`samples=0`"):
        prediction(found, forward=Forward())
    (alone,) = averaged(weights.at_mean(), [read_batch(X)], forward=Forward())
    assert torch.equal(prediction(alone, forward=Forward()).mean["boxes"], X[:1])


def test_inputs_that_a_network_changes_stay() -> None:
    batch, before = read_batch(X.clone()), X.clone()
    averaged(draws_of(lambda x, w: x.mul_(w)), [batch], forward=Forward())
    assert torch.equal(batch.inputs, before)


def test_a_network_that_fails_is_one_line() -> None:
    network = nn.Linear(3, 2)
    with pytest.raises(ArchitectureError, match=r"`--data` \(TypeError: .*`--forward`") as caught:
        averaged(of_network(network), [read_batch({"input": X, "mask": X})], forward=Forward())
    assert "\n" not in str(caught.value)
