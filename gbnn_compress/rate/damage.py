"""Damage predicted without data, from the relative output errors of the layers.

`predict_damage` maps the mean relative output error of the layers to the fraction of inputs whose top-1 class changes,
to accuracy points lost, and to the mean KL from the checkpoint's probabilities. The form of the map is an educated
guess. Its constants are fitted by hand to ResNet-20, ResNet-56 (CIFAR-10, development split) and EfficientNet-lite0
(ImageNet); docs/results.md has predictions and measurements side by side.
"""

from __future__ import annotations

import numpy as np

from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.types import Damage

SAFE_DROP = 1.0
"""Largest predicted drop, in accuracy points, of a ratio that is called safe."""

WARN_DROP = 2.0
"""Smallest predicted drop, in accuracy points, that a warning is given for."""

WARN_ERROR = 0.3
"""Smallest predicted mean relative output error of the layers that a warning is given for in other networks."""


def layer_error(errors: np.ndarray) -> float:
    """Mean over layers of the relative output error.

    Args:
        errors: float64 (T,), noise power over signal power of each layer.
    """
    return float(np.sqrt(np.minimum(errors, 1.0)).mean())


def relative_error(book: Codebook, *, typical: float) -> float:
    """Mean over the shared tensors of the predicted relative output error (noise over signal power).

    Args:
        book: A codebook.
        typical: Size that makes s_t^2 * typical the tensor's squared norm. Where tensors have importances (of geometric
            mean 1), s_t^2 is divided by them, and the errors are weighed by them.
    """
    return float(np.minimum(book.distortion / typical, 1.0).mean())


def predict_damage(error: float, *, n_classes: int) -> Damage:
    """Damage at a mean relative output error of the layers.

    Args:
        error: From `relative_error`.
        n_classes: Number of classes, as far as known; margins are smaller with more classes.
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
    """Accuracy points that are usually lost at an agreement.

    Not every changed prediction costs a point: some change from one wrong class to another, some become right.
    """
    changed = 1 - agreement
    return 100 * changed * min(1.0, 0.15 + 1.5 * changed)
