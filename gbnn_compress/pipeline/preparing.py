"""A checkpoint made ready for its target: calibrated, its layers weighed, its mixture fitted."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from gbnn_compress.calibration.on_data import calibration_on, precisions_on, synthetic_calibration
from gbnn_compress.checkpoint.select import Selection, floating_values, matching
from gbnn_compress.data.kind import FACT, Kind, require_forecast, settle_kind
from gbnn_compress.pipeline.opening import RunInputs
from gbnn_compress.pipeline.progress import OnProgress
from gbnn_compress.target.allocation import cost_of_errors, measured_costs, rescue_factors
from gbnn_compress.target.forecast import codebook_of_size
from gbnn_compress.target.prepared import Prepared, prepare

if TYPE_CHECKING:
    from gbnn_compress.calibration.calibrated import Calibration
    from gbnn_compress.pipeline.request import Request
    from gbnn_compress.types import Checkpoint

VERSIONED = ("gbnn-compress", "constriction", "numpy", "safetensors", "torch")

FINEST_RATIO = 4.0
"""Smallest ratio that the mixture is fitted for if the target is no ratio of bytes."""

TRIAL_RATIO = 12.0
"""Ratio at which costs of errors are measured if the target is no ratio of bytes."""


def prepare_request(
    request: Request,
    opened: RunInputs,
    *,
    finest_ratio: float,
    rescue: bool,
    on_progress: OnProgress,
    trellis: bool = True,
    calibration: Calibration | None = None,
) -> Prepared:
    """Compute posteriors, mixture and merge path, with calibration unless training follows.

    Args:
        request: The request.
        opened: What the request reads.
        finest_ratio: Smallest ratio that the mixture must serve.
        rescue: Whether layers that would vanish at the target get a higher cost. Ignored if training follows.
        on_progress: Called with one line of text when a step begins.
        trellis: Whether tensors may have a trellis, if the recipe allows it. Ignored if training follows.
        calibration: That of an earlier call for the same request and inputs; None calibrates here.

    Raises:
        GbnnError: The data or the architecture do not fit, or the task does not allow the target.
    """
    recipe, read, selection = request.configuration, opened.checkpoint, opened.selection
    if calibration is None and _calibrates(request):
        calibration = _calibration(opened, on_progress=on_progress)
    trial = opened.trial
    kind = settle_kind(
        request.task,
        labels=opened.has_labels,
        indexed_classes=opened.indexed_classes,
        outputs=trial.columns if trial is not None else None if calibration is None else calibration.columns,
        images=trial is None or trial.images,
        tensors=read.tensors,
    )
    if request.max_drop is not None:
        require_forecast(kind, measured=opened.validation is not None, metric=request.metric is not None)
    on_progress(f"fitting the mixture to {sum(read.tensors[name].numel() for name in selection.shared):,} weights")
    fitted = partial(
        prepare,
        read,
        selection,
        recipe=recipe,
        finest_ratio=finest_ratio,
        facts=_facts(request, opened, kind),
        kind=kind,
        calibration=calibration,
        precisions=precisions_on(recipe.posterior, opened.data, read, selection, seed=request.seed),
        trellis=trellis and recipe.trellis and not request.passes,
    )
    weighed = _weighed(recipe.importance, read, selection)
    made = opened.data is None and opened.made is not None
    prepared = _by_costs(fitted(importances=weighed), fitted, request, on_progress, weighed=weighed, made=made)
    ratio = request.byte_ratio
    if not rescue or ratio is None or request.passes:
        return prepared
    return _rescued(prepared, fitted, ratio, on_progress)


def _by_costs(
    prepared: Prepared,
    fitted: Callable[..., Prepared],
    request: Request,
    on_progress: OnProgress,
    *,
    weighed: Mapping[str, float],
    made: bool,
) -> Prepared:
    """Fit again with measured cost factors of the layers, if there are inputs and the recipe asks for it.

    On inputs that are made as `--input` describes them, costs are measured too, but those of filters are not used.
    """
    calibration = prepared.calibration
    wanted = request.configuration.allocation == "costs"
    if not wanted or calibration is None or (calibration.synthetic and not made):
        return prepared
    on_progress("measuring the cost of errors in each layer, and fitting the mixture again")
    costs = measured_costs(prepared, ratio=request.byte_ratio or TRIAL_RATIO)
    if costs is None:
        on_progress("keeping costs by norms: the network gives no gradients (torch.no_grad or in-place operations)")
        return prepared
    factors = {**costs.factors, **{name: costs.factors.get(name, 1.0) * factor for name, factor in weighed.items()}}
    precisions = prepared.precisions or (None if made else costs.rows) or None
    del prepared
    return fitted(importances=factors, precisions=precisions)


def _weighed(importance: Mapping[str, float], checkpoint: Checkpoint, selection: Selection) -> dict[str, float]:
    """Name -> factor of the errors of a shared tensor, from the recipe's patterns; empty without patterns.

    Factors of one tensor multiply. The geometric mean over all weights is 1, as it is for measured factors.
    """
    if not importance:
        return {}
    found = dict.fromkeys(selection.shared, 1.0)
    for pattern, factor in importance.items():
        for name in matching([pattern], selection.shared, option="-s importance"):
            found[name] *= factor
    sizes = {name: checkpoint.tensors[name].numel() for name in found}
    mean = math.exp(sum(sizes[name] * math.log(factor) for name, factor in found.items()) / sum(sizes.values()))
    return {name: factor / mean for name, factor in found.items()}


def _rescued(prepared: Prepared, fitted: Callable[..., Prepared], ratio: float, on_progress: OnProgress) -> Prepared:
    """Fit again with a higher cost of errors in layers that would vanish at a ratio, if that lowers the total cost."""
    size_bytes = prepared.floating_bytes / ratio
    cut, _ = codebook_of_size(prepared, size_bytes)
    factors = rescue_factors(prepared, cut)
    if not factors:
        return prepared
    on_progress("raising the cost of errors in layers that would vanish, and fitting the mixture again")
    importances = {name: factor * prepared.importances.get(name, 1.0) for name, factor in factors.items()}
    rescued = fitted(importances=importances, precisions=prepared.precisions)
    rescued = replace(rescued, problem=rescued.problem.with_predictions_of(prepared.problem))
    better = cost_of_errors(rescued, codebook_of_size(rescued, size_bytes)[0]) < cost_of_errors(prepared, cut)
    return replace(rescued, before=prepared) if better else prepared


def _calibrates(request: Request) -> bool:
    return request.configuration.feedback and not request.passes


def _calibration(opened: RunInputs, *, on_progress: OnProgress) -> Calibration | None:
    """Calibrate on the given data; without data, on the described inputs, or on noise if the architecture is known."""
    if opened.data is not None:
        on_progress(f"calibrating on {opened.data.evaluation.data}")
        return calibration_on(opened.data, opened.checkpoint, opened.selection)
    if opened.made is not None:
        on_progress("calibrating on the inputs of `--input`")
        return calibration_on(opened.made, opened.checkpoint, opened.selection, synthetic=True)
    network = opened.network or (opened.candidates[0] if len(opened.candidates) == 1 else None)
    if network is None:
        return None
    on_progress(f"calibrating {network if isinstance(network, str) else network.spec} on noise")
    calibration = synthetic_calibration(opened.checkpoint, opened.selection, network)
    if calibration is None:
        on_progress(
            "no calibration: the network has no 2-D batch norm, is too large, or does not run on noise of 8 x 8 to"
            " 384 x 384 pixels"
        )
    return calibration


def _facts(request: Request, opened: RunInputs, kind: Kind) -> dict[str, Any]:
    """The manifest's entries on the run."""
    checkpoint, names = opened.checkpoint, opened.candidates
    return {
        "checkpoint": {
            "sha256": checkpoint.sha256,
            "bytes": checkpoint.size_bytes,
            "parameters": floating_values(checkpoint.tensors, checkpoint.ties),
            "architecture": names[0] if len(names) == 1 else None,
            "notes": list(checkpoint.notes),
        },
        "recipe": request.configuration.recorded(epochs=request.passes),
        "seed": request.seed,
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
        "target_ratio": request.ratio,
        "max_drop": request.max_drop,
        **({} if request.max_error is None else {"max_error": request.max_error}),
        "ratio_of": request.ratio_of,
        **({} if kind.task is None else {FACT: kind.task}),
    }
