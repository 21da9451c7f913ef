"""Shuffled, augmented batches of training images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from gbnn_compress.data.batches import Batch, read_batch
from gbnn_compress.errors import DataError
from gbnn_compress.predict.bench import Bench
from gbnn_compress.predict.running import check_labels
from gbnn_compress.recipe import TrainingSettings
from gbnn_compress.training import processes
from gbnn_compress.training.augment import Augmentation, harmless
from gbnn_compress.training.goal import Goal
from gbnn_compress.training.loaded import APART
from gbnn_compress.training.validation import RUN_AT_ONCE, run_batch

FEWEST_STEPS, SMALLEST_BATCH = 64, 16
"""Batches are smaller than `finetune.batch_size` where an epoch would have fewer steps than this, but not smaller than
SMALLEST_BATCH."""


class TrainingData:
    """Batches of training images, with or without labels, on the network's device.

    Attributes:
        batch_size: Inputs of one step, over all processes.
        steps: Batches per epoch; inputs that do not fill a batch are left out.
        augmentation: Random changes of the images that the network tolerates.
    """

    def __init__(self, bench: Bench, settings: TrainingSettings, seed: int, goal: Goal | None = None) -> None:
        """Check the labels and choose the augmentation.

        Args:
            bench: The checkpoint's network on the training images.
            settings: The recipe's `finetune`.
            seed: Of shuffling and augmentation.
            goal: What the network is trained towards; default: labels and the checkpoint's logits.

        Raises:
            DataError: Labels of one class only, or beyond the network's classes.
        """
        self._goal = goal or Goal()
        self._bench, self._images, self._seed = bench, bench.images, seed
        few = max(len(self._images) // FEWEST_STEPS, SMALLEST_BATCH)
        size = min(settings.batch_size, few, len(self._images))
        self.batch_size = max(size // processes.count(), 1) * processes.count()
        self.steps = len(self._images) // self.batch_size
        self.augmentation = self._tolerated(settings)

    def __len__(self) -> int:
        return len(self._images)

    def batches(self, epoch: int, *, whole: bool = False) -> Iterator[Batch]:
        """The batches of an epoch: this process's part of each, or the whole ones."""
        count, rank = (1, 0) if whole else (processes.count(), processes.rank())
        generator = torch.Generator().manual_seed(self._seed + APART * epoch)
        order = torch.randperm(len(self), generator=generator)[: self.steps * self.batch_size].numpy()
        if rank:
            generator.manual_seed(self._seed + APART * epoch + rank)
        for batch in self._read(order[rank::count], self.batch_size // count):
            yield self._augmented(batch, generator)

    def _augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        images = self.augmentation(batch.inputs, generator)
        return read_batch(images if batch.targets is None else (images, batch.targets))

    def _tolerated(self, settings: TrainingSettings) -> Augmentation:
        """Only a classifier's outputs tell which changes it tolerates; without labels, its own predictions stand in."""
        goal = self._goal
        if not goal.classifier:
            return Augmentation(shift=False, flip=False)
        classes = np.unique(self._bench.labels) if goal.labelled else np.arange(1)
        if goal.labelled and len(classes) < 2:
            raise DataError(f"`--data` has one class only ({classes[0]}), training needs at least two")
        some = np.sort(np.random.default_rng(self._seed).permutation(len(self._images))[: 4 * self.batch_size])
        batches = list(self._read(some, self.batch_size))
        images = torch.cat([batch.inputs for batch in batches])
        outputs = self._logits(images)
        check_labels(torch.from_numpy(classes), outputs.shape[1], option="--data")
        if settings.augmentation == "none":
            return Augmentation(shift=False, flip=False)
        labels = torch.cat([batch.targets for batch in batches]).cpu() if goal.labelled else outputs.argmax(dim=1)
        return harmless(self._logits, images, labels)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """float32 (N, C), on the CPU, of the checkpoint."""
        goal, bench = self._goal, self._bench
        parts = (
            run_batch(goal, bench.network, read_batch(part), device=bench.device) for part in images.split(RUN_AT_ONCE)
        )
        return torch.cat([goal.logits(part) for part in parts])

    def _read(self, chosen: np.ndarray, batch_size: int) -> Iterator[Batch]:
        bench = self._bench
        assert bench.preprocessing is not None
        for images, labels in self._images.take(chosen).batches(bench.preprocessing, batch_size=batch_size):
            batch = read_batch(images if labels is None else (images, labels))
            yield batch.on(bench.device)
