"""Whether a network that runs is a classifier: by the user's word, the file, labels, the index, or what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.batches import Batch
from gbnn_compress.data.kind import CLASSIFIER, FACT, OTHER, check_task

if TYPE_CHECKING:
    import torch


def settled_task(
    batch: Batch,
    outputs: Callable[[], Mapping[str, torch.Tensor]],
    *,
    task: str | None = None,
    facts: Mapping[str, Any] | None = None,
    labelled: bool = False,
    indexed: bool = False,
) -> str:
    """Settle the task of a network that predicts a batch: the first of the arguments that says something decides.

    Args:
        batch: A batch of inputs.
        outputs: Runs the network on the batch and returns the outputs that count, by name. It is called only if
            nothing else decides.
        task: The user's choice.
        facts: The facts of the artifact; None for a checkpoint. Files of version 0.1 record an architecture instead of
            the task.
        labelled: Whether the data have one integer label per input.
        indexed: Whether the index of architectures knows the network as an image classifier.

    Returns:
        `classifier` or `other`. Labels, and images as inputs, make a classifier of a network with one floating output
        of shape (N, C >= 2).

    Raises:
        GbnnError: The user's choice is neither.
    """
    check_task(task)
    if task is not None:
        return task
    recorded = recorded_task(facts)
    if recorded is not None:
        return recorded
    if indexed:
        return CLASSIFIER
    suits = (labelled or is_images(batch)) and is_classes(outputs(), n_inputs=batch.size)
    return CLASSIFIER if suits else OTHER


def recorded_task(facts: Mapping[str, Any] | None) -> str | None:
    """The task that an artifact records; None if it records none."""
    if facts is None:
        return None
    if FACT in facts:
        return str(facts[FACT])
    return CLASSIFIER if facts["checkpoint"]["architecture"] is not None else None


def is_images(batch: Batch) -> bool:
    """Whether the inputs are one floating tensor (N, 1 or 3, height, width)."""
    import torch

    inputs = batch.inputs
    if not isinstance(inputs, torch.Tensor):
        return False
    return inputs.is_floating_point() and inputs.ndim == 4 and inputs.shape[1] in (1, 3)


def columns_of(outputs: Mapping[str, torch.Tensor], *, n_inputs: int) -> int:
    """C if the outputs are one floating tensor (N, C), else 0."""
    if len(outputs) != 1:
        return 0
    (only,) = outputs.values()
    return int(only.shape[1]) if only.ndim == 2 and len(only) == n_inputs else 0


def is_classes(outputs: Mapping[str, torch.Tensor], *, n_inputs: int) -> bool:
    """Whether the outputs are one floating tensor (N, C >= 2)."""
    return columns_of(outputs, n_inputs=n_inputs) >= 2
