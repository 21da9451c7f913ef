"""`gbnn-compress export`: an artifact as an ONNX file."""

from typing import TYPE_CHECKING, Annotated

import typer
from gbnn_compress_cli import console, options

from gbnn_compress.errors import GbnnError
from gbnn_compress.report import words

if TYPE_CHECKING:
    from gbnn_compress.report.schema import ExportReport


def command(
    artifact: options.Artifact,
    file: Annotated[
        str | None, typer.Option("-o", metavar="FILE.onnx", help="The file to write.", show_default=False)
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            metavar="mean|codebook|samples|external",
            help="mean: dense posterior means; codebook: the same as codebooks and ids, a small file; samples:"
            " posterior samples; external: the graph alone, whose weights a decoder takes from the artifact.",
        ),
    ] = "mean",
    input_shape: Annotated[
        str | None,
        typer.Option(
            "--input-shape",
            metavar="C,H,W",
            help="Shape of one input, such as 3,32,32. Default: that of the architecture's weights.",
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME:DTYPE:SHAPE",
            help="An input of the network, such as input_ids:int64:batch,sequence; axes with a name are free."
            " Repeatable.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SPEC",
            help="Inputs for the check, which also tell names and shapes: npz:FILE, safetensors:FILE, data.py:callable"
            " or images.",
        ),
    ] = None,
    forward: options.Forward = None,
    output: options.Output = None,
    task: options.Task = None,
    arch: options.MemberArchitectures = None,
    samples: Annotated[
        int,
        typer.Option(
            "--samples", metavar="N", parser=options.whole_number, help="Number of posterior samples in the file."
        ),
    ] = 16,
    seed: options.Seed = 0,
    json: options.Json = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> int:
    """Write an artifact as ONNX, checked in ONNX Runtime.

    Of an image classifier, the input is `input`, float32, preprocessed, of any batch size. The outputs are
    `probabilities`, `entropy` and `mutual_information` (samples), or `logits`. Other networks need `--input` or
    `--data`. Their outputs have the names of the network's own, such as `value` or `parts.0`; with samples, each is the
    mean, and NAME.std the standard deviation.
    """
    if file is None and output is not None and output.endswith(".onnx"):
        file, output = output, None
    if file is None:
        raise GbnnError("`export`: missing option `-o FILE.onnx`")
    console.check_json_target(json, reads=(data, forward), the_artifact=artifact, the_model=file)
    shape = None if input_shape is None else _parse_shape(input_shape)
    with console.progress(quiet=quiet) as tell:
        tell(f"exporting {words.name_of(artifact)} and running it in ONNX Runtime")
        import gbnn_compress
        from gbnn_compress.predict.use import parse_output

        result = gbnn_compress.export_onnx(
            artifact,
            file,
            weights=weights,
            arch=options.parse_architectures(arch),
            input_shape=shape,
            inputs=inputs or (),
            data=data,
            forward=forward,
            output=parse_output(output),
            task=task,
            samples=samples,
            seed=seed,
        )
    if console.write_json(result, json):
        console.write_stdout(_view(result))
    return 0


def _parse_shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise GbnnError(
            f"`--input-shape`: expected whole numbers separated by commas, such as 3,32,32, got `{text}`"
        ) from None


def _view(result: "ExportReport") -> str:
    made, check = result["onnx"], result["check"]
    of_members = f" of each of {result['members']} networks" if "members" in result else ""
    kind = {
        "mean": "dense posterior means",
        "codebook": f"codebooks and ids, {words.size(made['dense_bytes'])} once decoded",
        "samples": f"{result['samples']} posterior samples{of_members}",
        "external": f"the graph alone; its weights are in the artifact, {words.size(made.get('artifact_bytes', 0))}",
    }[made["weights"]]
    inputs = [f"`{each['name']}` {each['dtype']} ({', '.join(map(str, each['shape']))})" for each in result["inputs"]]
    scaled = f", at temperature {result['temperature']:.4g}" if "temperature" in result else ""
    if "temperatures" in result:
        scaled = f", at temperatures {', '.join(f'{each:.4g}' for each in result['temperatures'])}"
    return (
        f"checked in ONNX Runtime {check['onnxruntime']} on {check['inputs']} inputs:"
        f" largest relative difference {check['largest_relative_difference']:.1e}\n"
        f"opset {made['opset']}, {'input' if len(inputs) == 1 else 'inputs'} {', '.join(inputs)},"
        f" outputs {', '.join(result['outputs'])}{scaled}\n"
        + "".join(f"{note}\n" for note in result.get("notes", []))
        + f"wrote {console.printable(made['path'])}: {words.size(made['bytes'])}, {kind}\n"
    )
