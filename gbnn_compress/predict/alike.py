"""Members of an ensemble: one argument for each, and outputs that can be averaged."""

from __future__ import annotations

import copy as copies
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gbnn_compress.checkpoint.objects import is_module
from gbnn_compress.data.kind import CLASSIFIER
from gbnn_compress.errors import ArchitectureError, GbnnError

if TYPE_CHECKING:
    import torch


def per_member(arch: Any, count: int, *, copy: bool = False, option: str = "`--arch`") -> list[Any]:
    """One architecture for each member.

    Args:
        arch: A list or tuple of architectures, or one for all.
        count: Number of members.
        copy: Whether members after the first get copies of a single module.
        option: Where the architectures come from, for messages.

    Raises:
        GbnnError: The list has another length.
    """
    if not isinstance(arch, list | tuple):
        pattern = copy and is_module(arch)
        return [copies.deepcopy(arch) if pattern and number else arch for number in range(count)]
    if len(arch) != count:
        networks = "a file of one network" if count == 1 else f"an ensemble of {count} networks"
        raise GbnnError(
            f"{option}: expected one for all or a list of {count}, for {networks}, got a list of {len(arch)}"
        )
    return list(arch)


@contextmanager
def in_member(number: int) -> Iterator[None]:
    """Name a member in the errors of a block."""
    try:
        yield
    except GbnnError as error:
        raise type(error)(f"member {number}: {error}") from error


def require_alike(tasks: Sequence[str], outputs: Sequence[Mapping[str, torch.Tensor]], *, what: str = "member") -> str:
    """Refuse members whose outputs differ in kind or shape.

    Args:
        tasks: `classifier` or `other`, of each member.
        outputs: The outputs that count, of each member for the same inputs, by name.
        what: What they are called.

    Returns:
        The task of all.

    Raises:
        ArchitectureError: The message names the two members, and what they return.
    """
    kinds = [_described(task, found) for task, found in zip(tasks, outputs, strict=True)]
    for number, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ArchitectureError(
                f"{what} {number} returns {kind}, and {what} 0 {kinds[0]}: expected outputs of one kind and shape;"
                " choose one with `--output`, check `--arch`, or take other networks"
            )
    return tasks[0]


def _described(task: str, outputs: Mapping[str, torch.Tensor]) -> str:
    shapes = {name: "x".join(map(str, tensor.shape)) or "a number" for name, tensor in outputs.items()}
    if task == CLASSIFIER and len(shapes) == 1:
        return f"logits {next(iter(shapes.values()))}"
    what = "a classifier's outputs" if task == CLASSIFIER else "outputs"
    return f"{what} {', '.join(f'`{name}` {shape}' for name, shape in shapes.items())}"
