"""Frozen values that pass between the stages."""

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
        path: The file or folder.
        sha256: Hex digest of the file's bytes; of several files in order of name, one after the other.
        size_bytes: Size of the file, or of all.
        tensors: Every tensor by its name as it is stored, in the file's order, on the CPU, ties included.
        ties: Name of a tied tensor -> the earlier name that holds the same storage.
        notes: What was unwrapped and what was left, one sentence each.
    """

    path: Path
    sha256: str
    size_bytes: int
    tensors: Mapping[str, torch.Tensor]
    ties: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fit:
    """How a checkpoint's tensors went into a network.

    Attributes:
        names: Name in the checkpoint -> name in the network, of all tensors that it has under some spelling.
        extra: Names in the checkpoint that the network has no tensor for.
    """

    names: Mapping[str, str]
    extra: tuple[str, ...]


@dataclass(frozen=True)
class Posterior:
    """N(mu, sigma^2) for each weight of one shared tensor; mu is the checkpoint's weight.

    Attributes:
        name: The tensor.
        scale: s_t > 0, the unit in which the tensor's weights are shared.
        log_sigma: float64 (rows,), log(sigma / s_t) for each row (first axis) of the tensor, or log(sigma / abs(mu)).
        by_magnitude: Whether sigma is in units of abs(mu) instead of s_t, and so another for each weight.
    """

    name: str
    scale: float
    log_sigma: np.ndarray
    by_magnitude: bool = False


@dataclass(frozen=True)
class Cells:
    """Weighted cells of the (mu / s_t, log(sigma / s_t)) plane, apart for each tensor.

    All arrays have shape (n_cells,), sorted by (tensor, level, x).

    Attributes:
        tensor: int64, index of the shared tensor.
        level: int64, index into `levels`.
        x: float64, mean of mu / s_t over the cell's weights.
        count: float64, number of weights.
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
        means: float64 (K, 2), in (mu / s_t, c * log(sigma / s_t)).
        covariances: float64 (K, 2, 2).
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


@dataclass(frozen=True)
class Plane:
    """Weights as points (mu / s_t, log(sigma / s_t)), counted on an even grid, and the components that they share.

    Attributes:
        density: float64 (rows, columns), weights in each cell; the first row has the least log sigma.
        x_limit: The columns reach from -x_limit to x_limit.
        y_limit: The rows reach from -y_limit to y_limit.
        beyond: Share of the weights outside the grid.
        components: Shares, means and covariances of the members of each component.
    """

    density: np.ndarray
    x_limit: float
    y_limit: float
    beyond: float
    components: Mixture


@dataclass(frozen=True)
class Reliability:
    """How often predictions of like confidence are right, in equal bins of the confidence over 0..1.

    Attributes:
        confidence: float64 (B,), mean probability of the predicted class; 0 in an empty bin.
        accuracy: float64 (B,), share of the inputs whose predicted class is the label; 0 in an empty bin.
        count: int64 (B,), inputs.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class Histogram:
    """How the scores of two sets of inputs are spread over common bins.

    Attributes:
        edges: float64 (B + 1,), ascending; the last bin also holds what lies beyond.
        inside: float64 (B,), share of the usual inputs in each bin.
        outside: float64 (B,), share of the others.
    """

    edges: np.ndarray
    inside: np.ndarray
    outside: np.ndarray


@dataclass(frozen=True)
class Bank:
    """The shared components that an artifact holds.

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
        name: The tensor.
        ids: Unsigned integers (n,), C order; the value K (one past the bank) marks an outlier.
        outliers: (n_outliers,) bit patterns of the outliers' values at the tensor's own dtype, in C order.
    """

    name: str
    ids: np.ndarray
    outliers: np.ndarray


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the state dict.

    Attributes:
        name: Its name in the checkpoint.
        shape: Its shape.
        dtype: Its dtype's name, such as `float32`.
        kind: `shared`, `unshared`, `raw`, or `tied`.
        tied_to: The name that holds its values, when tied.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    tied_to: str | None = None


@dataclass(frozen=True)
class Artifact:
    """Everything a file holds, decoded.

    Attributes:
        tensors: Every tensor of the state dict, in order.
        bank: The K components.
        scales: float64 (T,), s_t of each shared tensor.
        relative_rmse: float64 (T,), root of the squared error over the squared norm of each shared tensor.
        map_bits: float64 (T,), bits that the ids of each shared tensor take.
        maps: One map a shared tensor.
        values: Name -> values of an unshared tensor: float64, or bit patterns at its own dtype (unsigned integers).
        raw: Name -> bytes of a tensor kept as it is.
        facts: The manifest's other entries: provenance, recipe, damage, warnings.
        sections: Bytes of each section of the file; they add up to `size_bytes`.
        table_bytes: Bytes of the frequency tables, part of the section `index_maps`.
        size_bytes: Size of the file.
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
class Damage:
    """What compression did to the predictions.

    Attributes:
        drop: Accuracy lost, in points (percent).
        agreement: Share of inputs on which the top-1 class is still the checkpoint's.
        logit_kl: Mean KL from the checkpoint's probabilities, in nats.
    """

    drop: float
    agreement: float
    logit_kl: float
