"""`gbnn-compress diff`: comparison of two networks."""

from typing import TYPE_CHECKING, Annotated

import typer
from gbnn_compress_cli import console, options

from gbnn_compress.errors import listed
from gbnn_compress.report import words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from gbnn_compress.report.schema import DiffReport, TensorDifference

TENSORS_SHOWN = 5


def command(
    first: Annotated[str, typer.Argument(metavar="A", help="The reference: a checkpoint or an artifact.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other checkpoint or artifact.")],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SPEC", help="Inputs to compare predictions on; labels are optional."),
    ] = None,
    arch: options.MemberArchitectures = None,
    key: options.Key = None,
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
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Compare two checkpoints or artifacts.

    Shows their sizes and the error of each tensor; with `--data` also their predictions.
    """
    reads = (data, *(arch or ()), forward, metric, loss)
    console.check_json_target(json, reads=reads, the_first_model=first, the_second_model=second)
    with console.progress(quiet=quiet) as tell:
        tell(f"comparing {words.name_of(first)} and {words.name_of(second)}")
        import gbnn_compress
        from gbnn_compress.predict.use import parse_output

        evaluation = options.parse_evaluation(
            data, samples=samples, mean=mean, std=std, image_size=image_size, device=device
        )
        result = gbnn_compress.diff(
            first,
            second,
            data=evaluation,
            arch=options.parse_architectures(arch),
            key=key,
            task=task,
            forward=forward,
            output=parse_output(output),
            metric=metric,
            loss=loss,
            seed=seed,
        )
    if console.write_json(result, json):
        console.write_stdout(console.render(*_view(result, data=data, every_tensor=verbose)))
    return 0


def _view(result: "DiffReport", *, data: str | None, every_tensor: bool) -> "Iterator[RenderableType]":
    from gbnn_compress_cli import tables

    names = [words.name_of(model) for model in result["models"]]
    sizes = [words.size(size) for size in result["bytes"]]
    yield tables.line(f"A  {names[0]}   {sizes[0]}", "bold")
    yield tables.line(f"B  {names[1]}   {sizes[1]}", "bold")
    yield ""
    yield from _tensors(result["tensors"], every_tensor=every_tensor)
    for side, key in (("A", "only_in_first"), ("B", "only_in_second")):
        if result[key]:
            yield tables.line(f"only in {side}: {listed(result[key], quote='')}", "yellow")
    if "agreement" in result:
        yield ""
        agreement = words.percent(result["agreement"])
        yield tables.line(
            f"on {data}: the same top class for {agreement} of inputs, mean KL {result['logit_kl']:.4f} nats"
            " (posterior means)"
        )
    if "relative_error" in result:
        yield ""
        error, cosine = (words.output_measure(key, result[key]) for key in ("relative_error", "cosine"))
        yield tables.line(f"on {data}: relative error of the outputs {error}, cosine {cosine} (posterior means)")
        yield from tables.output_errors(result)
    yield from map(tables.line, words.changed(result))
    yield from (tables.line(f"warning: {warning}", "yellow") for warning in result.get("warnings", []))
    if "metrics" in result:
        yield ""
        yield tables.metrics(f"on {data}", zip(("A", "B"), result["metrics"], strict=True))


def _tensors(tensors: list["TensorDifference"], *, every_tensor: bool) -> "Iterator[RenderableType]":
    from gbnn_compress_cli import tables

    reshaped = [each for each in tensors if len(each["shapes"]) == 2]
    differing = [each for each in tensors if len(each["shapes"]) == 1 and each["max_error"] != 0]
    same = len(tensors) - len(differing) - len(reshaped)
    yield f"{len(tensors)} tensors in both: {same} equal, {len(differing)} differ in values"
    for each in reshaped:
        shapes = " and ".join(map(words.shape, each["shapes"]))
        yield tables.line(f"shapes differ: {each['name']}, {shapes}", "yellow")
    shown = differing if every_tensor else sorted(differing, key=_error, reverse=True)[:TENSORS_SHOWN]
    if shown:
        yield ""
        title = "tensors" if every_tensor else "tensors that differ most"
        yield tables.table(
            (title, "shape", "relative RMSE", "largest error"),
            [
                (
                    tables.short(each["name"]),
                    words.shape(each["shapes"][0]),
                    words.decimals(each["relative_rmse"]),
                    f"{each['max_error']:.3g}",
                )
                for each in shown
            ],
        )


def _error(tensor: "TensorDifference") -> float:
    """Sort key; tensors that were zero and are no longer come first."""
    return float("inf") if tensor["relative_rmse"] is None else tensor["relative_rmse"]
