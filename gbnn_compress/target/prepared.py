"""Preparation of a checkpoint for any target: posteriors, cells, mixture and merge path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gbnn_compress.checkpoint.arrays import raw_bytes_of
from gbnn_compress.checkpoint.select import (
    Selection,
    dtype_name,
    floating_bytes,
    floating_values,
    with_coded_tables,
)
from gbnn_compress.data.kind import Kind
from gbnn_compress.format.artifact import compress_raw, header_bytes
from gbnn_compress.format.bank import short_floats_bits
from gbnn_compress.format.checks import BITS
from gbnn_compress.format.vectors import role, vector_bits
from gbnn_compress.rate.cells import build_cells
from gbnn_compress.rate.codebook import relative_step
from gbnn_compress.rate.context_savings import fraction_meter
from gbnn_compress.rate.divided import divided_weights
from gbnn_compress.rate.paper import PaperRules, paper_rules
from gbnn_compress.rate.posterior import data_free_posterior, typical_size
from gbnn_compress.rate.rate_problem import RateProblem, fit_path, interpolated
from gbnn_compress.rate.unshared import code_values, read_unshared
from gbnn_compress.recipe import Recipe
from gbnn_compress.types import Checkpoint, Posterior, TensorInfo

if TYPE_CHECKING:
    import torch

    from gbnn_compress.calibration.calibrated import Calibration

DAMAGE_PLACEHOLDER = {
    "components_before_merging": 1000,
    "noise": 0.1234,
    "damage": {"drop": 0.123, "agreement": 0.123, "logit_kl": 0.123, "measured": False, "safe_ratio": 12.3},
    "warnings": [],
}
"""Stands for the manifest's entries on damage in the prediction of the file's size; it has about their length."""


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that is ready for any target.

    Attributes:
        checkpoint: The checkpoint, as read.
        selection: Names of its tensors by kind.
        posteriors: One posterior per shared tensor.
        sizes: float64 (T,), number of weights of each shared tensor.
        value_bits: int64 (T,), bits per value of each shared tensor at its dtype.
        typical: Size of a typical tensor, from `typical_size`.
        problem: The problem that rate control solves.
        kind: Whether the network is a classifier.
        n_classes: Rows of the last matrix, taken as the number of classes.
        floating_bytes: Size of all floating tensors in bytes: the numerator of the ratio.
        n_unshared: Floating values that are not shared, raw ones included.
        facts: What the manifest says of the checkpoint.
        calibration: The network with inputs, if it is known.
        precisions: Name -> float64 (rows,), 1 / sigma^2 from inputs; None without `posterior: variational`.
        importances: Name -> cost factor of a shared tensor's errors, relative to the cost that its norm predicts
            (`allocation.py`).
        contexts: Whether ids are coded by context where that is shorter.
        before: The same without `rescue_factors`; None if none were applied. Damage is predicted from it.
    """

    checkpoint: Checkpoint
    selection: Selection
    posteriors: tuple[Posterior, ...]
    sizes: np.ndarray
    value_bits: np.ndarray
    typical: float
    problem: RateProblem
    kind: Kind
    n_classes: int
    floating_bytes: int
    n_unshared: int
    facts: Mapping[str, Any]
    calibration: Calibration | None
    precisions: Mapping[str, np.ndarray] | None
    importances: Mapping[str, float]
    contexts: bool = True
    before: Prepared | None = None

    @property
    def unrescued(self) -> Prepared:
        """The checkpoint prepared without `rescue_factors`: damage and other targets are predicted from it."""
        return self.before or self


def prepare(
    checkpoint: Checkpoint,
    selection: Selection,
    *,
    recipe: Recipe,
    finest_ratio: float,
    facts: Mapping[str, Any],
    kind: Kind,
    calibration: Calibration | None = None,
    precisions: Mapping[str, np.ndarray] | None = None,
    importances: Mapping[str, float] | None = None,
    size_power: float = 1.0,
    paper: PaperRules | None = None,
    contexts: bool = True,
    trellis: bool = False,
    fit: Callable[..., RateProblem] = fit_path,
) -> Prepared:
    """Compute posteriors, cells, mixture and merge path, which serve every ratio from `finest_ratio` up.

    Args:
        checkpoint: The checkpoint, as read.
        selection: Names of its tensors by kind.
        recipe: The configuration.
        finest_ratio: Smallest target ratio that will be used.
        facts: Entries of the manifest on the run.
        kind: Whether the network is a classifier.
        calibration: The network with inputs, real or synthetic.
        precisions: Passed on to `data_free_posterior`.
        importances: Passed on to `data_free_posterior`.
        size_power: Passed on to `data_free_posterior`.
        paper: Published rules in place of the project's own; default: those of the recipe.
        contexts: Whether ids are coded by context where that is shorter.
        trellis: Whether tensors may have a trellis.
        fit: A function with the arguments and the result of `fit_path`.
    """
    tensors = checkpoint.tensors
    counted = floating_bytes(tensors, checkpoint.ties)
    selection = with_coded_tables(selection, tensors, file_bytes=counted / finest_ratio)
    posteriors = data_free_posterior(
        tensors,
        selection.shared,
        size_power=size_power,
        precisions=precisions,
        importances=importances,
        usage=None if calibration is None else calibration.lookups,
    )
    paper = paper or paper_rules(recipe)
    if paper is not None:
        posteriors = paper.posteriors(tensors, posteriors)
    scales = np.array([posterior.scale for posterior in posteriors])
    sizes_ = np.array([tensors[name].numel() for name in selection.shared], dtype=np.float64)
    typical = typical_size([tensors[name].numel() for name in selection.shared])
    bits = min(8 * counted / finest_ratio / float(sizes_.sum()), 12.0)
    value_bits = np.array([BITS[dtype_name(tensors[name])] for name in selection.shared])
    problem = fit(
        build_cells(tensors, posteriors, resolution=float(np.clip(2.0 ** (bits + 2), 128, 512))),
        n_components=int(np.clip(2.0 ** (bits + 5), min(256, recipe.n_components), recipe.n_components)),
        log_sigma_weight=recipe.log_sigma_weight,
        max_iterations=recipe.em_iterations,
        scales=scales,
        value_bits=value_bits,
        other_bytes=_other_bytes(checkpoint, selection, facts=facts, scales=scales, typical=typical),
        measure_fraction=fraction_meter(tensors, posteriors, value_bits=value_bits) if contexts else lambda book: 1.0,
        refinements=recipe.refinements,
        paper=paper,
        trellis_allowed=_may_have_trellis(tensors, posteriors, calibration) if trellis and paper is None else None,
    )
    return Prepared(
        checkpoint=checkpoint,
        selection=selection,
        posteriors=posteriors,
        sizes=sizes_,
        value_bits=value_bits,
        typical=typical,
        problem=problem,
        kind=kind,
        n_classes=_class_count(checkpoint, selection),
        floating_bytes=counted,
        n_unshared=floating_values(tensors, checkpoint.ties) - int(sizes_.sum()),
        facts=facts,
        calibration=calibration,
        precisions=precisions,
        importances=importances or {},
        contexts=contexts,
    )


def _may_have_trellis(
    tensors: Mapping[str, torch.Tensor], posteriors: Sequence[Posterior], calibration: Calibration | None
) -> np.ndarray:
    """bool (T,), the shared tensors whose weights can follow a trellis row by row.

    Weights that the network divides by their norms are left out: some may become outliers later.
    """
    divided = divided_weights({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return np.array(
        [
            posterior.name not in divided
            and not posterior.by_magnitude
            and (calibration is None or calibration.keeps_rows(posterior.name))
            for posterior in posteriors
        ]
    )


def _other_bytes(
    checkpoint: Checkpoint, selection: Selection, *, facts: Mapping[str, Any], scales: np.ndarray, typical: float
) -> Callable[[float], float]:
    """A function of lambda: predicted size of the file in bytes, without the bank, the index maps and the outliers.

    Norms and biases are coded at whole octaves of lambda, and their size is interpolated between these.
    """
    tensors = checkpoint.tensors
    unshared = read_unshared(tensors, selection.unshared, tables=selection.tables)
    roles = [role(name) for name in selection.unshared]
    fixed = len(compress_raw([raw_bytes_of(tensors[name]) for name in selection.raw]))
    # Scales and errors of the tensors; the errors compress about as well as the scales.
    fixed += 2 * short_floats_bits(scales) // 8
    fixed += header_bytes(tensor_infos(checkpoint, selection), {**facts, **DAMAGE_PLACEHOLDER})

    @lru_cache
    def at(octave: int) -> float:
        vectors = code_values(unshared, relative_step=relative_step(2.0**octave, typical))
        return vector_bits(vectors, roles=roles) / 8 + fixed

    return lambda penalty: interpolated(at, float(np.log2(penalty)))


def tensor_infos(checkpoint: Checkpoint, selection: Selection) -> list[TensorInfo]:
    """Name, shape, dtype and kind of every tensor of the checkpoint, in order."""
    kind = {name: kind for kind in ("shared", "unshared", "raw") for name in getattr(selection, kind)}
    return [
        TensorInfo(name, tuple(t.shape), dtype_name(t), kind.get(name, "tied"), checkpoint.ties.get(name))
        for name, t in checkpoint.tensors.items()
    ]


def _class_count(checkpoint: Checkpoint, selection: Selection) -> int:
    matrices = [name for name in selection.shared if checkpoint.tensors[name].dim() == 2]
    return int(checkpoint.tensors[matrices[-1]].shape[0]) if matrices else 1000
