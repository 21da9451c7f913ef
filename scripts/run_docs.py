"""Run what the pages of docs/ show, and put what it prints back into them: `python scripts/run_docs.py [PAGE ...]`.

A fenced block of Python is run, and so is each line that starts with `$ gbnn-compress`; all of them in one folder,
which docs/quickstart.md fills with stand-ins. The lines below a command, or of a `text` block after one of Python, are
lines of what it prints, in that order; `...` marks those left out, and numbers are refreshed. `$ echo $?` shows the
exit code where it is not 0. Blocks marked `slow` are run here and by the slow tests, blocks marked `shown` never.
Blocks marked `setup` are run before the others. A block of Python that is marked with a file name is written to that
file.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RUN = (
    *(DOCS / "quickstart.md", ROOT / "README.md", DOCS / "any-network.md", DOCS / "python-api.md", DOCS / "faq.md"),
    DOCS / "ensembles.md",
)
"""Pages that are run, the one that makes the stand-ins first."""

PROMPT = "$ gbnn-compress "
EXIT_CODE = "$ echo $?"
LEFT_OUT = "..."
FENCE = re.compile(r"^```(?P<language>\w*)(?P<marks>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """One command or one block of Python, with what the page shows of its output.

    Attributes:
        language: `python`, or `console` for a command.
        marks: Words behind the language of the block.
        code: What is run.
        shown: Lines of output on the page.
        span: Where those lines are in the page's text.
        exit_code: What the page says it is.
    """

    language: str
    marks: frozenset[str]
    code: str
    shown: tuple[str, ...]
    span: tuple[int, int]
    exit_code: int = 0


class Different(Exception):
    """The page shows something else than what is printed."""


def steps(page: str) -> list[Step]:
    """What a page's text runs, in its order."""
    found: list[Step] = []
    for block in FENCE.finditer(page):
        language, marks, text = block["language"], frozenset(block["marks"].split()), block["text"]
        if language == "console":
            found += _commands(text, marks, start=block.start("text"))
        elif language == "python":
            found.append(Step("python", marks, text, (), (block.end(), block.end())))
        elif language == "text" and found and not page[found[-1].span[1] : block.start()].strip():
            last = found.pop()
            found.append(Step(last.language, last.marks, last.code, tuple(text.splitlines()), block.span("text")))
    return found


def _commands(text: str, marks: frozenset[str], *, start: int) -> Iterator[Step]:
    parts = [(match.start(), match[0]) for match in re.finditer(r"^\$ .*\n", text, re.MULTILINE)]
    ends = [*(place for place, _ in parts[1:]), len(text)]
    outputs = [(place + len(line), end) for (place, line), end in zip(parts, ends, strict=True)]
    for number, (_, line) in enumerate(parts):
        if line.startswith(PROMPT):
            first, last = outputs[number]
            asked = number + 1 < len(parts) and parts[number + 1][1].strip() == EXIT_CODE
            code = int(text[slice(*outputs[number + 1])]) if asked else 0
            shown = tuple(text[first:last].splitlines())
            yield Step("console", marks, command(line), shown, (start + first, start + last), code)


def command(line: str) -> str:
    """A command line without the prompt, the comment beside it and what a shell does with the output."""
    return re.split(r"\s{2,}|\s(?:#|\||>|&&|;)", line.removeprefix(PROMPT).strip())[0]


def run(step: Step, names: dict[str, Any]) -> list[str]:
    """Lines that a step prints, on both streams.

    Args:
        step: To run in the working directory.
        names: Of the page's Python so far; changed.

    Raises:
        Different: Another exit code than the page's.
    """
    from gbnn_compress_cli.main import main

    printed = io.StringIO()
    file = next((mark for mark in step.marks if mark.endswith(".py")), None)
    with redirect_stdout(printed), redirect_stderr(printed):
        if file is not None:
            Path(file).write_text(step.code, encoding="utf-8")
        elif step.language == "python":
            exec(compile(step.code, "docs", "exec"), names)
        elif (code := main(shlex.split(step.code))) != step.exit_code:
            raise Different(f"`{step.code}`: exit code {code}\n{printed.getvalue()}")
    return [line.rstrip() for line in printed.getvalue().splitlines()]


def refreshed(step: Step, printed: Sequence[str]) -> list[str]:
    """The lines that a page shows, as they are printed now.

    Raises:
        Different: One of them is not printed, numbers aside, or not in that order.
    """
    lines, start = [], 0
    for shown in step.shown:
        if shown.strip() in ("", LEFT_OUT):
            lines.append(shown)
            continue
        places = [place for place in range(start, len(printed)) if alike(printed[place]) == alike(shown)]
        if not places:
            raise Different(f"`{step.code}` does not print `{shown}`, but\n" + "\n".join(printed))
        # Of rows that differ in numbers only the one that starts alike: `16x`, `epoch 5/5`.
        place = max(places, key=lambda place: [_starts(printed[place], shown, words) for words in (1, 2)])
        lines.append(printed[place])
        start = place + 1
    return lines


def _starts(line: str, other: str, words: int) -> bool:
    return line.split()[:words] == other.split()[:words]


def alike(line: str) -> str:
    """A line without what differs from machine to machine: numbers, units of time, and the blanks beside them."""
    line = line.replace("no accuracy lost", "0 points of accuracy lost").replace("less than 0.1", "0.1")
    line = re.sub(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "0", line).replace("> 0", "0").replace("< 0", "0")
    return " ".join(re.sub(r"\b0 (s|min)\b", "0 s", line).replace("gained", "lost").split())


def main(pages: Sequence[str]) -> None:
    """Run pages, and write back what their commands print; the stand-ins are made in any case."""
    wanted = [Path(page).resolve() for page in pages] or list(RUN)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        sys.path.insert(0, folder)
        for page in [RUN[0], *(each for each in RUN[1:] if each in wanted)]:
            text, names = page.read_text(encoding="utf-8"), {}
            chosen = [step for step in steps(text) if "shown" not in step.marks]
            chosen.sort(key=lambda step: "setup" not in step.marks)
            done = [(step, refreshed(step, run(step, names))) for step in chosen]
            for step, lines in sorted(done, key=lambda each: each[0].span, reverse=True):
                text = text[: step.span[0]] + "".join(f"{line}\n" for line in lines) + text[step.span[1] :]
            page.write_text(text, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: {len(done)} steps run")


if __name__ == "__main__":
    main(sys.argv[1:])
