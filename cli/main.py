"""The entry point: parse the command line, run one command, return an exit code.

0: done. 1: done, but the target was missed. 2: bad input or usage. 3: a bug of ours. 130: interrupted.
"""

import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer
import typer.core
import typer.main
from gbnn_compress_cli import compress, decompress, demo, diff, ensemble, evaluate, export, plan, recipe, report, usage
from gbnn_compress_cli.console import PROGRAM, mute_stdout, one_line, write_stderr

from gbnn_compress.errors import GbnnError

BAD_INPUT, BUG, INTERRUPTED = 2, 3, 130

app = typer.Typer(
    name=PROGRAM,
    help="Compress a pretrained network into a small Bayesian one.\n\n"
    "`gbnn-compress CHECKPOINT` is short for `gbnn-compress compress CHECKPOINT`."
    " New here? `gbnn-compress demo` takes about a minute and downloads nothing.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("compress")(compress.command)
app.command("plan")(plan.command)
app.command("report")(report.command)
app.command("evaluate")(evaluate.command)
app.command("diff")(diff.command)
app.command("ensemble")(ensemble.command)
app.command("decompress")(decompress.command)
app.command("export")(export.command)
app.add_typer(recipe.app, name="recipe")
app.command("demo")(demo.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: Its words without the program; None for the process's own.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    verbose = any(word == "--verbose" or re.fullmatch("-[qv]*v[qv]*", word) for word in words)
    try:
        with warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")
            return _run(words)
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort):
        write_stderr(f"{PROGRAM}: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        mute_stdout()
        return 0
    except GbnnError as error:
        return _fail(str(error))
    except Exception as error:
        if hasattr(error, "format_message"):
            return _fail(usage.describe(error))
        if isinstance(error, OSError) and error.filename is not None:  # such as a full disk: no bug
            return _fail(f"`{error.filename}`: {error.strerror or error}")
        if verbose:
            traceback.print_exc()
        hint = "" if verbose else "; run the same command with -v for the traceback"
        what = f"{type(error).__name__}: {error}"
        write_stderr(f"{PROGRAM}: error: this is a bug of ours, please report it: {one_line(what)}{hint}")
        return BUG


def _run(words: Sequence[str]) -> int:
    root = typer.main.get_command(app)
    assert isinstance(root, typer.core.TyperGroup)
    with root.make_context(PROGRAM, usage.route(words, root.commands)) as context:
        return int(root.invoke(context) or 0)


def _fail(message: str) -> int:
    write_stderr(f"{PROGRAM}: error: {one_line(message)}")
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
