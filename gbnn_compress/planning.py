"""What compressing would give, without writing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gbnn_compress.evaluation import Evaluation
from gbnn_compress.output import sizes
from gbnn_compress.prepared import tensor_infos
from gbnn_compress.recipe import resolve
from gbnn_compress.request import requested
from gbnn_compress.stages import Clock, bench_on, made_ready, opened
from gbnn_compress.target import find_safe_ratio, planned_rate
from gbnn_compress.weights.select import select

PLANNED_RATIOS = (4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0, 50.0)


def plan(
    checkpoint: str | Path,
    *,
    ratios: Sequence[float] = PLANNED_RATIOS,
    max_drop: float | None = None,
    output: str | Path | None = None,
    arch: str | None = None,
    recipe: str | Path = "default",
    settings: Mapping[str, Any] | None = None,
    data: str | Evaluation | None = None,
    val_data: str | Evaluation | None = None,
    epochs: int | None = None,
    eval_data: str | Evaluation | None = None,
    html: str | Path | None = None,
) -> dict[str, Any]:
    """What compressing would give, without writing anything.

    Refuses what `compress` would refuse before its first stage, data included. Damage is that of the file before any
    training: what epochs win back is not foreseen.

    Args:
        checkpoint: As for `compress`, and so are the others.
        ratios: Ratios to predict for.
        max_drop: Changes nothing but what data are taken for.
        output: Not written.
        arch: See `compress`.
        recipe: See `compress`.
        settings: See `compress`.
        data: See `compress`.
        val_data: See `compress`.
        epochs: See `compress`.
        eval_data: See `compress`.
        html: Not written.

    Returns:
        `checkpoint`, `tensors`, `rates` (predicted bytes, components and damage at each ratio), `safe_ratio`,
        `epochs`, `memory_bytes` (about what compressing needs at its peak) and `timings`.

    Raises:
        GbnnError: Bad input.
    """
    request = requested(
        checkpoint,
        target_ratio=min(ratios) if max_drop is None else None,
        max_drop=max_drop,
        ratio_of="artifact",
        output=output,
        arch=arch,
        recipe=resolve(recipe, settings),
        data=data,
        val_data=val_data,
        epochs=epochs,
        html=html,
        seed=0,
    )
    clock = Clock()
    with clock("read"):
        read, names = opened(request.source, arch)
        selection = select(read)
        for spec in (val_data, eval_data, data if request.epochs else None):
            bench_on(read, spec, arch, samples=1)
    with clock("fit"):
        prepared = made_ready(request, read, selection, names, finest_ratio=min(ratios), tell=lambda line: None)
    with clock("merge"):
        rates = [planned_rate(prepared, ratio) for ratio in ratios]
        safe = find_safe_ratio(prepared)
    return {
        "schema": sizes.SCHEMA,
        "checkpoint": {
            "path": str(checkpoint),
            **prepared.facts["checkpoint"],
            "architecture_candidates": list(names),
        },
        "tensors": [asdict(info) for info in tensor_infos(read, selection)],
        "rates": rates,
        "safe_ratio": safe,
        "epochs": request.epochs,
        "memory_bytes": int(1.5 * prepared.floating_bytes) + 600_000_000,
        "timings": clock.timings(),
    }
