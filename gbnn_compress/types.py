"""Frozen values that are passed between the stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import torch


@dataclass(frozen=True)
class Checkpoint:
    """The state dict of one network, as read from a file or a folder.

    Attributes:
        path: The file or folder; None for a module or a mapping of tensors.
        sha256: Hex digest of the file's bytes; of several files concatenated in order of name; of a module or a mapping
            as `checkpoint.objects` describes.
        size_bytes: Size of the file in bytes; of several files, or of all tensors of an object, their sum.
        tensors: Stored name -> tensor, in the file's order, on the CPU, ties included.
        ties: Name of a tied tensor -> the earlier name with the same storage.
        notes: Sentences on what was unwrapped and what was left out.
        label: Name of the object, for messages, if there is no path.
    """

    path: Path | None
    sha256: str
    size_bytes: int
    tensors: Mapping[str, torch.Tensor]
    ties: Mapping[str, str]
    notes: tuple[str, ...] = ()
    label: str = ""

    @property
    def name(self) -> str:
        """The path, or the name of the object."""
        return self.label if self.path is None else str(self.path)


@dataclass(frozen=True)
class Fit:
    """How a checkpoint's tensors were loaded into a network.

    Attributes:
        names: Name in the checkpoint -> name in the network, for each tensor that was loaded.
        extra: Names in the checkpoint without a tensor in the network.
    """

    names: Mapping[str, str]
    extra: tuple[str, ...]


@dataclass(frozen=True)
class Posterior:
    """N(mu, sigma^2) for each weight of one shared tensor; mu is the checkpoint's weight.

    Attributes:
        name: Name of the tensor.
        scale: s_t > 0, the unit in which the tensor's weights are shared.
        log_sigma: float64 (rows,), log(sigma / s_t) of each row (first axis) of the tensor; with `by_magnitude`,
            log(sigma / abs(mu)).
        by_magnitude: Whether sigma is in units of abs(mu) instead of s_t, and therefore differs from weight to weight.
    """

    name: str
    scale: float
    log_sigma: np.ndarray
    by_magnitude: bool = False


@dataclass(frozen=True)
class Cells:
    """Weighted cells of the (mu / s_t, log(sigma / s_t)) plane, separate for each tensor.

    All arrays have shape (n_cells,), sorted by (tensor, level, x).

    Attributes:
        tensor: int64, index of the shared tensor.
        level: int64, index into `levels`.
        x: float64, mean of mu / s_t over the cell's weights.
        count: float64, number of the cell's weights.
        spread: float64, variance of mu / s_t within the cell.
        levels: float64 (n_levels,), log(sigma / s_t) of each level.
        n_tensors: Number of shared tensors.
    """

    tensor: np.ndarray
    level: np.ndarray
    x: np.ndarray
    count: np.ndarray
    spread: np.ndarray
    levels: np.ndarray
    n_tensors: int


@dataclass(frozen=True)
class Mixture:
    """A mixture of K full-covariance 2-D Gaussians.

    Attributes:
        weights: float64 (K,), mixing weights, sum 1.
        means: float64 (K, 2), in coordinates (mu / s_t, c * log(sigma / s_t)).
        covariances: float64 (K, 2, 2), in the same coordinates.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


@dataclass(frozen=True)
class Plane:
    """Histogram of the points (mu / s_t, log(sigma / s_t)) of all weights, and the components that they share.

    Attributes:
        density: float64 (rows, columns), number of weights in each cell; the first row has the smallest log sigma.
        x_limit: The columns cover mu / s_t from -x_limit to x_limit.
        y_limit: The rows cover log(sigma / s_t) from -y_limit to y_limit.
        beyond: Fraction of the weights outside the grid.
        components: For each component, the fraction, mean and covariance of its members.
    """

    density: np.ndarray
    x_limit: float
    y_limit: float
    beyond: float
    components: Mixture


@dataclass(frozen=True)
class Reliability:
    """Accuracy as a function of confidence, in B bins of equal width over 0..1.

    Attributes:
        confidence: float64 (B,), mean probability of the predicted class in each bin; 0 in an empty bin.
        accuracy: float64 (B,), fraction of the inputs whose predicted class is the label; 0 in an empty bin.
        count: int64 (B,), number of inputs in each bin.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class Histogram:
    """Histograms of a score for two sets of inputs, over B common bins.

    Attributes:
        edges: float64 (B + 1,), ascending. The last bin also counts scores above its upper edge.
        inside: float64 (B,), fraction of the in-distribution inputs in each bin.
        outside: float64 (B,), fraction of the out-of-distribution inputs in each bin.
    """

    edges: np.ndarray
    inside: np.ndarray
    outside: np.ndarray


@dataclass(frozen=True)
class Bank:
    """The shared components of an artifact.

    Attributes:
        means: float64 (K,), ascending, posterior means in units of s_t.
        log_sigmas: float64 (K,), log of the posterior deviation in units of s_t.
    """

    means: np.ndarray
    log_sigmas: np.ndarray


@dataclass(frozen=True)
class IndexMap:
    """Component ids of one shared tensor.

    Attributes:
        name: Name of the tensor.
        ids: Unsigned integers (n,), component of each weight in C order; the value K (one past the bank) marks an
            outlier.
        outliers: Unsigned integers (n_outliers,), bit patterns of the outliers at the tensor's dtype, in C order.
        trellis: Whether the ids of each row follow the trellis (`format/trellis.py`).
    """

    name: str
    ids: np.ndarray
    outliers: np.ndarray
    trellis: bool = False


@dataclass(frozen=True)
class TensorInfo:
    """Description of one tensor of the state dict.

    Attributes:
        name: Name in the checkpoint.
        shape: Shape of the tensor.
        dtype: Name of the dtype, such as `float32`.
        kind: `shared`, `unshared`, `raw` or `tied`.
        tied_to: Name of the tensor that holds the values of a tied tensor; None for others.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    tied_to: str | None = None


@dataclass(frozen=True)
class Artifact:
    """The decoded content of a file.

    Attributes:
        tensors: Description of every tensor of the state dict, in order.
        bank: The K components.
        scales: float64 (T,), s_t of each shared tensor.
        relative_rmse: float64 (T,), norm of the error over norm of the weights of each shared tensor.
        map_bits: float64 (T,), coded size of the ids of each shared tensor, in bits.
        maps: One index map per shared tensor.
        values: Name -> values of an unshared tensor: float64, or unsigned integers with bit patterns at its dtype.
        raw: Name -> bytes of a tensor that is kept bit for bit.
        facts: The manifest's other entries: provenance, recipe, damage, warnings.
        sections: Name -> size of a section of the file in bytes; the sizes add up to `size_bytes`.
        table_bytes: Size of the frequency tables in bytes; they are part of the section `index_maps`.
        size_bytes: Size of the file in bytes.
        sha256: Hex digest of the file's bytes.
    """

    tensors: tuple[TensorInfo, ...]
    bank: Bank
    scales: np.ndarray
    relative_rmse: np.ndarray
    map_bits: np.ndarray
    maps: tuple[IndexMap, ...]
    values: Mapping[str, np.ndarray]
    raw: Mapping[str, bytes]
    facts: Mapping[str, Any]
    sections: Mapping[str, int]
    table_bytes: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Ensemble:
    """The decoded content of a file with several networks.

    Attributes:
        members: The networks in order. `size_bytes` and `sha256` of each are those of its part of the file.
        size_bytes: Size of the file in bytes.
        sha256: Hex digest of the file's bytes.
    """

    members: tuple[Artifact, ...]
    size_bytes: int
    sha256: str


Model = Checkpoint | Artifact | Ensemble
"""What predictions are made with."""


@dataclass(frozen=True)
class Damage:
    """Change of the predictions by compression.

    Attributes:
        drop: Accuracy drop, in points (percent).
        agreement: Fraction of the inputs for which the top-1 class is the checkpoint's, in 0..1.
        logit_kl: Mean KL divergence from the checkpoint's probabilities, in nats.
    """

    drop: float
    agreement: float
    logit_kl: float
