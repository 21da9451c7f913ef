"""Arguments that several commands take, and how they are read."""

from typing import TYPE_CHECKING, Annotated

import typer

from gbnn_compress.errors import GbnnError

if TYPE_CHECKING:
    from gbnn_compress.predict.bench import Evaluation


def whole_number(text: str) -> int:
    """Read an integer.

    Raises:
        typer.BadParameter: It is none.
    """
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"expected a whole number, got `{text}`") from None


def number(text: str) -> float:
    """Read a number.

    Raises:
        typer.BadParameter: It is none.
    """
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number, got `{text}`") from None


CHECKPOINT_HELP = (
    "A .safetensors, .pth, .pt, .th, .bin or .ckpt file with a network's weights, or a Hugging Face folder (with"
    " model.safetensors, pytorch_model.bin or an index of either)."
)

Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help=CHECKPOINT_HELP, show_default=False)]
Artifact = Annotated[str, typer.Argument(metavar="ARTIFACT", help="A file that `compress` wrote.", show_default=False)]
TargetRatio = Annotated[
    str | None,
    typer.Option("--target-ratio", metavar="RATIO", help="How many times smaller: 50, 50x or 2%."),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="POINTS",
        parser=number,
        help="Instead of a ratio: the smallest file that loses at most so many accuracy points, as measured on"
        " `--val-data`, or as predicted.",
    ),
]
RatioOf = Annotated[
    str,
    typer.Option(
        "--ratio-of",
        metavar="artifact|parameters",
        help="What the target counts: bytes of the file, or the paper's number of parameters.",
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="SPEC",
        help="The network: torchvision/resnet18, timm/NAME, models.py:callable or package.module:callable."
        " Default: found by the names and shapes of the tensors.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME|PREFIX.",
        help="Which network of a checkpoint that holds several: an entry, such as g_ema, or a prefix of names, such as"
        " ema_model.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="classifier|other",
        help="Whether the network tells classes apart; lost points are predicted only then. Default: found out by"
        " labels, the index of architectures, and outputs.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        help="Inputs to train on, or without `--epochs` a few hundred to calibrate on, no labels needed then:"
        " digits:train, npz:FILE, imagefolder:DIR or torchvision/CIFAR10/train:ROOT.",
    ),
]
ValData = Annotated[
    str | None,
    typer.Option(
        "--val-data",
        metavar="SPEC",
        help="Labelled data that training chooses on (default: a part of `--data`) and `--max-drop` is measured on;"
        " take data that did not train the checkpoint.",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        metavar="N",
        parser=whole_number,
        help="Passes over `--data` to train for; 0: calibrate only. Default: the recipe's, 0 in most.",
    ),
]
EvalData = Annotated[
    str | None,
    typer.Option(
        "--eval-data",
        metavar="SPEC",
        help="Labelled data to measure the damage on: digits:test, npz:FILE, imagefolder:DIR or"
        " torchvision/CIFAR10:ROOT.",
    ),
]
RecipeName = Annotated[str, typer.Option("--recipe", metavar="NAME|FILE", help="A shipped recipe, or a YAML file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("-s", "--set", metavar="KEY=VALUE", help="Override one value of the recipe; repeatable."),
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="PATH|-", help="Write the result as JSON; - puts it alone on stdout."),
]
Html = Annotated[
    str | None, typer.Option("--html", metavar="FILE", help="Write the report as a page, for any browser.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", parser=whole_number, help="Seed of the posterior draws.")]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart", help="Train from the beginning, where the same command would go on after the last finished epoch."
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Where networks are trained and evaluated: auto, cpu, cuda, ... All the rest runs on the CPU.",
    ),
]
Samples = Annotated[
    int,
    typer.Option(
        "--samples",
        metavar="N",
        parser=whole_number,
        help="Posterior draws whose probabilities are averaged.",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", metavar="R,G,B", help="Preprocessing: mean by channel, in units of 0 to 1."),
]
Std = Annotated[str | None, typer.Option("--std", metavar="R,G,B", help="Preprocessing: deviation by channel.")]
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", metavar="N", parser=whole_number, help="Preprocessing: height and width."),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Every layer in the tables; the traceback of a bug.")]


def parse_ratio(text: str | None) -> float | None:
    """Read `50`, `50x` or `2%` (of the size, hence 50).

    Raises:
        GbnnError: Anything else.
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


def parse_settings(settings: list[str] | None) -> dict[str, str]:
    """Read `key=value` pairs.

    Raises:
        GbnnError: One without `=`.
    """
    pairs = [(text, *text.partition("=")) for text in settings or []]
    for text, key, separator, _ in pairs:
        if not separator or not key.strip():
            raise GbnnError(f"`-s`: expected key=value (such as noise=0.02), got `{text}`")
    return {key.strip(): value for _, key, _, value in pairs}


def idle(
    *, any_data: bool, trained: bool, mean: str | None, std: str | None, image_size: int | None, restart: bool
) -> list[str]:
    """A line on options that do nothing without others.

    Args:
        any_data: Whether there are data of any kind.
        trained: Whether there are epochs.
        mean: `--mean` as given.
        std: `--std` as given.
        image_size: `--image-size` as given.
        restart: `--restart` as given.
    """
    preprocessing = {"--mean": mean, "--std": std, "--image-size": image_size}
    given = [f"`{option}`" for option, value in preprocessing.items() if value is not None]
    lines = []
    if given and not any_data:
        lines.append(f"{', '.join(given)}: of no use without `--data`, `--val-data` or `--eval-data`")
    if restart and not trained:
        lines.append("`--restart`: of no use without `--epochs`")
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
    """What to evaluate on, or None without data; the preprocessing is checked in both cases.

    Raises:
        GbnnError: `--mean` or `--std` are no numbers, or there is no such device.
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
