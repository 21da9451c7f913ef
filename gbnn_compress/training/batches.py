"""Shuffled, augmented batches of the training data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from gbnn_compress.errors import DataError
from gbnn_compress.predict.bench import Bench
from gbnn_compress.predict.running import check_labels
from gbnn_compress.recipe import TrainingSettings
from gbnn_compress.training import processes
from gbnn_compress.training.augment import Augmentation, harmless
from gbnn_compress.training.loop import APART, Batch
from gbnn_compress.training.validation import log_probabilities

FEWEST_STEPS, SMALLEST_BATCH = 64, 16
"""Batches are smaller than `finetune.batch_size` where an epoch would have fewer steps than this, but not smaller than
SMALLEST_BATCH."""


class TrainingData:
    """Batches of labelled training data, on the network's device.

    Attributes:
        batch_size: Inputs of one step, over all processes.
        steps: Batches per epoch; inputs that do not fill a batch are left out.
        augmentation: Random changes of the images that the network tolerates.
    """

    def __init__(self, bench: Bench, settings: TrainingSettings, seed: int) -> None:
        """Check the labels and choose the augmentation.

        Args:
            bench: The checkpoint's network on the training data.
            settings: The recipe's `finetune`.
            seed: Of shuffling and augmentation.

        Raises:
            DataError: Labels of one class only, or beyond the network's classes.
        """
        self._bench, self._seed = bench, seed
        few = max(len(bench.data) // FEWEST_STEPS, SMALLEST_BATCH)
        size = min(settings.batch_size, few, len(bench.data))
        self.batch_size = max(size // processes.count(), 1) * processes.count()
        self.steps = len(bench.data) // self.batch_size
        self.augmentation = self._tolerated(settings)

    def __len__(self) -> int:
        return len(self._bench.data)

    def batches(self, epoch: int, *, whole: bool = False) -> Iterator[Batch]:
        """The batches of an epoch: this process's part of each, or the whole ones."""
        count, rank = (1, 0) if whole else (processes.count(), processes.rank())
        generator = torch.Generator().manual_seed(self._seed + APART * epoch)
        order = torch.randperm(len(self), generator=generator)[: self.steps * self.batch_size].numpy()
        if rank:
            generator.manual_seed(self._seed + APART * epoch + rank)
        for images, labels in self._read(order[rank::count], self.batch_size // count):
            yield self.augmentation(images, generator), labels

    def _tolerated(self, settings: TrainingSettings) -> Augmentation:
        bench = self._bench
        classes = np.unique(bench.labels)
        if len(classes) < 2:
            raise DataError(f"`--data` has one class only ({classes[0]}), training needs at least two")
        some = np.sort(np.random.default_rng(self._seed).permutation(len(bench.data))[: 4 * self.batch_size])
        images, labels = (torch.cat(parts) for parts in zip(*self._read(some, self.batch_size), strict=True))
        outputs = log_probabilities(bench.network, images)
        check_labels(torch.from_numpy(classes), outputs.shape[1], option="--data")
        if settings.augmentation == "none":
            return Augmentation(shift=False, flip=False)
        return harmless(lambda changed: log_probabilities(bench.network, changed), images, labels.cpu())

    def _read(self, chosen: np.ndarray, batch_size: int) -> Iterator[Batch]:
        bench = self._bench
        for images, labels in bench.data.take(chosen).batches(bench.preprocessing, batch_size=batch_size):
            assert labels is not None
            yield images.to(bench.device), labels.to(bench.device)
