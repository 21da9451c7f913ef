"""Uses of the network's own matrices in a forward pass: products, convolutions, embeddings, and what goes with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

aten = torch.ops.aten


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input; each tuple has a number per spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool


@dataclass(frozen=True, eq=False)
class Use:
    """One product of inputs with one of the network's matrices, or one convolution.

    Attributes:
        name: Name of the weight's tensor in the checkpoint.
        run: Computes the output from the current values of weight and bias.
        x: The input: (n, d) or (groups, n, d) for a product, (N, channels, ...) for a convolution.
        weight: The operand: the tensor itself or a view of it.
        transposed: For a product: whether the operand is (..., d, rows) and not (..., rows, d).
        bias: The bias that the operation adds, a tensor of the network or a view of it; None without.
        axis: Axis of the output that holds the rows.
        geometry: For a convolution.
    """

    name: str
    run: Callable[[], torch.Tensor]
    x: torch.Tensor
    weight: torch.Tensor
    transposed: bool
    bias: torch.Tensor | None
    axis: int
    geometry: Geometry | None = None

    @property
    def piece(self) -> tuple[Any, ...]:
        """Which part of the tensor is used, and in which orientation; equal for equal uses."""
        weight = self.weight
        view = (weight.storage_offset(), tuple(weight.shape), tuple(weight.stride()))
        return (self.name, self.transposed, self.geometry, *view)


@dataclass(frozen=True, eq=False)
class BiasUse:
    """The addition of a bias to the output of a product.

    Attributes:
        name: Name of the bias in the checkpoint.
        bias: The bias, a tensor of the network or a view of it.
        x: What it is added to, (..., rows).
        run: Computes the sum from the current value of the bias.
    """

    name: str
    bias: torch.Tensor
    x: torch.Tensor
    run: Callable[[], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Lookup:
    """Rows of an embedding that are looked up.

    Attributes:
        name: Name of the table in the checkpoint.
        indices: int64, any shape.
    """

    name: str
    indices: torch.Tensor


@dataclass(frozen=True, eq=False)
class NormUse:
    """One call of a batch norm in evaluation mode.

    Attributes:
        prefix: Prefix of the names of its vectors in the checkpoint.
        x: The input, (N, channels, ...).
        weight: gamma or None.
        bias: beta or None.
        mean: The running mean.
        variance: The running variance.
        eps: Added to the variance.
    """

    prefix: str
    x: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    mean: torch.Tensor
    variance: torch.Tensor
    eps: float

    def normalise(self, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """The batch norm's output with other statistics."""
        return torch.nn.functional.batch_norm(self.x, mean, variance, self.weight, self.bias, eps=self.eps)


AnyUse = Use | BiasUse | Lookup | NormUse


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last place of a tensor's values in its storage."""
    first = int(tensor.storage_offset())
    return first, first + sum((int(n) - 1) * int(step) for n, step in zip(tensor.shape, tensor.stride(), strict=True))


class Owners:
    """Finds the tensor of the network that an operand is, or is a view of."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Index tensors by their storage.

        Args:
            tensors: The network's own tensors by their names in the checkpoint. They must outlive the index.
        """
        self._by_storage: dict[int, list[tuple[str, int, int]]] = {}
        for name, tensor in tensors.items():
            if tensor.numel():
                first, last = extent(tensor)
                self._by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, first, last))

    def name_of(self, operand: Any) -> str | None:
        """Name of the tensor that holds the operand's values; None for anything else."""
        if not isinstance(operand, torch.Tensor) or not operand.numel():
            return None
        for name, first, last in self._by_storage.get(operand.untyped_storage().data_ptr(), ()):
            if first <= operand.storage_offset() <= last:
                return name
        return None


def read_use(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], owners: Owners) -> AnyUse | None:
    """What an operation of torch uses of the network's own tensors; None if nothing of interest.

    Args:
        func: An operation such as `aten.addmm.default`.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        owners: The network's tensors.
    """
    reader = _READERS.get(func)
    return None if reader is None else reader(func, args, kwargs, owners)


def _product(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], owners: Owners) -> Use | None:
    """`mm`, `bmm`, `addmm` and `baddbmm`: the weight is the factor that is the network's; the second if both are."""
    has_bias = func in (aten.addmm.default, aten.baddbmm.default)
    left, right = args[1:3] if has_bias else args[:2]
    first, second = owners.name_of(left), owners.name_of(right)
    name = second or first
    if name is None:
        return None
    x, weight = (left, right) if second else (right, left)
    plain = all(kwargs.get(key, 1) == 1 for key in ("alpha", "beta"))
    if has_bias and not plain:
        return None
    owned = has_bias and second is not None and args[0].dim() == 1 and owners.name_of(args[0]) is not None
    bias = args[0] if owned else None
    if not second:
        x = x.transpose(-1, -2)

    def run() -> torch.Tensor:
        return func(*args, **kwargs)

    axis = left.dim() - 1 if second else left.dim() - 2
    return Use(name, run, x, weight, transposed=second is not None, bias=bias, axis=axis)


def _convolution(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], owners: Owners) -> Use | None:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    name = owners.name_of(weight)
    if name is None:
        return None
    count = weight.dim() - 2
    spread = [tuple(each) * (count if len(each) == 1 else 1) for each in (stride, padding, dilation)]
    geometry = Geometry(spread[0], spread[1], spread[2], groups, transposed)

    def run() -> torch.Tensor:
        return func(*args, **kwargs)

    return Use(
        name, run, x, weight, transposed=False, bias=bias if owners.name_of(bias) else None, axis=1, geometry=geometry
    )


def _norm(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], owners: Owners) -> NormUse | None:
    x, weight, bias, mean, variance, training, _, eps = args
    name = owners.name_of(mean)
    if training or name is None or not name.endswith("running_mean") or owners.name_of(variance) is None:
        return None
    return NormUse(name.removesuffix("running_mean"), x, weight, bias, mean, variance, eps)


def _addition(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], owners: Owners) -> BiasUse | None:
    if len(args) < 2 or kwargs.get("alpha", 1) != 1 or not isinstance(args[1], torch.Tensor) or args[1].dim() != 1:
        return None
    name = owners.name_of(args[1])
    if name is None or args[0].dim() < 2 or args[0].shape[-1] != len(args[1]):
        return None
    return BiasUse(name, args[1], args[0], lambda: func(*args, **kwargs))


def _lookup(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], owners: Owners) -> Lookup | None:
    name = owners.name_of(args[0])
    return None if name is None else Lookup(name, args[1])


_READERS: dict[Any, Callable[[Any, tuple[Any, ...], Mapping[str, Any], Owners], AnyUse | None]] = {
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _product,
    aten.baddbmm.default: _product,
    aten.convolution.default: _convolution,
    aten.native_batch_norm.default: _norm,
    aten.add.Tensor: _addition,
    aten.embedding.default: _lookup,
    aten._embedding_bag.default: _lookup,
}
