"""`gbnn-compress plan`: predicted size and damage."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Annotated

import typer
from gbnn_compress_cli import console, options

from gbnn_compress.report import statements, words

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gbnn_compress.report.schema import PlannedRate, PlanReport, TensorEntry

REACHED = 0.995
"""A target is out of reach if the predicted ratio is below this fraction of it."""

DAMAGE, LAYERS = ("accuracy lost", "predictions unchanged"), ("relative error of the layers",)
"""Columns of the predictions for classifiers, and for other or unknown networks."""

SOLVES = 4
"""Approximate number of codebook searches in `compress`: one for the safe ratio, the others for the target."""


def command(
    checkpoint: options.Checkpoint,
    target_ratio: options.TargetRatio = None,
    max_drop: options.MaxDrop = None,
    max_error: options.MaxError = None,
    ratio_of: options.RatioOf = "artifact",
    file: Annotated[str | None, typer.Option("-o", hidden=True)] = None,
    arch: options.Architecture = None,
    task: options.Task = None,
    key: options.Key = None,
    data: options.Data = None,
    val_data: options.ValData = None,
    epochs: options.Epochs = None,
    members: options.Members = 1,
    eval_data: options.EvalData = None,
    forward: options.Forward = None,
    output: options.Output = None,
    metric: options.Metric = None,
    loss: options.Loss = None,
    inputs: options.Inputs = None,
    keep: options.Keep = None,
    recipe: options.RecipeName = "default",
    settings: options.Settings = None,
    json: options.Json = None,
    html: Annotated[str | None, typer.Option("--html", hidden=True)] = None,
    seed: options.Seed = 0,
    restart: Annotated[bool, typer.Option("--restart", hidden=True)] = False,
    samples: options.Samples = 16,
    device: options.Device = "auto",
    mean: options.Mean = None,
    std: options.Std = None,
    image_size: options.ImageSize = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Predict size and damage; writes nothing.

    Takes the options of `compress` and checks them in the same way. Ratios are ratios of file bytes. The damage is
    predicted, also with data, and is that without training.
    """
    reading = partial(
        options.parse_evaluation, samples=samples, mean=mean, std=std, image_size=image_size, device=device
    )
    with console.progress(quiet=quiet) as tell:
        tell(f"reading and fitting {words.name_of(checkpoint)}")
        from gbnn_compress.pipeline.plan import run_plan
        from gbnn_compress.pipeline.request import Request

        reads = (data, val_data, eval_data, arch, recipe, forward, metric, loss)
        console.check_json_target(json, reads=reads, the_checkpoint=checkpoint)
        artifact, chosen_output = options.artifact_and_output(file, output)
        request = Request(
            checkpoint=checkpoint,
            target_ratio=options.parse_ratio(target_ratio),
            max_drop=max_drop,
            max_error=max_error,
            ratio_of=ratio_of,
            output=chosen_output,
            file=artifact,
            arch=arch,
            task=task,
            key=key,
            recipe=recipe,
            settings=options.parse_settings(settings),
            data=reading(data),
            val_data=reading(val_data),
            epochs=epochs,
            members=members,
            eval_data=reading(eval_data),
            forward=forward,
            metric=metric,
            loss=loss,
            inputs=tuple(inputs or ()),
            keep=tuple(keep or ()),
            html=html,
            seed=seed,
            planned=True,
        )
        plan = run_plan(request, progress=tell)
    any_data, trained = bool(data or val_data or eval_data), bool(plan["epochs"])
    idle = options.idle(any_data=any_data, trained=trained, mean=mean, std=std, image_size=image_size, restart=restart)
    console.warn([*idle, *plan["warnings"]], in_table=False)
    if console.write_json(plan, json):
        console.write_stdout(console.render(*_view(plan, max_drop=max_drop, arch=arch, verbose=verbose)))
    return 0


def _view(plan: "PlanReport", *, max_drop: float | None, arch: str | None, verbose: bool) -> Iterator["RenderableType"]:
    from gbnn_compress_cli import tables

    wanted, trained, has_forecast = plan["target_ratio"], bool(plan["epochs"]), plan["safe_ratio"] is not None
    checkpoint, rates = plan["checkpoint"], plan["rates"]
    name, size = words.name_of(checkpoint["path"] or ""), words.size(checkpoint["bytes"])
    yield tables.line(f"{name}   {size}, {checkpoint['parameters']:,} floating values", "bold")
    yield ""
    notes = [("unwrapped", note) for note in checkpoint.get("notes", [])]
    yield tables.facts(
        [*_tensor_facts(plan["tensors"]), ("architecture", statements.architecture(checkpoint, arch)), *notes]
    )
    yield ""
    shown = [rate for rate in rates if _reached(rate) or rate["target_ratio"] == wanted]
    yield tables.table(
        ("ratio", "file", "components", *(DAMAGE if has_forecast else LAYERS), ""),
        [_row(rate, wanted=wanted) for rate in shown],
        styles=[tables.style_of(rate["drop"]) for rate in shown],
        left=(0, 3 + len(DAMAGE if has_forecast else LAYERS)),
    )
    if not all(map(_reached, rates)):
        smallest = max(rates, key=lambda rate: rate["ratio"])
        yield f"smallest predicted file: {words.size(smallest['bytes'])}, {words.times(smallest['ratio'])}"
    yield ""
    source = "predicted with data" if plan["with_data"] else "predicted without data"
    if has_forecast:
        condition = f", if this is an {plan['assumes']}" if plan["assumes"] else ""
        yield tables.line(f"{source}{condition}: {words.safe(plan['safe_ratio'], trained=trained)}", "bold")
    elif plan["task"] is None:
        yield tables.line(words.UNKNOWN, "bold")
    if max_drop is not None and has_forecast:
        yield tables.line(_within(rates, max_drop))
    before = ", before training" if trained else ""
    yield f"compressing takes about {words.size(plan['memory_bytes'])} of memory and {_seconds(plan)}{before}"
    if verbose:
        yield ""
        yield tables.table(
            ("tensor", "shape", "dtype", "becomes"),
            [
                (tables.short(each["name"]), words.shape(each["shape"]), each["dtype"], _becomes(each))
                for each in plan["tensors"]
            ],
            left=(0, 2, 3),
        )


def _tensor_facts(tensors: list["TensorEntry"]) -> Iterator[tuple[str, str]]:
    counts = Counter(tensor["kind"] for tensor in tensors)
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor["kind"]] += prod(tensor["shape"])
    dtypes = ", ".join(sorted({tensor["dtype"] for tensor in tensors if tensor["kind"] == "shared"}))
    yield "tensors", f"{len(tensors)}, shared ones {dtypes}"
    meanings = {
        "shared": "weights that share components",
        "unshared": "values coded one by one (biases, norms)",
        "raw": "values kept bit for bit (counters, masks)",
        "tied": "values that repeat another tensor and are stored once",
    }
    for kind, meaning in meanings.items():
        if counts[kind]:
            yield kind, f"{counts[kind]} with {weights[kind]:,} {meaning}"


def _reached(rate: "PlannedRate") -> bool:
    return bool(rate["ratio"] >= REACHED * rate["target_ratio"])


def _row(rate: "PlannedRate", *, wanted: float | None) -> tuple[str, ...]:
    remark = "" if rate["target_ratio"] != wanted else "<- target"
    if not _reached(rate):
        remark = "<- target, out of reach"
    damage = [words.decimals(rate["relative_error"])]
    if rate["drop"] is not None:
        damage = [f"{words.points(rate['drop'])} points", words.percent(rate["agreement"])]
    size, components = words.size(rate["bytes"]), f"{rate['components']:,}"
    return (words.times(rate["target_ratio"]), size, components, *damage, remark)


def _within(rates: list["PlannedRate"], max_drop: float) -> str:
    most = words.counted_points(max_drop)
    fitting = [rate["ratio"] for rate in rates if rate["drop"] <= max_drop]
    if not fitting:
        return f"each of these ratios is predicted to lose more than {most}"
    return f"{words.times(max(fitting))} is the largest of these ratios that is predicted to lose at most {most}"


def _seconds(plan: "PlanReport") -> str:
    timings = plan["timings"]
    solves = len(plan["rates"]) + 1
    return words.seconds(timings["read"] + timings["fit"] + SOLVES * timings["merge"] / solves)


def _becomes(tensor: "TensorEntry") -> str:
    return f"tied to {tensor['tied_to']}" if tensor["tied_to"] else tensor["kind"]
