"""Metrics of predicted probabilities: accuracy, calibration, agreement and out-of-distribution detection.

Every function takes numpy arrays or torch tensors, float32 or float64, on any device, and computes in float64.
Probabilities have shape (N, C) and rows that sum to 1. Labels are integers of shape (N,) in 0..C-1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gbnn_compress.errors import GbnnError
from gbnn_compress.report.schema import Measures, Summary
from gbnn_compress.types import Damage

if TYPE_CHECKING:
    import torch

    Array = np.ndarray | torch.Tensor

N_BINS = 15

RECALL = 0.95
"""Fraction of the in-distribution inputs that `fpr95` accepts."""


def accuracy(probabilities: Array, labels: Array) -> float:
    """Fraction of the inputs whose most probable class is the label, in 0..1; the first class wins a tie.

    Args:
        probabilities: (N, C).
        labels: (N,) integers.

    Raises:
        GbnnError: The shapes do not fit, or there is no input.
    """
    p, y = _labelled(probabilities, labels)
    return float(np.mean(p.argmax(axis=1) == y))


def nll(probabilities: Array, labels: Array) -> float:
    """Mean negative log-likelihood of the labels, in nats.

    A probability of 0 counts as the smallest normal number of its dtype, so that the mean stays finite.

    Args:
        probabilities: (N, C).
        labels: (N,) integers.

    Raises:
        GbnnError: The shapes do not fit, or there is no input.
    """
    p, y = _labelled(probabilities, labels)
    return float(-np.mean(np.log(np.maximum(p[np.arange(len(p)), y], _tiny(probabilities)))))


def ece(probabilities: Array, labels: Array, *, n_bins: int = N_BINS) -> float:
    """Expected calibration error of the top-1 prediction (Guo et al. 2017, eq. 3), in 0..1.

    sum_b |B_b| / N * |accuracy(B_b) - confidence(B_b)| over equal-width bins ((b - 1) / n_bins, b / n_bins].
    The first bin also holds 0, so every confidence in [0, 1] falls in exactly one bin.

    Args:
        probabilities: (N, C).
        labels: (N,) integers.
        n_bins: Number of bins over 0..1.

    Raises:
        GbnnError: The shapes do not fit, or there is no input.
    """
    p, y = _labelled(probabilities, labels)
    confidence = p.max(axis=1)
    correct = p.argmax(axis=1) == y
    bins = confidence_bins(confidence, n_bins=n_bins)
    # |B| / N * |mean(correct) - mean(confidence)| is the summed gap over N. It needs no division by an empty bin's 0.
    gaps = np.bincount(bins, weights=correct - confidence, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(p))


def confidence_bins(confidence: np.ndarray, *, n_bins: int) -> np.ndarray:
    """Index of the bin ((b - 1) / n_bins, b / n_bins] of each confidence in 0..1, int64 (N,); 0 is in the first bin."""
    return np.searchsorted(np.linspace(0.0, 1.0, n_bins + 1)[1:-1], confidence, side="left")


def adaptive_ece(probabilities: Array, labels: Array, *, n_bins: int = N_BINS) -> float:
    """`ece` over bins that hold equally many inputs (Nguyen & O'Connor 2015, arXiv 1508.05154, sec. 3), in 0..1.

    Inputs are sorted by confidence and split into `n_bins` bins whose sizes differ by at most one. Inputs of the same
    confidence all count with their average accuracy, so their order does not matter if a bin boundary splits them.

    Args:
        probabilities: (N, C).
        labels: (N,) integers.
        n_bins: Number of bins.

    Raises:
        GbnnError: The shapes do not fit, or there is no input.
    """
    p, y = _labelled(probabilities, labels)
    confidences, counts, correct = _by_confidence(p, y)
    gaps = np.repeat(correct / counts - confidences, counts)
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, n_bins)) / len(p))


def coverage_at_risk(probabilities: Array, labels: Array, *, risk: float) -> float:
    """Largest fraction of the inputs, most confident first, whose error rate is at most `risk`, in 0..1.

    This is a point of the risk-coverage curve (Geifman & El-Yaniv 2017, arXiv 1705.08500, sec. 2), with the largest
    probability as the confidence. Inputs of the same confidence are accepted together or not at all.

    Args:
        probabilities: (N, C).
        labels: (N,) integers.
        risk: Allowed error rate of the accepted inputs, in 0..1.

    Raises:
        GbnnError: The shapes do not fit, or there is no input.
    """
    p, y = _labelled(probabilities, labels)
    _, counts, correct = _by_confidence(p, y)
    accepted, n_correct = (np.cumsum(values[::-1]) for values in (counts, correct))
    within = accepted[accepted - n_correct <= risk * accepted]
    return float(within.max(initial=0) / len(p))


def damage(before: Array, after: Array, labels: Array) -> Damage:
    """Accuracy drop, agreement and KL divergence of a compressed network against its checkpoint.

    Args:
        before: The checkpoint's probabilities, (N, C).
        after: The compressed network's probabilities, (N, C).
        labels: (N,) integers.

    Raises:
        GbnnError: The shapes do not fit, or there is no input.
    """
    drop = 100 * (accuracy(before, labels) - accuracy(after, labels))
    return Damage(drop, agreement(before, after), logit_kl(before, after))


def brier(probabilities: Array, labels: Array) -> float:
    """Brier score, in 0..2: squared error against the one-hot label, summed over classes, mean over inputs.

    Args:
        probabilities: (N, C).
        labels: (N,) integers.

    Raises:
        GbnnError: The shapes do not fit, or there is no input.
    """
    p, y = _labelled(probabilities, labels)
    errors = p.copy()
    errors[np.arange(len(p)), y] -= 1.0
    return float(np.mean(np.sum(errors**2, axis=1)))


def agreement(p: Array, q: Array) -> float:
    """Fraction of the inputs for which two predictions have the same most probable class, in 0..1.

    Args:
        p: (N, C).
        q: (N, C).

    Raises:
        GbnnError: The shapes differ, or there is no input.
    """
    first, second = _pair(p, q)
    return float(np.mean(first.argmax(axis=1) == second.argmax(axis=1)))


def logit_kl(p_reference: Array, p: Array) -> float:
    """Mean Kullback-Leibler divergence KL(reference || p) over the inputs, in nats.

    sum_c r_c (log r_c - log p_c) with 0 log 0 = 0. A p_c of 0 counts as the smallest normal number of its dtype, so
    that the mean stays finite.

    Args:
        p_reference: The checkpoint's probabilities, (N, C).
        p: The compressed network's probabilities, (N, C).

    Raises:
        GbnnError: The shapes differ, or there is no input.
    """
    from scipy.special import rel_entr

    reference, other = _pair(p_reference, p)
    divergences = rel_entr(reference, np.maximum(other, _tiny(p))).sum(axis=1)
    return max(0.0, float(divergences.mean()))


def predictive_entropy(probabilities: Array) -> np.ndarray:
    """Entropy of each predicted distribution, in nats. High values mark out-of-distribution inputs.

    Args:
        probabilities: (N, C).

    Returns:
        float64 (N,).

    Raises:
        GbnnError: Not of shape (N, C), or there is no input.
    """
    from scipy.special import entr

    return np.asarray(entr(_probabilities(probabilities)).sum(axis=1))


def auroc(scores_in: Array, scores_out: Array) -> float:
    """Probability that an out-of-distribution input scores above an in-distribution input; ties count half.

    The area under the ROC curve, by scikit-learn.

    Args:
        scores_in: Scores of in-distribution inputs, (n,), such as predictive entropies: higher is less familiar.
        scores_out: Scores of out-of-distribution inputs, (m,).

    Raises:
        GbnnError: Not one-dimensional, or empty.
    """
    from sklearn.metrics import roc_auc_score

    inside, outside = _scores(scores_in, "scores_in"), _scores(scores_out, "scores_out")
    is_outside = np.repeat([0, 1], [len(inside), len(outside)])
    return float(roc_auc_score(is_outside, np.concatenate([inside, outside])))


def fpr95(scores_in: Array, scores_out: Array) -> float:
    """False positive rate at 95 % true positive rate (Liang et al. 2018, arXiv 1706.02690, sec. 4.2), in 0..1.

    In-distribution inputs are the positives. An input is accepted if its score is at most a threshold: the lowest one
    that accepts 95 % of the in-distribution inputs. The result is the fraction of the out-of-distribution inputs that
    it accepts.

    Args:
        scores_in: Scores of in-distribution inputs, (n,): higher is less familiar.
        scores_out: Scores of out-of-distribution inputs, (m,).

    Raises:
        GbnnError: Not one-dimensional, or empty.
    """
    inside, outside = _scores(scores_in, "scores_in"), _scores(scores_out, "scores_out")
    threshold = np.sort(inside)[math.ceil(RECALL * len(inside)) - 1]
    return float(np.mean(outside <= threshold))


def summary(probabilities: Array, labels: Array) -> Summary:
    """The four metrics of a report: `accuracy`, `nll` (nats), `ece` (15 bins) and `brier`.

    Args:
        probabilities: (N, C).
        labels: (N,) integers.

    Raises:
        GbnnError: The shapes do not fit, or there is no input.
    """
    return {
        "accuracy": accuracy(probabilities, labels),
        "nll": nll(probabilities, labels),
        "ece": ece(probabilities, labels),
        "brier": brier(probabilities, labels),
    }


def measures(probabilities: Array, labels: Array) -> Measures:
    """The metrics of `summary`, with `adaptive_ece` (15 bins) and `coverage_at_5_percent_risk`.

    Args:
        probabilities: (N, C).
        labels: (N,) integers.

    Raises:
        GbnnError: The shapes do not fit, or there is no input.
    """
    return {
        **summary(probabilities, labels),
        "adaptive_ece": adaptive_ece(probabilities, labels),
        "coverage_at_5_percent_risk": coverage_at_risk(probabilities, labels, risk=0.05),
    }


def _numpy(values: Array) -> np.ndarray:
    """The values as a numpy array of their own dtype, without importing torch."""
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()


def _tiny(values: Array) -> float:
    return float(np.finfo(_numpy(values).dtype).tiny)


def _probabilities(values: Array, name: str = "probabilities") -> np.ndarray:
    array = _numpy(values)
    if array.ndim != 2 or array.size == 0:
        raise GbnnError(f"`{name}` must have shape (N, C) with N, C >= 1, got {array.shape}")
    return array.astype(np.float64)


def _labelled(probabilities: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    p, y = _probabilities(probabilities), _numpy(labels)
    if y.shape != (len(p),):
        raise GbnnError(f"`labels` must have shape ({len(p)},), one label per input, got {y.shape}")
    if y.min() < 0 or y.max() >= p.shape[1]:
        raise GbnnError(f"`labels` must lie in 0..{p.shape[1] - 1}, got {y.min()}..{y.max()}")
    return p, y


def _by_confidence(p: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct confidences, ascending; number of inputs with each; number of correct ones among them. Each (M,)."""
    confidences, groups, counts = np.unique(p.max(axis=1), return_inverse=True, return_counts=True)
    return confidences, counts, np.bincount(groups, weights=p.argmax(axis=1) == y)


def _pair(p: Array, q: Array) -> tuple[np.ndarray, np.ndarray]:
    first, second = _probabilities(p, "p"), _probabilities(q, "q")
    if first.shape != second.shape:
        raise GbnnError(f"`p` and `q` must have the same shape to be compared, got {first.shape} and {second.shape}")
    return first, second


def _scores(values: Array, name: str) -> np.ndarray:
    array = _numpy(values)
    if array.ndim != 1 or array.size == 0:
        raise GbnnError(f"`{name}` must have shape (N,) with N >= 1, got {array.shape}")
    return array.astype(np.float64)
