"""The page: complete, self-contained, escaped, the same for the same input."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

import gbnn_compress
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.report import page, words

SECTIONS = {
    "evaluated": ["bytes", "facts", "components", "path", "evaluation", "layers", "recipe"],
    "bare": ["bytes", "facts", "components", "path", "layers", "recipe"],
    "of_file": ["bytes", "facts", "components", "layers", "recipe"],
    "of_data": ["evaluation", "ood"],
}
EVERY = pytest.mark.parametrize("which", SECTIONS)
VOID = {"meta", "br"}


class Elements(HTMLParser):
    """Elements in order, checked to be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def elements(text, tag=None):
    return [attributes for name, attributes in Elements(text).elements if tag in (None, name)]


def of_file(pages):
    return page.file_page(read_artifact(pages.folder / "tiny.gbnn.safetensors"), name="tiny")


@pytest.mark.long
@EVERY
def test_every_section_that_there_are_data_for(pages, which):
    text = getattr(pages, which)
    assert [section["id"] for section in elements(text, "section")] == SECTIONS[which]
    assert not re.search(r"\b(None|nan|inf)\b", text)


@EVERY
def test_nothing_is_fetched_and_nothing_runs(pages, which):
    text = getattr(pages, which)
    for attributes in elements(text):
        assert not {"src", "href", "srcset", "action"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    assert not elements(text, "script") + elements(text, "link") + elements(text, "iframe")
    assert not re.search(r"https?:|@import", text)
    assert set(re.findall(r"url\((.)", text)) <= {"#"}


@pytest.mark.parametrize("which", sorted(set(SECTIONS) - {"of_data"}))
def test_names_are_escaped(pages, which):
    text = getattr(pages, which)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.weight" in text
    assert "<script" not in text
    assert "\\x1b[2J\\u202e.weight" in text
    assert text.replace("\n", "").isprintable()


def test_the_name_of_the_file_is_escaped(pages):
    assert "<h1>tiny&lt;b&gt;.pth</h1>" in pages.bare


@EVERY
def test_pictures_say_what_they_show(pages, which):
    text = getattr(pages, which)
    pictures = [each for each in elements(text) if each.get("role") == "img"]
    assert len(pictures) == len(elements(text, "svg")) + (0 if which == "of_data" else 2)
    for picture in pictures:
        named = [re.search(f'id="{name}">([^<]+)<', text) for name in picture.get("aria-labelledby", "").split()]
        assert picture.get("aria-label") or (len(named) == 2 and all(named))
    ids = [each["id"] for each in elements(text) if "id" in each]
    assert len(ids) == len(set(ids))


def test_the_headline_says_how_small_and_how_much_was_lost(pages):
    report = pages.report
    tiles = re.findall(r"<dt>(.*?)</dt><dd.*?>(.*?)</dd>", pages.evaluated.partition("</dl>")[0])
    assert tiles[0] == ("smaller, whole file, every byte counted", words.times(report["ratio"]))
    assert "measured" in tiles[1][0]
    assert tiles[1][1] == words.points(report["damage"]["drop"])
    assert "predicted" in re.findall(r"<dt>(.*?)</dt>", pages.bare)[1]


def test_what_is_safe_is_said_of_files_without_training(pages):
    shown = of_file(pages)
    assert "<dt>predicted safe ratio (within 1 point)</dt>" in page.render(shown)
    trained = replace(shown, report=shown.report | {"training": {"epochs": 1, "beta": 1.0}})
    assert "<dt>predicted safe ratio, without training (within 1 point)</dt>" in page.render(trained)
    rate = {"bytes": 1000, "components": 5, "ratio": 5.0, "drop": 1.0}
    curve = {0: rate, 1: rate | {"bytes": 500, "ratio": 10.0, "drop": 2.0}}
    assert "predicted for this file" in page.render(replace(shown, curve=curve))
    text = page.render(replace(trained, curve=curve))
    assert "predicted without training" in text
    assert "where the path was cut" not in text


def test_warnings_and_a_missed_target_are_shown(pages):
    shown = of_file(pages)
    report = shown.report | {"warnings": ["beware of <b>"], "target_met": False, "target_ratio": 1000.0}
    text = page.render(replace(shown, report=report))
    assert "<strong>Warning:</strong> beware of &lt;b&gt;</p>" in text
    assert '<span class="bad">Target 1,000x: missed, ' in text
    assert "Warning" not in page.render(replace(shown, report=report | {"warnings": []}))


def test_the_same_input_gives_the_same_page(pages, tmp_path):
    gbnn_compress.compress(
        pages.folder / "tiny<b>.pth",
        target_ratio=pages.report["target_ratio"],
        settings=pages.settings,
        output=tmp_path / "again.safetensors",
        html=tmp_path / "again.html",
    )
    assert (tmp_path / "again.html").read_text() == pages.bare


def test_long_networks_show_the_worst_layers_and_fold_the_rest(pages):
    shown = of_file(pages)
    layer = shown.report["layers"][0]
    layers = [layer | {"name": f"block{n}.weight", "bytes": n} for n in range(200)]
    text = page.render(replace(shown, report=shown.report | {"layers": layers}))
    worst, folded = text.split("<details>")
    assert "block199.weight</td>" in worst
    assert "block100.weight</td>" not in worst
    assert "block100.weight</td>" in folded
    assert "<details>" not in pages.of_file


@pytest.mark.long
def test_the_paper_has_a_page_too(pages, tmp_path):
    gbnn_compress.compress(
        pages.folder / "tiny<b>.pth",
        target_ratio=6,
        recipe="paper",
        settings=pages.settings,
        output=tmp_path / "other.safetensors",
        html=tmp_path / "other.html",
    )
    text = (tmp_path / "other.html").read_text()
    assert "Before merging" in text
    assert "An ellipse is a component" in text


def test_a_network_of_constants_has_a_page(tmp_path):
    import torch

    torch.save({"zeros": torch.zeros(8, 8), "ones": torch.ones(8)}, tmp_path / "constant.pth")
    gbnn_compress.compress(
        tmp_path / "constant.pth", target_ratio=1, output=tmp_path / "c.safetensors", html=tmp_path / "c.html"
    )
    Elements((tmp_path / "c.html").read_text())


def test_the_page_of_an_evaluation_shows_what_was_measured(pages):
    text = pages.of_data
    assert "<title>tiny.gbnn.safetensors on digits:test</title>" in text
    assert "tiny&lt;b&gt;.pth" in text
    assert "&lt;i&gt;noise.npz" in text
    assert not re.search("<[ib]>", text.replace("<i><b style", "").replace("</b></i>", ""))
    captions = re.findall(r"<figcaption><strong>(.*?)</strong>", text)
    assert captions == ["As it is", "Scaled", "Entropy", "Mutual information"]
    rows = re.findall(r"<tr><td>(.*?)</td><td", text)
    assert rows[:6] == ["accuracy", "NLL (nats)", "ECE", "adaptive ECE", "Brier", "coverage"]
    assert rows[6:] == [
        f"by {score}"
        for score in (
            "entropy",
            "max probability",
            "mutual information",
            "entropy, scaled",
            "max probability, scaled",
        )
    ]


def test_an_evaluation_without_other_data_has_no_histogram(pages, tmp_path):
    checkpoint, arch = pages.folder / "tiny<b>.pth", f"{pages.folder / 'models.py'}:tiny"
    result = gbnn_compress.evaluate(checkpoint, "digits:test", arch=arch, html=tmp_path / "page.html")
    assert result == gbnn_compress.evaluate(checkpoint, "digits:test", arch=arch)
    text = (tmp_path / "page.html").read_text()
    assert [section["id"] for section in elements(text, "section")] == ["evaluation"]
    assert text.count("<svg") == 1
    assert f"<dd>{words.percent(result['accuracy'])}</dd>" in text
