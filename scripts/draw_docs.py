"""Draw the pictures of docs/how-it-works.md: `python scripts/draw_docs.py`.

The demonstration's network is trained and compressed; pictures of components and of the merge path are those of its
report page, in the page's light colours. Where the bytes go is drawn from the reports at several ratios.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gbnn_compress_cli.digits_network import train

import gbnn_compress
from gbnn_compress.report import words

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
STYLE = ROOT / "gbnn_compress" / "report" / "templates" / "page.css"

FROM_PAGE = {"plane1": "components-before", "plane2": "components-after", "path": "merge-path"}
"""Ids of the page's figures, and the pictures that they become."""

PAGE_RATIO, RATIOS = 8, (4, 8, 16, 32)
WIDTH, LEFT, BAR, PITCH = 640, 70, 26, 40
RULES = re.compile(r"svg text|\.(grid|axis|density|ellipses|line|dot|chosen|cut|safe)\b")


def main() -> None:
    """Write every picture."""
    torch.set_num_threads(1)
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, page = folder / "digits.pth", folder / "page.html"
        torch.save(train(), checkpoint)
        reports = {ratio: compress(checkpoint, ratio, page if ratio == PAGE_RATIO else None) for ratio in RATIOS}
        for figure, picture in FROM_PAGE.items():
            save(picture, from_page(page.read_text(encoding="utf-8"), figure))
    save("bytes", bytes_picture(reports))


def compress(checkpoint: Path, ratio: float, html: Path | None) -> dict[str, Any]:
    """The report on a file that is not kept."""
    return gbnn_compress.compress(checkpoint, target_ratio=ratio, output=checkpoint.with_suffix(".gbnn"), html=html)


def from_page(html: str, figure: str) -> str:
    """A figure of the report page as a picture of its own."""
    found = re.search(rf'<svg viewBox="([^"]*)"[^>]*{figure}-title.*?</svg>', html, re.DOTALL)
    assert found is not None, figure
    width, height = found[1].split()[2:]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{found[1]}" width="{width}" height="{height}"'
    body = re.sub(r'^<svg viewBox="[^"]*"', f"{head}", found[0]).replace(">", f">\n{style()}\n{paper()}", 1)
    return "\n".join(line.strip() for line in body.splitlines() if line.strip())


def style() -> str:
    """The page's light colours, without variables: not every viewer of pictures knows them."""
    sheet = STYLE.read_text(encoding="utf-8")
    light = dict(re.findall(r"(--[\w-]+): (#\w+);", sheet.partition("@media")[0]))
    rules = [line for line in sheet.splitlines() if RULES.match(line)]
    text = re.sub(r"var\((--[\w-]+)\)", lambda match: light[match[1]], "\n".join(rules))
    return f"<style>svg {{ font-family: system-ui, sans-serif; }}\n{text}</style>"


def paper() -> str:
    """White, also where the page around a picture is dark."""
    return '<rect width="100%" height="100%" fill="#ffffff"/>'


def colours() -> list[str]:
    """Of the sections, as on the page."""
    return re.findall(r"--s\d: (#\w+);", STYLE.read_text(encoding="utf-8").partition("@media")[0])


def bytes_picture(reports: Mapping[int, Mapping[str, Any]]) -> str:
    """A bar a ratio, as long as the file is large, and a key."""
    largest = max(report["artifact"]["bytes"] for report in reports.values())
    scale = (WIDTH - LEFT - 80) / largest
    rows = [_bar(report, y=8 + PITCH * row, scale=scale) for row, report in enumerate(reports.values())]
    height = 8 + PITCH * (len(rows) + 1)
    title = "Where the bytes go, at " + ", ".join(words.times(report["ratio"]) for report in reports.values())
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            'role="img">',
            f"<title>{title}</title>",
            "<style>text { font: 13px system-ui, sans-serif; fill: #191c21; }</style>",
            paper(),
            *rows,
            _key(next(iter(reports.values()))["sections"], y=height - 20),
            "</svg>",
        ]
    )


def _bar(report: Mapping[str, Any], *, y: int, scale: float) -> str:
    x, parts = (
        float(LEFT),
        [f'<text x="{LEFT - 8}" y="{y + 18}" text-anchor="end">{words.times(report["ratio"])}</text>'],
    )
    for size, colour in zip(report["sections"].values(), colours(), strict=True):
        parts.append(f'<rect x="{x:.1f}" y="{y}" width="{size * scale:.2f}" height="{BAR}" fill="{colour}"/>')
        x += size * scale
    return "".join([*parts, f'<text x="{x + 8:.1f}" y="{y + 18}">{words.size(report["artifact"]["bytes"])}</text>'])


def _key(sections: Mapping[str, int], *, y: int) -> str:
    step = (WIDTH - LEFT) / len(sections)
    return "".join(
        f'<rect x="{LEFT + place * step:.0f}" y="{y}" width="12" height="12" fill="{colour}"/>'
        f'<text x="{LEFT + place * step + 18:.0f}" y="{y + 11}">{name.replace("_", " ")}</text>'
        for place, (name, colour) in enumerate(zip(sections, colours(), strict=True))
    )


def save(name: str, picture: str) -> None:
    """Write one picture."""
    (PICTURES / f"{name}.svg").write_text(picture + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
