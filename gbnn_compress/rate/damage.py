"""Damage predicted without data, from the relative output errors of the layers.

`predict_damage` maps the mean relative output error of the layers to the share of inputs whose top-1 class changes, to
accuracy points lost, and to the mean KL from the checkpoint's probabilities. The form is an educated
guess and its constants were fitted by hand to ResNet-20, ResNet-56 (CIFAR-10, development split) and
EfficientNet-lite0 (ImageNet); docs/results.md has predictions and measurements side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.types import Damage

SAFE_DROP = 1.0
"""Points of accuracy within which a ratio is called safe."""

WARN_DROP = 2.0
"""Predicted points from which a warning is given."""

WARN_ERROR = 0.3
"""Predicted relative output error of the layers, in the mean, from which a warning is given for other networks."""

DEAD_ERROR = 1.0
"""Relative error of outputs that are no nearer to the checkpoint's than their mean is."""


@dataclass(frozen=True)
class Difference:
    """What compression did to the outputs of a network that is no classifier.

    Attributes:
        relative_error: Root of the squared error over the squared distance of the outputs from their mean; None where
            the outputs do not vary, infinite where those after are not finite.
        cosine: Between outputs before and after, mean over the inputs; None where outputs are zero or not finite.
    """

    relative_error: float | None
    cosine: float | None


def output_difference(before: np.ndarray, after: np.ndarray) -> Difference:
    """Compare outputs of two networks on the same inputs.

    Args:
        before: float64 (N, C).
        after: float64 (N, C).
    """
    if not np.isfinite(after).all():
        return Difference(float("inf"), None)
    spread = float(((before - before.mean(axis=0)) ** 2).sum())
    norms = np.sqrt((before**2).sum(axis=1) * (after**2).sum(axis=1))
    alive = norms > 0
    cosines = (before * after).sum(axis=1)[alive] / norms[alive]
    return Difference(
        relative_error=float(np.sqrt(((after - before) ** 2).sum() / spread)) if spread > 0 else None,
        cosine=float(cosines.mean()) if alive.any() else None,
    )


def layer_error(errors: np.ndarray) -> float:
    """The relative output error of a layer, in the mean over layers.

    Args:
        errors: float64 (T,), of each layer, squared: noise over signal power.
    """
    return float(np.sqrt(np.minimum(errors, 1.0)).mean())


def relative_error(book: Codebook, *, typical: float) -> float:
    """Mean over the shared tensors of the predicted relative output error (noise over signal power).

    Args:
        book: A codebook.
        typical: The size that makes s_t^2 * typical the tensor's squared norm; over its importance, where it has
            one, and then the errors are weighed by importances of geometric mean 1.
    """
    return float(np.minimum(book.distortion / typical, 1.0).mean())


def predict_damage(error: float, *, n_classes: int) -> Damage:
    """Damage at a mean relative output error of the layers.

    Args:
        error: From `relative_error`.
        n_classes: Classes of the network, as far as known: with more of them margins are smaller.
    """
    root = float(np.sqrt(max(error, 0.0))) * (n_classes / 10) ** 0.2
    chance = 1 - 1 / max(n_classes, 2)
    changed = chance * (1 - float(np.exp(-0.44 * root - (root / 0.5) ** 4)))
    return Damage(
        drop=drop_at(1 - changed),
        agreement=1 - changed,
        logit_kl=0.2 * changed + 8 * changed**2,
    )


def drop_at(agreement: float) -> float:
    """Accuracy points usually lost at an agreement: changes between wrong classes cost nothing, some others help."""
    changed = 1 - agreement
    return 100 * changed * min(1.0, 0.15 + 1.5 * changed)
