"""Which parameter or buffer of a module holds which tensor of an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gbnn_compress.data.architectures import load_weights
from gbnn_compress.predict.rebuild import rebuild

if TYPE_CHECKING:
    from collections.abc import Collection

    from gbnn_compress.types import Artifact


def own_names(module: torch.nn.Module, artifact: Artifact, *, kinds: Collection[str], spec: str) -> dict[str, str]:
    """Find the tensors of an artifact in a module, by loading numbers in place of weights.

    Modules may rename what they load, and need not tie the same tensors. A tensor that the module changes when it loads
    it, and one without values, is not found.

    Args:
        module: It holds the posterior mean afterwards.
        artifact: The artifact.
        kinds: Kinds of the tensors to find: `shared`, `unshared`, `raw`.
        spec: The architecture, for messages.

    Returns:
        Name in the module -> name in the artifact; of tied tensors, that of the one that holds the values.
    """
    wanted = [info for info in artifact.tensors if info.kind in kinds]
    numbers = {info.name: number for number, info in enumerate(wanted, start=1)}
    marked = {
        info.name: torch.tensor(float(numbers.get(info.tied_to or info.name, 0))).expand(info.shape)
        for info in artifact.tensors
    }
    load_weights(module, marked, spec=spec)
    marks = {own: (float(tensor.flatten()[0]), tuple(tensor.shape)) for own, tensor in _filled(module).items()}
    means = rebuild(artifact)
    load_weights(module, means, spec=spec)
    held = _filled(module)
    names = {(float(numbers[info.name]), info.shape): info.name for info in wanted}
    # Booleans and small integers do not hold the numbers; they are found by their own names.
    raw = {info.name: info.name for info in wanted if info.kind == "raw"}
    candidates = ((own, name) for own in held for name in (names.get(marks[own]), raw.get(own)) if name is not None)
    return {own: name for own, name in candidates if _same(held[own], means[name])}


def _filled(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    tensors = {own: each for own, each in module.state_dict().items() if isinstance(each, torch.Tensor)}
    return {own: each for own, each in tensors.items() if each.numel()}


def _same(held: torch.Tensor, mean: torch.Tensor) -> bool:
    """Whether a module's tensor has the values of an artifact's, at the module's dtype."""
    equal_nan = held.is_floating_point() or held.is_complex()
    return held.shape == mean.shape and torch.allclose(held, mean.to(held.dtype), rtol=0, atol=0, equal_nan=equal_nan)
