"""What a person reads."""

from __future__ import annotations

import copy

import pytest
from gbnn_compress_cli import console
from gbnn_compress_cli.report_view import report_view

import gbnn_compress
from gbnn_compress.report import words


@pytest.fixture(scope="module")
def report(files):
    return gbnn_compress.load(files.artifact).report()


def text_of(report, **options):
    return console.render(*report_view(report, name="tiny", **options))


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (134_444, "134 kB"),
        (999_700, "1 MB"),
        (1_084_392, "1.08 MB"),
    ],
)
def test_sizes(size_bytes, text):
    assert words.size(size_bytes) == text


def test_shares_are_never_rounded_to_all_or_nothing():
    shares = [0.0, 0.0001, 0.975, 0.9999, 1.0]
    assert [words.percent(share) for share in shares] == ["0.0 %", "< 0.1 %", "97.5 %", "> 99.9 %", "100.0 %"]


def test_one_is_not_plural():
    assert [words.counted(n, "epoch") for n in (0, 1, 2, 1500)] == ["0 epochs", "1 epoch", "2 epochs", "1,500 epochs"]


def test_ratios_have_three_digits():
    assert [words.times(ratio) for ratio in (8.0657, 8, 50.12, 180.13, 1000)] == [
        "8.07x",
        "8x",
        "50.1x",
        "180x",
        "1,000x",
    ]


@pytest.mark.parametrize(
    ("drop", "measured", "text"),
    [
        (0.42, False, "predicted: about 0.4 points of accuracy lost, 97.5 % of predictions unchanged"),
        (0.01, False, "predicted: less than 0.1 points of accuracy lost, 97.5 % of predictions unchanged"),
        (67.6, False, "predicted: about 68 points of accuracy lost, 97.5 % of predictions unchanged"),
        (0.0, True, "measured on digits: no accuracy lost, 97.5 % of predictions unchanged"),
        (-0.2, True, "measured on digits: 0.2 points of accuracy gained, 97.5 % of predictions unchanged"),
    ],
)
def test_damage_in_words(drop, measured, text):
    assert words.damage({"drop": drop, "agreement": 0.975, "measured": measured}, measured_on="digits") == text


def test_what_is_safe_is_said_of_files_without_training(report):
    assert "\nif so, predicted safe ratio of about " in text_of(report)
    known = {**report, "damage": {key: value for key, value in report["damage"].items() if key != "assumes"}}
    assert "\npredicted safe ratio of about " in text_of(known)
    trained = {**known, "training": {"epochs": 3, "beta": 1.0}}
    assert "x without training (within 1 point of accuracy)\n" in text_of(trained)


def test_the_report_names_both_ratios_and_every_byte(report):
    text = text_of(report)
    assert text.startswith("tiny   12 kB -> ")
    assert f"{report['ratio']:.3g}x smaller (target 4x: met)" in text
    for line in (
        "ratio ",
        "parameter ratio ",
        "bits per weight ",
        "components ",
        "predicted if this is an image classifier: ",
    ):
        assert line in text
    for section, size in report["sections"].items():
        row = next(line for line in text.splitlines() if line.startswith(section.replace("_", " ")))
        assert f"{size:,}" in row


def test_the_report_is_plain_and_at_most_100_columns_when_piped(report):
    wide = copy.deepcopy(report)
    wide["layers"][0]["name"] = "encoder." * 12 + "weight"
    wide["layers"][1]["name"] = "[bold]not markup[/bold]\x1b[2J"
    text = text_of(wide)
    assert max(map(len, text.splitlines())) <= console.WIDTH
    assert "\x1b" not in text
    assert "[bold]not markup[/bold]" in text


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100])
def test_names_and_numbers_are_whole_at_any_width(report, monkeypatch, width):
    monkeypatch.setattr(console, "WIDTH", width)
    layer = report["layers"][0] | {"name": "layer4.0.conv.weight", "shape": [512, 512, 3, 3], "bytes": 1_234_567}
    metrics = {"accuracy": 0.91, "nll": 0.25, "ece": 0.015, "brier": 0.12}
    evaluation = {"data": "digits", "samples": 16, "before": metrics, "after": metrics, "mean": metrics}
    text = text_of(report | {"layers": [layer], "evaluation": evaluation})
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    for part in ("layer4.0.conv.weight", "512 x 512 x 3 x 3", "1,234,567", "91.00 %", "0.250", "0.015", "0.120"):
        assert part in flat
    for part in ("relative RMSE", "bits per weight", "NLL (nats)", "unshared", "outliers"):
        assert part in flat


def test_rows_are_paragraphs_only_where_columns_do_not_fit(report, monkeypatch):
    assert "bits per weight   relative RMSE\n" in text_of(report)
    monkeypatch.setattr(console, "WIDTH", 40)
    assert "bits per weight   relative RMSE\n" not in text_of(report)


def test_a_parameter_target_is_compared_with_the_parameter_ratio(report):
    asked = report | {"target_ratio": report["parameter_ratio"], "ratio_of": "parameters"}
    assert "of parameters: met" in text_of(asked)


def test_only_the_worst_layers_unless_all_are_wanted(report):
    layer = report["layers"][0]
    many = report | {"layers": [layer | {"name": f"layer{n}", "bytes": n} for n in range(20)]}
    assert "layer19 " in text_of(many)
    assert "layer7 " not in text_of(many)
    assert "layer7 " in text_of(many, every_layer=True)


def test_heavy_damage_is_red_on_a_terminal(report, monkeypatch):
    heavy = report | {"damage": report["damage"] | {"drop": 60.0}, "warnings": ["beware"]}
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;31mpredicted if this is an image classifier: about 60 points" in text_of(heavy)
    assert "warning: beware" in text_of(heavy)
