"""The order of the stages."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gbnn_compress.codec import container
from gbnn_compress.codec.artifact import read_artifact
from gbnn_compress.drop import meet_measured_drop
from gbnn_compress.errors import ArtifactError, CheckpointError, GbnnError, OutputError
from gbnn_compress.evaluation import Bench, Evaluation, as_evaluation, evaluate_compression, is_artifact
from gbnn_compress.inputs import calibration_on, precisions_on, synthetic_calibration
from gbnn_compress.output import page, sizes, templated
from gbnn_compress.prepared import prepare, tensor_infos
from gbnn_compress.recipe import Recipe, resolve
from gbnn_compress.run_page import run_page
from gbnn_compress.target import damage_warnings, find_safe_ratio, meet, planned_rate
from gbnn_compress.tasks import build_network, load_weights
from gbnn_compress.types import Artifact, Checkpoint, IndexMap, Reliability
from gbnn_compress.weights.architecture import find_architectures
from gbnn_compress.weights.checkpoint import read_checkpoint
from gbnn_compress.weights.select import Selection, floating_shapes, floating_values, select

if TYPE_CHECKING:
    from gbnn_compress.calibration.calibrated import Calibration

SUFFIX = ".gbnn.safetensors"

PLANNED_RATIOS = (4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0, 50.0)

FINEST_RATIO = 4.0
"""The mixture is fitted finely enough for this ratio when the target does not say how fine it must be."""

VERSIONED = ("gbnn-compress", "constriction", "numpy", "safetensors", "torch")

Progress = Callable[[str], None]


def compress(
    checkpoint: str | Path,
    *,
    target_ratio: float | None = None,
    max_drop: float | None = None,
    ratio_of: str = "artifact",
    output: str | Path | None = None,
    arch: str | None = None,
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
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compress a checkpoint into one artifact file.

    Args:
        checkpoint: `.safetensors`, `.pth`, `.pt`, `.th` or `.bin`.
        target_ratio: Wanted ratio, >= 1; give this or `max_drop`. Default: the recipe's.
        max_drop: Accuracy points that may be lost, measured on `val_data` or predicted; the smallest file within them.
        ratio_of: `artifact` (bytes of the floating tensors over bytes of the file) or `parameters`.
        output: The artifact; default `<stem>.gbnn.safetensors` in the working directory.
        arch: Specification of the network (see the README), which the weights must fit; default: looked up by names
            and shapes.
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
    chosen = resolve(recipe, settings)
    if target_ratio is None and max_drop is None:
        target_ratio = chosen.target_ratio
    if epochs is None:
        epochs = chosen.epochs
    _check_target(target_ratio, max_drop, ratio_of)
    _check_data(data, chosen, epochs=epochs, val_data=val_data, max_drop=max_drop)
    source = Path(checkpoint)
    path = default_output(source) if output is None else Path(output)
    _check_output(source, path)
    if html is not None:
        templated.require_writable(Path(html), checkpoint=source, artifact=path)
    clock = Clock()
    with clock("read"):
        tell(f"reading {source.name}")
        read, names = _open(source, arch)
        selection = select(read)
        bench = _bench(read, eval_data, arch, samples=samples)
        judge = None if epochs else _bench(read, val_data, arch, samples=1)
    with clock("fit"):
        calibration = None
        if chosen.feedback and not epochs:
            calibration = _calibration(read, selection, names, data=data, arch=arch, tell=tell)
        precisions = precisions_on(chosen.posterior, data, read, selection, arch=arch, seed=seed)
    facts = {
        **_provenance(read, names, recipe=chosen, seed=seed),
        "target_ratio": target_ratio,
        "max_drop": max_drop,
        "ratio_of": ratio_of,
    }
    with clock("fit"):
        tell(f"fitting the mixture to {sum(read.tensors[name].numel() for name in selection.shared):,} weights")
        finest = target_ratio if target_ratio and ratio_of == "artifact" else FINEST_RATIO
        prepared = prepare(
            read,
            selection,
            recipe=chosen,
            finest_ratio=finest,
            facts=facts,
            calibration=calibration,
            precisions=precisions,
        )
    if not epochs:
        with clock("merge"):
            tell("merging components until the file meets the target")
            if judge is not None and max_drop is not None:
                result = meet_measured_drop(prepared, judge, max_drop=max_drop)
            else:
                result = meet(prepared, target_ratio=target_ratio, max_drop=max_drop, ratio_of=ratio_of)
    else:
        with clock("finetune"):
            from gbnn_compress.training import train_to_target, training_benches
            from gbnn_compress.training_state import StateFile, run_of, state_path

            assert data is not None
            assert target_ratio is not None
            train, validation = training_benches(read, data, val_data, arch=arch, seed=seed)
            run = run_of(train, validation, facts=facts, recipe=chosen, epochs=epochs)
            state = StateFile(state_path(path), run, train.device, tell)
            result = train_to_target(
                prepared,
                train,
                validation,
                recipe=chosen,
                epochs=epochs,
                target_ratio=target_ratio,
                ratio_of=ratio_of,
                seed=seed,
                tell=tell,
                state=state,
                restart=restart,
            )
    with clock("encode"):
        tell(f"writing and verifying {path.name}")
        verified: list[Artifact] = []
        container.write_atomically(
            path, result.encoded, verify=lambda file: verified.append(_verified(file, result.maps))
        )
        artifact = verified[0]
        if epochs and not result.unfinished:
            state.remove()
    report = sizes.report(artifact)
    report["checkpoint"] = {
        "path": str(source),
        **report["checkpoint"],
        "architecture_candidates": list(names),
    }
    report["artifact"] = {"path": str(path), **report["artifact"]}
    missed = [] if report["target_met"] else [_missed(report)]
    reliability: dict[str, Reliability] = {}
    if bench is not None:
        tell(f"evaluating on {bench.evaluation.data}")
        report["evaluation"], measured, reliability = evaluate_compression(bench, read, artifact, seed=seed)
        report["damage"] = {**report["damage"], **measured}
        report["warnings"] = damage_warnings(measured["drop"], report["damage"]["safe_ratio"], measured=True)
    report["warnings"] = [*missed, *result.notes, *report["warnings"]]
    if result.training:
        report["training"] = {**report["training"], "last_epoch": dict(result.training)}
    if html is not None:
        tell(f"writing {Path(html).name}")
        shown = run_page(prepared, artifact, report, name=source.name, arch=arch, reliability=reliability)
        page.write(shown, Path(html))
    report["timings"] = clock.timings()
    return report


def plan(
    checkpoint: str | Path,
    *,
    ratios: Sequence[float] = PLANNED_RATIOS,
    recipe: str | Path = "default",
    settings: Mapping[str, Any] | None = None,
    arch: str | None = None,
    data: str | Evaluation | None = None,
    epochs: int | None = None,
) -> dict[str, Any]:
    """What compressing would give, without writing anything.

    Args:
        checkpoint: As for `compress`.
        ratios: Ratios to predict for.
        recipe: As for `compress`.
        settings: As for `compress`.
        arch: As for `compress`.
        data: As for `compress`.
        epochs: As for `compress`.

    Returns:
        `checkpoint`, `tensors`, `rates` (predicted bytes, components and damage at each ratio), `safe_ratio`,
        `memory_bytes` (about what compressing needs at its peak) and `timings`.

    Raises:
        GbnnError: Bad input.
    """
    if epochs:
        raise GbnnError(f"`--epochs`: what training will give cannot be planned; expected 0, got {epochs}")
    clock = Clock()
    with clock("read"):
        read, names = _open(Path(checkpoint), arch)
        selection = select(read)
    chosen = resolve(recipe, settings)
    _check_data(data, chosen, epochs=0, val_data=None, max_drop=None)
    with clock("fit"):
        facts = _provenance(read, names, recipe=chosen, seed=0)
        calibration = None
        if chosen.feedback:
            calibration = _calibration(read, selection, names, data=data, arch=arch, tell=lambda line: None)
        prepared = prepare(
            read,
            selection,
            recipe=chosen,
            finest_ratio=min(ratios),
            facts=facts,
            calibration=calibration,
            precisions=precisions_on(chosen.posterior, data, read, selection, arch=arch, seed=0),
        )
    with clock("merge"):
        rates = [planned_rate(prepared, ratio) for ratio in ratios]
        safe = find_safe_ratio(prepared)
    return {
        "schema": sizes.SCHEMA,
        "checkpoint": {
            "path": str(checkpoint),
            **facts["checkpoint"],
            "architecture_candidates": list(names),
        },
        "tensors": [asdict(info) for info in tensor_infos(read, selection)],
        "rates": rates,
        "safe_ratio": safe,
        "memory_bytes": int(1.5 * prepared.floating_bytes) + 600_000_000,
        "timings": clock.timings(),
    }


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

    def timings(self) -> dict[str, float]:
        """Stages and `total`, in seconds."""
        return {**self._stages, "total": time.perf_counter() - self._start}


def _verified(file: Path, maps: Sequence[IndexMap]) -> Artifact:
    """Read a file back and compare: every checksum, every id, every outlier."""
    written = read_artifact(file)
    for expected, got in zip(maps, written.maps, strict=True):
        same = np.array_equal(expected.ids, got.ids) and np.array_equal(expected.outliers, got.outliers)
        if not same:
            raise ArtifactError(f"`{file}`: ids of `{expected.name}` did not survive the writing; try again")
    return written


def _open(path: Path, arch: str | None) -> tuple[Checkpoint, tuple[str, ...]]:
    """Read a checkpoint, and find the architectures that it fits: the given one, or those of the index."""
    if is_artifact(path):
        raise CheckpointError(
            f"`{path}` is an artifact already: `gbnn-compress report` shows it, `gbnn-compress decompress` gives dense "
            "weights back"
        )
    checkpoint = read_checkpoint(path)
    if arch is not None:
        classes = find_architectures(floating_shapes(checkpoint.tensors)).n_classes
        load_weights(build_network(arch, n_classes=classes), checkpoint.tensors, spec=arch)
    return checkpoint, _architectures(checkpoint, arch)


def _bench(checkpoint: Checkpoint, data: str | Evaluation | None, arch: str | None, *, samples: int) -> Bench | None:
    return None if data is None else Bench(checkpoint, as_evaluation(data, samples=samples), arch)


def _calibration(
    checkpoint: Checkpoint,
    selection: Selection,
    names: Sequence[str],
    *,
    data: str | Evaluation | None,
    arch: str | None,
    tell: Progress,
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


def _missed(report: Mapping[str, Any]) -> str:
    written = "the file is written all the same"
    if report["target_ratio"] is None:
        drop, wanted = report["damage"]["drop"], report["max_drop"]
        how = "measured" if report["damage"]["measured"] else "predicted"
        return f"target missed: {how} drop of {drop:.2g} points for at most {wanted:.2g}; {written}"
    got = report["ratio" if report["ratio_of"] == "artifact" else "parameter_ratio"]
    excess = report["target_ratio"] / got
    wanted = f"{report['target_ratio']:.4g}x"
    return f"target missed: {got:.3g}x for a target of {wanted} ({excess:.3g} times the size); {written}"


def _architectures(checkpoint: Checkpoint, given: str | None) -> tuple[str, ...]:
    if given is not None:
        return (given,) if given.startswith(("torchvision/", "timm/")) else ()
    return find_architectures(floating_shapes(checkpoint.tensors)).names


def _provenance(checkpoint: Checkpoint, architectures: Sequence[str], *, recipe: Recipe, seed: int) -> dict[str, Any]:
    return {
        "checkpoint": {
            "sha256": checkpoint.sha256,
            "bytes": checkpoint.size_bytes,
            "parameters": floating_values(checkpoint.tensors, checkpoint.ties),
            "architecture": architectures[0] if len(architectures) == 1 else None,
            "notes": list(checkpoint.notes),
        },
        "recipe": recipe.recorded(),
        "seed": seed,
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
    }


def _check_target(target_ratio: float | None, max_drop: float | None, ratio_of: str) -> None:
    if (target_ratio is None) == (max_drop is None):
        raise GbnnError("give either `--target-ratio` (such as 50) or `--max-drop` (such as 1.0)")
    if target_ratio is not None and not 1 <= target_ratio < float("inf"):
        raise GbnnError(
            f"`--target-ratio`: expected a number of at least 1 (such as 50, 50x or 2%), got {target_ratio:g}"
        )
    if max_drop is not None and not 0 < max_drop <= 100:
        raise GbnnError(f"`--max-drop`: expected accuracy points above 0 and at most 100, got {max_drop:g}")
    if ratio_of not in ("artifact", "parameters"):
        raise GbnnError(f"`--ratio-of`: expected `artifact` or `parameters`, got `{ratio_of}`")


def _check_data(
    data: str | Evaluation | None,
    recipe: Recipe,
    *,
    epochs: int,
    val_data: str | Evaluation | None,
    max_drop: float | None,
) -> None:
    if epochs < 0:
        raise GbnnError(f"`--epochs`: expected 0 (calibrate only) or more, got {epochs}")
    if epochs and data is None:
        raise GbnnError(f"`--epochs {epochs}`: training needs labelled data; name them with `--data`")
    if epochs and max_drop is not None:
        raise GbnnError("`--max-drop`: how much training will lose is not known before; give `--target-ratio`")
    if epochs and recipe.sigma == "magnitude":
        raise GbnnError("`--epochs`: training is for `sigma: curvature`; this recipe has `sigma: magnitude`")
    if epochs and recipe.blending != "none":
        raise GbnnError("`--epochs`: blends cannot be trained; add `-s blending=none`")
    if val_data is not None and not epochs and max_drop is None:
        raise GbnnError("`--val-data`: labelled data for choices; give `--max-drop`, or `--epochs` above 0, with them")
    if data is not None and not epochs and not recipe.feedback and recipe.posterior == "data_free":
        raise GbnnError("`--data`: this recipe has `feedback: false` and calibrates on nothing; leave one of them out")


def default_output(checkpoint: str | Path) -> Path:
    """`<stem>.gbnn.safetensors` in the working directory."""
    return Path(Path(checkpoint).stem + SUFFIX)


def _check_output(source: Path, path: Path) -> None:
    if container.same_file(path, source):
        raise OutputError(f"cannot write `{path}`: it is the checkpoint itself; choose another `-o`")
    container.require_writable(path)
