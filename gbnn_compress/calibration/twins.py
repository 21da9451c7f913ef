"""Two networks that start alike: one keeps the original weights, the weights of the other are replaced step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gbnn_compress.predict.running import copied

Produced = Mapping[str, tuple[str, str]]
"""Name of a tensor in the network -> path of the module and name of the weight that is computed from the tensor."""


STATISTICS = ("running_mean", "running_var")
"""Ends of the names of buffers that copies share; other vectors may be states, which a pass changes."""


@dataclass(frozen=True)
class Twin:
    """A network in evaluation mode whose copies share its weights.

    Attributes:
        network: The network. Weights that were computed from other tensors are plain tensors in it.
        tensors: Its tensors by their names in the checkpoint; for a computed weight's source, the weight.
        sources: Name in the checkpoint -> the source of a computed weight.
        produced: Name in the checkpoint -> the module (a copy) and the name of the weight that it computes.
    """

    network: nn.Module
    tensors: Mapping[str, torch.Tensor]
    sources: Mapping[str, torch.Tensor]
    produced: Mapping[str, tuple[nn.Module, str]]

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next((tensor.device for tensor in self.tensors.values()), torch.device("cpu"))

    def copied(self) -> nn.Module:
        """A copy with the same weights and norm statistics, and with states of its own."""
        buffers = (each for name, each in self.tensors.items() if each.dim() > 1 or name.endswith(STATISTICS))
        kept = chain(self.network.parameters(), buffers)
        return deep_copy(self.network, {id(tensor): tensor for tensor in kept})

    def view(self, operand: torch.Tensor, name: str, other: Twin) -> torch.Tensor:
        """The part of this network's tensor that an operand is of another twin's."""
        own, theirs = self.tensors[name], other.tensors[name]
        offset = operand.storage_offset() - theirs.storage_offset() + own.storage_offset()
        return own.as_strided(operand.shape, operand.stride(), offset)

    def replace(self, name: str, values: torch.Tensor) -> None:
        """Replace a tensor by other values of its shape, in all copies; a computed weight follows its source."""
        with torch.no_grad():
            if name not in self.produced:
                self.tensors[name].copy_(values)
                return
            self.sources[name].copy_(values)
            module, weight = self.produced[name]
            self.tensors[name].copy_(_computed(module, weight))


def make_twin(network: nn.Module, names: Mapping[str, str], *, own_weights: bool) -> Twin:
    """Copy a network.

    Args:
        network: In evaluation mode; it is not changed.
        names: Name in the checkpoint -> name in the network.
        own_weights: Whether the copy has weights of its own; otherwise it shares the network's parameters.
    """
    kept = {} if own_weights else {id(tensor): tensor for tensor in network.parameters()}
    base = deep_copy(network, kept).eval()
    sources = base.state_dict(keep_vars=True)
    produced = _made_plain(base)
    own = {name: base.get_submodule(path).get_parameter(weight) for name, (path, weight) in produced.items()}
    held = {**sources, **base.state_dict(keep_vars=True)}
    tensors, of_sources, makers = dict[str, torch.Tensor](), dict[str, torch.Tensor](), {}
    for name, mine in names.items():
        if mine not in produced:
            tensors[name] = held[mine]
            continue
        path, weight = produced[mine]
        module = deep_copy(network.get_submodule(path), {})
        tensors[name] = own[mine]
        makers[name] = (module, weight)
        of_sources[name] = module.state_dict(keep_vars=True)[mine.removeprefix(f"{path}." if path else "")]
    return Twin(base, tensors, of_sources, makers)


def deep_copy(network: nn.Module, kept: Mapping[int, torch.Tensor]) -> nn.Module:
    """A deep copy that shares some tensors, also those of scripted modules."""
    made = copied(network, kept)
    own = dict(made.named_modules(remove_duplicate=False))
    for path, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, torch.jit.ScriptModule):  # it copies all of its tensors
            for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
                if id(tensor) in kept:
                    setattr(own[path], name, kept[id(tensor)])
    return made


def _made_plain(network: nn.Module) -> dict[str, tuple[str, str]]:
    """Turn computed weights (`weight_norm`, `spectral_norm`, parametrisations) into plain parameters.

    Returns:
        Name of each tensor with the shape of the weight computed from it -> path of its module, name of the weight.
    """
    found = {}
    for path, module in list(network.named_modules()):
        for weight, sources in _computed_weights(module):
            shape = getattr(module, weight).shape
            for name, tensor in sources.items():
                if tensor.shape == shape:
                    found[f"{path}.{name}" if path else name] = (path, weight)
            _make_plain(module, weight)
    return found


def _computed_weights(module: nn.Module) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Names of a module's computed weights, each with the tensors that it is computed from, by name."""
    if parametrize.is_parametrized(module):
        for weight, steps in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]
            sources = dict(steps.named_parameters(recurse=False))
            yield weight, {f"parametrizations.{weight}.{name}": each for name, each in sources.items()}
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm | SpectralNorm):
            name = f"{hook.name}_{'v' if isinstance(hook, WeightNorm) else 'orig'}"
            yield hook.name, {name: getattr(module, name)}


def _make_plain(module: nn.Module, weight: str) -> None:
    if parametrize.is_parametrized(module, weight):
        value = getattr(module, weight).detach()
        steps: Any = module.parametrizations
        del steps[weight]
        if not steps:  # torch's own way back would change the class, which is the user's network's, too
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
        module._parameters[weight] = nn.Parameter(value)
        return
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm) and hook.name == weight:
            remove_weight_norm(module, weight)
        elif isinstance(hook, SpectralNorm) and hook.name == weight:
            remove_spectral_norm(module, weight)


def _computed(module: nn.Module, weight: str) -> torch.Tensor:
    """The weight that a module computes from its present tensors."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm) and hook.name == weight:
            hook(module, None)
    value: Any = getattr(module, weight)
    return value.detach()
