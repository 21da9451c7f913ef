"""Telling other data apart by how unsure a network is of them: figures, and what a picture of it shows."""

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
"""Share of either set within the bins; a few extreme scores would leave one bin to the rest."""


def detection(inside: Prediction, outside: Prediction) -> Detection:
    """How well two sets of inputs are told apart: by predictive entropy, and by other scores by their names.

    Args:
        inside: Of usual inputs.
        outside: Of others.

    Returns:
        `{"auroc", "fpr95"}` by entropy, and the same in it by `max_probability` and, over several draws,
        `mutual_information`.
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
    """Histograms of the scores in nats: `entropy` and, over several draws, `mutual information`."""
    scores = _scores(inside, outside)
    shown = [name for name in ("entropy", "mutual_information") if name in scores]
    return {name.replace("_", " "): histogram(*scores[name]) for name in shown}


def histogram(
    inside: np.ndarray | torch.Tensor, outside: np.ndarray | torch.Tensor, *, n_bins: int = N_BINS
) -> Histogram:
    """Shares of two sets of scores in equal bins from 0.

    Args:
        inside: (n,), n >= 1, none below 0, such as predictive entropies.
        outside: (m,), m >= 1.
        n_bins: Number of bins.
    """
    scores = [np.asarray(each, dtype=np.float64) for each in (inside, outside)]
    high = max(float(np.quantile(each, SHOWN)) for each in scores) or 1.0
    edges = np.linspace(0.0, high, n_bins + 1)
    shares = [np.histogram(np.minimum(each, high), edges)[0] / len(each) for each in scores]
    return Histogram(edges=edges, inside=shares[0], outside=shares[1])


def _scores(*predictions: Prediction) -> dict[str, list[torch.Tensor]]:
    """Scores that are higher for stranger inputs, by name, for each prediction."""
    scores = {
        "entropy": [each.entropy for each in predictions],
        "max_probability": [-each.probabilities.amax(dim=1) for each in predictions],
    }
    if all(each.samples > 1 for each in predictions):
        scores["mutual_information"] = [each.mutual_information for each in predictions]
    return scores
