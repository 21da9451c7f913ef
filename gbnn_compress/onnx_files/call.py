"""One call of a network: its arguments as named tensors, and its outputs by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.batches import Batch, arguments, mapped, tensors_in
from gbnn_compress.errors import ArchitectureError, DataError
from gbnn_compress.predict.forward import Forward
from gbnn_compress.predict.nesting import by_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

INPUT = "input"
"""Name of an input that the user gave no name."""

TARGET = "target"


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a network.

    Attributes:
        names: Name of each tensor of the arguments, in order.
        args: Positional arguments; for a `forward` of the user, the batch.
        kwargs: Keyword arguments.
        forward: The forward pass.
    """

    names: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    forward: Forward

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors of the arguments."""
        return tuple(tensors_in((self.args, self.kwargs)))

    @property
    def size(self) -> int:
        """Number of inputs: the length of the first tensor that has axes; 1 if there is none."""
        return next((len(each) for each in self.tensors if each.dim()), 1)

    def holding(self, tensors: Sequence[torch.Tensor]) -> Call:
        """The same call with other tensors."""
        rest = iter(tensors)
        args, kwargs = mapped((self.args, self.kwargs), lambda tensor: next(rest))
        return replace(self, args=args, kwargs=kwargs)

    def copied(self) -> Call:
        """The same call with copies of the tensors, which a network may change."""
        return self.holding([tensor.clone() for tensor in self.tensors])

    def outputs(self, network: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The outputs of the network by name: the chosen one, or all that ONNX has a type for.

        Raises:
            ArchitectureError: There is no floating output, or not the chosen one.
            Exception: Any exception of the network.
        """
        function = self.forward.function
        outputs = network(*self.args, **self.kwargs) if function is None else function(network, self.args[0])
        chosen = self.forward.chosen(outputs)
        if self.forward.output is not None:
            return chosen
        return {name: tensor for name, tensor in by_name(outputs).items() if not tensor.is_complex()}


def call_of(network: torch.nn.Module, batch: Batch, forward: Forward, *, lone: str = INPUT) -> Call:
    """The call of a network with a batch, floating tensors as float32.

    Args:
        network: The network.
        batch: Its inputs; targets only if `forward` of the network requires them, or the user's own takes the batch.
        forward: The forward pass.
        lone: Name of a tensor that the batch has no name for.

    Raises:
        DataError: The batch has no tensor, or two of one name.
    """
    args, kwargs = ((batch.value,), {}) if forward.function is not None else arguments(network, batch)
    value = args[0] if args else kwargs
    names = tuple(_input_name(name, value, batch, forward, lone) for name in by_name(value))
    args, kwargs = mapped((args, kwargs), _as_float32)
    call = Call(names, args, kwargs, forward)
    if not names:
        raise DataError(
            f"a batch of type `{type(value).__name__}` has no tensors that ONNX could take as inputs; give a tensor, or"
            " a tuple, list, mapping or dataclass of tensors"
        )
    if len(set(names)) < len(names) or len(names) < len(call.tensors):
        raise DataError(f"two inputs have the same name ({', '.join(names)}); give other keys in the batches")
    return call


def _input_name(name: str, value: Any, batch: Batch, forward: Forward, lone: str) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        return lone
    head, _, tail = name.partition(".")
    if forward.function is not None and batch.inputs is not value and isinstance(value, list | tuple):
        # The user's function takes `(inputs, targets)`.
        inner = TARGET if head == "1" else lone
        name = f"{inner}.{tail}" if tail and (inner == TARGET or tail[0].isdecimal()) else tail or inner
    return f"{lone}.{name}" if name[0].isdecimal() else name


def _as_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()


def failed(error: Exception, call: Call, *, option: str) -> ArchitectureError:
    """The refusal of a network that fails on a call."""
    shapes = ", ".join(f"`{name}` {list(each.shape)}" for name, each in zip(call.names, call.tensors, strict=True))
    message = " ".join(str(error).split())
    return ArchitectureError(
        f"the network fails on a batch from `{option}` with {shapes} ({type(error).__name__}: {message}); check"
        " `--arch` and the inputs"
    )
