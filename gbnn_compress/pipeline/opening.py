"""Stages that compressing and planning share."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from gbnn_compress.calibration.on_data import calibration_on, precisions_on, synthetic_calibration
from gbnn_compress.checkpoint.architecture_index import find_architectures
from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.checkpoint.select import Selection, floating_shapes, floating_values
from gbnn_compress.data.architectures import build_network, load_weights
from gbnn_compress.data.kind import CLASSIFIER, FACT, require_forecast, settle_kind
from gbnn_compress.errors import CheckpointError
from gbnn_compress.predict.evaluation import (
    Bench,
    Evaluation,
    as_evaluation,
    extra_notes,
    is_artifact,
    left_out_warnings,
)
from gbnn_compress.target.allocation import cost_factors, cost_of_errors, rescue_factors
from gbnn_compress.target.prepared import Prepared, prepare
from gbnn_compress.types import Checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from gbnn_compress.calibration.calibrated import Calibration
    from gbnn_compress.pipeline.request import Request
    from gbnn_compress.report.schema import Timings

VERSIONED = ("gbnn-compress", "constriction", "numpy", "safetensors", "torch")

FINEST_RATIO = 4.0
"""The mixture is fitted finely enough for this ratio when the target does not say how fine it must be."""

TRIAL_RATIO = 12.0
"""Layers are weighed by the errors of a cut to this ratio where there is none to aim at."""

Tell = Callable[[str], None]
"""Is told a line whenever a step begins."""


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stages = dict.fromkeys(("read", "fit", "merge", "finetune", "encode"), 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the block towards a stage."""
        start = time.perf_counter()
        yield
        self._stages[stage] += time.perf_counter() - start

    def timings(self) -> Timings:
        """Stages and `total`, in seconds."""
        return cast("Timings", {**self._stages, "total": time.perf_counter() - self._start})


def open_checkpoint(
    path: Path, arch: str | None, *, key: str | None = None
) -> tuple[Checkpoint, tuple[str, ...], list[str]]:
    """Read a checkpoint, find the architectures that it fits (the given one, or those of the index), and warn.

    Args:
        path: A file or a folder.
        arch: Specification of the network.
        key: Which network of the checkpoint.

    Raises:
        GbnnError: It cannot be read, is an artifact, or does not fit `arch`.
    """
    if is_artifact(path):
        raise CheckpointError(
            f"`{path}` is an artifact already: `gbnn-compress report` shows it, `gbnn-compress decompress` gives dense "
            "weights back"
        )
    checkpoint, warnings = read_checkpoint(path, key=key), list[str]()
    if arch is not None:
        classes = find_architectures(floating_shapes(checkpoint.tensors)).n_classes
        fit = load_weights(build_network(arch, n_classes=classes), checkpoint.tensors, spec=arch)
        checkpoint = replace(checkpoint, notes=(*checkpoint.notes, *extra_notes(fit, spec=arch)))
        warnings = left_out_warnings(fit, checkpoint, spec=arch)
    return checkpoint, _architectures(checkpoint, arch), warnings


def _bench_on(
    checkpoint: Checkpoint, data: str | Evaluation | None, arch: str | None, *, option: str, samples: int = 1
) -> Bench | None:
    """The network on some data that it can be run on, if there are any.

    Raises:
        GbnnError: Bad data or architecture.
    """
    if data is None:
        return None
    bench = Bench(checkpoint, as_evaluation(data, samples=samples), arch, option=option)
    bench.require_usable()
    return bench


def benches(
    request: Request, read: Checkpoint, *, eval_data: str | Evaluation | None, samples: int
) -> tuple[Bench | None, Bench | None]:
    """The network on the data that a run is judged by in the end, and on those for choices.

    Data to train on are tried as well, so that they are refused before any work is done.

    Raises:
        GbnnError: Bad data or architecture.
    """
    judged = _bench_on(read, eval_data, request.arch, option="--eval-data", samples=samples)
    chosen = _bench_on(read, request.val_data, request.arch, option="--val-data")
    if request.epochs:
        _bench_on(read, request.data, request.arch, option="--data")
    return judged, chosen


def finest_ratio(request: Request) -> float:
    """The smallest ratio that a request may come to."""
    return _ratio_of_bytes(request) or FINEST_RATIO


def _ratio_of_bytes(request: Request) -> float | None:
    """The target, where it is a ratio of bytes."""
    return request.target_ratio if request.ratio_of == "artifact" else None


def prepare_request(
    request: Request,
    read: Checkpoint,
    selection: Selection,
    names: Sequence[str],
    *,
    finest_ratio: float,
    labels: bool,
    rescue: bool,
    tell: Tell,
) -> Prepared:
    """Posteriors and the mixture, calibrated unless training is to come.

    Args:
        request: What is asked for.
        read: The checkpoint.
        selection: Its tensors by kind.
        names: Architectures that it fits.
        finest_ratio: Smallest ratio that the mixture must serve.
        labels: Whether there are data with labels to measure on.
        rescue: Whether layers that would vanish at the target are weighed up, where no training is to come.
        tell: See `Tell`.

    Raises:
        GbnnError: Bad data or architecture.
    """
    recipe, calibration = request.recipe, None
    if recipe.feedback and not request.epochs:
        calibration = _calibration(read, selection, names, data=request.data, arch=request.arch, tell=tell)
    kind = settle_kind(
        request.task,
        labels=labels or request.epochs > 0,
        indexed_classes=find_architectures(floating_shapes(read.tensors)).n_classes,
        outputs=None if calibration is None else calibration.columns,
        tensors=read.tensors,
    )
    if request.max_drop is not None:
        require_forecast(kind, measured=request.val_data is not None)
    precisions = precisions_on(recipe.posterior, request.data, read, selection, arch=request.arch, seed=request.seed)
    tell(f"fitting the mixture to {sum(read.tensors[name].numel() for name in selection.shared):,} weights")
    fitted = partial(
        prepare,
        read,
        selection,
        recipe=recipe,
        finest_ratio=finest_ratio,
        facts={
            **_provenance(read, names, recipe=recipe.recorded(epochs=request.epochs), seed=request.seed),
            "target_ratio": request.target_ratio,
            "max_drop": request.max_drop,
            "ratio_of": request.ratio_of,
            **({} if kind.task is None else {FACT: kind.task}),
        },
        kind=kind,
        calibration=calibration,
        precisions=precisions,
    )
    prepared = fitted()
    by_costs = recipe.allocation == "costs" and kind.task == CLASSIFIER
    if calibration is not None and not calibration.synthetic and by_costs:
        tell("weighing layers by what their errors cost, and fitting again")
        factors = cost_factors(prepared, ratio=_ratio_of_bytes(request) or TRIAL_RATIO)
        if factors:
            del prepared
            prepared = fitted(importances=factors)
        else:
            tell(
                "weighing them by their norms: the network gives no gradients (torch.no_grad, values changed in place)"
            )
    ratio = _ratio_of_bytes(request)
    return _rescued(prepared, fitted, ratio, tell) if rescue and ratio is not None and not request.epochs else prepared


def _rescued(prepared: Prepared, fitted: Callable[..., Prepared], ratio: float, tell: Tell) -> Prepared:
    """With layers weighed up that would vanish at a ratio, if there are any and it helps."""
    factors = rescue_factors(prepared, ratio=ratio)
    if not factors:
        return prepared
    tell("weighing layers up that would vanish, and fitting again")
    importances = {name: factor * prepared.importances.get(name, 1.0) for name, factor in factors.items()}
    rescued = fitted(importances=importances)
    better = cost_of_errors(rescued, ratio=ratio) < cost_of_errors(prepared, ratio=ratio)
    return replace(rescued, before=prepared) if better else prepared


def _calibration(
    checkpoint: Checkpoint,
    selection: Selection,
    names: Sequence[str],
    *,
    data: str | Evaluation | None,
    arch: str | None,
    tell: Tell,
) -> Calibration | None:
    """On data; without, on noise where the architecture is known."""
    if data is not None:
        evaluation = as_evaluation(data, samples=1)
        tell(f"calibrating on {evaluation.data}")
        return calibration_on(evaluation, checkpoint, selection, arch=arch)
    known = arch or (names[0] if len(names) == 1 else None)
    if known is None:
        return None
    tell(f"calibrating {known} on noise")
    calibration = synthetic_calibration(checkpoint, selection, arch=known)
    if calibration is None:
        tell("no calibration: the network has no 2-D batch norm, is too large, or takes no noise of 8 x 8 to 384 x 384")
    return calibration


def _architectures(checkpoint: Checkpoint, given: str | None) -> tuple[str, ...]:
    if given is not None:
        return (given,) if given.startswith(("torchvision/", "timm/")) else ()
    return find_architectures(floating_shapes(checkpoint.tensors)).names


def _provenance(
    checkpoint: Checkpoint, architectures: Sequence[str], *, recipe: dict[str, Any], seed: int
) -> dict[str, Any]:
    return {
        "checkpoint": {
            "sha256": checkpoint.sha256,
            "bytes": checkpoint.size_bytes,
            "parameters": floating_values(checkpoint.tensors, checkpoint.ties),
            "architecture": architectures[0] if len(architectures) == 1 else None,
            "notes": list(checkpoint.notes),
        },
        "recipe": recipe,
        "seed": seed,
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
    }
