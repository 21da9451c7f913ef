"""What compressing would give, without writing anything."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from gbnn_compress.checkpoint.select import Selection, outlier_warnings, select
from gbnn_compress.errors import GbnnError
from gbnn_compress.pipeline.opening import Clock, Tell, benches, open_checkpoint, prepare_request
from gbnn_compress.pipeline.request import Request, requested
from gbnn_compress.predict.evaluation import Evaluation
from gbnn_compress.rate.divided import uneven_warnings
from gbnn_compress.recipe import resolve
from gbnn_compress.report.schema import SCHEMA, PlanReport
from gbnn_compress.report.words import counted
from gbnn_compress.target.forecast import find_safe_ratio, planned_rate
from gbnn_compress.target.prepared import tensor_infos
from gbnn_compress.types import Checkpoint

PLANNED_RATIOS = (4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0, 50.0)

ENCODING_BYTES = 3
"""What encoding adds per shared weight to the peak of planning, which goes the same way up to there: ids, and some of
them coded. Measured from ResNet-18 to ViT-B/16."""

LIBRARY_BYTES = 800_000_000
"""Of a process that has imported PyTorch, where the system does not say it."""


def plan(
    checkpoint: str | Path,
    *,
    ratios: Sequence[float] = PLANNED_RATIOS,
    target_ratio: float | None = None,
    max_drop: float | None = None,
    ratio_of: str = "artifact",
    output: str | Path | None = None,
    arch: str | None = None,
    key: str | None = None,
    task: str | None = None,
    recipe: str | Path = "default",
    settings: Mapping[str, Any] | None = None,
    data: str | Evaluation | None = None,
    val_data: str | Evaluation | None = None,
    epochs: int | None = None,
    eval_data: str | Evaluation | None = None,
    html: str | Path | None = None,
    seed: int = 0,
    progress: Tell | None = None,
) -> PlanReport:
    """Predict sizes and damage.

    Takes what `compress` takes, and refuses what it would refuse before its first stage: arguments that do not fit
    together, data that the network cannot run on, named outputs that cannot be written. Damage is that of files before
    any training: what epochs win back is not foreseen.

    Args:
        checkpoint: As for `compress`, and so are the others.
        ratios: Ratios to predict for, those of file bytes.
        target_ratio: One more of them, if `ratio_of` is `artifact`; there need not be a target.
        max_drop: See `compress`.
        ratio_of: See `compress`.
        output: Not written.
        arch: See `compress`.
        key: See `compress`.
        task: See `compress`.
        recipe: See `compress`.
        settings: See `compress`.
        data: See `compress`.
        val_data: See `compress`.
        epochs: See `compress`.
        eval_data: See `compress`.
        html: Not written.
        seed: Of noise, where the recipe's `posterior` wants some.
        progress: See `compress`.

    Returns:
        Predicted sizes and damage; docs/reports.md describes every key.

    Raises:
        GbnnError: Bad input.
    """
    if not ratios or min(ratios) < 1:
        raise GbnnError(f"`ratios`: expected numbers of at least 1, got {tuple(ratios)}")
    request = requested(
        checkpoint,
        target_ratio=target_ratio,
        max_drop=max_drop,
        ratio_of=ratio_of,
        output=output,
        arch=arch,
        recipe=resolve(recipe, settings),
        data=data,
        val_data=val_data,
        epochs=epochs,
        html=html,
        seed=seed,
        key=key,
        task=task,
        planned=True,
    )
    by_bytes = request.target_ratio if ratio_of == "artifact" else None
    wanted = sorted({*ratios, by_bytes} if by_bytes else ratios)
    clock = Clock()
    with clock("read"):
        read, names, misfits = open_checkpoint(request.source, arch, key=key)
        selection = select(read)
        judged, chosen = benches(request, read, eval_data=eval_data, samples=1)
    with clock("fit"):
        prepared = prepare_request(
            request,
            read,
            selection,
            names,
            finest_ratio=wanted[0],
            labels=judged is not None or chosen is not None,
            rescue=False,
            tell=progress or (lambda line: None),
        )
    with clock("merge"):
        rates = [planned_rate(prepared, ratio) for ratio in wanted]
        safe = find_safe_ratio(prepared)
    calibrated = prepared.calibration is not None and not prepared.calibration.synthetic
    result = {
        "schema": SCHEMA,
        "checkpoint": {
            "path": str(checkpoint),
            **prepared.facts["checkpoint"],
            "architecture_candidates": list(names),
        },
        "tensors": [asdict(info) for info in tensor_infos(read, prepared.selection)],
        "floating_bytes": prepared.floating_bytes,
        "rates": rates,
        "safe_ratio": safe,
        "task": prepared.kind.task,
        "assumes": prepared.kind.assumes,
        "target_ratio": by_bytes,
        "with_data": calibrated or prepared.precisions is not None,
        "max_drop": max_drop,
        "ratio_of": ratio_of,
        "epochs": request.epochs,
        "memory_bytes": _peak_bytes(prepared.floating_bytes) + ENCODING_BYTES * _shared_weights(read, selection),
        "warnings": [
            *misfits,
            *outlier_warnings(read, selection),
            *uneven_warnings(read.tensors, selection.shared),
            *_caveats(request),
        ],
        "timings": clock.timings(),
    }
    return cast("PlanReport", result)


def _caveats(request: Request) -> Iterator[str]:
    """What the prediction leaves out."""
    if request.target_ratio is not None and request.ratio_of == "parameters":
        yield "`plan` predicts bytes: a target of parameters has no row of its own"
    if request.epochs:
        yield f"predicted before training: what {counted(request.epochs, 'epoch')} would win back is not foreseen"


def _shared_weights(checkpoint: Checkpoint, selection: Selection) -> int:
    return sum(checkpoint.tensors[name].numel() for name in selection.shared)


def _peak_bytes(floating_bytes: int) -> int:
    """The most memory that this process has had at once."""
    try:
        import resource
    except ImportError:  # Windows
        return LIBRARY_BYTES + 2 * floating_bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
