"""Outputs of a network: any nesting of tuples, lists, mappings and dataclasses, by name and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.batches import mapped

if TYPE_CHECKING:
    import torch

LONE = "output"
"""Name of an output that is not nested."""


def by_name(outputs: Any) -> dict[str, torch.Tensor]:
    """All tensors of a nesting, by names such as `value` or `parts.0`; a lone tensor is named `output`."""
    return {name or LONE: tensor for name, tensor in _named(outputs, "")}


def put_back(outputs: Any, tensors: Mapping[str, Any]) -> Any:
    """The same nesting with tensors replaced by name; tensors without a replacement stay."""
    names = iter([name or LONE for name, _ in _named(outputs, "")])
    return mapped(outputs, lambda tensor: _replacement(tensors, next(names), tensor))


def _replacement(tensors: Mapping[str, Any], name: str, tensor: torch.Tensor) -> Any:
    return tensors.get(name, tensor)


def _named(value: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield prefix, value
        return
    parts: Iterator[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping):
        parts = iter(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = zip(value._fields, value, strict=True)
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = ((field.name, getattr(value, field.name)) for field in fields(value))
    for key, each in parts or ():
        yield from _named(each, f"{prefix}.{key}" if prefix else str(key))
