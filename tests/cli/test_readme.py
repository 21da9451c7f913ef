"""Every command line of the README is one that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.core
import typer.main
from gbnn_compress_cli import usage
from gbnn_compress_cli.main import app

README = Path(__file__).parents[2] / "README.md"

PROMPT = "$ gbnn-compress "

FEWEST = 5
"""With fewer commands in it, either the README lost them or this test no longer finds them."""


def code_lines(markdown: str) -> list[str]:
    """Lines of fenced and of indented code blocks, continued ones joined."""
    lines, fenced = [], False
    for line in re.sub(r"\\\n\s*", "", markdown).splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith(("    ", "\t")):
            lines.append(line.strip())
    return lines


def command_words(line: str) -> list[str]:
    """Words of a command line, without the comment beside it and what a shell does with the output."""
    command = re.split(r"\s{2,}|\s(?:#|\||>|&&|;)", line.removeprefix(PROMPT).strip())[0]
    return shlex.split(command)


def parse(words: list[str]) -> None:
    """Parse as the program does, and run nothing.

    Raises:
        Exception: No such command or option, an argument too many or missing, or a number that is none.
    """
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    name, *rest = usage.route(words, command.commands)
    if name in usage.GLOBAL_OPTIONS:
        return
    command = command.commands[name]
    while isinstance(command, typer.core.TyperGroup):
        name, *rest = rest
        command = command.commands[name]
    with command.make_context(name, rest):
        pass


COMMANDS = [line for line in code_lines(README.read_text(encoding="utf-8")) if line.startswith(PROMPT)]


def test_the_readme_shows_commands_and_all_are_found() -> None:
    assert len(COMMANDS) >= FEWEST
    assert len(COMMANDS) == len(re.findall(rf"^\s*{re.escape(PROMPT)}", README.read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS))
def test_command_of_the_readme_parses(line: str) -> None:
    parse(command_words(line))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("$ gbnn-compress report x.safetensors      where every byte went", "report x.safetensors"),
        ("$ gbnn-compress plan x.pth # writes nothing", "plan x.pth"),
        ("$ gbnn-compress plan x.pth --json - | jq .rates", "plan x.pth --json -"),
        ("$ gbnn-compress 'my net.pth' > log", "'my net.pth'"),
    ],
)
def test_what_belongs_to_a_command(line: str, expected: str) -> None:
    assert command_words(line) == shlex.split(expected)


@pytest.mark.parametrize(
    "line",
    [
        "plan x.pth --target-ratoi 8",
        "x.pth --max-drop much",
        "compres x.pth",
        "report",
        "report x.safetensors y.safetensors",
        "recipe sohw default",
    ],
)
def test_a_wrong_command_would_be_noticed(line: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - the parser's own kinds are private
        parse(line.split())
