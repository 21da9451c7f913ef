"""The order of the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gbnn_compress.checkpoint.select import outlier_warnings, select
from gbnn_compress.pipeline.opening import Clock, Tell, benches, finest_ratio, open_checkpoint, prepare_request
from gbnn_compress.pipeline.request import Request, requested
from gbnn_compress.pipeline.run_page import run_page
from gbnn_compress.predict.evaluation import Bench, Evaluation, baseline_warnings, evaluate_compression
from gbnn_compress.rate.divided import uneven_warnings
from gbnn_compress.recipe import resolve
from gbnn_compress.report import page, sizes, words
from gbnn_compress.report.schema import DamageEntry, LastEpoch, Report
from gbnn_compress.target.budget import meet
from gbnn_compress.target.encode import Result
from gbnn_compress.target.forecast import LOST, damage_warnings
from gbnn_compress.target.measured_drop import meet_measured_drop
from gbnn_compress.target.prepared import Prepared
from gbnn_compress.target.write import write_verified
from gbnn_compress.types import Artifact, Checkpoint, Reliability

if TYPE_CHECKING:
    from gbnn_compress.training.state import StateFile


def compress(
    checkpoint: str | Path,
    *,
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
    samples: int = 16,
    html: str | Path | None = None,
    seed: int = 0,
    restart: bool = False,
    progress: Tell | None = None,
) -> Report:
    """Compress a checkpoint into one artifact file.

    Args:
        checkpoint: `.safetensors`, `.pth`, `.pt`, `.th`, `.bin` or `.ckpt`, or a Hugging Face folder: one with
            `model.safetensors`, `pytorch_model.bin` or an index of either.
        target_ratio: Wanted ratio, >= 1; give this or `max_drop`. Default: the recipe's.
        max_drop: Accuracy points that may be lost, measured on `val_data` or predicted; the smallest file within them.
        ratio_of: `artifact` (bytes of the floating tensors over bytes of the file) or `parameters`.
        output: The artifact; default `<stem>.gbnn.safetensors` (of a folder `<folder>.gbnn.safetensors`) in the working
            directory.
        arch: Specification of the network (see the README), which the weights must fit; default: looked up by names
            and shapes.
        key: Which network of the checkpoint, where it holds several: an entry of the wrapper, such as `g_ema`, or a
            prefix of names, such as `ema_model.`.
        task: `classifier` or `other`: whether the network tells classes apart. Default: found out by labels, the index
            of architectures, and outputs; lost points are predicted only where that is a classifier.
        recipe: Name of a shipped recipe, or a YAML file.
        settings: Further recipe values by key.
        data: Data specification (or an `Evaluation` that also says how to read it) of inputs to train on, or, without
            epochs, to calibrate on; labels are not used then. Without data, and where the architecture is known and has
            batch norm, noise serves.
        val_data: The same, of labelled data for choices: those of training (default: a part of `data`, held out), and
            what `max_drop` is measured on.
        epochs: Passes over the data to train for; 0: calibrate only. Default: the recipe's, 0 in most.
        eval_data: Data specification, or an `Evaluation` that also says how to read it; read once, after writing.
        samples: Posterior draws for the evaluation (an `Evaluation` has its own).
        html: Where to write the report as a page.
        seed: Recorded; seeds training and the posterior draws of the evaluation.
        restart: Whether to train from the beginning where an earlier run was stopped; by default the same call goes on
            after its last finished epoch, from a file beside the artifact, `<stem>.gbnn.state.safetensors`.
        progress: Called with a line whenever a stage begins.

    Returns:
        The report (schema 1 of the interface); `target_met` says whether the target was met.

    Raises:
        GbnnError: Bad input; nothing is written then.
    """
    tell = progress or (lambda line: None)
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
    )
    clock = Clock()
    with clock("read"):
        tell(f"reading {words.name_of(request.source)}")
        read, names, misfits = open_checkpoint(request.source, arch, key=key)
        selection = select(read)
        bench, judge = benches(request, read, eval_data=eval_data, samples=samples)
    with clock("fit"):
        prepared = prepare_request(
            request,
            read,
            selection,
            names,
            finest_ratio=finest_ratio(request),
            labels=bench is not None or judge is not None,
            rescue=True,
            tell=tell,
        )
    state = None
    if request.epochs:
        with clock("finetune"):
            result, state = _trained(request, prepared, restart=restart, tell=tell)
    else:
        with clock("merge"):
            tell("merging components until the file meets the target")
            result = _cut(request, prepared, judge)
    with clock("encode"):
        tell(f"writing and verifying {words.name_of(request.path)}")
        artifact, result = write_verified(request.path, result)
        if state is not None and not result.unfinished:
            state.remove()
    report = _reported(request, artifact, result, names)
    reliability: Mapping[str, Reliability] = {}
    if bench is not None:
        tell(f"evaluating on {bench.evaluation.data}")
        report, reliability = _evaluated(report, bench, read, artifact, seed=seed)
    missed = [] if report["target_met"] else [_missed(report)]
    report["warnings"] = [
        *missed,
        *result.notes,
        *misfits,
        *outlier_warnings(read, selection),
        *uneven_warnings(read.tensors, selection.shared),
        *report["warnings"],
    ]
    if html is not None:
        tell(f"writing {words.name_of(html)}")
        shown = run_page(
            prepared, artifact, report, name=words.name_of(request.source), arch=arch, reliability=reliability
        )
        page.write(shown, Path(html))
    report["timings"] = clock.timings()
    return report


def _cut(request: Request, prepared: Prepared, judge: Bench | None) -> Result:
    """The file that meets the target, without training."""
    ratio, drop = request.target_ratio, request.max_drop
    if judge is not None and drop is not None:
        return meet_measured_drop(prepared, judge, max_drop=drop)
    return meet(prepared, target_ratio=ratio, max_drop=drop, ratio_of=request.ratio_of)


def _trained(request: Request, prepared: Prepared, *, restart: bool, tell: Tell) -> tuple[Result, StateFile]:
    """The file that training comes to, and where its state is kept."""
    from gbnn_compress.training.state import StateFile, run_of, state_path
    from gbnn_compress.training.train import train_to_target, training_benches

    assert request.data is not None
    assert request.target_ratio is not None
    recipe, epochs, seed = request.recipe, request.epochs, request.seed
    train, validation = training_benches(
        prepared.checkpoint, request.data, request.val_data, arch=request.arch, seed=seed
    )
    run = run_of(train, validation, facts=prepared.facts, recipe=recipe, epochs=epochs)
    state = StateFile(state_path(request.path), run, train.device, tell)
    result = train_to_target(
        prepared,
        train,
        validation,
        recipe=recipe,
        epochs=epochs,
        target_ratio=request.target_ratio,
        ratio_of=request.ratio_of,
        seed=seed,
        tell=tell,
        state=state,
        restart=restart,
    )
    return result, state


def _reported(request: Request, artifact: Artifact, result: Result, names: Sequence[str]) -> Report:
    """The report of an artifact, and what only its making knows."""
    report = sizes.report(artifact)
    report["checkpoint"] = {
        "path": str(request.source),
        **report["checkpoint"],
        "architecture_candidates": list(names),
    }
    report["artifact"] = {"path": str(request.path), **report["artifact"]}
    if result.training:
        report["training"] = {**report["training"], "last_epoch": cast("LastEpoch", dict(result.training))}
    return report


def _evaluated(
    report: Report, bench: Bench, checkpoint: Checkpoint, artifact: Artifact, *, seed: int
) -> tuple[Report, Mapping[str, Reliability]]:
    """A report with what data say of the file, in place of what was foreseen; and how reliable both sides are."""
    evaluation, measured, reliability = evaluate_compression(bench, checkpoint, artifact, seed=seed)
    damage = cast("DamageEntry", {**report["damage"], **measured})
    warnings = [
        *(warning for warning in report["warnings"] if warning.startswith(LOST)),
        *baseline_warnings(bench, evaluation["before"], name="the checkpoint"),
        *damage_warnings(measured["drop"], damage["safe_ratio"], measured=True),
    ]
    return {**report, "evaluation": evaluation, "damage": damage, "warnings": warnings}, reliability


def _missed(report: Report) -> str:
    written = "the file is written all the same"
    target, ratio = words.target_and_ratio(report)
    if target is None:
        drop, wanted = report["damage"]["drop"], report["max_drop"]
        how = "measured" if report["damage"]["measured"] else "predicted"
        return f"target missed: {how} drop of {drop:.2g} points for at most {wanted:.2g}; {written}"
    missed = f"target missed: {words.times(ratio)} for a target of {words.times(target)}"
    if report["ratio_of"] == "artifact":
        allowed, kept = report["floating_bytes"] / target, report["sections"]["unshared"]
        exact = f"; biases, norms and tensors kept bit for bit take {words.size(kept)}"
        needed = f"{exact}, the target allows {words.size(allowed)} in all"
        return f"{missed} ({target / ratio:.3g} times the size){needed if kept > allowed else ''}; {written}"
    weights = report["weights"]
    most = 2 * sizes.total(weights) / (weights["unshared"] + 2)
    if most >= target:
        counts = f"{report['bank']['components']:,} components and {weights['outliers']:,} outliers"
        return f"{missed}, with {counts}; {written}"
    return (
        f"{missed}; {weights['unshared']:,} unshared values (biases, norms), which count in full, leave"
        f" {words.times(most)} at most; {written}"
    )
