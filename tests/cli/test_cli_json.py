"""JSON: pure, valid, exactly the schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gbnn_compress_cli import console

from gbnn_compress.errors import OutputError
from gbnn_compress.report.schema import ExportReport, Report

ONLY_OF_SOME_FILES = {"max_error", "not_calibrated", "temperature", "training"}


@pytest.mark.long
def test_compress_prints_the_schema_and_nothing_else(run, files):
    words = ["--eval-data", "digits:test", "--arch", files.arch, "--samples", "2", "--json", "-"]
    outcome = run("-q", "compress", files.checkpoint, "--target-ratio", "4", *words)
    report = json.loads(outcome.out)
    assert (outcome.code, outcome.err) == (0, "".join(f"warning: {line}\n" for line in report["warnings"]))
    assert set(report) == set(Report.__annotations__) - ONLY_OF_SOME_FILES
    size = Path("tiny.gbnn.safetensors").stat().st_size
    assert sum(report["sections"].values()) == report["artifact"]["bytes"] == size
    assert report["damage"]["measured"] is True


@pytest.mark.long
def test_compress_writes_json_beside_the_table(run, files):
    outcome = run(files.checkpoint, "--target-ratio", "4x", "--json", "report.json")
    assert outcome.code == 0
    assert "4x: met" in outcome.out
    assert "reading tiny.pth" in outcome.err.splitlines()
    report = json.loads(Path("report.json").read_text())
    assert report["evaluation"] is None
    assert report["ratio"] >= 4


def test_two_percent_is_fifty(run, files):
    assert json.loads(run("-q", files.checkpoint, "--target-ratio", "2%", "--json", "-").out)["target_ratio"] == 50


@pytest.mark.long
def test_warnings_stay_off_stdout(run, files):
    outcome = run("-q", files.checkpoint, "--target-ratio", "16", "--json", "-")
    assert json.loads(outcome.out)["warnings"]
    assert outcome.err.startswith("warning: predicted accuracy drop")


def test_report_has_neither_paths_nor_timings(run, files):
    outcome = run("report", files.artifact, "-q", "--json", "-")
    report = json.loads(outcome.out)
    assert "timings" not in report
    assert "path" not in report["checkpoint"] | report["artifact"]
    assert sum(report["sections"].values()) == Path(files.artifact).stat().st_size


@pytest.mark.long
def test_export_says_what_it_wrote(run, files):
    words = ["-o", "tiny.onnx", "--input-shape", "1,8,8", "--arch", files.arch, "--json", "-"]
    result = json.loads(run("export", files.artifact, "-q", *words).out)
    assert set(result) == ExportReport.__required_keys__
    assert result["onnx"] == {
        "path": "tiny.onnx",
        "bytes": Path("tiny.onnx").stat().st_size,
        "dense_bytes": 4 * (2952 + 50),
        "opset": 21,
        "weights": "mean",
    }
    assert (result["samples"], result["seed"]) == (None, None)
    assert (result["input_shape"], result["outputs"]) == ([1, 8, 8], ["logits"])


@pytest.mark.long
def test_plan_writes_nothing_else(run, files):
    outcome = run("plan", files.checkpoint, "-q", "--target-ratio", "5", "--json", "-")
    plan = json.loads(outcome.out)
    assert outcome.code == 0
    assert 5 in [rate["target_ratio"] for rate in plan["rates"]]
    assert plan["rates"] == sorted(plan["rates"], key=lambda rate: rate["target_ratio"])
    assert list(Path().iterdir()) == []


def test_numbers_that_json_has_not_become_null(capfd):
    console.write_json({"a": [float("nan"), 1.0], "b": {"c": float("inf")}}, "-")
    assert json.loads(capfd.readouterr().out) == {"a": [None, 1.0], "b": {"c": None}}


def test_a_device_is_written_to_and_not_replaced():
    console.check_json_target("/dev/null")
    assert console.write_json({}, "/dev/null") is True
    assert Path("/dev/null").is_char_device()


def test_a_directory_is_no_target(tmp_path):
    with pytest.raises(OutputError, match="it is a directory"):
        console.check_json_target(str(tmp_path))
