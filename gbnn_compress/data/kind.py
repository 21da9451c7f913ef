"""Detection of the network's task: classifier or other.

Accuracy drop, agreement and safe ratio are predicted from measurements on image classifiers. They are therefore
predicted only for networks that are known to be classifiers, or that are assumed to be; reports state the assumption.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gbnn_compress.errors import GbnnError

if TYPE_CHECKING:
    import torch

    Shape = tuple[int, ...]

CLASSIFIER, OTHER = "classifier", "other"
TASKS = (CLASSIFIER, OTHER)

HEAD = re.compile(r"(^|\.)(fc|head|heads\.head|classifier|linear|logits|last_linear|output)(\.\d+)?\.weight$")
"""Usual names of a classifier's last matrix."""

FACT = "task"
"""Key of the manifest's entry for a known task."""

IMAGE_CLASSIFIER = "image classifier"
"""Value of `damage.assumes` if only names and shapes of the tensors suggest a classifier."""


@dataclass(frozen=True)
class Kind:
    """The task of a network, as far as it is known.

    Attributes:
        task: `classifier`, `other`, or None if the task is not known.
        assumes: IMAGE_CLASSIFIER if the task is not known but the tensors look like an image classifier's, else None.
    """

    task: str | None = None
    assumes: str | None = None

    @property
    def has_forecast(self) -> bool:
        """Whether an accuracy drop can be predicted."""
        return self.task == CLASSIFIER or self.assumes is not None


def settle_kind(
    task: str | None,
    *,
    labels: bool,
    indexed_classes: int | None,
    outputs: int | None,
    tensors: Mapping[str, torch.Tensor],
    images: bool = True,
    recorded: str | None = None,
) -> Kind:
    """Determine the task of a network: the first of these that says it.

    The user's choice; the task that a file records; integer labels for an output with two or more classes; an
    architecture that the index knows; one output of two or more columns for images. If the network returned anything
    else, it is no classifier.

    Args:
        task: The user's choice; None if the user made none.
        labels: Whether there is data with integer labels, which fit the network's output if it was run.
        indexed_classes: Number of classes by the index of architectures; None if the index knows no fitting network.
        outputs: C if the network returned one floating (N, C) tensor; 0 if it returned something else; None if it was
            not run.
        tensors: The state dict.
        images: Whether the network returned its outputs for images, or for noise in place of images.
        recorded: The task that an artifact records; None for a checkpoint, and if it records none.

    Raises:
        GbnnError: The user's choice is `classifier` for a network with a single output.
    """
    single = 1 in (outputs, indexed_classes)
    if task == CLASSIFIER and single:
        raise GbnnError(
            "`--task classifier`: expected a network with two or more outputs per input, got one; leave the option out"
        )
    if task is not None or recorded is not None:
        return Kind(task or recorded)
    if single:
        return Kind(OTHER)
    if labels or indexed_classes is not None:
        return Kind(CLASSIFIER)
    if outputs is not None:
        return Kind(CLASSIFIER if outputs and images else OTHER)
    return Kind(assumes=IMAGE_CLASSIFIER if looks_like_image_classifier(tensors) else None)


def looks_like_image_classifier(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the first kernel is 2-D with 1 or 3 input channels, and the last layer is linear.

    In a file that is sorted by name, any kernel may be the first, and the last layer is recognised by its usual names.

    Args:
        tensors: The state dict, in the file's order.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.is_floating_point()}
    kernels = [shape for shape in shapes.values() if len(shape) > 2 and shape[0] > 1]
    matrices = [name for name, shape in shapes.items() if len(shape) >= 2]
    if not kernels or not matrices:
        return False
    if list(shapes) != sorted(shapes):
        return _reads_images(kernels[0]) and _is_last(matrices[-1], shapes)
    heads = [name for name in matrices if HEAD.search(name) and _is_linear(name, shapes)]
    return any(map(_reads_images, kernels)) and bool(heads)


def _reads_images(shape: Shape) -> bool:
    return len(shape) == 4 and shape[1] in (1, 3)


def _is_linear(name: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether a tensor is the matrix of a linear layer with several outputs, and its bias, if any, fits."""
    shape, bias = shapes[name], shapes.get(name.removesuffix("weight") + "bias")
    return name.endswith("weight") and len(shape) == 2 and shape[0] > 1 and bias in (None, shape[:1])


def _is_last(name: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether a tensor is a linear layer's matrix that is last, or followed only by its bias."""
    names = list(shapes)
    after = names[names.index(name) + 1 :]
    return _is_linear(name, shapes) and after in ([], [name.removesuffix("weight") + "bias"])


def is_known_classifier(facts: Mapping[str, Any]) -> bool:
    """Whether a file records or assumes that its network is a classifier; in files of 0.1, the architecture does."""
    known = facts.get(FACT) == CLASSIFIER or facts["damage"].get("assumes") is not None
    return known or (FACT not in facts and facts["checkpoint"]["architecture"] is not None)


def check_task(task: str | None) -> None:
    """Check the value of `--task`.

    Raises:
        GbnnError: The value is neither None nor one of TASKS.
    """
    if task is not None and task not in TASKS:
        raise GbnnError(f"`--task`: expected {' or '.join(f'`{each}`' for each in TASKS)}, got `{task}`")


def require_forecast(kind: Kind, *, measured: bool, metric: bool = False) -> None:
    """Refuse `--max-drop` if the drop can be neither measured nor predicted.

    Args:
        kind: Task of the network.
        measured: Whether there is data to measure the drop on.
        metric: Whether the user gave a metric, whose drop can be measured for any network.

    Raises:
        GbnnError: The network is no classifier; or it is not known to be one, and there is no data.
    """
    if metric and measured:
        return
    if metric:
        raise GbnnError(
            "`--max-drop`: the drop of a metric is measured; give `--val-data` or `--data`, or `--target-ratio`"
        )
    if kind.task == OTHER:
        raise GbnnError(
            "`--max-drop`: expected a classifier, and this network is none; give `--target-ratio` instead, or"
            " `--max-error` with data, or `--metric` with data"
        )
    if not measured and kind.task != CLASSIFIER:
        raise GbnnError(
            "`--max-drop`: the accuracy drop is predicted only for networks that are known to be image classifiers; "
            "give `--task classifier` if this is one, measure the drop with `--val-data`, or give `--target-ratio`"
        )
