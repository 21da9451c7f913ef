"""Posterior draws of an artifact in a network: one draw at a time in place, or several stacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.predict.rebuild import draw, rebuild, shared_tensors

if TYPE_CHECKING:
    import torch

    from gbnn_compress.predict.rebuild import SharedTensor
    from gbnn_compress.types import Artifact, Fit

Load = Callable[[Mapping[str, "torch.Tensor"]], "Fit"]
"""Copies a state dict into a network and returns which tensor went where."""


@dataclass(frozen=True, eq=False)
class Sampler:
    """An artifact's posterior, with the network that its draws are written into.

    Attributes:
        artifact: The artifact that draws come from.
        network: The network. Its unshared tensors already hold the artifact's values.
        load: Copies a state dict into the network.
        shared: Posterior of each shared tensor.
        names: Names of each shared tensor among the network's parameters and buffers: several if the checkpoint ties
            tensors that the network does not tie, none if the network lacks the tensor. None for all tensors if the
            network renames or changes weights when it loads them; each draw is then rebuilt and loaded whole.
        tensors: The network's parameters and buffers by name.
    """

    artifact: Artifact
    network: torch.nn.Module
    load: Load
    shared: tuple[SharedTensor, ...]
    names: tuple[tuple[str, ...], ...] | None
    tensors: Mapping[str, torch.Tensor]


def sampler(artifact: Artifact, network: torch.nn.Module, *, load: Load) -> Sampler:
    """Load an artifact's posterior mean into a network, and find the network's tensor for each shared tensor.

    Args:
        artifact: From `read_artifact`.
        network: Changed in place. Its device and dtypes must not change while the result is used.
        load: Copies a state dict into the network.

    Raises:
        GbnnError: The weights do not fit the network.
    """
    mean = rebuild(artifact)
    fit = load(mean)
    shared = shared_tensors(artifact)
    extra = set(fit.extra)
    ties = [info for info in artifact.tensors if info.kind == "tied"]
    every = ((each.name, *(tie.name for tie in ties if tie.tied_to == each.name)) for each in shared)
    groups = tuple({fit.names.get(name, name): name for name in group if name not in extra} for group in every)
    named = chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))
    tensors = {name: tensor.detach() for name, tensor in named}
    held = all(_holds(tensors.get(own), mean[name]) for group in groups for own, name in group.items())
    distinct = tuple(_one_a_storage(list(group), tensors) for group in groups) if held else None
    return Sampler(artifact, network, load, shared, distinct, tensors)


def place(source: Sampler, seed: int | None) -> None:
    """Write one draw into the network: the weights that `rebuild` returns for the seed. None: the posterior mean."""
    if source.names is None:
        source.load(rebuild(source.artifact, seed=seed))
        return
    generator = None if seed is None else np.random.default_rng(seed)
    for tensor, names in zip(source.shared, source.names, strict=True):
        _place(tensor, generator, [source.tensors[name] for name in names])


def stacked(source: Sampler, seeds: Sequence[int]) -> dict[str, torch.Tensor]:
    """Several draws of the shared tensors, stacked along a new first axis.

    Args:
        source: The posterior; its `names` must not be None.
        seeds: S seeds, one per draw.

    Returns:
        Name in the network -> draws of a shared tensor, (S, *shape), at the network's dtype and on its device.
    """
    import torch

    assert source.names is not None
    generators = [np.random.default_rng(seed) for seed in seeds]
    result: dict[str, torch.Tensor] = {}
    for tensor, names in zip(source.shared, source.names, strict=True):
        drawn = torch.empty((len(seeds), *tensor.shape), dtype=tensor.dtype)
        for row, generator in zip(drawn, generators, strict=True):
            draw(tensor, generator, out=row.view(-1))
        result |= {name: drawn.to(source.tensors[name]) for name in names}
    return result


def stacked_bytes(source: Sampler) -> int:
    """Bytes per draw in the result of `stacked`."""
    return sum(source.tensors[name].nbytes for name in chain.from_iterable(source.names or ()))


def _holds(tensor: torch.Tensor | None, values: torch.Tensor) -> bool:
    """Whether a network's tensor holds the values that were loaded under its name."""
    import torch

    if tensor is None or tensor.shape != values.shape:
        return False
    return torch.equal(tensor.cpu(), values.to(tensor.dtype))


def _one_a_storage(names: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """One name per storage: the first of the names whose tensors share memory."""
    return tuple({tensors[name].data_ptr(): name for name in reversed(names)}.values())


def _place(tensor: SharedTensor, generator: np.random.Generator | None, targets: list[torch.Tensor]) -> None:
    if not targets:  # the network lacks this tensor; drawing it keeps the draws of later tensors unchanged
        draw(tensor, generator)
        return
    first, *others = targets
    if first.dtype == tensor.dtype and first.is_cpu and first.is_contiguous():
        draw(tensor, generator, out=first.view(-1))
    else:
        first.copy_(draw(tensor, generator).reshape(tensor.shape))
    for other in others:
        other.copy_(first)
