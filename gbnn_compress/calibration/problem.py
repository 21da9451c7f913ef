"""One layer's least-squares problem: the target that compensates for changed inputs, and the choice of ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gbnn_compress.calibration.blocks import Block, column_blocks
from gbnn_compress.calibration.decisions import Alphabet
from gbnn_compress.calibration.feedback import assign_with_feedback
from gbnn_compress.calibration.moments import Halves, Moments, whole
from gbnn_compress.calibration.survey import source_factors, trusted
from gbnn_compress.calibration.tracing import Piece
from gbnn_compress.calibration.twins import Twin
from gbnn_compress.parallel import on_threads


@dataclass(frozen=True)
class Sharing:
    """How the weights of one tensor may be shared.

    Attributes:
        alphabet: The components that the tensor may use.
        scale: s_t, their unit.
        rows: float64 (rows,), h_f of `assign_with_feedback`, mean about 1.
        unit: Cost of a squared output error of s_t^2, in the unit of lambda.
        exact: bool (n,), weights that are kept exactly.
        ids: (n,), choices without feedback, for weights that feedback does not reach.
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
        sweeps: Rounds of searching the windows of a layer again.
        synthetic: Whether the inputs are noise. Batch norm then normalises with the inputs' own statistics, and layers
            do not correct the errors of the layers before them: on noise, that does harm.
        biases: Whether biases take up the change of their layer's mean output.
        threads: Threads of the search.
    """

    penalty: float
    damping: float
    paths: int
    sweeps: int
    synthetic: bool
    biases: bool = True
    threads: int = 1


@dataclass(frozen=True)
class Problem:
    """One block of a piece, with its inputs.

    Attributes:
        piece: The piece.
        block: The block.
        where: int64 (G, r, d), positions of the weights in the tensor.
        halves: Moments of both halves of the inputs of the original and of the compressed network.
        sharing: What the weights may become.
        options: How ids are chosen.
    """

    piece: Piece
    block: Block
    where: np.ndarray
    halves: Halves
    sharing: Sharing
    options: LockstepOptions


def share(problem: Problem, original: Twin) -> np.ndarray:
    """Ids of a block's weights, int64 (G, r, d)."""
    sharing, options, where = problem.sharing, problem.options, problem.where
    weights = stored(original, problem.piece.name).double().cpu().numpy().ravel()[where] / sharing.scale
    row_factors, column_factors = source_factors(original, problem.piece.name, problem.piece.operand, problem.block)
    exact = sharing.exact[where]
    rows = _row_values(sharing.rows, where, len(sharing.exact)) * sharing.unit * row_factors**2
    ids, states = np.empty(where.shape, dtype=np.int64), np.zeros(where.shape[:2], dtype=np.int64)
    parts = column_blocks(where.shape[2])

    def target(i: int) -> tuple[np.ndarray, np.ndarray]:
        seen, *halves = (
            None if each is None else _seen(each, column_factors[:, parts[i]], centred=problem.piece.centred)
            for each in (whole(problem.halves, i), *(half and half.run(i) for half in problem.halves))
        )
        assert seen is not None
        return _target(weights[:, :, parts[i]], seen, halves, exact[:, :, parts[i]], options)

    threads = options.threads if len(parts) > 1 else 1
    for part, found in zip(parts, on_threads(target, range(len(parts)), threads=threads, alone=True), strict=True):
        ids[:, :, part], states = assign_with_feedback(
            *found,
            rows,
            sharing.alphabet,
            penalty=options.penalty,
            exact=exact[:, :, part],
            paths=options.paths,
            sweeps=options.sweeps,
            states=states,
            threads=options.threads,
        )
    return ids


def _row_values(rows: np.ndarray, where: np.ndarray, size: int) -> np.ndarray:
    """float64 (G, r): values per row of the tensor's first axis, as means over the weights of each filter."""
    of_weights = rows[where // (size // len(rows))]
    first = of_weights[:, :, 0]
    return first if (of_weights == first[:, :, None]).all() else of_weights.mean(axis=2)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What n pairs of inputs of a run of columns say.

    Attributes:
        n: Number of pairs.
        own: float64 (G, k, k), S = E[y y^T] of the changed inputs y.
        change: float64 (G, k, k), E[x y^T] - S with the original inputs x; zeros without.
    """

    n: int
    own: np.ndarray
    change: np.ndarray


def _seen(moments: Moments, factors: np.ndarray, *, centred: bool) -> _Seen:
    """The covariances of one run of columns, whose inputs are multiplied by factors (G, k)."""
    scale = factors[:, :, None] * factors[:, None, :]
    own = moments.covariance(0, centred=centred)
    change = moments.cross_covariance(0, centred=centred) - own if moments.xy else np.zeros_like(own)
    return _Seen(moments.n, own * scale, change * scale)


def _target(
    original: np.ndarray, seen: _Seen, halves: Sequence[_Seen | None], exact: np.ndarray, options: LockstepOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (G, r, d) that compensate for the change of inputs, and the damped covariance (G, d, d) of the inputs.

    Args:
        original: float64 (G, r, d), the weights, in units of s_t.
        seen: Covariances of all inputs, centred where a bias or a batch norm corrects the mean of the outputs.
        halves: Those of both halves of the inputs; None for a half without inputs.
        exact: bool (G, r, d), weights that are kept as they are.
        options: Damping; on noise the target is the original weights.
    """
    hessian = trusted(seen.own, n_samples=seen.n, damping=options.damping)
    if options.synthetic:
        return original, hessian
    factor = _held_factor(original, halves[0], halves[1], options.damping)
    return np.where(exact, original, original + factor * _least_squares(original @ seen.change, hessian)), hessian


def _held_factor(weights: np.ndarray, first: _Seen | None, second: _Seen | None, damping: float) -> float:
    """Fraction of the least-squares change of weights that is best on other samples, in [0, 1].

    With original inputs x, changed inputs y, C = E[x y^T], S = E[y y^T] and the damped H, the change of weights that
    compensates for the change of inputs is w (C - S) H^-1. It is computed on the first half of the samples; the factor
    is the best one on the second half.

    Args:
        weights: float64 (G, r, d).
        first: Covariances of the first half of the samples.
        second: Covariances of the second half.
        damping: Damping of the covariance (`survey.trusted`).
    """
    if first is None or second is None:
        return 0.0
    moved = _least_squares(weights @ first.change, trusted(first.own, n_samples=first.n, damping=damping))
    power = float(((moved @ second.own) * moved).sum())
    factor = float((moved * (weights @ second.change)).sum()) / power if power > 0 else 0.0
    return min(max(factor, 0.0), 1.0)


def _least_squares(missing: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """missing H^-1, float64 (G, r, d)."""
    return np.swapaxes(np.linalg.solve(hessian, np.swapaxes(missing, 1, 2)), 1, 2)


def stored(twin: Twin, name: str) -> torch.Tensor:
    """The tensor that the file holds: the source of a computed weight, else the weight."""
    return (twin.sources[name] if name in twin.sources else twin.tensors[name]).detach()
