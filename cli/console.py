"""Output: results to stdout, progress and warnings to stderr, JSON to stdout or to a file."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gbnn_compress import compiled
from gbnn_compress.errors import OutputError
from gbnn_compress.report.words import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from rich.console import RenderableType

PROGRAM = "gbnn-compress"
WIDTH = 100


def one_line(text: str) -> str:
    """The text on one line, with each run of white space as one space."""
    return printable(" ".join(text.split()))


def render(*renderables: RenderableType) -> str:
    """Text of rich renderables for stdout: colour on a terminal only, at most 100 columns."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    columns, lines = shutil.get_terminal_size()
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=terminal or None,
        width=min(WIDTH, columns) if terminal else WIDTH,
        height=lines,  # without it, rich assumes a width of 80 for dumb terminals
        markup=False,
        highlight=False,
        emoji=False,
    )
    for renderable in renderables:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in text.getvalue().split("\n"))


def write_stdout(text: str) -> None:
    """Print a result; a closed pipe (`| head`) is no error."""
    try:
        _write(sys.stdout, text)
    except BrokenPipeError:
        mute_stdout()
    except OSError as error:
        mute_stdout()
        raise OutputError(f"cannot write to standard output: {error.strerror or error}") from None


def write_stderr(line: str) -> None:
    """Print a line to stderr."""
    try:
        _write(sys.stderr, line + "\n")
    except OSError:
        return


def mute_stdout() -> None:
    """Discard all further output, so that the interpreter's last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(warnings: Sequence[str], *, in_table: bool) -> None:
    """Print warnings to stderr, unless a table on the same terminal shows them."""
    if in_table and sys.stdout.isatty() and sys.stderr.isatty():
        return
    for warning in warnings:
        write_stderr(f"warning: {one_line(warning)}")


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A function that shows a line of progress: a spinner on a terminal, plain lines elsewhere. Notes stay visible."""
    if quiet or not sys.stderr.isatty():
        with compiled.heard_by(tell := _ignore if quiet else lambda line: write_stderr(one_line(line))):
            yield tell
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, emoji=False)
    with console.status("") as status:

        def show(line: str) -> None:
            text = Text(one_line(line))
            if line.startswith("note: "):
                console.print(text)
            else:
                status.update(text)

        with compiled.heard_by(show):
            yield show


def _ignore(line: str) -> None:
    pass


def check_json_target(
    target: str | None, *, reads: Iterable[str | Path | None] = (), **taken: str | Path | None
) -> None:
    """Fail early where `--json` cannot be written.

    Args:
        target: A path, `-` for stdout, or None.
        reads: Specifications that the command reads files by.
        taken: Files that it must not overwrite, by what they are (`the_checkpoint`); None for no file.

    Raises:
        OutputError: The target is one of them, or cannot be written.
    """
    if target is None or target == "-":
        return
    from gbnn_compress.files import refuse_inputs, require_writable, same_file

    path = Path(target)
    for what, other in taken.items():
        if other is not None and same_file(path, Path(other)):
            what = what.replace("_", " ")
            raise OutputError(f"cannot write `--json {target}`: it is {what}; choose another file")
    refuse_inputs(path, *reads, option="--json")
    if _is_special(path):
        return
    require_writable(path)


def write_json(data: Mapping[str, Any], target: str | None) -> bool:
    """Write JSON to a file or to stdout.

    Returns:
        Whether stdout is still free for the table.

    Raises:
        OutputError: The file cannot be written.
    """
    if target is None:
        return True
    text = json.dumps(_finite(data), indent=2, allow_nan=False) + "\n"
    if target == "-":
        write_stdout(text)
        return False
    path = Path(target)
    if _is_special(path):
        try:
            path.write_text(text)
        except OSError as error:
            raise OutputError(f"cannot write `--json {target}`: {error.strerror or error}") from None
        return True
    from gbnn_compress.files import write_atomically

    write_atomically(path, text.encode())
    return True


def _write(stream: TextIO, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _finite(value: Any) -> Any:
    """The data with None for numbers that JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _is_special(path: Path) -> bool:
    """Whether a path is a device or a pipe, which must be written to instead of replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()
