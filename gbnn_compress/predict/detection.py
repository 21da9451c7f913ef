"""Out-of-distribution detection by a network's uncertainty: metrics and histograms of the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.predict import metrics
from gbnn_compress.report.schema import Detected, Detection
from gbnn_compress.types import Histogram

if TYPE_CHECKING:
    import torch

    from gbnn_compress.predict.prediction import Prediction

N_BINS = 30

SHOWN = 0.995
"""Fraction of either set that lies within the bins. Without it, a few extreme scores would widen all bins."""


def detection(inside: Prediction, outside: Prediction) -> Detection:
    """Measure how well the uncertainty of a prediction separates two sets of inputs.

    Args:
        inside: Prediction on in-distribution inputs.
        outside: Prediction on out-of-distribution inputs.

    Returns:
        `auroc` and `fpr95` of the predictive entropy. Under the keys `max_probability` and, with several draws,
        `mutual_information`: `auroc` and `fpr95` of that score.
    """
    by_name: dict[str, Detected] = {
        name: {"auroc": metrics.auroc(*scores), "fpr95": metrics.fpr95(*scores)}
        for name, scores in _scores(inside, outside).items()
    }
    found: Detection = {**by_name["entropy"], "max_probability": by_name["max_probability"]}
    if "mutual_information" in by_name:
        found["mutual_information"] = by_name["mutual_information"]
    return found


def spreads(inside: Prediction, outside: Prediction) -> dict[str, Histogram]:
    """Histograms of the scores in nats: `entropy` and, with several draws, `mutual information`."""
    scores = _scores(inside, outside)
    shown = [name for name in ("entropy", "mutual_information") if name in scores]
    return {name.replace("_", " "): histogram(*scores[name]) for name in shown}


def histogram(
    inside: np.ndarray | torch.Tensor, outside: np.ndarray | torch.Tensor, *, n_bins: int = N_BINS
) -> Histogram:
    """Histogram of two sets of scores over common bins of equal width that start at 0.

    Args:
        inside: Scores >= 0, such as predictive entropies, (n,), n >= 1.
        outside: Scores >= 0, (m,), m >= 1.
        n_bins: Number of bins.
    """
    scores = [np.asarray(each, dtype=np.float64) for each in (inside, outside)]
    high = max(float(np.quantile(each, SHOWN)) for each in scores) or 1.0
    edges = np.linspace(0.0, high, n_bins + 1)
    fractions = [np.histogram(np.minimum(each, high), edges)[0] / len(each) for each in scores]
    return Histogram(edges=edges, inside=fractions[0], outside=fractions[1])


def _scores(*predictions: Prediction) -> dict[str, list[torch.Tensor]]:
    """Name of a score -> its values for each prediction; higher scores mean less familiar inputs."""
    scores = {
        "entropy": [each.entropy for each in predictions],
        "max_probability": [-each.probabilities.amax(dim=1) for each in predictions],
    }
    if all(each.samples > 1 for each in predictions):
        scores["mutual_information"] = [each.mutual_information for each in predictions]
    return scores
