"""What kind of network a checkpoint is of: one that tells classes apart, or any other.

Points of accuracy, agreement and a safe ratio are predicted from what was measured on image classifiers. Of other
networks they would be guesses, so they are said only where it is known, or assumed aloud, that there is one.
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
"""Names of a classifier's last matrix."""

FACT = "task"
"""The manifest's entry for a kind that is known."""

IMAGE_CLASSIFIER = "image classifier"
"""What `damage.assumes` says where only names and shapes speak for it."""


@dataclass(frozen=True)
class Kind:
    """What is known of a network's outputs.

    Attributes:
        task: `classifier`, `other`, or None where it is not known.
        assumes: IMAGE_CLASSIFIER where the task is not known and the tensors look like one's; else None.
    """

    task: str | None = None
    assumes: str | None = None

    @property
    def has_forecast(self) -> bool:
        """Whether lost points can be predicted."""
        return self.task == CLASSIFIER or self.assumes is not None


def settle_kind(
    task: str | None,
    *,
    labels: bool,
    indexed_classes: int | None,
    outputs: int | None,
    tensors: Mapping[str, torch.Tensor],
) -> Kind:
    """Settle the kind of a network.

    Args:
        task: What the user said; None: nothing.
        labels: Whether there are data with integer labels.
        indexed_classes: Classes of the architecture that the index knows; None where it knows none.
        outputs: C where the network was run and gave one floating (N, C) tensor, 0 where it gave something else; None
            where it was not run.
        tensors: The state dict.

    Raises:
        GbnnError: The user said `classifier` of a network with a single output.
    """
    single = 1 in (outputs, indexed_classes)
    if task == CLASSIFIER and single:
        raise GbnnError(
            "`--task classifier`: the network gives one number for each input, expected one for each of two or more "
            "classes; leave the option out"
        )
    if task == OTHER and labels:
        raise GbnnError(
            "`--task other`: accuracy is measured of classifiers only; leave out labelled data (`--eval-data`, "
            "`--val-data`, `--epochs`), or the option"
        )
    if task is not None:
        return Kind(task)
    if single:
        return Kind(OTHER)
    if labels or indexed_classes is not None:
        return Kind(CLASSIFIER)
    if outputs is not None:
        return Kind(CLASSIFIER if outputs else OTHER)
    return Kind(assumes=IMAGE_CLASSIFIER if looks_like_image_classifier(tensors) else None)


def looks_like_image_classifier(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the first kernel reads 1 or 3 channels in two dimensions, and a linear layer comes last.

    Some files are sorted by name. In these any kernel may be the first, and the last layer goes by its usual names.

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
    """Whether a tensor is the matrix of a linear layer of several outputs, whose bias fits if it is there."""
    shape, bias = shapes[name], shapes.get(name.removesuffix("weight") + "bias")
    return name.endswith("weight") and len(shape) == 2 and shape[0] > 1 and bias in (None, shape[:1])


def _is_last(name: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether a linear layer's matrix is followed by its bias only."""
    names = list(shapes)
    after = names[names.index(name) + 1 :]
    return _is_linear(name, shapes) and after in ([], [name.removesuffix("weight") + "bias"])


def is_known_classifier(facts: Mapping[str, Any]) -> bool:
    """Whether a file says, or assumes, that its network is a classifier; a file of 0.1 does by its architecture."""
    known = facts.get(FACT) == CLASSIFIER or facts["damage"].get("assumes") is not None
    return known or (FACT not in facts and facts["checkpoint"]["architecture"] is not None)


def check_task(task: str | None) -> None:
    """Refuse what is no kind of network.

    Raises:
        GbnnError: It is neither of TASKS nor None.
    """
    if task is not None and task not in TASKS:
        raise GbnnError(f"`--task`: expected {' or '.join(f'`{each}`' for each in TASKS)}, got `{task}`")


def require_forecast(kind: Kind, *, measured: bool) -> None:
    """Refuse `--max-drop` where points can neither be measured nor predicted.

    Args:
        kind: Of the network.
        measured: Whether there are data to measure on.

    Raises:
        GbnnError: They cannot.
    """
    if kind.task == OTHER:
        raise GbnnError(
            "`--max-drop`: points of accuracy are lost by classifiers only, and this network is none; give "
            "`--target-ratio`"
        )
    if not measured and kind.task != CLASSIFIER:
        raise GbnnError(
            "`--max-drop`: lost points are predicted only for networks that are known to be image classifiers; say "
            "`--task classifier` if this is one, measure them with `--val-data`, or give `--target-ratio`"
        )
