"""How a network is run on a batch, and which of its outputs count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.batches import Batch, arguments
from gbnn_compress.errors import ArchitectureError, listed
from gbnn_compress.predict.nesting import by_name

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Forward:
    """A forward pass.

    Attributes:
        function: `f(network, batch) -> outputs` for the batch as the data yields it. None: the network is called with
            the batch's inputs (`data.batches.arguments`).
        output: Name or position of the one output that counts; None: every floating output.
    """

    function: Callable[[torch.nn.Module, Any], Any] | None = None
    output: str | int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the network is called with the inputs, and every floating output counts."""
        return self.function is None and self.output is None

    def __call__(self, network: torch.nn.Module, batch: Batch) -> Any:
        """The network's outputs, whole; exceptions of the network go through."""
        if self.function is not None:
            return self.function(network, batch.value)
        args, kwargs = arguments(network, batch)
        return network(*args, **kwargs)

    def chosen(self, outputs: Any) -> dict[str, torch.Tensor]:
        """The outputs that count, by name.

        Raises:
            ArchitectureError: There is no floating output, or no output of the chosen name.
        """
        found = {name: tensor for name, tensor in by_name(outputs).items() if tensor.is_floating_point()}
        if self.output is None:
            if not found:
                raise ArchitectureError(f"the network returns no floating tensor, got `{type(outputs).__name__}`")
            return found
        names = list(found)
        chosen = names[self.output] if isinstance(self.output, int) and self.output < len(names) else self.output
        if chosen not in found:
            raise ArchitectureError(f"`--output {self.output}`: the network has no such output; it has {listed(names)}")
        return {str(chosen): found[str(chosen)]}
