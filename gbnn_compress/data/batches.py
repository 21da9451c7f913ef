"""Batches of inputs of any kind: what the user's data yields, and how a network takes it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TARGETS = ("labels", "label", "targets", "target", "y")
"""Keys of a mapping that hold targets."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch.

    Attributes:
        value: What the data yields: a tensor, `(inputs, targets)`, a mapping of keyword arguments, or whatever the
            network's `forward` understands.
        inputs: The value without targets.
        targets: The targets, a tensor or any nesting; None without.
    """

    value: Any
    inputs: Any
    targets: Any = None

    @property
    def size(self) -> int:
        """Number of inputs: the length of the first tensor that has axes; 1 if there is none."""
        return next((len(each) for each in tensors_in(self.inputs) if each.dim()), 1)

    def on(self, device: torch.device) -> Batch:
        """A copy on a device, which a network may change."""
        return Batch(copied_to(self.value, device), copied_to(self.inputs, device), copied_to(self.targets, device))


@dataclass(frozen=True, eq=False)
class MadeBatches(Sequence[Batch]):
    """Batches that are made anew each time they are asked for, so that only few are in memory.

    Attributes:
        make: Returns the batch of a number; always the same one.
        numbers: Numbers of the batches.
    """

    make: Callable[[int], Batch]
    numbers: Sequence[int]

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        """A batch; a slice gives further `MadeBatches`."""
        if isinstance(place, slice):
            return MadeBatches(self.make, self.numbers[place])
        return self.make(self.numbers[place])


def taken(batches: Sequence[Batch], places: Iterable[int]) -> Sequence[Batch]:
    """The batches at some places; batches that are made when asked for stay so."""
    if isinstance(batches, MadeBatches):
        return MadeBatches(batches.make, [batches.numbers[place] for place in places])
    return [batches[place] for place in places]


def read_batch(value: Any) -> Batch:
    """Split what a loader yields into inputs and targets.

    A tuple or list of two is `(inputs, targets)`, and one of one holds the inputs. Of a mapping, the keys in TARGETS
    are targets.
    """
    if isinstance(value, list | tuple) and not hasattr(value, "_fields") and len(value) in (1, 2):
        return Batch(value, value[0], value[1] if len(value) == 2 else None)
    if isinstance(value, Mapping):
        found = [name for name in TARGETS if value.get(name) is not None]
        rest = {name: each for name, each in value.items() if name not in TARGETS}
        return Batch(value, rest, value[found[0]] if found else None)
    return Batch(value, value)


def arguments(network: torch.nn.Module, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments with which the network is called on a batch.

    A mapping is keyword arguments, unless `forward` takes a single argument and has no parameter of these names.
    Targets are among them only if `forward` requires them.
    """
    if not isinstance(batch.inputs, Mapping):
        return (batch.inputs,), {}
    parameters = inspect.signature(network.forward).parameters
    named = {
        name: each for name, each in parameters.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if not takes_any and batch.inputs and not named.keys() & batch.value.keys() and len(parameters) >= 1:
        return (batch.value,), {}
    wanted = {name: batch.value[name] for name in TARGETS if name in named and name in batch.value}
    required = {name: each for name, each in wanted.items() if named[name].default is inspect.Parameter.empty}
    return (), {**batch.inputs, **required}


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors of a nesting of tuples, lists, mappings and dataclasses, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def copied_to(value: Any, device: torch.device) -> Any:
    """A copy of a nesting on a device. Objects that are no tensors are copied, then moved by their own `to`."""
    return mapped(value, lambda tensor: tensor.detach().to(device, copy=True), lambda other: _copy(other, device))


def mapped(
    value: Any, on_tensor: Callable[[torch.Tensor], Any], on_other: Callable[[Any], Any] = lambda other: other
) -> Any:
    """A nesting of the same shape, with functions applied to its tensors and its other leaves."""
    import torch

    if isinstance(value, torch.Tensor):
        return on_tensor(value)
    if isinstance(value, Mapping):
        made = {key: mapped(each, on_tensor, on_other) for key, each in value.items()}
        return made if type(value) is dict else _like(value, made)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(each, on_tensor, on_other) for each in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(each, on_tensor, on_other) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        made = {field.name: mapped(getattr(value, field.name), on_tensor, on_other) for field in fields(value)}
        return replace(value, **made)
    return on_other(value)


def _like(value: Any, made: dict[Any, Any]) -> Any:
    """A mapping of the same type; a plain dict where the type cannot be made from one."""
    try:
        return type(value)(made)
    except Exception:  # whatever the user's own mapping raises
        return made


def _copy(value: Any, device: torch.device) -> Any:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    copied = copy.deepcopy(value)
    return copied.to(device) if callable(getattr(copied, "to", None)) else copied
