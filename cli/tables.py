"""Tables without lines, as readable in a pipe as on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table
from rich.text import Text

from gbnn_compress.output import words
from gbnn_compress.output.words import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

COVERAGE = "coverage_at_5_percent_risk"
NAME_WIDTH = 36

SEVERE, SERIOUS = 10.0, 2.0
"""Accuracy points lost from which a row is red, or yellow."""


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    styles: Sequence[str] | None = None,
    left: Collection[int] = (0,),
) -> Table:
    """Names to the left, numbers to the right.

    Args:
        titles: Of the columns.
        rows: Cells as strings.
        styles: One a row.
        left: Positions of the columns of words.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for position, title in enumerate(titles):
        justify: Literal["left", "right"] = "left" if position in left else "right"
        made.add_column(title, justify=justify, overflow="fold", no_wrap=position not in left)
    for position, row in enumerate(rows):
        made.add_row(*map(printable, row), style=styles[position] if styles else None)
    return made


def facts(pairs: Iterable[tuple[str, str]]) -> Table:
    """Names and what they are, in two columns; long values wrap within theirs."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, printable(value))
    return made


def metrics(title: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Table:
    """Accuracy, NLL, ECE and Brier score, and adaptive ECE and coverage where there are any; one row a network."""
    networks = list(rows)
    shown = [key for key in words.MEASURES if all(key in values for _, values in networks)]
    return table(
        (title, *(words.MEASURES[key] for key in shown)),
        [(name, *(_measure(key, values[key]) for key in shown)) for name, values in networks],
    )


def detection(title: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Table:
    """AUROC and FPR95, one row a score."""
    return table(
        (title, "AUROC", "FPR95"),
        [(name, words.decimals(values["auroc"]), words.percent(values["fpr95"])) for name, values in rows],
    )


def style_of(drop: float) -> str:
    """Colour of so many accuracy points lost."""
    return "bold red" if drop > SEVERE else "yellow" if drop > SERIOUS else ""


def line(text: str, style: str = "") -> Text:
    """One line of text."""
    return Text(printable(text), style=style)


def short(name: str) -> str:
    """A tensor's name at no more than NAME_WIDTH characters; its end tells most."""
    return name if len(name) <= NAME_WIDTH else f"...{name[3 - NAME_WIDTH :]}"


def _measure(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "accuracy":
        return f"{100 * value:.2f} %"
    return words.percent(value) if key == COVERAGE else words.decimals(value)
