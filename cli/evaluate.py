"""`gbnn-compress evaluate`: metrics of a checkpoint or an artifact."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from gbnn_compress_cli import console, options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint or an artifact.")],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SPEC",
            help="Labelled data: digits:test, npz:FILE, imagefolder:DIR or torchvision/CIFAR10:ROOT.",
            show_default=False,
        ),
    ],
    arch: options.Architecture = None,
    ood: Annotated[
        str | None,
        typer.Option("--ood", metavar="SPEC", help="Out-of-distribution inputs to tell apart by entropy."),
    ] = None,
    samples: options.Samples = 16,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    mean: options.Mean = None,
    std: options.Std = None,
    image_size: options.ImageSize = None,
    json: options.Json = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Measure a checkpoint or an artifact on data.

    Accuracy, NLL (nats), ECE (15 bins) and Brier score; with `--ood` how well entropy tells other data apart.
    """
    console.check_json_target(json, the_model=model)
    with console.progress(quiet=quiet) as tell:
        tell(f"evaluating {Path(model).name} on {data}")
        import gbnn_compress

        evaluation = options.parse_evaluation(
            data, samples=samples, mean=mean, std=std, image_size=image_size, device=device
        )
        assert evaluation is not None
        result = gbnn_compress.evaluate(model, evaluation, arch=arch, ood=ood, seed=seed)
    if console.write_json(result, json):
        console.write_stdout(console.render(*_view(result, data=data, ood=ood)))
    return 0


def _view(result: dict[str, Any], *, data: str, ood: str | None) -> "Iterator[RenderableType]":
    from gbnn_compress_cli import tables

    draws = f", {result['samples']} posterior draws" if result["samples"] > 1 else ""
    yield tables.metrics(f"on {data}", [(f"{Path(result['model']).name}{draws}", result)])
    if ood is not None:
        yield tables.line(f"OOD AUROC against {ood}: {result['ood']['auroc']:.3f} (0.5: cannot tell them apart)")
