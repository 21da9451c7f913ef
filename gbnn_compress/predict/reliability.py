"""Data of the reliability diagram: accuracy as a function of confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.predict.metrics import N_BINS, confidence_bins
from gbnn_compress.types import Reliability

if TYPE_CHECKING:
    import torch


def reliability(
    probabilities: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor, *, n_bins: int = N_BINS
) -> Reliability:
    """Confidence and accuracy of the top-1 prediction in the bins of `metrics.ece`.

    Args:
        probabilities: (N, C), rows sum to 1.
        labels: (N,) integers.
        n_bins: Number of bins over 0..1.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    bins = confidence_bins(confidence, n_bins=n_bins)
    count = np.bincount(bins, minlength=n_bins)
    sums = (np.bincount(bins, weights=each, minlength=n_bins) for each in (confidence, correct))
    means = [each / np.maximum(count, 1) for each in sums]
    return Reliability(confidence=means[0], accuracy=means[1], count=count)
