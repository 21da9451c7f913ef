"""Routing of the command line to a command, and one line for each usage error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbnn_compress.errors import GbnnError, did_you_mean, nearest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

DEFAULT_COMMAND = "compress"
GLOBAL_OPTIONS = ("--help", "-h", "--version")


def route(words: Sequence[str], commands: Mapping[str, Any]) -> list[str]:
    """Put the command first; without one, `compress`.

    Args:
        words: The command line without the program.
        commands: The commands by name, with their parameters (`params`).

    Raises:
        GbnnError: The first argument is neither a command nor similar to a file name.
    """
    if not words:
        return ["--help"]
    if words[0] in GLOBAL_OPTIONS:
        return [words[0]]
    position = first_argument(words, _options_with_value(commands))
    if position is None:
        return [DEFAULT_COMMAND, *words]
    word = words[position]
    if "--" not in words[:position]:
        if word in commands:
            return [word, *words[:position], *words[position + 1 :]]
        _require_file_like(word, commands)
    return [DEFAULT_COMMAND, *words]


def first_argument(words: Sequence[str], with_value: Collection[str]) -> int | None:
    """Index of the first word that is neither an option nor the value of one."""
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            return position + 1 if position + 1 < len(words) else None
        if not word.startswith("-") or word == "-":
            return position
        position += 2 if _takes_next(word, with_value) else 1
    return None


def describe(error: Any) -> str:
    """One line for a usage error of the command-line parser.

    Args:
        error: An exception of click or typer, with `format_message()` and usually `ctx`.
    """
    context: Any = getattr(error, "ctx", None)
    parameter: Any = getattr(error, "param", None)
    path = context.command_path if context is not None else "gbnn-compress"
    text = " ".join(error.format_message().split())
    if type(error).__name__ == "NoSuchOption":
        known = _names(context.command.params) if context is not None else []
        message = f"unknown option `{error.option_name}`{did_you_mean(_nearest_option(error.option_name, known))}"
    elif type(error).__name__ == "MissingParameter" and parameter is not None:
        option = f"{parameter.opts[0]} " if parameter.param_type_name == "option" else ""
        message = f"missing {parameter.param_type_name} `{option}{parameter.metavar}`"
    elif parameter is not None:
        message = f"`{parameter.opts[0]}`: {error.message}"
    elif match := re.match(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", text):
        message = f"unexpected argument `{match[1]}`"
    elif match := re.match(r"No such command '(.*?)'", text):
        message = f"unknown command `{match[1]}`{did_you_mean(nearest(match[1], context.command.commands))}"
    elif text.startswith("Missing command"):
        message = f"missing command: expected one of {', '.join(context.command.commands)}"
    else:
        message = text.rstrip(".").replace("'", "`")
        message = message[:1].lower() + message[1:]
    return f"{message}; see `{path} --help`"


def _nearest_option(option: str, known: Iterable[str]) -> str | None:
    """The known long option most like a given one; their dashes are not compared."""
    match = nearest(option.lstrip("-"), (name.removeprefix("--") for name in known if name.startswith("--")))
    return match and f"--{match}"


def _require_file_like(word: str, commands: Iterable[str]) -> None:
    path = Path(word)
    if path.suffix or len(path.parts) > 1 or word.endswith("/") or path.exists():
        return
    names = list(commands)
    hint = did_you_mean(nearest(word, names))
    raise GbnnError(f"`{word}` is neither a command nor a file{hint}; commands: {', '.join(names)}")


def _options_with_value(commands: Mapping[str, Any]) -> set[str]:
    every = [parameter for command in commands.values() for parameter in command.params]
    return set(_names(parameter for parameter in every if not getattr(parameter, "is_flag", False)))


def _names(parameters: Iterable[Any]) -> list[str]:
    return [name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)]


def _takes_next(word: str, with_value: Collection[str]) -> bool:
    if word.startswith("--"):
        return word in with_value
    letters = word[1:]
    for position, letter in enumerate(letters):
        if f"-{letter}" in with_value:
            return position == len(letters) - 1
    return False
