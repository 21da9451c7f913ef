"""Original and compressed network side by side, in one forward pass that compresses on its way.

The batch holds every input twice. Layers use the original weights for the first half and shared weights for the second.
When the pass first reaches a layer, it chooses the layer's shared weights so that the outputs of the second half are as
near as possible to those of the first half, given the inputs of each half. So a layer compensates for the errors of the
layers before it. Statistics of batch norms compensate for changed means and variances, and biases for changed means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from gbnn_compress.calibration.feedback import Alphabet, assign_with_feedback
from gbnn_compress.calibration.interceptor import Call, Interceptor, NormCall, channel_moments, sampled_patches
from gbnn_compress.calibration.survey import column_blocks, covariance, normaliser, trusted
from gbnn_compress.rate.recentre import VARIANCE_RANGE


@dataclass(frozen=True)
class Sharing:
    """How the weights of one tensor may be shared.

    Attributes:
        alphabet: The components that the tensor may use.
        scale: s_t, their unit.
        rows: float64 (rows,), h_f of `assign_with_feedback`, mean about 1.
        unit: Cost of a squared output error of s_t^2, in the unit of lambda.
        exact: bool (n,), weights that are kept exactly.
    """

    alphabet: Alphabet
    scale: float
    rows: np.ndarray
    unit: float
    exact: np.ndarray


@dataclass(frozen=True)
class LockstepOptions:
    """How a lockstep pass chooses ids.

    Attributes:
        penalty: lambda.
        damping: Damping of the inputs' covariance (`feedback.damped`).
        paths: Assignments of each filter that the search goes on with (`feedback.assign_with_feedback`).
        sweeps: Rounds of coordinate descent in a layer.
        synthetic: Whether the inputs are noise. Batch norm then normalises with the inputs' own statistics, and layers
            do not correct the errors of the layers before them: on noise, that does harm.
    """

    penalty: float
    damping: float
    paths: int
    sweeps: int
    synthetic: bool


@dataclass(frozen=True)
class SideBySide:
    """What a lockstep pass found.

    Attributes:
        ids: Name -> int64 (n,) of every tensor that was reached.
        statistics: Name -> corrected vector (running means, running variances, biases).
        logits: float32 (2N, C): of the original network, then of the compressed one.
    """

    ids: Mapping[str, np.ndarray]
    statistics: Mapping[str, torch.Tensor]
    logits: torch.Tensor


def run_in_lockstep(
    network: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    sharing: Mapping[str, Sharing],
    options: LockstepOptions,
) -> SideBySide:
    """Compress the layers in the order in which they run.

    Args:
        network: In evaluation mode, holding the original weights.
        tensors: The network's own tensors by their names in the checkpoint.
        inputs: (N, ...), preprocessed.
        sharing: Name -> what its weights may become; layers without an entry keep their weights.
        options: How ids are chosen.
    """
    names = {id(tensor): name for name, tensor in tensors.items()}
    lockstep = _Lockstep(options, sharing, names, rows=2 * len(inputs))
    with torch.no_grad(), Interceptor(tensors, on_layer=lockstep.on_layer, on_norm=lockstep.on_norm):
        logits = network(torch.cat([inputs, inputs]))
    return SideBySide(lockstep.ids, lockstep.statistics, logits)


@dataclass(frozen=True)
class _Lockstep:
    """One pass: the first half of every batch is the original network, the second half the compressed one.

    Attributes:
        options: How ids are chosen.
        sharing: Name -> what its weights may become.
        names: id of a tensor -> its name.
        rows: Length of the doubled batch.
        ids: Name -> int64 (n,), filled as layers are reached.
        statistics: Name -> corrected vector, filled on the way.
        shared: Name -> shared weights, filled as layers are reached.
        shifts: Name of a bias -> what is added to it, filled as layers are reached.
    """

    options: LockstepOptions
    sharing: Mapping[str, Sharing]
    names: Mapping[int, str]
    rows: int
    ids: dict[str, np.ndarray] = field(default_factory=dict)
    statistics: dict[str, torch.Tensor] = field(default_factory=dict)
    shared: dict[str, torch.Tensor] = field(default_factory=dict)
    shifts: dict[str, torch.Tensor] = field(default_factory=dict)

    def on_layer(self, call: Call) -> torch.Tensor:
        """The layer's output with original weights for the first half and shared weights for the second."""
        if call.name not in self.sharing or not self._is_doubled(call.x):
            return call.run(call.x, call.weight, call.bias)
        before, after = call.x.chunk(2)
        if call.name not in self.shared:
            found = _share(call, before, after, self.sharing[call.name], self.options)
            self.ids[call.name], self.shared[call.name] = found
        weight = self.shared[call.name]
        wanted = call.run(before, call.weight, call.bias)
        got = call.run(after, weight, call.bias)
        name = self.names.get(id(call.bias))
        if call.bias is not None and name is not None:
            got = call.run(after, weight, call.bias + self._shift(name, call, call.bias, wanted, got))
        return torch.cat([wanted, got])

    def on_norm(self, call: NormCall) -> torch.Tensor:
        """The batch norm's output, with corrected statistics for the second half."""
        synthetic = self.options.synthetic
        if not self._is_doubled(call.x):
            return normaliser(match=synthetic)(call)
        before, after = call.x.chunk(2)
        seen, seen_after = (channel_moments(x, linear=False) for x in (before, after))
        factor = _variance_factor(seen[1], seen_after[1])
        mean, variance = _corrected(call, seen[0], seen_after[0], factor, synthetic=synthetic)
        self.statistics[call.prefix + "running_mean"] = mean.to(call.mean.dtype)
        self.statistics[call.prefix + "running_var"] = variance.to(call.variance.dtype)
        if synthetic:
            pairs = ((before, *seen), (after, seen_after[0], seen[1] * factor))
        else:
            pairs = ((before, call.mean, call.variance), (after, mean, variance))
        return torch.cat([call.normalise(x, m.to(x.dtype), v.to(x.dtype)) for x, m, v in pairs])

    def _is_doubled(self, x: torch.Tensor) -> bool:
        """Whether the first axis is the batch, or windows of it."""
        return len(x) % self.rows == 0

    def _shift(
        self, name: str, call: Call, bias: torch.Tensor, wanted: torch.Tensor, got: torch.Tensor
    ) -> torch.Tensor:
        """What is added to a bias so that output means stay, from the first layer that uses it."""
        if name not in self.shifts:
            linear = call.geometry is None
            mean, mean_after = (channel_moments(y, linear=linear)[0] for y in (wanted, got))
            self.shifts[name] = (mean - mean_after).to(bias.dtype)
            self.statistics[name] = bias.detach() + self.shifts[name]
        return self.shifts[name]


def _variance_factor(variance: torch.Tensor, variance_after: torch.Tensor) -> torch.Tensor:
    """float64 (channels,), factor by which variances moved, within VARIANCE_RANGE."""
    # A channel that is constant on these inputs says nothing of its variance on others.
    return torch.where(variance > 0, variance_after / variance, 1.0).clamp(*VARIANCE_RANGE)


def _corrected(
    call: NormCall, mean: torch.Tensor, mean_after: torch.Tensor, factor: torch.Tensor, *, synthetic: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Running mean and variance, float64 (channels,), with which the batch norm's output keeps its moments.

    Args:
        call: The batch norm.
        mean: float64 (channels,), of the original network's inputs.
        mean_after: float64 (channels,), of the compressed network's inputs.
        factor: float64 (channels,), by which variances moved.
        synthetic: Whether the inputs are noise.
    """
    variance = call.variance.double() * factor
    # Away from the running mean, another variance moves the output's mean too; on noise the distance means nothing.
    away = torch.zeros(()) if synthetic else mean - call.mean.double()
    stretched = ((variance + call.eps) / (call.variance.double() + call.eps)).sqrt()
    return call.mean.double() + (mean_after - mean) + away * (1 - stretched), variance


def _share(
    call: Call, before: torch.Tensor, after: torch.Tensor, sharing: Sharing, options: LockstepOptions
) -> tuple[np.ndarray, torch.Tensor]:
    """Ids (n,) of a layer's weights, and its shared weights at the layer's dtype."""
    patches, patches_after = sampled_patches(call, [before, after], seed=0)
    groups, _, width = patches.shape
    original = call.weight.detach().double().numpy().reshape(groups, -1, width) / sharing.scale
    exact = sharing.exact.reshape(original.shape)
    rows = sharing.rows.reshape(groups, -1) * sharing.unit
    ids = np.empty(original.shape, dtype=np.int64)
    for block in column_blocks(width):
        pair, kept = (patches[:, :, block], patches_after[:, :, block]), exact[:, :, block]
        target, hessian = _target(original[:, :, block], *pair, kept, options)
        ids[:, :, block] = assign_with_feedback(
            target,
            hessian,
            rows,
            sharing.alphabet,
            penalty=options.penalty,
            exact=kept,
            paths=options.paths,
            sweeps=options.sweeps,
        )
    table = np.append(sharing.alphabet.means, np.nan)
    values = np.where(exact, original, table[ids]) * sharing.scale
    return ids.ravel(), torch.from_numpy(values).to(call.weight.dtype).reshape(call.weight.shape)


def _target(
    original: np.ndarray, before: torch.Tensor, after: torch.Tensor, exact: np.ndarray, options: LockstepOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (G, r, d) that compensate for the change of inputs, and the damped covariance (G, d, d) of the inputs.

    Args:
        original: float64 (G, r, d), the weights, in units of s_t.
        before: (G, n, d), the original network's inputs.
        after: (G, n, d), the compressed network's inputs.
        exact: bool (G, r, d), weights that are kept as they are.
        options: Damping; on noise the target is the original weights.
    """
    seen = covariance(after)
    hessian = trusted(seen, n_samples=after.shape[1], damping=options.damping)
    if options.synthetic:
        return original, hessian
    change = covariance(before, after) - seen
    factor = _held_factor(original, before, after, options.damping)
    return np.where(exact, original, original + factor * _least_squares(original @ change, hessian)), hessian


def _held_factor(weights: np.ndarray, before: torch.Tensor, after: torch.Tensor, damping: float) -> float:
    """Fraction of the least-squares change of weights that is best on other samples, in [0, 1].

    With original inputs x, changed inputs y, C = E[x y^T], S = E[y y^T] and the damped H, the change of weights that
    compensates for the change of inputs is w (C - S) H^-1. It is computed on the first half of the samples; the factor
    is the best one on the second half.

    Args:
        weights: float64 (G, r, d).
        before: (G, n, d), original inputs, in the order of the images.
        after: (G, n, d), changed inputs, in the same order.
        damping: Damping of the covariance (`survey.trusted`).
    """
    half = before.shape[1] // 2
    seen, others = covariance(after[:, :half]), covariance(after[:, half:])
    hessian = trusted(seen, n_samples=half, damping=damping)
    first = _least_squares(weights @ (covariance(before[:, :half], after[:, :half]) - seen), hessian)
    power = float(((first @ others) * first).sum())
    missing = weights @ (covariance(before[:, half:], after[:, half:]) - others)
    factor = float((first * missing).sum()) / power if power > 0 else 0.0
    return min(max(factor, 0.0), 1.0)


def _least_squares(missing: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """missing H^-1, float64 (G, r, d)."""
    return np.swapaxes(np.linalg.solve(hessian, np.swapaxes(missing, 1, 2)), 1, 2)
