"""The page in Chromium, when there is one: nothing overflows at phone and desktop widths, light and dark."""

from __future__ import annotations

import html
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
    "--dump-dom",
]

MEASURED = """<iframe id="frame" srcdoc="{page}" style="width:{width}px;height:900px;border:0"></iframe>
<script>
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll("details").forEach((each) => each.open = true);
  const wide = [...page.querySelectorAll("body *")].filter((each) => each.getBoundingClientRect().right > {width} + 1);
  const pictures = [...page.querySelectorAll("svg")].filter((each) => each.getBoundingClientRect().height > 50);
  const paper = getComputedStyle(page.body).backgroundColor;
  document.title = JSON.stringify([root.scrollWidth, root.clientWidth, wide.length, pictures.length, paper]);
}};
</script>"""

PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["evaluated", "of_file"])
def test_nothing_overflows(pages, tmp_path, which, width, scheme):
    text = getattr(pages, which)
    shell = tmp_path / "shell.html"
    shell.write_text(MEASURED.format(page=html.escape(text), width=width))
    colours = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    done = subprocess.run(
        [str(BROWSER), *OPTIONS, colours, f"--user-data-dir={tmp_path / 'profile'}", shell.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title, done.stderr
    expected = f'[{width},{width},0,{text.count("<svg")},"{PAPER[scheme]}"]'
    assert html.unescape(title[1]) == expected
