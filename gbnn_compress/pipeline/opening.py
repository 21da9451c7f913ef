"""Opening of everything that a run reads, and preparation of the checkpoint."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from gbnn_compress.calibration.on_data import calibration_on, precisions_on, synthetic_calibration
from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.checkpoint.select import Selection, floating_values, select
from gbnn_compress.data.datasets import load_data
from gbnn_compress.data.kind import CLASSIFIER, FACT, Kind, require_forecast, settle_kind
from gbnn_compress.errors import CheckpointError
from gbnn_compress.predict.bench import Bench, Evaluation, as_evaluation
from gbnn_compress.predict.models import (
    OpenedNetwork,
    extra_notes,
    is_artifact,
    left_out_warnings,
    match_of,
    open_network,
)
from gbnn_compress.target.allocation import cost_factors, cost_of_errors, rescue_factors
from gbnn_compress.target.prepared import Prepared, prepare
from gbnn_compress.types import Checkpoint

if TYPE_CHECKING:
    from gbnn_compress.calibration.calibrated import Calibration
    from gbnn_compress.pipeline.request import Request
    from gbnn_compress.report.schema import Timings

VERSIONED = ("gbnn-compress", "constriction", "numpy", "safetensors", "torch")

FINEST_RATIO = 4.0
"""Smallest ratio that the mixture is fitted for if the target is no ratio of bytes."""

TRIAL_RATIO = 12.0
"""Ratio at which costs of errors are measured if the target is no ratio of bytes."""

OnProgress = Callable[[str], None]
"""Is called with one line of text when a step begins."""


class Clock:
    """Measures the seconds that each stage takes."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stages = dict.fromkeys(("read", "fit", "merge", "finetune", "encode"), 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        yield
        self._stages[stage] += time.perf_counter() - start

    def timings(self) -> Timings:
        """Stages and `total`, in seconds."""
        return cast("Timings", {**self._stages, "total": time.perf_counter() - self._start})


@dataclass(frozen=True)
class Opened:
    """Everything that a run reads. Each file is read once.

    Attributes:
        checkpoint: The checkpoint.
        selection: Names of its tensors by kind.
        candidates: Architectures that fit the checkpoint: the given one, or those of the index.
        indexed_classes: Number of classes by the index of architectures; None if the index knows no fitting network.
        network: The network with the checkpoint's weights, which must not be changed; None if no option needs it.
        data: The network on the training or calibration data; None without.
        validation: The network on the validation data; None without.
        evaluation: The network on the data that the finished file is evaluated on; None without.
        warnings: Warnings that the network does not fit the whole checkpoint.
    """

    checkpoint: Checkpoint
    selection: Selection
    candidates: tuple[str, ...]
    indexed_classes: int | None
    network: OpenedNetwork | None
    data: Bench | None
    validation: Bench | None
    evaluation: Bench | None
    warnings: Sequence[str]

    @property
    def has_labels(self) -> bool:
        """Whether there is labelled data to measure accuracy on."""
        return self.evaluation is not None or self.validation is not None


def open_request(request: Request) -> Opened:
    """Read the checkpoint, build its network if an option needs it, and read the data.

    Data that the network cannot run on is refused here, before any work is done.

    Raises:
        GbnnError: The checkpoint, the architecture or the data cannot be read or do not fit.
    """
    if is_artifact(request.source):
        raise CheckpointError(
            f"`{request.source}` is already compressed: `gbnn-compress report` shows it, `gbnn-compress decompress`"
            " restores dense weights"
        )
    checkpoint = read_checkpoint(request.source, key=request.key)
    match, network, warnings = match_of(checkpoint), None, list[str]()
    wanted = (request.data, request.val_data, request.eval_data)
    if request.arch is not None or any(each is not None for each in wanted):
        network = open_network(checkpoint, request.arch, match=match)
    if request.arch is not None and network is not None:
        checkpoint = replace(checkpoint, notes=(*checkpoint.notes, *extra_notes(network.fit, spec=request.arch)))
        warnings = left_out_warnings(network.fit, checkpoint, spec=request.arch)
    return Opened(
        checkpoint=checkpoint,
        selection=select(checkpoint),
        candidates=match.names if request.arch is None else _published(request.arch),
        indexed_classes=match.n_classes,
        network=network,
        warnings=warnings,
        **_benches(request, network),
    )


def _benches(request: Request, network: OpenedNetwork | None) -> dict[str, Bench | None]:
    """The network on each of the three data sets; None for those that are not given."""
    training = request.passes > 0
    measured = request.val_data is not None or request.eval_data is not None
    # Calibration uses the checkpoint's weights in the network while files are measured, which needs a second network.
    separate = measured and request.data is not None and not training
    measuring = network.copied() if network is not None and separate else network
    labels = training or request.configuration.posterior == "variational"

    def bench(
        data: str | Evaluation | None, opened: OpenedNetwork | None, option: str, *, labels: bool
    ) -> Bench | None:
        if data is None or opened is None:
            return None
        evaluation = as_evaluation(data, samples=request.samples)
        return Bench(opened, load_data(evaluation.data, labels=labels), evaluation, option=option)

    found = {
        "evaluation": bench(request.eval_data, measuring, "--eval-data", labels=True),
        "validation": bench(request.val_data, measuring, "--val-data", labels=True),
        "data": bench(request.data, network, "--data", labels=labels),
    }
    for name, each in found.items():
        if each is not None and (training or name != "data"):
            each.require_usable()
    return found


def prepare_request(
    request: Request, opened: Opened, *, finest_ratio: float, rescue: bool, on_progress: OnProgress
) -> Prepared:
    """Compute posteriors, mixture and merge path, with calibration unless training follows.

    Args:
        request: The request.
        opened: What the request reads.
        finest_ratio: Smallest ratio that the mixture must serve.
        rescue: Whether layers that would vanish at the target get a higher cost. Ignored if training follows.
        on_progress: Called with one line of text when a step begins.

    Raises:
        GbnnError: The data or the architecture do not fit, or the task does not allow the target.
    """
    recipe, read, selection = request.configuration, opened.checkpoint, opened.selection
    calibration = _calibration(opened, arch=request.arch, on_progress=on_progress) if _calibrates(request) else None
    kind = settle_kind(
        request.task,
        labels=opened.has_labels or request.passes > 0,
        indexed_classes=opened.indexed_classes,
        outputs=None if calibration is None else calibration.columns,
        tensors=read.tensors,
    )
    if request.max_drop is not None:
        require_forecast(kind, measured=request.val_data is not None)
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
    )
    prepared = _by_costs(fitted(), fitted, request, on_progress)
    ratio = request.byte_ratio
    if not rescue or ratio is None or request.passes:
        return prepared
    return _rescued(prepared, fitted, ratio, on_progress)


def _by_costs(
    prepared: Prepared, fitted: Callable[..., Prepared], request: Request, on_progress: OnProgress
) -> Prepared:
    """Fit again with measured cost factors of the layers, if there are inputs and the recipe asks for it."""
    calibration = prepared.calibration
    wanted = request.configuration.allocation == "costs" and prepared.kind.task == CLASSIFIER
    if not wanted or calibration is None or calibration.synthetic:
        return prepared
    on_progress("measuring the cost of errors in each layer, and fitting the mixture again")
    factors = cost_factors(prepared, ratio=request.byte_ratio or TRIAL_RATIO)
    if not factors:
        on_progress("keeping costs by norms: the network gives no gradients (torch.no_grad or in-place operations)")
        return prepared
    del prepared
    return fitted(importances=factors)


def _rescued(prepared: Prepared, fitted: Callable[..., Prepared], ratio: float, on_progress: OnProgress) -> Prepared:
    """Fit again with a higher cost of errors in layers that would vanish at a ratio, if that lowers the total cost."""
    factors = rescue_factors(prepared, ratio=ratio)
    if not factors:
        return prepared
    on_progress("raising the cost of errors in layers that would vanish, and fitting the mixture again")
    importances = {name: factor * prepared.importances.get(name, 1.0) for name, factor in factors.items()}
    rescued = fitted(importances=importances)
    better = cost_of_errors(rescued, ratio=ratio) < cost_of_errors(prepared, ratio=ratio)
    return replace(rescued, before=prepared) if better else prepared


def _calibrates(request: Request) -> bool:
    return request.configuration.feedback and not request.passes


def _calibration(opened: Opened, *, arch: str | None, on_progress: OnProgress) -> Calibration | None:
    """Calibrate on the given data; without data, on noise if the architecture is known."""
    if opened.data is not None:
        on_progress(f"calibrating on {opened.data.evaluation.data}")
        return calibration_on(opened.data, opened.checkpoint, opened.selection)
    spec = arch or (opened.candidates[0] if len(opened.candidates) == 1 else None)
    if spec is None:
        return None
    on_progress(f"calibrating {spec} on noise")
    calibration = synthetic_calibration(opened.checkpoint, opened.selection, opened.network or spec)
    if calibration is None:
        on_progress(
            "no calibration: the network has no 2-D batch norm, is too large, or does not run on noise of 8 x 8 to"
            " 384 x 384 pixels"
        )
    return calibration


def _published(arch: str) -> tuple[str, ...]:
    """The specification if it is of torchvision or timm, which others can build; empty for a user's own code."""
    return (arch,) if arch.startswith(("torchvision/", "timm/")) else ()


def _facts(request: Request, opened: Opened, kind: Kind) -> dict[str, Any]:
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
        "ratio_of": request.ratio_of,
        **({} if kind.task is None else {FACT: kind.task}),
    }
