"""Names, types and free axes of a graph's inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gbnn_compress.predict.nesting import LONE

if TYPE_CHECKING:
    import torch

LOGITS = "logits"


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a graph.

    Attributes:
        inputs: Names of the inputs.
        axes: Free axes of each input: axis -> name.
        keys: Names of the outputs in the network's nesting.
        floating: Whether each output is floating.
        classifier: Whether the only floating output is the logits of a classifier, with the class axis 1.
        rank: Number of axes of a classifier's logits.
    """

    inputs: tuple[str, ...]
    axes: tuple[Mapping[int, str], ...]
    keys: tuple[str, ...]
    floating: tuple[bool, ...]
    classifier: bool
    rank: int = 2

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs in the file: those of the nesting, but that none has the name of an input.

        A lone output that has no name there is `logits` of classifiers and `output` of others.
        """
        nameless = len(self.keys) == 1 and (self.keys[0] == LONE or self.keys[0].isdecimal())
        names = (LOGITS if self.classifier else LONE,) if nameless else self.keys
        return tuple(f"{LONE}.{name}" if name in self.inputs else name for name in names)

    @property
    def logits(self) -> int:
        """Position of a classifier's logits among the outputs."""
        return self.floating.index(True)


def signature_of(
    inputs: tuple[str, ...],
    axes: tuple[Mapping[int, str], ...],
    outputs: Mapping[str, torch.Tensor],
    *,
    classifier: bool,
) -> Signature:
    """The signature of a network that returns some outputs.

    Args:
        inputs: Names of the inputs.
        axes: Free axes of each input.
        outputs: The outputs for one batch.
        classifier: Whether the network is a classifier. Its logits are its only floating output, if that has two
            classes or more.
    """
    floating = tuple(tensor.is_floating_point() for tensor in outputs.values())
    lone = [tensor for tensor in outputs.values() if tensor.is_floating_point()]
    classes = classifier and len(lone) == 1 and lone[0].dim() >= 2 and lone[0].shape[1] >= 2
    return Signature(inputs, axes, tuple(outputs), floating, classes, lone[0].dim() if classes else 2)
