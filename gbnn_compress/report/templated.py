"""Templates filled in: pages that are one file, fetch nothing and run nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbnn_compress import files
from gbnn_compress.errors import OutputError
from gbnn_compress.report import words

if TYPE_CHECKING:
    import jinja2


def filled(template: str, **values: Any) -> str:
    """A page as HTML; the same values give the same text.

    Args:
        template: Name of its file.
        values: What it shows.
    """
    return _environment().get_template(template).render(**values)


def require_writable(path: Path, **taken: Path) -> None:
    """Fail before the work when a page cannot be written.

    Args:
        path: Of the page.
        taken: Files that it must not be, by what they are (`checkpoint`).

    Raises:
        OutputError: It is one of them, or cannot be written.
    """
    for what, other in taken.items():
        if files.same_file(path, other):
            raise OutputError(f"cannot write `--html {path}`: it is the {what}; choose another file")
    files.require_writable(path)


@cache
def _environment() -> jinja2.Environment:
    """Everything is escaped, control characters shown as what they are, and a name that is not given is a bug."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gbnn_compress.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: words.printable(value) if type(value) is str else value,
    )
    for shown in (words.size, words.times, words.percent, words.points, words.decimals, words.shape):
        environment.filters[shown.__name__] = shown
    return environment
