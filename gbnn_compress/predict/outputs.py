"""Outputs of networks that are no classifiers, averaged over posterior draws, in the network's own nesting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.batches import Batch, mapped, tensors_in
from gbnn_compress.errors import ArchitectureError, listed
from gbnn_compress.predict.draws import Sampler, place
from gbnn_compress.predict.forward import Forward
from gbnn_compress.predict.nesting import by_name, put_back
from gbnn_compress.predict.running import device_of, evaluating, outputs_of

if TYPE_CHECKING:
    import torch


SAME = 1e-3
"""Largest difference of two runs on the same inputs, relative to the largest output, that is rounding."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights in a network of their own, ready to run.

    Attributes:
        network: The network.
        place: Writes one draw into the network; None writes the posterior mean.
        seeds: Seeds of the draws; `(None,)` for the posterior mean, or for a checkpoint.
        others: The weights of the further members of an ensemble, each in a network of its own.
    """

    network: torch.nn.Module
    place: Callable[[int | None], None]
    seeds: tuple[int | None, ...] = (None,)
    others: tuple[Weights, ...] = ()

    def at_mean(self) -> Weights:
        """The same at the posterior mean."""
        return replace(self, seeds=(None,), others=tuple(each.at_mean() for each in self.others))


@dataclass(frozen=True, eq=False)
class Draws:
    """Outputs for one batch, averaged over draws.

    Attributes:
        outputs: What the network returns in the first draw, on the CPU.
        mean: Name -> mean over the draws, float64, of each output that counts.
        squares: Name -> summed squared distance from that mean, float64.
        differing: Names of outputs whose shapes differ between draws; they have no mean.
        samples: Number of draws.
    """

    outputs: Any
    mean: Mapping[str, torch.Tensor]
    squares: Mapping[str, torch.Tensor]
    differing: tuple[str, ...]
    samples: int


@dataclass(frozen=True, eq=False)
class OutputPrediction:
    """Outputs averaged over posterior draws, with their uncertainty, in the nesting that the network returns.

    Attributes:
        mean: Mean over the draws, on the CPU, at the outputs' dtypes. Tensors that are not floating are those of the
            first draw.
        standard_deviation: Standard deviation over the draws, with S - 1 in the denominator; 0 for a single draw.
            Tensors that are not floating are those of the first draw.
        samples: Number of draws S.
    """

    mean: Any
    standard_deviation: Any
    samples: int


def of_posterior(source: Sampler, *, samples: int, seed: int = 0) -> Weights:
    """Draws of a posterior.

    Args:
        source: The posterior with its network.
        samples: Number of draws. 0: the posterior mean.
        seed: Seed of the first draw; draw i has seed + i.
    """
    seeds = tuple(seed + draw for draw in range(samples)) or (None,)
    return Weights(source.network, lambda drawn: place(source, drawn), seeds)


def of_network(network: torch.nn.Module) -> Weights:
    """The weights that a network holds."""
    return Weights(network, lambda drawn: None)


def together(members: Sequence[Weights]) -> Weights:
    """The weights of an ensemble: the draws of all of its members count alike."""
    first, *others = members
    return replace(first, others=tuple(others))


def averaged(weights: Weights, batches: Sequence[Batch], *, forward: Forward, option: str = "--data") -> list[Draws]:
    """Average a network's outputs over draws, and over the members of an ensemble. Each draw is written once.

    Args:
        weights: The network or networks. Each holds the last draw afterwards.
        batches: The batches, on any device.
        forward: How the network is run, and which outputs count.
        option: The option that names the data, for messages.

    Returns:
        One value per batch.

    Raises:
        ArchitectureError: The network fails on a batch, or has no floating output.
    """
    import torch

    found: list[Draws] = []
    for network, write, seed in _runs(weights):
        write(seed)
        device = device_of(network)
        with evaluating(network), torch.inference_mode():
            for position, batch in enumerate(batches):
                raw = outputs_of(network, batch, forward=forward, device=device, option=option)
                outputs = mapped(raw, lambda tensor: tensor.detach().to("cpu", copy=True))
                chosen = {name: tensor.double() for name, tensor in forward.chosen(outputs).items()}
                if position == len(found):
                    zeros = {name: torch.zeros_like(tensor) for name, tensor in chosen.items()}
                    found.append(Draws(outputs, chosen, zeros, (), 1))
                else:
                    found[position] = _with_draw(found[position], chosen)
    return found


def _runs(weights: Weights) -> Iterator[tuple[torch.nn.Module, Callable[[int | None], None], int | None]]:
    """Each network with each of its draws."""
    for each in (weights, *weights.others):
        for seed in each.seeds:
            yield each.network, each.place, seed


def prediction(draws: Draws, *, forward: Forward) -> OutputPrediction:
    """The mean and the standard deviation in the network's nesting; one tensor if `forward` chooses one output.

    Raises:
        ArchitectureError: The shape of an output differs between draws.
    """
    if draws.differing:
        raise ArchitectureError(
            f"the shapes of {listed(draws.differing)} differ between draws, so they have no average; predict at the"
            " posterior mean (`samples=0`), choose another output (`output`), or return outputs of one shape"
            " (`forward`)"
        )
    deviations = {name: (each / max(draws.samples - 1, 1)).sqrt() for name, each in draws.squares.items()}
    mean, deviation = (_in_nesting(draws.outputs, each, forward) for each in (draws.mean, deviations))
    return OutputPrediction(mean, deviation, draws.samples)


def mean_outputs(draws: Draws) -> Any:
    """The network's outputs, whole, with the mean of those that count."""
    return put_back(draws.outputs, _at_own_dtypes(draws.outputs, draws.mean))


def joined(parts: Sequence[OutputPrediction], sizes: Sequence[int]) -> OutputPrediction:
    """Concatenate predictions for the parts of one tensor of inputs.

    Args:
        parts: At least one prediction.
        sizes: Number of inputs of each.

    Raises:
        ArchitectureError: The outputs do not have one row, or one element of a list, per input.
    """
    if len(parts) == 1:
        return parts[0]
    mean, deviation = (
        _concatenated([getattr(part, name) for part in parts], sizes) for name in ("mean", "standard_deviation")
    )
    return OutputPrediction(mean, deviation, parts[0].samples)


def stored_bytes(value: Any) -> int:
    """Bytes of all tensors of a nesting."""
    return sum(tensor.nbytes for tensor in tensors_in(value))


def blocks(items: Iterable[tuple[Batch, Any]], *, most_bytes: int) -> Iterator[list[tuple[Batch, Any]]]:
    """Group batches, each with outputs, into blocks of at most `most_bytes`, or of one batch."""
    block: list[tuple[Batch, Any]] = []
    size = 0
    for batch, outputs in items:
        n_bytes = stored_bytes(batch.value) + stored_bytes(outputs)
        if block and size + n_bytes > most_bytes:
            yield block
            block, size = [], 0
        block.append((batch, outputs))
        size += n_bytes
    if block:
        yield block


def _with_draw(draws: Draws, chosen: Mapping[str, torch.Tensor]) -> Draws:
    """One more draw, by Welford's update."""
    count = draws.samples + 1
    fits = {name: tensor for name, tensor in draws.mean.items() if _shape(chosen.get(name)) == tensor.shape}
    mean = {name: tensor + (chosen[name] - tensor) / count for name, tensor in fits.items()}
    squares = {
        name: draws.squares[name] + (chosen[name] - fits[name]) * (chosen[name] - tensor)
        for name, tensor in mean.items()
    }
    lost = {*draws.mean, *chosen} - {*fits, *draws.differing}
    return Draws(draws.outputs, mean, squares, (*draws.differing, *sorted(lost)), count)


def is_same(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    """Whether two runs returned the same output, but for rounding."""
    import torch

    if other is None or one.shape != other.shape:
        return False
    largest = float(one.nan_to_num(posinf=0, neginf=0).abs().max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=0, atol=SAME * largest, equal_nan=True)


def _shape(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else tensor.shape


def _in_nesting(outputs: Any, tensors: Mapping[str, torch.Tensor], forward: Forward) -> Any:
    made = _at_own_dtypes(outputs, tensors)
    return put_back(outputs, made) if forward.output is None else next(iter(made.values()))


def _at_own_dtypes(outputs: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    own = by_name(outputs)
    return {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}


def _concatenated(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    import torch

    if all(isinstance(part, list) and len(part) == size for part, size in zip(parts, sizes, strict=True)):
        return [each for part in parts for each in part]
    named = [by_name(part) for part in parts]
    if any(
        list(tensors) != list(named[0]) or any(not each.ndim or len(each) != size for each in tensors.values())
        for tensors, size in zip(named, sizes, strict=True)
    ):
        raise ArchitectureError(
            f"the network's outputs have no axis of the {sum(sizes)} inputs, so those of several batches cannot be"
            f" joined; give `batch_size={sum(sizes)}`, or smaller inputs"
        )
    return put_back(parts[0], {name: torch.cat([each[name] for each in named]) for name in named[0]})
