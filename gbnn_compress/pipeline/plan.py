"""Prediction of sizes and damage, without writing a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, cast

from gbnn_compress import compiled
from gbnn_compress.checkpoint.select import Selection, outlier_warnings
from gbnn_compress.errors import GbnnError
from gbnn_compress.pipeline.opening import open_request
from gbnn_compress.pipeline.preparing import prepare_request
from gbnn_compress.pipeline.progress import Clock, OnProgress
from gbnn_compress.pipeline.request import Request, takes_options
from gbnn_compress.rate.divided import uneven_warnings
from gbnn_compress.report.schema import SCHEMA, PlanReport
from gbnn_compress.report.words import counted
from gbnn_compress.target.forecast import find_safe_ratio, planned_rate
from gbnn_compress.target.prepared import tensor_infos
from gbnn_compress.types import Checkpoint

PLANNED_RATIOS = (4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0, 50.0)

ENCODING_BYTES = 3
"""Memory per shared weight that encoding needs beyond the peak of planning: ids, some of them coded, in bytes. Measured
from ResNet-18 to ViT-B/16."""

LIBRARY_BYTES = 800_000_000
"""Memory of a process that has imported PyTorch, in bytes, for systems that do not report it."""


@takes_options
def plan(
    checkpoint: Any,
    *,
    ratios: Sequence[float] = PLANNED_RATIOS,
    progress: OnProgress | None = None,
    **options: Any,
) -> PlanReport:
    """Predict sizes and damage for several ratios. Nothing is written.

    Takes the same arguments as `compress`; the target is optional. Refuses what `compress` refuses before its first
    stage: arguments that do not fit together, data that the network cannot run on, named outputs that cannot be
    written. The predicted damage is that before any training.

    Args:
        checkpoint: The file or folder; or a `torch.nn.Module`, which stays as it is; or a mapping of tensors.
        ratios: Ratios of file bytes to predict for. `target_ratio` is added to them if `ratio_of` is `artifact`.
        progress: Called with one line of text when a stage begins.
        options: The other fields of `Request`.

    Returns:
        Predicted sizes and damage; docs/reports.md describes every key.

    Raises:
        GbnnError: An argument or an input is not valid.
    """
    return run_plan(Request(checkpoint=checkpoint, **options, planned=True), ratios=ratios, progress=progress)


def run_plan(
    request: Request, *, ratios: Sequence[float] = PLANNED_RATIOS, progress: OnProgress | None = None
) -> PlanReport:
    """Predict sizes and damage for a request; `plan` makes the request from its arguments and calls this.

    Args:
        request: The checkpoint and all options, with `planned` set.
        ratios: Ratios of file bytes to predict for.
        progress: Called with one line of text when a stage begins.

    Returns:
        The dictionary that `plan` describes.

    Raises:
        GbnnError: An argument or an input is not valid.
    """
    if not ratios or min(ratios) < 1:
        raise GbnnError(f"`ratios`: expected numbers of at least 1, got {tuple(ratios)}")
    target = request.byte_ratio
    wanted = sorted({*ratios, target} if target else ratios)
    on_progress = progress or (lambda line: None)
    with compiled.heard_by(progress):
        return _planned(request, wanted, on_progress)


def _planned(request: Request, wanted: Sequence[float], on_progress: OnProgress) -> PlanReport:
    clock, target = Clock(), request.byte_ratio
    with clock("read"):
        opened = open_request(request)
    with clock("fit"):
        prepared = prepare_request(request, opened, finest_ratio=wanted[0], rescue=False, on_progress=on_progress)
    with clock("merge"):
        rates = [planned_rate(prepared, ratio) for ratio in wanted]
        safe = find_safe_ratio(prepared)
    read, selection = opened.checkpoint, opened.selection
    calibrated = prepared.calibration is not None and not prepared.calibration.synthetic
    result = {
        "schema": SCHEMA,
        "checkpoint": {
            "path": None if request.source is None else str(request.source),
            **prepared.facts["checkpoint"],
            "architecture_candidates": list(opened.candidates),
        },
        "tensors": [asdict(info) for info in tensor_infos(read, prepared.selection)],
        "floating_bytes": prepared.floating_bytes,
        "rates": rates,
        "safe_ratio": safe,
        "task": prepared.kind.task,
        "assumes": prepared.kind.assumes,
        "target_ratio": target,
        "with_data": calibrated or prepared.precisions is not None,
        "max_drop": request.max_drop,
        "ratio_of": request.ratio_of,
        "epochs": request.passes,
        "memory_bytes": _peak_bytes(prepared.floating_bytes)
        + ENCODING_BYTES * _shared_weights(read, selection)
        + (0 if prepared.calibration is None else prepared.calibration.further_bytes),
        "warnings": [
            *opened.warnings,
            *outlier_warnings(read, selection),
            *uneven_warnings(read.tensors, selection.shared),
            *_caveats(request),
        ],
        "timings": clock.timings(),
    }
    return cast("PlanReport", result)


def _caveats(request: Request) -> Iterator[str]:
    """Warnings of what the prediction does not cover."""
    if request.ratio is not None and request.ratio_of == "parameters":
        yield "`plan` predicts bytes only: a target with `--ratio-of parameters` is not among the ratios"
    if request.passes:
        epochs = counted(request.passes, "epoch")
        yield f"damage is predicted before training: the gain from {epochs} of training is not included"


def _shared_weights(checkpoint: Checkpoint, selection: Selection) -> int:
    return sum(checkpoint.tensors[name].numel() for name in selection.shared)


def _peak_bytes(floating_bytes: int) -> int:
    """Peak memory of this process so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return LIBRARY_BYTES + 2 * floating_bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
