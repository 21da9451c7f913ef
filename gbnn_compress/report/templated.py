"""Rendering of templates into pages that are one file, without requests and scripts."""

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
        template: Name of the template's file.
        values: Values by name.
    """
    return _environment().get_template(template).render(**values)


def require_writable(path: Path, **taken: Path) -> None:
    """Fail early where a page cannot be written.

    Args:
        path: Path of the page.
        taken: Files that the page must not overwrite, by what they are (`checkpoint`).

    Raises:
        OutputError: The path is one of them, or cannot be written.
    """
    for what, other in taken.items():
        if files.same_file(path, other):
            raise OutputError(f"cannot write `--html {path}`: it is the {what}; choose another file")
    files.require_writable(path)


@cache
def _environment() -> jinja2.Environment:
    """The environment: it escapes everything, shows control characters as escapes, and raises on missing names."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gbnn_compress.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: words.printable(value) if type(value) is str else value,
    )
    filters = (words.size, words.times, words.percent, words.points, words.decimals, words.shape, words.output_measure)
    for shown in filters:
        environment.filters[shown.__name__] = shown
    return environment
