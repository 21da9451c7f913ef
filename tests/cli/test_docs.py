"""The README and docs/: commands parse, what is run prints what is shown, links lead somewhere."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer.core
import typer.main
from gbnn_compress_cli import usage
from gbnn_compress_cli.main import app

import gbnn_compress

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import run_docs  # noqa: E402

README = ROOT / "README.md"
PAGES = {page.relative_to(ROOT).as_posix(): page for page in (README, *sorted((ROOT / "docs").glob("*.md")))}
TEXTS = {name: page.read_text(encoding="utf-8") for name, page in PAGES.items()}
RUN = [page.relative_to(ROOT).as_posix() for page in run_docs.RUN]
SLOW = [name for name in RUN if any("slow" in step.marks for step in run_docs.steps(TEXTS[name]))]

OWN = ("models", "mine", "reading")
"""Modules that the pages write into their folder."""

FEWEST = 20
"""With fewer commands in all pages, either they lost them or this test no longer finds them."""


def code_lines(markdown: str) -> list[str]:
    """Lines of fenced and of indented code blocks, continued ones joined."""
    lines, fenced = [], False
    for line in re.sub(r"\\\n\s*", "", markdown).splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith(("    ", "\t")):
            lines.append(line.strip())
    return lines


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


COMMANDS = [line for text in TEXTS.values() for line in code_lines(text) if line.startswith(run_docs.PROMPT)]


def test_the_pages_show_commands_and_all_are_found() -> None:
    assert len(COMMANDS) >= FEWEST
    prompt = rf"^\s*{re.escape(run_docs.PROMPT)}"
    assert len(COMMANDS) == sum(len(re.findall(prompt, text, re.MULTILINE)) for text in TEXTS.values())


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS))
def test_command_of_the_pages_parses(line: str) -> None:
    parse(shlex.split(run_docs.command(line)))


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
    assert run_docs.command(line) == expected


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


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Path]:
    """A folder with the files that the pages speak of, as the quickstart makes them."""
    folder = tmp_path_factory.mktemp("docs")
    (setup,) = (step for step in run_docs.steps(TEXTS["docs/quickstart.md"]) if "setup" in step.marks)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        for name in OWN:
            patch.delitem(sys.modules, name, raising=False)
        run_docs.run(setup, {})
        yield folder
    for name in OWN:
        sys.modules.pop(name, None)


def check(page: str, *, chosen: Callable[[run_docs.Step], bool]) -> None:
    """Run steps of a page; what they print must have the lines that the page shows."""
    names: dict[str, object] = {}
    for step in run_docs.steps(TEXTS[page]):
        if chosen(step) and not {"setup", "shown"} & step.marks:
            run_docs.refreshed(step, run_docs.run(step, names))


@pytest.mark.long
@pytest.mark.parametrize("page", RUN)
def test_what_a_page_runs_prints_what_it_shows(page: str, stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stand_ins)
    check(page, chosen=lambda step: "slow" not in step.marks)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_what_takes_long_prints_what_the_page_shows(
    page: str, stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stand_ins)
    check(page, chosen=lambda step: "slow" in step.marks)


EXAMPLE = """
```python
print("one 1")
print("two  22 s")
print("three")
```

```text
one 7
...
three
```

```console slow
$ gbnn-compress report no.safetensors     beside it
$ echo $?
2
$ gbnn-compress recipe ls
default
```
"""


def test_steps_of_a_page() -> None:
    python, refused, listed = run_docs.steps(EXAMPLE)
    assert (python.language, python.shown) == ("python", ("one 7", "...", "three"))
    assert EXAMPLE[slice(*python.span)] == "one 7\n...\nthree\n"
    assert (refused.code, refused.exit_code, refused.shown) == ("report no.safetensors", 2, ())
    assert (listed.code, listed.exit_code, listed.shown, listed.marks) == ("recipe ls", 0, ("default",), {"slow"})


def test_a_block_with_a_file_name_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (step,) = run_docs.steps("```python own.py\nprint(1)\n```\n")
    assert run_docs.run(step, {}) == []
    assert Path("own.py").read_text(encoding="utf-8") == "print(1)\n"


def test_shown_lines_are_refreshed() -> None:
    python = run_docs.steps(EXAMPLE)[0]
    assert run_docs.refreshed(python, run_docs.run(python, {})) == ["one 1", "...", "three"]


def test_of_rows_alike_the_one_that_starts_alike_is_shown() -> None:
    (step,) = run_docs.steps("```console\n$ gbnn-compress x\n16x   9 kB\n```\n")
    assert run_docs.refreshed(step, ["4x    81 kB", "16x   20 kB", "50x   6 kB"]) == ["16x   20 kB"]


@pytest.mark.parametrize("printed", [["three", "one 1"], ["one 1"], ["one more", "three"]])
def test_a_line_that_is_not_printed_would_be_noticed(printed: list[str]) -> None:
    with pytest.raises(run_docs.Different, match="does not print"):
        run_docs.refreshed(run_docs.steps(EXAMPLE)[0], printed)


def test_another_exit_code_would_be_noticed() -> None:
    step = run_docs.steps(EXAMPLE.replace("\n2\n", "\n0\n"))[1]
    with pytest.raises(run_docs.Different, match="exit code 2"):
        run_docs.run(step, {})


def anchors(markdown: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", markdown, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", TEXTS[page], flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{page}: {target}"


def test_pictures_say_what_they_show() -> None:
    for name, text in TEXTS.items():
        for alternative in re.findall(r"!\[([^\]]*)\]\(", text):
            assert len(alternative) > 20, f"{name}: ![{alternative}]"


def test_every_page_is_in_the_index() -> None:
    index = TEXTS["docs/README.md"]
    missing = [name for name in PAGES if name.startswith("docs/") and f"({name.removeprefix('docs/')})" not in index]
    assert missing == ["docs/README.md"]


@pytest.mark.parametrize("name", gbnn_compress.__all__)
def test_every_public_name_and_argument_is_described(name: str) -> None:
    sections = re.split(r"^## ", TEXTS["docs/python-api.md"], flags=re.MULTILINE)
    (section,) = (each for each in sections if each.partition("\n")[0] == name)
    assert "```python" in section
    thing = getattr(gbnn_compress, name)
    if isinstance(thing, type) and issubclass(thing, Exception):
        return
    public = {key: each for key, each in vars(thing).items() if key[0] != "_" and callable(each)}
    described = list(public.values()) if name.startswith("Compressed") else [thing]
    assert all(f"`{method}(" in section for method in public)
    for each in described:
        for argument in inspect.signature(each).parameters:
            assert argument == "self" or re.search(rf"`{argument}[`=]|\b{argument}=", section), f"{name}: `{argument}`"
