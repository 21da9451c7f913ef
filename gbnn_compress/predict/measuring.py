"""Measures of networks that are no classifiers, on data: against a reference's outputs, by a loss, and by a metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.architectures import load_weights
from gbnn_compress.data.batches import Batch, copied_to
from gbnn_compress.errors import DataError, GbnnError, one_line
from gbnn_compress.predict.bench import Bench
from gbnn_compress.predict.differences import (
    OutputDifference,
    Running,
    as_json,
    difference,
    require_compared,
    with_batch,
)
from gbnn_compress.predict.draws import sampler
from gbnn_compress.predict.outputs import (
    Draws,
    Weights,
    averaged,
    blocks,
    mean_outputs,
    of_network,
    of_posterior,
    together,
)
from gbnn_compress.predict.running import copied, device_of, evaluating
from gbnn_compress.types import Artifact, Ensemble, Model

if TYPE_CHECKING:
    import torch

MOST_BYTES = 256_000_000
"""Largest size of the inputs, and the reference's outputs for them, that are in memory at once, in bytes."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one set of weights. Each value is None where it was not asked for.

    Attributes:
        difference: Difference of the outputs from the reference's.
        loss: Mean of the user's loss over the inputs.
        metric: Value of the user's metric.
        n_inputs: Number of inputs that the network ran on.
    """

    difference: OutputDifference | None = None
    loss: float | None = None
    metric: float | None = None
    n_inputs: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The values that were measured, by their keys in reports."""
        found = {} if self.difference is None else as_json(self.difference)
        numbers = {"loss": self.loss, "metric": self.metric}
        return {**found, **{name: value for name, value in numbers.items() if value is not None}}


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over the batches so far: of the differences, and of the loss times the number of inputs."""

    running: Running = field(default_factory=dict)
    loss: float = 0.0
    n_inputs: int = 0


@dataclass(frozen=True, eq=False)
class _OnDevice:
    """The user's data with their tensors on a device, so that a metric finds both in one place."""

    data: Any
    device: torch.device

    def __iter__(self) -> Iterator[Any]:
        return (copied_to(value, self.device) for value in self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)


def weights_of(bench: Bench, model: Model, *, samples: int, seed: int = 0) -> Weights:
    """A model's weights in a copy of the bench's network; of an ensemble, in one copy for each member.

    Args:
        bench: The network.
        model: Weights of this network.
        samples: Number of draws of an artifact. 0: the posterior mean.
        seed: Seed of the first draw.
    """
    if isinstance(model, Ensemble):
        return together([weights_of(own, each, samples=samples, seed=seed) for own, each in bench.members(model)])
    network = copied(bench.network)

    def load(tensors: Mapping[str, torch.Tensor]) -> Any:
        return load_weights(network, tensors, spec=bench.architecture)

    if isinstance(model, Artifact):
        return of_posterior(sampler(model, network, load=load), samples=samples, seed=seed)
    load(model.tensors)
    return of_network(network)


def measure(bench: Bench, models: Mapping[str, Weights], *, reference: str | None) -> dict[str, Measured]:
    """Run several sets of weights on all data, batch by batch, and measure each.

    Args:
        bench: The data, the forward pass, and the user's loss and metric.
        models: Sets of weights by name. Some may share a network.
        reference: Name of the set whose outputs the others are compared with, at its posterior mean. None: outputs are
            not compared.

    Returns:
        Name -> measures. The metric of draws is that of the posterior mean. The reference has no difference.

    Raises:
        GbnnError: A network fails, returns NaN as the reference, or gives other outputs on the same inputs; no output
            can be compared; or the user's loss or metric fails or returns no finite number.
    """
    found = dict.fromkeys(models, Measured())
    if reference is not None or bench.loss is not None:
        found = _on_batches(bench, models, reference=reference)
    if bench.metric is None:
        return found
    values = {name: metric_of(bench, weights) for name, weights in models.items()}
    return {name: replace(each, metric=values[name]) for name, each in found.items()}


def metric_of(bench: Bench, weights: Weights) -> float:
    """The user's metric of a set of weights, at the posterior mean.

    The network is a copy in evaluation mode, without gradients. On other devices than the CPU, the data yields tensors
    on the network's device.

    Raises:
        GbnnError: The metric raises an exception, or returns no finite number.
    """
    import torch

    assert bench.metric is not None
    weights.place(None)
    network, data = copied(weights.network), bench.user_data
    device = device_of(network)
    with evaluating(network), torch.no_grad():
        return _number(
            lambda metric: metric(network, data if device.type == "cpu" else _OnDevice(data, device)),
            bench.metric,
            option="--metric",
        )


def _on_batches(bench: Bench, models: Mapping[str, Weights], *, reference: str | None) -> dict[str, Measured]:
    sums = {name: _Sums() for name in models}
    fixed = None if reference is None else _at_mean(models[reference])
    for block in blocks(_with_reference(bench, fixed), most_bytes=MOST_BYTES):
        batches = [batch for batch, _ in block]
        for name, weights in models.items():
            same = name == reference
            made = [known for _, known in block] if same else _run(bench, weights, batches)
            for (batch, known), draws in zip(block, made, strict=True):
                compared = None if same or known is None else known
                sums[name] = _with_draws(bench, sums[name], batch, draws, compared)
    return {name: _measured(bench, each, compared=reference not in (None, name)) for name, each in sums.items()}


def _with_reference(bench: Bench, reference: Weights | None) -> Iterator[tuple[Batch, Draws | None]]:
    """Each batch with the reference's outputs."""
    for batch in bench.batches():
        if reference is None:
            yield batch, None
            continue
        (known,) = _run(bench, reference, [batch])
        _require_numbers(bench, known)
        yield batch, known


def _with_draws(bench: Bench, sums: _Sums, batch: Batch, draws: Draws, known: Draws | None) -> _Sums:
    """The sums with one more batch."""
    running, loss = sums.running, 0.0
    if known is not None:
        running = with_batch(running, known.mean, draws.mean)
    if bench.loss is not None:
        loss = _number(lambda function: function(mean_outputs(draws), batch.value), bench.loss, option="--loss")
    return _Sums(running, sums.loss + batch.size * loss, sums.n_inputs + batch.size)


def _measured(bench: Bench, sums: _Sums, *, compared: bool) -> Measured:
    found = difference(sums.running) if compared else None
    if found is not None and bench.metric is None:
        require_compared(found, option=bench.option)
    loss = None if bench.loss is None else sums.loss / max(sums.n_inputs, 1)
    return Measured(found, loss, n_inputs=sums.n_inputs)


def _run(bench: Bench, weights: Weights, batches: Sequence[Batch]) -> list[Draws]:
    return averaged(weights, batches, forward=bench.forward, option=bench.option)


def _at_mean(weights: Weights) -> Weights:
    """The posterior mean, written once."""
    for each in (weights, *weights.others):
        each.place(None)
    return together([of_network(each.network) for each in (weights, *weights.others)])


def _require_numbers(bench: Bench, known: Draws) -> None:
    for name, tensor in known.mean.items():
        if tensor.isnan().any():
            raise DataError(
                f"`{bench.option}`: output `{name}` of the network before compression is NaN for some inputs of"
                f" `{bench.evaluation.data}`; leave these inputs out, or choose another output (`--output`)"
            )


def _number(call: Callable[[Any], Any], function: Any, *, option: str) -> float:
    """The finite number that a function of the user returns.

    Raises:
        GbnnError: The function raises an exception, or returns anything else.
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        value = call(function)
    except GbnnError:
        raise
    except Exception as error:  # whatever the user's own function raises
        raise GbnnError(f"`{option}`: `{name}` fails ({one_line(error)})") from error
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        got = f"{value}" if isinstance(value, int | float) else f"`{type(value).__name__}`"
        raise GbnnError(f"`{option}`: expected a finite number from `{name}`, got {got}")
    return number
