"""`gbnn-compress evaluate`: measures of a checkpoint or an artifact."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from gbnn_compress_cli import console, options

from gbnn_compress.report import words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import RenderableType


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint or an artifact.")],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SPEC",
            help="Data, with labels for classifiers: digits:test, npz:FILE, safetensors:FILE, imagefolder:DIR,"
            " torchvision/CIFAR10:ROOT or your own data.py:callable.",
            show_default=False,
        ),
    ],
    arch: options.MemberArchitectures = None,
    key: options.Key = None,
    ood: Annotated[
        str | None,
        typer.Option("--ood", metavar="SPEC", help="Out-of-distribution inputs, to be detected among `--data`."),
    ] = None,
    val_data: Annotated[
        str | None,
        typer.Option(
            "--val-data",
            metavar="SPEC",
            help="Labelled data to fit one temperature on; neither the training data nor `--data`.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", metavar="CHECKPOINT", help="A checkpoint to compare predictions, or outputs, with."
        ),
    ] = None,
    task: options.Task = None,
    forward: options.Forward = None,
    output: options.Output = None,
    metric: options.Metric = None,
    loss: options.Loss = None,
    samples: options.Samples = 16,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    mean: options.Mean = None,
    std: options.Std = None,
    image_size: options.ImageSize = None,
    json: options.Json = None,
    html: Annotated[
        str | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a page with reliability diagrams and OOD histograms, or with the errors of outputs.",
        ),
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Measure a checkpoint or an artifact on data.

    Accuracy, NLL (nats), ECE and adaptive ECE (15 bins), Brier score, and coverage at 5 % risk: the largest fraction of
    inputs, the most confident first, with at most 5 % errors. `--ood` adds AUROC and FPR95 of out-of-distribution
    detection, `--reference` agreement and KL with a checkpoint, `--val-data` all measures at a fitted temperature.

    Of networks that are no classifiers: relative error and cosine of the outputs against those of `--reference`, and
    the value of `--metric`. One of the two is needed.
    """
    reads = (data, ood, val_data, reference, *(arch or ()), forward, metric, loss)
    console.check_json_target(json, reads=reads, the_model=model, the_page=html)
    with console.progress(quiet=quiet) as tell:
        tell(f"evaluating {words.name_of(model)} on {data}")
        import gbnn_compress
        from gbnn_compress.predict.use import parse_output

        evaluation = options.parse_evaluation(
            data, samples=samples, mean=mean, std=std, image_size=image_size, device=device
        )
        assert evaluation is not None
        result = gbnn_compress.evaluate(
            model,
            evaluation,
            arch=options.parse_architectures(arch),
            key=key,
            task=task,
            ood=ood,
            val_data=val_data,
            reference=reference,
            forward=forward,
            output=parse_output(output),
            metric=metric,
            loss=loss,
            seed=seed,
            html=html,
        )
    in_table = console.write_json(result, json)
    console.warn(result["warnings"], in_table=False)
    if in_table:
        console.write_stdout(console.render(*_view(result, data=data, ood=ood, reference=reference)))
    return 0


def _view(
    result: "Mapping[str, Any]", *, data: str, ood: str | None, reference: str | None
) -> "Iterator[RenderableType]":
    from gbnn_compress_cli import tables

    from gbnn_compress.report.evaluation_page import detection

    if "accuracy" not in result:
        yield from _outputs_view(result, data=data, reference=reference)
        return
    draws = _draws(result)
    folded = f", at its temperature {result['folded_temperature']:.3g}" if "folded_temperature" in result else ""
    folded += ", each at its temperature" if "folded_temperatures" in result else ""
    rows = [(f"{words.name_of(result['model'])}{draws}{folded}", result)]
    if "scaled" in result:
        rows.append((f"scaled, temperature {result['temperature']:.3g}", result["scaled"]))
    yield tables.metrics(f"on {data}", rows)
    yield from (tables.line(note) for note in result.get("notes", []))
    yield ""
    yield tables.line("coverage: fraction of inputs, the most confident first, with at most 5 % errors")
    if reference is not None:
        agreement = words.percent(result["agreement"])
        yield tables.line(
            f"against {words.name_of(reference)}: the same top class for {agreement} of inputs,"
            f" mean KL {result['logit_kl']:.4f} nats"
        )
    yield from map(tables.line, words.changed(result))
    if ood is not None:
        yield ""
        yield tables.detection(f"detecting {ood}", detection(result))
        yield ""
        yield tables.line(
            "AUROC 0.5: no better than chance; FPR95: fraction accepted where 95 % of the usual inputs are"
        )


def _draws(result: "Mapping[str, Any]") -> str:
    """How many predictions are averaged, after the name of the model."""
    draws = f", {result['samples']} draws" if result["samples"] > 1 else ""
    if "members" not in result:
        return draws
    return f", {result['members']} networks" + (f" x {result['samples']} draws" if draws else "")


def _outputs_view(result: "Mapping[str, Any]", *, data: str, reference: str | None) -> "Iterator[RenderableType]":
    """The measures of a network that is no classifier."""
    from gbnn_compress_cli import tables

    if reference is not None:
        draws = _draws(result)
        name = words.name_of(result["model"])
        rows = [(f"{name}{draws}", {key: result[key] for key in ("relative_error", "cosine")})]
        if result["samples"] > 1:
            rows.append((f"{name}, posterior mean", result["mean"]))
        yield tables.output_measures(f"outputs on {data}", rows)
        yield from tables.output_errors(result)
        yield ""
    yield from map(tables.line, words.changed(result))
    yield from (tables.line(note) for note in result.get("notes", []))
    if reference is not None:
        yield tables.line(f"against {words.name_of(reference)}: 0 means equal outputs, 1 no nearer than their mean")
