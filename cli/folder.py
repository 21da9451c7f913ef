"""A folder of checkpoints: each compressed by a process of its own, which gives its memory back, and one table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbnn_compress_cli import console

from gbnn_compress.errors import GbnnError, OutputError
from gbnn_compress.output import words

if TYPE_CHECKING:
    import typer

RESULTS = {0: "done", 1: "target missed"}
OWN = ("checkpoint", "output", "json", "html", "quiet", "verbose")
"""Parameters that are not handed on as they are."""


def compress_all(context: typer.Context, folder: Path, *, quiet: bool) -> int:
    """Compress every checkpoint of a folder with the options of one command.

    Args:
        context: Of the `compress` command.
        folder: Its checkpoints lie in it directly.
        quiet: Whether nothing is said meanwhile.

    Returns:
        The worst of their exit codes.

    Raises:
        GbnnError: No checkpoint, no place for the artifacts, or an option for one checkpoint only.
    """
    given = context.params
    if given["html"] is not None:
        raise GbnnError("`--html`: a page is of one checkpoint; `report ARTIFACT --html FILE` makes one of an artifact")
    if console.STARTED_TOGETHER in os.environ:
        raise GbnnError(f"`{folder}`: a folder's checkpoints come one after the other; start it without `torchrun`")
    artifacts = _artifacts(_checkpoints(folder), Path(given["output"] or "."))
    console.check_json_target(given["json"])
    done = []
    for number, (checkpoint, artifact) in enumerate(artifacts.items(), start=1):
        if not quiet:
            console.write_stderr(console.one_line(f"{number} of {len(artifacts)}: {checkpoint.name}"))
        code, report = _compress(checkpoint, artifact, _options(context), quiet=quiet)
        done.append({"path": str(checkpoint), "exit_code": code, "report": report})
    if console.write_json({"schema": 1, "checkpoints": done}, given["json"]):
        console.write_stdout(console.render(_table(done)))
    return max(each["exit_code"] for each in done)


def _checkpoints(folder: Path) -> list[Path]:
    """Files that are named as checkpoints are, and not by this program."""
    from gbnn_compress.evaluation import is_artifact
    from gbnn_compress.training_state import SUFFIX
    from gbnn_compress.weights.checkpoint import SAFETENSORS_SUFFIXES, TORCH_SUFFIXES

    suffixes = (*SAFETENSORS_SUFFIXES, *TORCH_SUFFIXES)
    named = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    found = [path for path in named if not path.name.endswith(SUFFIX) and not is_artifact(path)]
    if not found:
        raise GbnnError(f"`{folder}` has no checkpoint in it, expected files in {', '.join(suffixes)}")
    return found


def _artifacts(checkpoints: list[Path], folder: Path) -> dict[Path, Path]:
    """Checkpoint -> where its artifact goes."""
    from gbnn_compress.request import default_output

    if not folder.is_dir():
        raise OutputError(f"`-o {folder}`: a folder of checkpoints needs a folder for the artifacts; make it first")
    places: dict[Path, Path] = {}
    for checkpoint in checkpoints:
        artifact = folder / default_output(checkpoint)
        other = next((name for name, place in places.items() if place == artifact), None)
        if other is not None:
            raise OutputError(
                f"`{other.name}` and `{checkpoint.name}` would both become `{artifact}`; rename one, or compress them"
                " one at a time"
            )
        places[checkpoint] = artifact
    return places


def _options(context: typer.Context) -> list[str]:
    """The options as they were given."""
    found: list[str] = []
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in OWN or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[str(parameter.name)]
        for each in value if isinstance(value, list | tuple) else [value]:
            found += [parameter.opts[0]] if each is True else [parameter.opts[0], str(each)]
    return found


def _compress(
    checkpoint: Path, artifact: Path, options: list[str], *, quiet: bool
) -> tuple[int, dict[str, Any] | None]:
    """Exit code and report; progress, warnings and errors are the process's own."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "report.json")
        own = ["-o", str(artifact), "--json", str(file), *(["-q"] if quiet else [])]
        line = [sys.executable, "-m", "gbnn_compress_cli.main", "compress", *options, *own, "--", str(checkpoint)]
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # Ctrl-C reached it too, and it writes what there is
            raise
        return code, json.loads(file.read_text()) if file.exists() else None


def _table(done: list[dict[str, Any]]) -> Any:
    from gbnn_compress_cli import tables

    return tables.table(
        ("checkpoint", "bytes", "artifact", "ratio", "points lost", "seconds", "result"),
        [(Path(each["path"]).name, *_cells(each["report"]), _result(each["exit_code"])) for each in done],
        left=(0, 6),
    )


def _cells(report: dict[str, Any] | None) -> tuple[str, ...]:
    if report is None:
        return ("-",) * 5
    sizes = (words.size(report["checkpoint"]["bytes"]), words.size(report["artifact"]["bytes"]))
    drop = f"{report['damage']['drop']:.1f}{'' if report['damage']['measured'] else ' (predicted)'}"
    return (*sizes, f"{report['ratio']:.3g}x", drop, f"{report['timings']['total']:.1f}")


def _result(code: int) -> str:
    return RESULTS.get(code, f"failed, exit code {code}")
