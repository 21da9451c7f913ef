"""Compression of a checkpoint: the stages in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gbnn_compress import compiled
from gbnn_compress.checkpoint.select import outlier_warnings
from gbnn_compress.data.kind import OTHER
from gbnn_compress.errors import GbnnError
from gbnn_compress.pipeline.members import Trained, train_members
from gbnn_compress.pipeline.opening import RunInputs, open_request
from gbnn_compress.pipeline.preparing import FINEST_RATIO, prepare_request
from gbnn_compress.pipeline.progress import Clock, OnProgress
from gbnn_compress.pipeline.request import Request, takes_options
from gbnn_compress.pipeline.run_page import run_page
from gbnn_compress.predict.bench import Bench
from gbnn_compress.predict.evaluation import baseline_warnings, evaluate_compression
from gbnn_compress.predict.output_evaluation import evaluate_output_compression
from gbnn_compress.rate.divided import uneven_warnings
from gbnn_compress.report import page, sizes, statements, words
from gbnn_compress.report.schema import (
    CheckpointEntry,
    DamageEntry,
    EnsembleReport,
    EvaluationEntry,
    Report,
    TrainingEntry,
)
from gbnn_compress.target.budget import meet
from gbnn_compress.target.encode import Result
from gbnn_compress.target.forecast import damage_warnings
from gbnn_compress.target.measured_drop import meet_measured_drop, meet_measured_error
from gbnn_compress.target.prepared import Prepared
from gbnn_compress.target.write import write_verified
from gbnn_compress.types import Artifact, Checkpoint, Ensemble, Reliability

if TYPE_CHECKING:
    from gbnn_compress.training.state import StateFile

TrainingFacts = dict[str, Any]
"""Entries of the report's `training` on the choice between the trained and the calibrated file."""

INCOMPARABLE = (
    "training continued from a kept state, and the data hold no tensors by which they could be compared with the data"
    " that it was trained on; `--restart` starts over"
)


@takes_options
def compress(checkpoint: Any, *, progress: OnProgress | None = None, **options: Any) -> Report | EnsembleReport:
    """Compress a checkpoint into one artifact file.

    Args:
        checkpoint: The file or folder; or a `torch.nn.Module`, which stays as it is; or a mapping of tensors.
        progress: Called with one line of text when a stage begins.
        options: The other fields of `Request`. Give at least `target_ratio` or `max_drop`, unless the recipe sets a
            target.

    Returns:
        The report, of an ensemble if there are several members. `target_met` says whether the target was met.

    Raises:
        GbnnError: An argument or an input is not valid; nothing is written.
    """
    return run(Request(checkpoint=checkpoint, **options), progress=progress)


def run(request: Request, *, progress: OnProgress | None = None) -> Report | EnsembleReport:
    """Compress as a request says; `compress` makes the request from its arguments and calls this.

    Args:
        request: The checkpoint, the target, the output and all other options.
        progress: Called with one line of text when a stage begins.

    Returns:
        The report. `target_met` says whether the target was met.

    Raises:
        GbnnError: An input is not valid; nothing is written.
    """
    if request.planned:
        raise GbnnError("`planned`: expected False to compress, got True; make the request without `planned=True`")
    on_progress = progress or (lambda line: None)
    with compiled.heard_by(progress):
        return _run(request, on_progress) if request.members == 1 else _run_members(request, on_progress)


def _run_members(request: Request, on_progress: OnProgress) -> EnsembleReport:
    """Train several networks from one checkpoint into one file."""
    clock = Clock()
    with clock("read"):
        on_progress(f"reading {words.name_of(request.name)}")
        opened = open_request(request)
    with clock("fit"):
        assert request.ratio is not None
        finest = request.ratio * request.members
        prepared = prepare_request(request, opened, finest_ratio=finest, rescue=True, on_progress=on_progress)
    with clock("finetune"):
        trained = train_members(request, opened, prepared, _trained, on_progress=on_progress)
    report = _members_reported(request, opened, trained, on_progress)
    if request.html is not None:
        on_progress(f"writing {words.name_of(request.html)}")
        page.write(page.EnsemblePage(words.name_of(request.path), report), Path(request.html))
    report["timings"] = clock.timings()
    return report


def _members_reported(request: Request, opened: RunInputs, trained: Trained, on_progress: OnProgress) -> EnsembleReport:
    """The report on an ensemble with the facts of this run."""
    report = sizes.ensemble_report(trained.ensemble)
    for member, result, facts in zip(report["members"], trained.results, trained.facts, strict=True):
        member["training"] = _training(request, member, result, facts)
    report["artifact"] = {"path": str(request.path), **report["artifact"]}
    report["checkpoint"] = _checkpoint(request, opened, report["members"][0])
    assert request.ratio is not None
    report["target_ratio"] = request.ratio
    report["target_met"] = sizes.meets(report["ratio_to_one"], request.ratio)
    report["evaluation"] = None
    warnings = [*trained.notes, *opened.warnings, *report["warnings"]]
    if opened.evaluation is not None:
        on_progress(f"evaluating on {opened.evaluation.evaluation.data}")
        bench = opened.evaluation.with_others([opened.evaluation] * (len(report["members"]) - 1))
        report["evaluation"], found = _ensemble_evaluated(bench, opened.checkpoint, trained.ensemble, seed=request.seed)
        warnings += found
    report["warnings"] = [*([] if report["target_met"] else [statements.missed_by(report)]), *warnings]
    return report


def _ensemble_evaluated(
    bench: Bench, checkpoint: Checkpoint, ensemble: Ensemble, *, seed: int
) -> tuple[EvaluationEntry, list[str]]:
    """Measures of the checkpoint and of the ensemble, and warnings; functions of the user are left out."""
    if bench.task == OTHER:
        evaluation, _, found = evaluate_output_compression(bench, checkpoint, ensemble, seed=seed)
        return evaluation, found
    evaluation, measured, _ = evaluate_compression(
        bench.with_use(replace(bench.use, loss=None)), checkpoint, ensemble, seed=seed
    )
    return evaluation, [
        *baseline_warnings(bench, evaluation["before"], name="the checkpoint"),
        *damage_warnings(measured["drop"], None, measured=True),
    ]


def _run(request: Request, on_progress: OnProgress) -> Report:
    clock = Clock()
    with clock("read"):
        on_progress(f"reading {words.name_of(request.name)}")
        opened = open_request(request)
    with clock("fit"):
        finest = request.byte_ratio or FINEST_RATIO
        prepared = prepare_request(request, opened, finest_ratio=finest, rescue=True, on_progress=on_progress)
    state, training = None, dict[str, Any]()
    if request.passes:
        with clock("finetune"):
            result, state, training = _trained(request, opened, prepared, on_progress)
    else:
        with clock("merge"):
            on_progress("merging components until the file meets the target")
            result = _cut(request, opened, prepared)
    with clock("encode"):
        on_progress(f"writing and verifying {words.name_of(request.path)}")
        artifact, result = write_verified(request.path, result)
        if state is not None and not result.unfinished:
            state.remove()
    report, reliability = _reported(request, opened, artifact, result, training, on_progress)
    if request.html is not None:
        on_progress(f"writing {words.name_of(request.html)}")
        name = words.name_of(request.name)
        shown = run_page(prepared, artifact, report, name=name, arch=request.arch_name, reliability=reliability)
        page.write(shown, Path(request.html))
    report["timings"] = clock.timings()
    return report


def _cut(request: Request, opened: RunInputs, prepared: Prepared) -> Result:
    """The file that meets the target, without training."""
    if opened.validation is not None and request.max_error is not None:
        return meet_measured_error(prepared, opened.validation, max_error=request.max_error)
    if opened.validation is not None and request.max_drop is not None:
        return meet_measured_drop(prepared, opened.validation, max_drop=request.max_drop)
    return meet(prepared, target_ratio=request.ratio, max_drop=request.max_drop, ratio_of=request.ratio_of)


def _trained(
    request: Request, opened: RunInputs, prepared: Prepared, on_progress: OnProgress
) -> tuple[Result, StateFile, TrainingFacts]:
    """The file of the target, the file that keeps the state of training, and what the report says of the choice.

    The trained file is the result unless calibration alone is better on the validation data.
    """
    from gbnn_compress.training.choice import better
    from gbnn_compress.training.state import StateFile, is_comparable, run_of, state_path
    from gbnn_compress.training.train import train_to_target, training_benches

    assert opened.data is not None
    target = request.ratio
    assert target is not None
    recipe, epochs, seed = request.configuration, request.passes, request.seed
    train, validation = training_benches(opened.data, opened.validation, seed=seed)
    run = run_of(train, validation, facts=prepared.facts, recipe=recipe, epochs=epochs)
    state = StateFile(state_path(request.path), run, train.device, on_progress)
    calibrated = _Calibrated(request, replace(opened, data=train, validation=None), on_progress)
    trained = train_to_target(
        prepared,
        train,
        validation,
        recipe=recipe,
        epochs=epochs,
        target_ratio=target,
        ratio_of=request.ratio_of,
        seed=seed,
        on_progress=on_progress,
        state=state,
        restart=request.restart,
        calibrated=calibrated.to_start_from,
    )
    result, facts = trained.result, dict[str, Any]()
    if state.epoch_read and not is_comparable(train.data):
        result = replace(result, notes=(*result.notes, INCOMPARABLE))
    if result.unfinished:
        return result, state, facts
    choice = better(replace(trained, result=result), lambda: calibrated.at(target), validation)
    return choice.result, state, choice.facts


class _Calibrated:
    """Files without training, on the same data; calibration runs when the first is asked for."""

    def __init__(self, request: Request, opened: RunInputs, on_progress: OnProgress) -> None:
        given = request.data if request.configuration.feedback else None
        self._request, self._opened = replace(request, epochs=0, val_data=None, data=given), opened
        self._on_progress = on_progress
        self._prepared: dict[bool, Prepared] = {}

    def at(self, ratio: float) -> Result:
        """The best file of a ratio, at least that of the request.

        Raises:
            GbnnError: Calibration is not possible.
        """
        return self._file(ratio, trellis=True)

    def to_start_from(self, ratio: float) -> Result:
        """A file without a trellis, as training moves ids one by one.

        Raises:
            GbnnError: Calibration is not possible.
        """
        return self._file(ratio, trellis=False)

    def _file(self, ratio: float, *, trellis: bool) -> Result:
        self._on_progress(f"calibrating to {ratio:.3g}x without training")
        prepared = self._prepared_for(trellis=trellis and self._request.configuration.trellis)
        return _cut(replace(self._request, target_ratio=ratio), self._opened, prepared)

    def _prepared_for(self, *, trellis: bool) -> Prepared:
        """The checkpoint on the inputs, which are run once."""
        if trellis not in self._prepared:
            earlier = next(iter(self._prepared.values()), None)
            self._prepared[trellis] = prepare_request(
                self._request,
                self._opened,
                finest_ratio=self._request.byte_ratio or FINEST_RATIO,
                rescue=True,
                on_progress=self._on_progress,
                trellis=trellis,
                calibration=None if earlier is None else earlier.calibration,
            )
        return self._prepared[trellis]


def _reported(
    request: Request,
    opened: RunInputs,
    artifact: Artifact,
    result: Result,
    training: TrainingFacts,
    on_progress: OnProgress,
) -> tuple[Report, Mapping[str, Reliability]]:
    """The artifact's report with the facts of this run, and the reliability of both networks if it was measured."""
    report = sizes.report(artifact)
    report["checkpoint"] = _checkpoint(request, opened, report)
    report["artifact"] = {"path": str(request.path), **report["artifact"]}
    if request.passes:
        report["training"] = _training(request, report, result, training)
    reliability: Mapping[str, Reliability] = {}
    if opened.evaluation is not None:
        on_progress(f"evaluating on {opened.evaluation.evaluation.data}")
        report, reliability = _evaluated(report, opened.evaluation, opened.checkpoint, artifact, seed=request.seed)
    report["warnings"] = [
        *([] if report["target_met"] else [statements.missed_target(report)]),
        *result.notes,
        *opened.warnings,
        *outlier_warnings(opened.checkpoint, opened.selection),
        *uneven_warnings(opened.checkpoint.tensors, opened.selection.shared),
        *report["warnings"],
    ]
    return report, reliability


def _checkpoint(request: Request, opened: RunInputs, report: Report) -> CheckpointEntry:
    """The report's entry on the checkpoint, with where it came from and the architectures that it may have."""
    return {
        "path": None if request.source is None else str(request.source),
        **report["checkpoint"],
        "architecture_candidates": list(opened.candidates),
    }


def _training(request: Request, report: Report, result: Result, facts: TrainingFacts) -> TrainingEntry:
    """The report's entry on training, with the last epoch and the choice of the file."""
    last = {"last_epoch": dict(result.training)} if result.training else {}
    return cast("TrainingEntry", {**report.get("training", _settings(request)), **last, **facts})


def _settings(request: Request) -> dict[str, Any]:
    """Settings of a training whose file was not written; a trained file records its own."""
    settings = request.configuration.finetune
    return {"epochs": request.passes, "beta": settings.beta, "warm_up": settings.warm_up}


def _evaluated(
    report: Report, bench: Bench, checkpoint: Checkpoint, artifact: Artifact, *, seed: int
) -> tuple[Report, Mapping[str, Reliability]]:
    """The report with measured instead of predicted damage, and the reliability of both networks if it was measured."""
    reliability: Mapping[str, Reliability] = {}
    if bench.task == OTHER:
        evaluation, measured, found = evaluate_output_compression(bench, checkpoint, artifact, seed=seed)
        damage = cast("DamageEntry", measured)
    else:
        evaluation, measured, reliability = evaluate_compression(bench, checkpoint, artifact, seed=seed)
        damage = cast("DamageEntry", {**report["damage"], **measured})
        found = [
            *baseline_warnings(bench, evaluation["before"], name="the checkpoint"),
            *damage_warnings(measured["drop"], damage["safe_ratio"], measured=True),
        ]
    # Warnings that predict the damage, or measure it on other inputs, give way to what was measured here.
    kept = (warning for warning in report["warnings"] if not warning.startswith(("predicted ", "measured ")))
    warnings = [*kept, *found]
    return {**report, "evaluation": evaluation, "damage": damage, "warnings": warnings}, reliability
