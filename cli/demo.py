"""`gbnn-compress demo`: every command once, on a small network trained on the spot."""

import io
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from gbnn_compress_cli import console

from gbnn_compress.errors import OutputError
from gbnn_compress.report import words

ARCHITECTURE = "gbnn_compress_cli.digits_network:digits_cnn"
DATA = "digits:test"
TARGET, TRAINED_TARGET = "8x", "40x"


def command(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder for the files.")] = "demo",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the traceback of a bug.")] = False,
) -> int:
    """Run every command on a small network trained on the spot.

    The data are scikit-learn's handwritten digits. Nothing is downloaded. Takes about a minute.
    """
    directory = Path(folder)
    _make(directory)
    with _one_thread():
        return _demonstrate(directory / "digits.pth", quiet=quiet)


def _demonstrate(checkpoint: Path, *, quiet: bool) -> int:
    with console.progress(quiet=quiet) as tell:
        tell("training a small network on scikit-learn's handwritten digits")
        _train(checkpoint)
    size = words.size(checkpoint.stat().st_size)
    console.write_stdout(f"trained a small network on scikit-learn's digits: {checkpoint}, {size}\n")
    for line in _lines(checkpoint):
        console.write_stdout(f"\n$ {console.PROGRAM} {shlex.join(line)}\n")
        code = _run([*line, *(["-q"] if quiet else [])])
        if code != 0:
            return code
    console.write_stdout(
        f"\nThe report as a page for the browser: {checkpoint.with_suffix('.html')}\n"
        f"\nYour own network: `{console.PROGRAM} plan YOUR_CHECKPOINT.pth` predicts size and damage, and\n"
        f"`{console.PROGRAM} YOUR_CHECKPOINT.pth --target-ratio 8` writes a file of that size.\n"
    )
    return 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: for a network this small more threads are slower on busy cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _lines(checkpoint: Path) -> list[list[str]]:
    """The commands in order."""
    model, artifact = str(checkpoint), str(checkpoint.with_suffix(".gbnn.safetensors"))
    dense, onnx = (str(checkpoint.with_name(name)) for name in ("digits-dense.safetensors", "digits.onnx"))
    page = str(checkpoint.with_suffix(".html"))
    network, data = ["--arch", ARCHITECTURE], ["--data", DATA]
    evaluated = ["--target-ratio", TARGET, "--eval-data", DATA, "-o", artifact, "--html", page]
    trained = str(checkpoint.with_name("digits-trained.gbnn.safetensors"))
    training = ["--target-ratio", TRAINED_TARGET, "--data", "digits:train", "--epochs", "5", "--eval-data", DATA]
    return [
        ["plan", model],
        ["compress", model, *evaluated, *network],
        ["report", artifact],
        ["evaluate", model, *data, *network],
        ["evaluate", artifact, *data, *network],
        ["decompress", artifact, "-o", dense],
        ["diff", model, dense, *data, *network],
        ["compress", model, *training, "-o", trained, *network],
        ["export", artifact, "-o", onnx, "--weights", "codebook", "--input-shape", "1,8,8", *network],
    ]


def _run(line: list[str]) -> int:
    from gbnn_compress_cli.main import main

    return main(line)


def _make(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"cannot write to `{directory}`: it is a file; give `demo` a folder")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder `{directory}`: {error.strerror}") from None


def _train(checkpoint: Path) -> None:
    import torch
    from gbnn_compress_cli.digits_network import train

    from gbnn_compress.files import require_writable, write_atomically

    require_writable(checkpoint)
    saved = io.BytesIO()
    torch.save(train(), saved)
    write_atomically(checkpoint, saved.getvalue())
