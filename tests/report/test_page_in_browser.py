"""The page in Chromium, when there is one: nothing overflows at phone and desktop widths, light and dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--dump-dom",
]

FRAME = '<iframe srcdoc="{page}" style="width:{width}px;height:900px;border:0"></iframe>'

MEASURE = """
<script>
const measured = (frame) => {
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach((each) => each.open = true);
  const right = (each) => each.getBoundingClientRect().right;
  return {
    width: root.clientWidth,
    scroll: root.scrollWidth,
    wide: [...page.querySelectorAll("body, body *")].filter((each) => right(each) > root.clientWidth + 1).length,
    pictures: [...page.querySelectorAll("svg")].filter((each) => each.getBoundingClientRect().height > 50).length,
    paper: getComputedStyle(page.body).backgroundColor,
  };
};
window.onload = () => document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(measured));
</script>
"""

WIDTHS = (390, 1280)


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize(("scheme", "paper"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 22, 26)")])
def test_nothing_overflows(pages, tmp_path, scheme, paper):
    shown = [(text, width) for text in (pages.evaluated, pages.of_file, pages.of_data) for width in WIDTHS]
    shell = tmp_path / "shell.html"
    shell.write_text("".join(FRAME.format(page=html.escape(text), width=width) for text, width in shown) + MEASURE)
    colours = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    done = subprocess.run(
        [str(BROWSER), *OPTIONS, colours, f"--user-data-dir={tmp_path / 'profile'}", shell.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title, done.stderr
    for (text, width), measured in zip(shown, json.loads(html.unescape(title[1])), strict=True):
        pictures = text.count("<svg")
        assert measured == {"width": width, "scroll": width, "wide": 0, "pictures": pictures, "paper": paper}
