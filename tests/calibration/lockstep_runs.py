"""Networks run in lockstep, for the tests of calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gbnn_compress.calibration.decisions import Alphabet
from gbnn_compress.calibration.problem import LockstepOptions, Sharing
from gbnn_compress.calibration.side_by_side import SideBySide, run_in_lockstep
from gbnn_compress.calibration.together import Inputs
from gbnn_compress.calibration.tracing import trace
from gbnn_compress.calibration.twins import Twin, make_twin
from gbnn_compress.data.batches import Batch, read_batch
from gbnn_compress.predict.forward import Forward

COARSE = np.array([-1.0, 0.0, 1.0])
"""Components, in units of a tensor's deviation."""

Names = Mapping[str, str]


def names_of(network: nn.Module) -> dict[str, str]:
    """All floating tensors, under their own names; a tied tensor under its first."""
    seen: dict[int, str] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            seen.setdefault(id(tensor), name)
    return {name: name for name in seen.values()}


def twin_of(network: nn.Module, names: Names | None = None, *, own_weights: bool = False) -> Twin:
    return make_twin(network.eval(), names_of(network) if names is None else names, own_weights=own_weights)


def read(batches: Any) -> list[Batch]:
    """Batches of a tensor, of keyword arguments, or of a list of them."""
    return [read_batch(each) for each in (batches if isinstance(batches, list) else [batches])]


def sharing_of(
    network: nn.Module, *, means: np.ndarray | None = None, without: tuple[str, ...] = (), names: Names | None = None
) -> dict[str, Sharing]:
    """Every weight onto `means` (default: its own values, all of them), in units of the tensor's deviation."""
    result, state = {}, network.state_dict()
    for name, mine in (names_of(network) if names is None else names).items():
        tensor = state[mine]
        if tensor.dim() < 2 or tensor.numel() == len(tensor) or name in without:
            continue
        scale = 1.0 if means is None else float(tensor.std())
        values = np.unique(tensor.double().numpy()) if means is None else means
        units = tensor.double().numpy().ravel() / scale
        result[name] = Sharing(
            alphabet=Alphabet(values, np.ones(len(values))),
            scale=scale,
            rows=np.ones(len(tensor)),
            unit=1.0,
            exact=np.zeros(tensor.numel(), dtype=bool),
            ids=np.abs(units[:, None] - values).argmin(axis=1),
        )
    return result


def in_lockstep(
    network: nn.Module,
    batches: Any,
    sharing: Mapping[str, Sharing],
    *,
    names: Names | None = None,
    forward: Forward | None = None,
    threads: int = 1,
    **options: Any,
) -> SideBySide:
    """Compress a network on batches."""
    defaults: dict[str, Any] = {"penalty": 0.0, "damping": 0.02, "paths": 2, "sweeps": 1, "synthetic": False}
    twins = tuple(twin_of(network, names, own_weights=own) for own in (False, True))
    how = forward or Forward()
    traced, _ = trace(twins[0], read(batches), how)
    chosen = LockstepOptions(**{**defaults, **options})
    inputs = Inputs(read(batches), how, traced, threads)
    return run_in_lockstep((twins[0], twins[1]), inputs, sharing, chosen)


def state_of(
    network: nn.Module, sharing: Mapping[str, Sharing], ids: Mapping[str, np.ndarray]
) -> dict[str, torch.Tensor]:
    """The network's state dict with shared weights; weights whose id is K stay as they are."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name, chosen in ids.items():
        each = sharing[name]
        values = np.append(each.alphabet.means, np.nan)[chosen] * each.scale
        original = state[name].double().numpy().ravel()
        exact = chosen == len(each.alphabet.means)
        made = torch.from_numpy(np.where(exact, original, values)).to(state[name]).reshape(state[name].shape)
        own = network.state_dict(keep_vars=True)
        state |= {other: made for other, tensor in own.items() if tensor is own[name]}
    return state


def compressed(network: nn.Module, sharing: Mapping[str, Sharing], outcome: SideBySide) -> dict[str, torch.Tensor]:
    """The state dict that an outcome stands for: ids without feedback where feedback did not reach."""
    plain = {name: each.ids for name, each in sharing.items()}
    return state_of(network, sharing, {**plain, **outcome.ids}) | dict(outcome.statistics)


def nearest(network: nn.Module, sharing: Mapping[str, Sharing]) -> dict[str, torch.Tensor]:
    """The state dict with every weight at its nearest component."""
    return state_of(network, sharing, {name: each.ids for name, each in sharing.items()})


def outputs_of(outcome_side: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """All values of all outputs, in one row."""
    return torch.cat([tensor.reshape(-1) for batch in outcome_side for tensor in batch.values()])


def correlated(*shape: int, along: tuple[int, ...] = (-1,)) -> torch.Tensor:
    """Noise of about unit variance in which neighbours along some axes are alike."""
    x = torch.randn(*shape)
    for axis in along:
        x = x.cumsum(dim=axis) / torch.arange(1, x.shape[axis] + 1).sqrt().movedim(0, -1).reshape(
            [-1 if i == axis % x.dim() else 1 for i in range(x.dim())]
        )
    return x


@dataclass(frozen=True)
class Snapshot:
    """What a network is: tensors, buffers, modes, hooks, and what wants gradients."""

    tensors: Mapping[str, torch.Tensor]
    identities: tuple[int, ...]
    wanting: tuple[bool, ...]
    modes: tuple[bool, ...]
    hooks: tuple[int, ...]
    attributes: tuple[tuple[str, ...], ...]

    @staticmethod
    def of(network: nn.Module) -> Snapshot:
        own = network.state_dict(keep_vars=True)
        modules = list(network.modules())
        return Snapshot(
            {name: tensor.detach().clone() for name, tensor in own.items()},
            tuple(map(id, own.values())),
            tuple(tensor.requires_grad for tensor in own.values()),
            tuple(module.training for module in modules),
            tuple(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules),
            tuple(tuple(sorted(vars(module))) for module in modules),
        )

    def equals(self, network: nn.Module) -> bool:
        other = Snapshot.of(network)
        same = all(
            torch.equal(tensor.nan_to_num(), other.tensors[name].nan_to_num()) for name, tensor in self.tensors.items()
        )
        rest = [
            (each.identities, each.wanting, each.modes, each.hooks, each.attributes, list(each.tensors))
            for each in (self, other)
        ]
        return same and rest[0] == rest[1]
