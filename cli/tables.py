"""Tables without lines, readable in a pipe and on a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.cells import cell_len
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gbnn_compress.report import words
from gbnn_compress.report.words import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType

COVERAGE = "coverage_at_5_percent_risk"
NAME_WIDTH = 36

GAP = 3
"""Spaces between columns."""

SPLIT_BEYOND = 20
"""Longer words, such as names of tensors and files, may be split over two lines."""

SEVERE, SERIOUS = 10.0, 2.0
"""Accuracy points lost above which a row is red, or yellow."""

LOST_ERROR, LARGE_ERROR = 1.0, 0.3
"""Relative errors of outputs from which on a row is red, or yellow."""


@dataclass(frozen=True)
class Rows:
    """A table; on terminals too narrow for its words, each row is a paragraph.

    Attributes:
        titles: Titles of the columns.
        rows: Cells; the first is the name of the row.
        styles: One per row.
        left: Positions of the columns that are aligned left.
    """

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    styles: tuple[str, ...]
    left: frozenset[int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self._least_width() <= options.max_width:
            yield self._columns()
        else:
            yield from self._paragraphs()

    def _least_width(self) -> int:
        """Width of the columns side by side, with numbers and words up to SPLIT_BEYOND not split."""
        columns = zip(self.titles, *self.rows, strict=True)
        return sum(self._least_of(i, cells) + GAP for i, cells in enumerate(columns)) - GAP

    def _least_of(self, position: int, cells: tuple[str, ...]) -> int:
        if position not in self.left:
            return max(map(cell_len, cells))
        return max((min(cell_len(word), SPLIT_BEYOND) for cell in cells for word in cell.split()), default=0)

    def _columns(self) -> Table:
        made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
        for position, title in enumerate(self.titles):
            justify: Literal["left", "right"] = "left" if position in self.left else "right"
            made.add_column(title, justify=justify, overflow="fold", no_wrap=position not in self.left)
        for row, style in zip(self.rows, self.styles, strict=True):
            made.add_row(*row, style=style)
        return made

    def _paragraphs(self) -> Iterator[RenderableType]:
        yield Text(self.titles[0], style="bold")
        for (name, *cells), style in zip(self.rows, self.styles, strict=True):
            yield Text(name, style=style, overflow="fold")
            pairs = zip(self.titles[1:], cells, strict=True)
            rest = "; ".join(f"{title} {cell}".strip() for title, cell in pairs if cell)
            yield Padding(Text(rest, style=style, overflow="fold"), (0, 0, 0, 2))


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    styles: Sequence[str] | None = None,
    left: Collection[int] = (0,),
) -> Rows:
    """A table with names aligned left and numbers aligned right.

    Args:
        titles: Titles of the columns.
        rows: Cells.
        styles: One per row.
        left: Positions of the columns that are aligned left.
    """
    cells = tuple(tuple(map(printable, row)) for row in rows)
    return Rows(tuple(titles), cells, tuple(styles or [""] * len(cells)), frozenset(left))


def facts(pairs: Iterable[tuple[str, str]]) -> Table:
    """Names and values in two columns; long values wrap."""
    made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, printable(value))
    return made


def metrics(title: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Rows:
    """The measures that all networks have; one row per network."""
    networks = list(rows)
    shown = [key for key in words.MEASURES if all(key in values for _, values in networks)]
    return table(
        (title, *(words.MEASURES[key] for key in shown)),
        [(name, *(_measure(key, values[key]) for key in shown)) for name, values in networks],
    )


def output_measures(title: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Rows:
    """The measures of outputs that any network has; one row per network."""
    networks = list(rows)
    shown = [key for key in words.OUTPUT_MEASURES if any(key in values for _, values in networks)]
    return table(
        (title, *(words.OUTPUT_MEASURES[key] for key in shown)),
        [(name, *(words.output_measure(key, values.get(key)) for key in shown)) for name, values in networks],
    )


def output_errors(values: Mapping[str, Any]) -> Iterator[RenderableType]:
    """A table with the relative error of each output; nothing for a single output."""
    if rows := words.output_errors(values):
        yield ""
        yield table(("output", "relative error"), rows)


def detection(title: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Rows:
    """AUROC and FPR95, one row per score."""
    return table(
        (title, "AUROC", "FPR95"),
        [(name, words.decimals(values["auroc"]), words.percent(values["fpr95"])) for name, values in rows],
    )


def style_of_damage(damage: Mapping[str, Any]) -> str:
    """Style for the damage: of accuracy points, or of a measured error of outputs."""
    error = damage.get("relative_error")
    if damage["drop"] is not None or not damage["measured"]:
        return style_of(damage["drop"])
    return "bold red" if error is None or error >= LOST_ERROR else "yellow" if error > LARGE_ERROR else ""


def style_of(drop: float | None) -> str:
    """Style for a number of accuracy points lost; empty for None."""
    if drop is None:
        return ""
    return "bold red" if drop > SEVERE else "yellow" if drop > SERIOUS else ""


def line(text: str, style: str = "") -> Text:
    """One line of text."""
    return Text(printable(text), style=style)


def short(name: str) -> str:
    """The end of a tensor's name, at most NAME_WIDTH characters."""
    return name if len(name) <= NAME_WIDTH else f"...{name[3 - NAME_WIDTH :]}"


def _measure(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "accuracy":
        return f"{100 * value:.2f} %"
    return words.percent(value) if key == COVERAGE else words.decimals(value)
