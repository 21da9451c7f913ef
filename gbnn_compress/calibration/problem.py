"""One layer's least-squares problem: the target that compensates for changed inputs, and the choice of ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gbnn_compress.calibration.blocks import Block
from gbnn_compress.calibration.feedback import Alphabet, assign_with_feedback
from gbnn_compress.calibration.survey import column_blocks, covariance, source_factors, trusted
from gbnn_compress.calibration.tracing import Piece
from gbnn_compress.calibration.twins import Twin


@dataclass(frozen=True)
class Sharing:
    """How the weights of one tensor may be shared.

    Attributes:
        alphabet: The components that the tensor may use.
        scale: s_t, their unit.
        rows: float64 (rows,), h_f of `assign_with_feedback`, mean about 1.
        unit: Cost of a squared output error of s_t^2, in the unit of lambda.
        exact: bool (n,), weights that are kept exactly.
        ids: int64 (n,), choices without feedback, for weights that feedback does not reach.
    """

    alphabet: Alphabet
    scale: float
    rows: np.ndarray
    unit: float
    exact: np.ndarray
    ids: np.ndarray


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
        biases: Whether biases take up the change of their layer's mean output.
    """

    penalty: float
    damping: float
    paths: int
    sweeps: int
    synthetic: bool
    biases: bool = True


@dataclass(frozen=True)
class Problem:
    """One block of a piece, with its inputs.

    Attributes:
        piece: The piece.
        block: The block.
        where: int64 (G, r, d), positions of the weights in the tensor.
        samples: (G, n, d) inputs of the original and of the compressed network.
        sharing: What the weights may become.
        options: How ids are chosen.
    """

    piece: Piece
    block: Block
    where: np.ndarray
    samples: tuple[torch.Tensor, torch.Tensor]
    sharing: Sharing
    options: LockstepOptions


def share(problem: Problem, original: Twin) -> np.ndarray:
    """Ids of a block's weights, int64 (G, r, d)."""
    sharing, options, where = problem.sharing, problem.options, problem.where
    before, after = problem.samples
    weights = stored(original, problem.piece.name).double().numpy().ravel()[where] / sharing.scale
    row_factors, column_factors = source_factors(original, problem.piece.name, problem.piece.operand, problem.block)
    if (column_factors != 1).any():
        before, after = (each * torch.from_numpy(column_factors[:, None]).to(each) for each in (before, after))
    exact = sharing.exact[where]
    rows = _row_values(sharing.rows, where, len(sharing.exact)) * sharing.unit * row_factors**2
    ids = np.empty(where.shape, dtype=np.int64)
    for part in column_blocks(where.shape[2]):
        pair, kept = (before[:, :, part], after[:, :, part]), exact[:, :, part]
        target, hessian = _target(weights[:, :, part], *pair, kept, options, centred=problem.piece.centred)
        ids[:, :, part] = assign_with_feedback(
            target,
            hessian,
            rows,
            sharing.alphabet,
            penalty=options.penalty,
            exact=kept,
            paths=options.paths,
            sweeps=options.sweeps,
        )
    return ids


def _row_values(rows: np.ndarray, where: np.ndarray, size: int) -> np.ndarray:
    """float64 (G, r): values per row of the tensor's first axis, as means over the weights of each filter."""
    of_weights = rows[where // (size // len(rows))]
    first = of_weights[:, :, 0]
    return first if (of_weights == first[:, :, None]).all() else of_weights.mean(axis=2)


def _target(
    original: np.ndarray,
    before: torch.Tensor,
    after: torch.Tensor,
    exact: np.ndarray,
    options: LockstepOptions,
    *,
    centred: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (G, r, d) that compensate for the change of inputs, and the damped covariance (G, d, d) of the inputs.

    Args:
        original: float64 (G, r, d), the weights, in units of s_t.
        before: (G, n, d), the original network's inputs.
        after: (G, n, d), the compressed network's inputs.
        exact: bool (G, r, d), weights that are kept as they are.
        options: Damping; on noise the target is the original weights.
        centred: Whether a bias or a batch norm corrects the mean of the outputs.
    """
    seen = covariance(after, centred=centred)
    hessian = trusted(seen, n_samples=after.shape[1], damping=options.damping)
    if options.synthetic:
        return original, hessian
    change = covariance(before, after, centred=centred) - seen
    factor = _held_factor(original, before, after, options.damping, centred=centred)
    return np.where(exact, original, original + factor * _least_squares(original @ change, hessian)), hessian


def _held_factor(
    weights: np.ndarray, before: torch.Tensor, after: torch.Tensor, damping: float, *, centred: bool
) -> float:
    """Fraction of the least-squares change of weights that is best on other samples, in [0, 1].

    With original inputs x, changed inputs y, C = E[x y^T], S = E[y y^T] and the damped H, the change of weights that
    compensates for the change of inputs is w (C - S) H^-1. It is computed on the first half of the samples; the factor
    is the best one on the second half.

    Args:
        weights: float64 (G, r, d).
        before: (G, n, d), original inputs, in the order of the inputs.
        after: (G, n, d), changed inputs, in the same order.
        damping: Damping of the covariance (`survey.trusted`).
        centred: Whether the covariance is.
    """
    half = before.shape[1] // 2
    if half == 0:
        return 0.0
    seen, others = (covariance(each, centred=centred) for each in (after[:, :half], after[:, half:]))
    hessian = trusted(seen, n_samples=half, damping=damping)
    first = _least_squares(weights @ (covariance(before[:, :half], after[:, :half], centred=centred) - seen), hessian)
    power = float(((first @ others) * first).sum())
    missing = weights @ (covariance(before[:, half:], after[:, half:], centred=centred) - others)
    factor = float((first * missing).sum()) / power if power > 0 else 0.0
    return min(max(factor, 0.0), 1.0)


def _least_squares(missing: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """missing H^-1, float64 (G, r, d)."""
    return np.swapaxes(np.linalg.solve(hessian, np.swapaxes(missing, 1, 2)), 1, 2)


def stored(twin: Twin, name: str) -> torch.Tensor:
    """The tensor that the file holds: the source of a computed weight, else the weight."""
    return (twin.sources[name] if name in twin.sources else twin.tensors[name]).detach()
