"""The goal of a training, from the network's kind and from what the data hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gbnn_compress.data.batches import Batch, read_batch
from gbnn_compress.data.datasets import Dataset
from gbnn_compress.data.kind import CLASSIFIER, Kind
from gbnn_compress.predict.bench import Bench
from gbnn_compress.predict.nesting import by_name
from gbnn_compress.predict.running import CLASS_AXIS
from gbnn_compress.predict.task import is_classes, is_images
from gbnn_compress.training.goal import Goal, output_variances, require_finite
from gbnn_compress.training.loaded import LoadedData
from gbnn_compress.training.validation import MOST_INPUTS, MOST_VALUES, run_batch


def find_goal(kind: Kind, bench: Bench, read: LoadedData | None) -> Goal:
    """What a network is trained towards.

    Args:
        kind: Whether the network is a classifier, as far as that is known.
        bench: The checkpoint's network on the training data.
        read: The training data, where they are no images of a specification.

    Raises:
        GbnnError: The network fails on the first batch, or its outputs are not finite.
    """
    first = _first(bench)
    goal = Goal(bench.forward, classifier=False, labelled=False, loss=bench.loss, option=bench.option)
    answer = run_batch(goal, bench.network, first, device=bench.device)
    looks = is_images(first) and is_classes(goal.forward.chosen(answer), n_inputs=first.size)
    classifier = looks if kind.task is None else kind.task == CLASSIFIER
    goal = replace(goal, classifier=classifier)
    goal = replace(goal, labelled=_has_labels(goal, first, answer))
    if not classifier:
        goal = replace(goal, variances=output_variances(_answers(goal, bench, read)))
    return goal


def goal_on(bench: Bench, goal: Goal) -> Goal:
    """The goal of training as validation data can measure it: they may lack labels that the training data have."""
    goal = replace(goal, option=bench.option)
    if not goal.labelled:
        return goal
    first = _first(bench)
    return replace(goal, labelled=_has_labels(goal, first, run_batch(goal, bench.network, first, device=bench.device)))


def _first(bench: Bench) -> Batch:
    """The first batch of the data; of images, the first one alone."""
    if not isinstance(bench.data, Dataset):
        return bench.data.first
    assert bench.preprocessing is not None
    images, labels = next(bench.data.take(np.arange(1)).batches(bench.preprocessing))
    return read_batch(images if labels is None else (images, labels))


def _has_labels(goal: Goal, batch: Batch, answer: Any) -> bool:
    """Whether the targets are integers, one for each row of a classifier's logits."""
    targets = batch.targets
    if not goal.classifier or not isinstance(targets, torch.Tensor) or targets.dtype == torch.bool:
        return False
    logits = goal.logits(answer)
    rows = (*logits.shape[:CLASS_AXIS], *logits.shape[CLASS_AXIS + 1 :])
    return not (targets.is_floating_point() or targets.is_complex()) and tuple(targets.shape) == rows


def _answers(goal: Goal, bench: Bench, read: LoadedData | None) -> Iterator[dict[str, torch.Tensor]]:
    """The checkpoint's outputs that count on the first batches, as many as validation would use."""
    n_inputs = n_values = 0
    for batch in bench.batches() if read is None or read.held is None else read.held:
        answer = run_batch(goal, bench.network, batch, device=bench.device)
        chosen = goal.forward.chosen(answer)
        require_finite(chosen, option=bench.option)
        yield chosen
        n_inputs, n_values = n_inputs + batch.size, n_values + sum(each.numel() for each in by_name(answer).values())
        if n_inputs >= MOST_INPUTS or n_values >= MOST_VALUES:
            return
