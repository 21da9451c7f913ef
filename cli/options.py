"""Arguments of several commands, and their parsing."""

from typing import TYPE_CHECKING, Annotated

import typer

from gbnn_compress.errors import GbnnError

if TYPE_CHECKING:
    from gbnn_compress.predict.bench import Evaluation


def whole_number(text: str) -> int:
    """Read an integer.

    Raises:
        typer.BadParameter: The text is no such number.
    """
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"expected a whole number, got `{text}`") from None


def number(text: str) -> float:
    """Read a number.

    Raises:
        typer.BadParameter: The text is no such number.
    """
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number, got `{text}`") from None


CHECKPOINT_HELP = (
    "A .safetensors, .pth, .pt, .th, .bin or .ckpt file with the weights of a network, or a Hugging Face folder (with"
    " model.safetensors, pytorch_model.bin or an index of either)."
)

Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT_HELP, show_default=False)]
Artifact = Annotated[str, typer.Argument(metavar="ARTIFACT", help="A file that `compress` wrote.", show_default=False)]
TargetRatio = Annotated[
    str | None,
    typer.Option("--target-ratio", metavar="RATIO", help="How many times smaller the file is: 50, 50x or 2%."),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="POINTS",
        parser=number,
        help="Instead of a ratio: write the smallest file that loses at most this many accuracy points, measured on"
        " `--val-data` or predicted; with `--metric`, at most so much of it.",
    ),
]
MaxError = Annotated[
    float | None,
    typer.Option(
        "--max-error",
        metavar="ERROR",
        parser=number,
        help="Instead of a ratio: write the smallest file whose outputs are within this relative error, such as 0.05,"
        " measured on `--val-data` or `--data`.",
    ),
]
ArtifactFile = Annotated[
    str | None,
    typer.Option(
        "-o",
        metavar="FILE",
        help="The artifact. Default: <stem>.gbnn.safetensors; of a folder: <folder>.gbnn.safetensors.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        metavar="NAME|INDEX",
        help="The network's output that counts, by name or position. Default: every floating output.",
    ),
]
Forward = Annotated[
    str | None,
    typer.Option(
        "--forward",
        metavar="FILE.py:NAME",
        help="Your function f(network, batch) -> outputs, where the network is not simply called on the inputs.",
    ),
]
Metric = Annotated[
    str | None,
    typer.Option("--metric", metavar="FILE.py:NAME", help="Your function g(network, data) -> float; more is better."),
]
Loss = Annotated[
    str | None,
    typer.Option("--loss", metavar="FILE.py:NAME", help="Your function l(outputs, batch) -> scalar tensor."),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME:DTYPE:SHAPE",
        help="An input to make where there are no data, such as input_ids:int64:batch,sequence; repeatable.",
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="GLOB", help="Tensors to keep bit for bit, by name, such as 'head.*'; repeatable."),
]
RatioOf = Annotated[
    str,
    typer.Option(
        "--ratio-of",
        metavar="artifact|parameters",
        help="Whether the target is a ratio of file bytes, or of the paper's number of parameters.",
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="SPEC",
        help="The network: torchvision/resnet18, timm/NAME, models.py:callable or package.module:callable."
        " Default: looked up by the names and shapes of the tensors.",
    ),
]
MemberArchitectures = Annotated[
    list[str] | None,
    typer.Option(
        "--arch",
        metavar="SPEC",
        help="The network: torchvision/resnet18, timm/NAME, models.py:callable or package.module:callable. Of an"
        " ensemble: one for all, or repeated, one per member. Default: found by the names and shapes of the tensors.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME|PREFIX.",
        help="The network to take from a checkpoint with several: an entry, such as g_ema, or a prefix of names, such"
        " as ema_model.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="classifier|other",
        help="Whether the network is a classifier; lost accuracy is predicted for classifiers only. Default: inferred"
        " from labels, the index of architectures, and outputs.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        help="Inputs to train on; without `--epochs` a few hundred inputs to calibrate on: digits:train, npz:FILE,"
        " safetensors:FILE, imagefolder:DIR, torchvision/CIFAR10/train:ROOT or your own data.py:callable.",
    ),
]
ValData = Annotated[
    str | None,
    typer.Option(
        "--val-data",
        metavar="SPEC",
        help="Validation data for training (default: a part of `--data`), for `--max-drop` and `--max-error`. Use data"
        " that the checkpoint was not trained on.",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        metavar="N",
        parser=whole_number,
        help="Number of training epochs over `--data`; 0: calibrate only. Default: from the recipe, mostly 0.",
    ),
]
Members = Annotated[
    int,
    typer.Option(
        "--members",
        metavar="N",
        parser=whole_number,
        help="Train N networks from the checkpoint, with other seeds, into one file, whose predictions are averaged."
        " `--target-ratio` is then the checkpoint over the whole file. Needs `--epochs`.",
    ),
]
EvalData = Annotated[
    str | None,
    typer.Option(
        "--eval-data",
        metavar="SPEC",
        help="Data to measure the damage on, with labels for classifiers: digits:test, npz:FILE, safetensors:FILE,"
        " imagefolder:DIR, torchvision/CIFAR10:ROOT or your own data.py:callable.",
    ),
]
RecipeName = Annotated[str, typer.Option("--recipe", metavar="NAME|FILE", help="A shipped recipe, or a YAML file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("-s", "--set", metavar="KEY=VALUE", help="Override one value of the recipe; repeatable."),
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="PATH|-", help="Write the report as JSON; -: to stdout, in place of the table."),
]
Html = Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write the report as an HTML page.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", parser=whole_number, help="Seed of the posterior draws.")]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Train from the beginning. Default: continue an interrupted run after its last epoch.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Device to train, evaluate and calibrate networks on: auto, cpu, cuda, ... auto calibrates on the CPU.",
    ),
]
Samples = Annotated[
    int,
    typer.Option(
        "--samples",
        metavar="N",
        parser=whole_number,
        help="Number of posterior draws to average probabilities over.",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", metavar="R,G,B", help="Preprocessing: mean of each channel, for values in 0 to 1."),
]
Std = Annotated[
    str | None, typer.Option("--std", metavar="R,G,B", help="Preprocessing: standard deviation of each channel.")
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size", metavar="N", parser=whole_number, help="Preprocessing: height and width of the images."
    ),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress on stderr.")]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Show every layer in the tables, and the traceback of a bug.")
]


def parse_ratio(text: str | None) -> float | None:
    """Read `50`, `50x` or `2%` (of the size, hence 50).

    Raises:
        GbnnError: The text is anything else.
    """
    if text is None:
        return None
    stripped = text.strip().lower()
    try:
        if stripped.endswith("%"):
            return 100 / float(stripped.removesuffix("%"))
        return float(stripped.removesuffix("x"))
    except (ValueError, ZeroDivisionError):
        raise GbnnError(
            f"`--target-ratio`: expected a number of at least 1 (such as 50, 50x or 2%), got `{text}`"
        ) from None


def artifact_and_output(file: str | None, output: str | None) -> tuple[str | None, str | int | None]:
    """The path of the artifact, and the network's output that counts.

    `--output` names the artifact, too, if it has the form of a file's path.

    Raises:
        GbnnError: Both options name a file.
    """
    from gbnn_compress.pipeline.request import is_file_name
    from gbnn_compress.predict.use import parse_output

    if output is None or not is_file_name(output):
        return file, parse_output(output)
    if file is not None:
        raise GbnnError(f"`-o {file}` and `--output {output}`: expected one path of the artifact; leave out one")
    return output, None


def parse_architectures(given: list[str] | None) -> str | list[str] | None:
    """The one architecture for all networks of a file, or a list with one for each."""
    return given if given is None or len(given) > 1 else given[0]


def parse_settings(settings: list[str] | None) -> dict[str, str]:
    """Read `key=value` pairs.

    Raises:
        GbnnError: A pair has no `=`.
    """
    pairs = [(text, *text.partition("=")) for text in settings or []]
    for text, key, separator, _ in pairs:
        if not separator or not key.strip():
            raise GbnnError(f"`-s`: expected key=value (such as noise=0.02), got `{text}`")
    return {key.strip(): value for _, key, _, value in pairs}


def idle(
    *, any_data: bool, trained: bool, mean: str | None, std: str | None, image_size: int | None, restart: bool
) -> list[str]:
    """Warnings on options that are ignored without others.

    Args:
        any_data: Whether data of any kind are given.
        trained: Whether the run trains.
        mean: `--mean` as given.
        std: `--std` as given.
        image_size: `--image-size` as given.
        restart: `--restart` as given.
    """
    preprocessing = {"--mean": mean, "--std": std, "--image-size": image_size}
    given = [f"`{option}`" for option, value in preprocessing.items() if value is not None]
    lines = []
    if given and not any_data:
        lines.append(f"{', '.join(given)}: ignored without `--data`, `--val-data` or `--eval-data`")
    if restart and not trained:
        lines.append("`--restart`: ignored without `--epochs`")
    return lines


def parse_evaluation(
    data: str | None,
    *,
    samples: int,
    mean: str | None,
    std: str | None,
    image_size: int | None,
    device: str,
) -> "Evaluation | None":
    """The evaluation settings, or None without data; the preprocessing is checked in both cases.

    Raises:
        GbnnError: `--mean` or `--std` are not numbers, or the device does not exist.
    """
    from gbnn_compress.data.preprocessing import parse_numbers
    from gbnn_compress.predict.bench import Evaluation, device_named

    means = None if mean is None else parse_numbers(mean, option="--mean")
    stds = None if std is None else parse_numbers(std, option="--std")
    if samples < 1:
        raise GbnnError(f"`--samples`: expected at least 1, got {samples}")
    if device not in ("auto", "cpu"):
        device_named(device)
    if data is None:
        return None
    return Evaluation(data, samples=samples, mean=means, std=stds, image_size=image_size, device=device)
