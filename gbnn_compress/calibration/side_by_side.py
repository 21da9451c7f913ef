"""Original and compressed network side by side, in one forward pass that compresses on its way.

The batch holds every input twice. Layers use the original weights for the first half and shared ones for the second;
when a layer is reached for the first time, its shared weights are chosen so that the second half's outputs are as
near as can be to the first half's, from the inputs that each really gets there. So a layer makes good what the layers
before it did. At each batch norm, means and variances that moved are made good in its statistics, at each bias in it.
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
        alphabet: The components that it may use.
        scale: s_t, their unit.
        rows: float64 (rows,), h_f of `assign_with_feedback`, mean 1 or so.
        unit: What a squared error of s_t^2 costs: squared output error times this is in the unit of lambda.
        exact: bool (n,), weights that are kept as they are.
    """

    alphabet: Alphabet
    scale: float
    rows: np.ndarray
    unit: float
    exact: np.ndarray


@dataclass
class Outcome:
    """What a lockstep pass found.

    Attributes:
        ids: Name -> int64 (n,) of every tensor that was reached.
        statistics: Name -> corrected vector (running means, running variances, biases).
        logits: float32 (2N, C): of the original network, then of the compressed one.
    """

    ids: dict[str, np.ndarray] = field(default_factory=dict)
    statistics: dict[str, torch.Tensor] = field(default_factory=dict)
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))


def run_in_lockstep(
    network: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    sharing: Mapping[str, Sharing],
    *,
    penalty: float,
    damping: float,
    paths: int,
    sweeps: int,
    synthetic: bool,
) -> Outcome:
    """Compress the layers in the order in which they run.

    Args:
        network: In evaluation mode, holding the original weights.
        tensors: The network's own tensors by their names in the checkpoint.
        inputs: (N, ...), preprocessed.
        sharing: Name -> what its weights may become; layers without stay as they are.
        penalty: lambda.
        damping: See `rate.feedback.damped`.
        paths: See `rate.feedback.assign_with_feedback`.
        sweeps: Rounds of coordinate descent in a layer.
        synthetic: Whether the inputs are noise. Batch norm then normalises with their own statistics, as in
            `calibration.survey`, and layers do not make good what the layers before them did: on noise, that did harm.
    """
    outcome, shared, biases = Outcome(), {}, {}
    names = {id(tensor): name for name, tensor in tensors.items()}

    def doubled(x: torch.Tensor) -> bool:
        """Whether the first axis is the batch, or windows of it."""
        return len(x) % (2 * len(inputs)) == 0

    def on_layer(call: Call) -> torch.Tensor:
        if call.name not in sharing or not doubled(call.x):
            return call.run(call.x, call.weight, call.bias)
        before, after = call.x.chunk(2)
        if call.name not in shared:
            ids, values = _share(
                call,
                before,
                after,
                sharing[call.name],
                penalty=penalty,
                damping=damping,
                paths=paths,
                sweeps=sweeps,
                synthetic=synthetic,
            )
            outcome.ids[call.name], shared[call.name] = ids, values
        wanted = call.run(before, call.weight, call.bias)
        got = call.run(after, shared[call.name], call.bias)
        bias = names.get(id(call.bias))
        if call.bias is not None and bias is not None:
            if bias not in biases:
                means = (channel_moments(y, linear=call.geometry is None)[0] for y in (wanted, got))
                biases[bias] = (next(means) - next(means)).to(call.bias.dtype)
                outcome.statistics[bias] = call.bias.detach() + biases[bias]
            got = call.run(after, shared[call.name], call.bias + biases[bias])
        return torch.cat([wanted, got])

    def on_norm(call: NormCall) -> torch.Tensor:
        if not doubled(call.x):
            return normaliser(match=synthetic)(call)
        before, after = call.x.chunk(2)
        (mean, variance), (mean_after, variance_after) = (channel_moments(x, linear=False) for x in (before, after))
        # A channel that is constant on these inputs says nothing of its variance on others.
        ratio = torch.where(variance > 0, variance_after / variance, 1.0)
        factor = ratio.clamp(*VARIANCE_RANGE)
        widened = call.variance.double() * factor
        # Away from the centre, by which noise says nothing, another variance moves the output's mean too.
        away = torch.zeros(()) if synthetic else mean - call.mean.double()
        stretched = ((widened + call.eps) / (call.variance.double() + call.eps)).sqrt()
        moved = call.mean.double() + (mean_after - mean) + away * (1 - stretched)
        outcome.statistics[call.prefix + "running_mean"] = moved.to(call.mean.dtype)
        outcome.statistics[call.prefix + "running_var"] = widened.to(call.variance.dtype)
        if not synthetic:
            mean, variance, mean_after, variance_after = call.mean, call.variance, moved, widened
        else:
            variance_after = variance * factor
        pairs = ((before, mean, variance), (after, mean_after, variance_after))
        return torch.cat([call.normalise(x, m.to(x.dtype), v.to(x.dtype)) for x, m, v in pairs])

    with torch.no_grad(), Interceptor(tensors, on_layer=on_layer, on_norm=on_norm):
        outcome.logits = network(torch.cat([inputs, inputs]))
    return outcome


def _share(
    call: Call,
    before: torch.Tensor,
    after: torch.Tensor,
    sharing: Sharing,
    *,
    penalty: float,
    damping: float,
    paths: int,
    sweeps: int,
    synthetic: bool,
) -> tuple[np.ndarray, torch.Tensor]:
    """Ids (n,) of a layer's weights, and its shared weights at the layer's dtype."""
    patches, patches_after = sampled_patches(call, [before, after], seed=0)
    groups, _, width = patches.shape
    original = call.weight.detach().double().numpy().reshape(groups, -1, width) / sharing.scale
    exact = sharing.exact.reshape(original.shape)
    rows = sharing.rows.reshape(groups, -1) * sharing.unit
    ids = np.empty(original.shape, dtype=np.int64)
    for block in column_blocks(width):
        seen = covariance(patches_after[:, :, block])
        hessian = trusted(seen, n_samples=patches_after.shape[1], damping=damping)
        target = original[:, :, block]
        if not synthetic:
            change = covariance(patches[:, :, block], patches_after[:, :, block]) - seen
            factor = _held_factor(target, patches[:, :, block], patches_after[:, :, block], damping)
            moved = target + factor * _least_squares(target @ change, hessian)
            target = np.where(exact[:, :, block], target, moved)
        ids[:, :, block] = assign_with_feedback(
            target,
            hessian,
            rows,
            sharing.alphabet,
            penalty=penalty,
            exact=exact[:, :, block],
            paths=paths,
            sweeps=sweeps,
        )
    table = np.append(sharing.alphabet.means, np.nan)
    values = np.where(exact, original, table[ids]) * sharing.scale
    return ids.ravel(), torch.from_numpy(values).to(call.weight.dtype).reshape(call.weight.shape)


def _held_factor(weights: np.ndarray, before: torch.Tensor, after: torch.Tensor, damping: float) -> float:
    """How far the least-squares change of weights holds on other samples, in [0, 1].

    With original inputs x, inputs y, C = E[x y^T], S = E[y y^T] and the damped H, the change that makes good what the
    inputs differ by is w (C - S) H^-1. Here it is worked out from the first half of the samples, and the factor is the
    one that is best on the second half.

    Args:
        weights: float64 (G, r, d).
        before: (G, n, d), original inputs, in the order of the images.
        after: (G, n, d), the inputs there are.
        damping: See `trusted`.
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
