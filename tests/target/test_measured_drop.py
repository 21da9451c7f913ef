"""`--max-drop` measured on labelled data, on scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gbnn_compress_cli import digits_network

from gbnn_compress import compress, evaluate

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]

DIGITS = "gbnn_compress_cli.digits_network:digits_cnn"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.pth"
    torch.save(digits_network.train(), path)
    return path


def within(checkpoint: Path, folder: Path, points: float) -> dict[str, Any]:
    return compress(
        checkpoint,
        max_drop=points,
        val_data="digits:test",
        arch=DIGITS,
        output=folder / f"{points}.gbnn.safetensors",
        settings={"n_components": 64, "em_iterations": 5, "noise": 0, "feedback": False},
    )


def test_the_drop_is_that_of_the_file_and_more_may_be_lost_for_a_smaller_one(checkpoint: Path, tmp_path: Path) -> None:
    before = evaluate(checkpoint, "digits:test", arch=DIGITS)["accuracy"]
    reports = [within(checkpoint, tmp_path, points) for points in (1.0, 10.0)]
    for report, limit in zip(reports, (1.0, 10.0), strict=True):
        after = evaluate(report["artifact"]["path"], "digits:test", arch=DIGITS, samples=1)["accuracy"]
        assert report["target_met"]
        assert report["damage"]["measured"]
        assert report["damage"]["drop"] == pytest.approx(100 * (before - after), abs=0.01)
        assert report["damage"]["drop"] <= limit
    assert reports[1]["ratio"] > 1.1 * reports[0]["ratio"]
    assert reports[1]["damage"]["drop"] > 1.0, "a limit of ten points is used"


def test_a_limit_that_nothing_meets_is_missed_and_the_file_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gbnn_compress.predict.metrics.accuracy", _alternating(0.9, 0.5))
    report = within(checkpoint, tmp_path, 1.0)
    assert not report["target_met"]
    assert "measured drop of 40 points, target at most 1" in report["warnings"][0]
    assert Path(report["artifact"]["path"]).exists()


def _alternating(*values: float) -> Any:
    calls = iter(values * 50)
    return lambda probabilities, labels: next(calls)
