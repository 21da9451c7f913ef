"""A network as a module from tensors to tensors, which torch's exporter takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gbnn_compress.onnx_files.call import Call

PREFIX = "network."
"""Prefix of the network's own names in a Flat."""


class Flat(torch.nn.Module):
    """A network that is called with the tensors of a call, and returns a tuple of named outputs.

    Attributes:
        network: The network.
    """

    def __init__(self, network: torch.nn.Module, call: Call, outputs: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._call, self._outputs = call, tuple(outputs)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, in order."""
        found = self._call.holding(tensors).outputs(self.network)
        return tuple(found[name] for name in self._outputs)
