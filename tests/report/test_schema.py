"""Reports have exactly the keys and types of their schema, and docs/reports.md describes each of them."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np
import pytest

import gbnn_compress
from gbnn_compress.report import schema
from gbnn_compress.report.sizes import floating_bytes

ROOT = Path(__file__).parents[2]

HEADINGS = {
    "`compress` and `report`": schema.Report,
    "`ensemble`": schema.EnsembleReport,
    "`plan`": schema.PlanReport,
    "`evaluate`": schema.EvaluationReport,
    "`evaluate`, no classifier": schema.OutputEvaluationReport,
    "`diff`": schema.DiffReport,
    "`export`": schema.ExportReport,
    "ONNX input": schema.OnnxInput,
    "Checkpoint": schema.CheckpointEntry,
    "Artifact": schema.ArtifactEntry,
    "Bank": schema.BankEntry,
    "Weights": schema.WeightCounts,
    "Sections": schema.SectionBytes,
    "Layer": schema.LayerEntry,
    "Damage": schema.DamageEntry,
    "Changed number": schema.ChangedNumber,
    "Evaluation": schema.EvaluationEntry,
    "Summary": schema.Summary,
    "Output measures": schema.OutputMeasures,
    "Training": schema.TrainingEntry,
    "Last epoch": schema.LastEpoch,
    "Timings": schema.Timings,
    "Tensor": schema.TensorEntry,
    "Rate": schema.PlannedRate,
    "Scaled measures": schema.ScaledMeasures,
    "Detection": schema.Detection,
    "Score": schema.Detected,
    "Tensor difference": schema.TensorDifference,
    "ONNX file": schema.OnnxEntry,
    "Check": schema.CheckEntry,
}
WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
SCALARS = {int: (int,), float: (int, float), str: (str,), bool: (bool,), type(None): (type(None),)}

MODELS = """
from torch import nn

def tiny():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    )
"""
SETTINGS = {"n_components": 64, "em_iterations": 3}


def faults(value: Any, kind: Any, path: str = "report") -> list[str]:
    """Where a value of a report is not of its declared type."""
    if is_typeddict(kind):
        if not isinstance(value, dict):
            return [f"{path} is {value!r}"]
        hints = get_type_hints(kind)
        named = [f"{path}.{key} is not declared" for key in value.keys() - hints.keys()]
        named += [f"{path}.{key} is missing" for key in kind.__required_keys__ - value.keys()]
        inner = [faults(value[key], hint, f"{path}.{key}") for key, hint in hints.items() if key in value]
        return [*named, *chain.from_iterable(inner)]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return [] if any(not faults(value, each) for each in arguments) else [f"{path} is {value!r}"]
    if origin in (list, Sequence):
        if not isinstance(value, list | tuple):
            return [f"{path} is {value!r}"]
        return [fault for place, each in enumerate(value) for fault in faults(each, arguments[0], f"{path}[{place}]")]
    if origin is dict:
        return [] if isinstance(value, dict) else [f"{path} is {value!r}"]
    return [] if type(value) in SCALARS[kind] else [f"{path} is {value!r}"]


def word(kind: Any) -> str:
    """What the page calls a type."""
    names = {each: name for name, each in HEADINGS.items()}
    if kind in names:
        name = names[kind].replace("ONNX", "onnx").lower()
        return f"[{name.replace('onnx', 'ONNX')}](#{name.replace(' ', '-').replace('`', '')})"
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(word, arguments))
    if origin in (list, Sequence):
        return f"list of {word(arguments[0])}"
    return "object" if origin is dict else WORDS[kind]


def documented() -> dict[str, dict[str, tuple[str, str, str]]]:
    """Heading -> key -> type, meaning and remark."""
    parts = re.split(r"^#{2,3} (.*)$", (ROOT / "docs" / "reports.md").read_text(), flags=re.MULTILINE)[1:]
    row = re.compile(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \|(?: ([^|]*) )?\s*\|$", re.MULTILINE)
    return {
        heading: {key: (kind, meaning, remark or "") for key, kind, meaning, remark in row.findall(text)}
        for heading, text in zip(parts[::2], parts[1::2], strict=True)
    }


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_page_describes_every_key(heading: str) -> None:
    kind, rows = HEADINGS[heading], documented()[heading]
    hints = get_type_hints(kind)
    assert list(rows) == sorted(hints, key=list(rows).index)
    for key, hint in hints.items():
        shown, meaning, remark = rows[key]
        assert shown == word(hint), key
        assert meaning, key
        assert ("absent" in remark) == (key in kind.__optional_keys__), key
        assert ("null" in remark) == ("null" in shown), key


def test_the_page_has_no_heading_beside_these() -> None:
    assert documented().keys() == HEADINGS.keys()


def test_the_checker_finds_what_is_wrong() -> None:
    good = {"epochs": 1, "beta": 1}
    assert faults(good, schema.TrainingEntry) == []
    assert faults({**good, "more": 1}, schema.TrainingEntry) == ["report.more is not declared"]
    assert faults({"epochs": 1}, schema.TrainingEntry) == ["report.beta is missing"]
    assert faults({**good, "epochs": True}, schema.TrainingEntry) == ["report.epochs is True"]
    assert faults([good, {**good, "beta": "1"}], list[schema.TrainingEntry]) == ["report[1].beta is '1'"]
    assert faults(None, float | None) == []
    assert faults("1", float | None) == ["report is '1'"]


class Made:
    """A checkpoint, an artifact and data in a folder, and what reads them."""

    def __init__(self, folder: Path) -> None:
        import torch

        from gbnn_compress.data.architectures import build_network

        (folder / "models.py").write_text(MODELS)
        self.folder, self.arch = folder, f"{folder / 'models.py'}:tiny"
        self.checkpoint, self.artifact = folder / "tiny.pth", folder / "tiny.gbnn.safetensors"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            torch.save(build_network(self.arch).state_dict(), self.checkpoint)
        x = np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8)
        np.savez(folder / "inputs.npz", x=x)
        np.savez(folder / "labelled.npz", x=x, y=np.arange(64) % 10)
        self.inputs, self.labelled = f"npz:{folder / 'inputs.npz'}", f"npz:{folder / 'labelled.npz'}"

    def compress(self, **options: Any) -> schema.Report:
        settings = SETTINGS | options.pop("settings", {})
        options = {"target_ratio": 4, "output": self.artifact} | options
        return gbnn_compress.compress(self.checkpoint, settings=settings, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Made:
    made = Made(tmp_path_factory.mktemp("schema"))
    made.compress()
    return made


def as_json(report: Any) -> Any:
    return json.loads(json.dumps(report, allow_nan=False))


TRAINED = {"epochs": 1, "settings": {"finetune.fold_temperature": True}}
RUNS = {
    "data-free": {},
    "drop": {"max_drop": 1.0, "target_ratio": None, "task": "classifier"},
    "other": {"task": "other"},
    "calibrated": {"data": "inputs", "arch": "arch"},
    "evaluated": {"eval_data": "labelled", "arch": "arch"},
    "trained": {"data": "labelled", "val_data": "labelled", "arch": "arch", **TRAINED},
}


def test_ensemble(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "ensemble.gbnn.safetensors"
    report = gbnn_compress.ensemble([made.artifact, made.artifact], path)
    again = gbnn_compress.load(path)
    assert report == again.report()
    assert faults(as_json(report), schema.EnsembleReport) == []
    result = gbnn_compress.evaluate(path, made.labelled, arch=made.arch, samples=2, ood=made.inputs)
    assert faults(as_json(result), schema.EvaluationReport) == []
    result = gbnn_compress.diff(made.checkpoint, path, data=made.labelled, arch=made.arch, samples=2)
    assert faults(as_json(result), schema.DiffReport) == []
    options = {"weights": "samples", "arch": made.arch, "input_shape": (1, 8, 8), "samples": 2}
    result = gbnn_compress.export_onnx(path, tmp_path / "net.onnx", **options)
    assert faults(as_json(result), schema.ExportReport) == []


@pytest.mark.long
def test_compress_with_members(made: Made, tmp_path: Path) -> None:
    options = {"data": made.labelled, "val_data": made.labelled, "eval_data": made.labelled, "arch": made.arch}
    report = made.compress(output=tmp_path / "net.gbnn.safetensors", target_ratio=1.5, members=2, **TRAINED, **options)
    assert faults(as_json(report), schema.EnsembleReport) == []
    assert {"target_met", "timings", "evaluation", "checkpoint"} <= report.keys()


OF_THE_RUN = {"last_epoch", "kept", "measure", "trained", "calibrated"}
"""What the report of a file does not say of its training."""

FROM_MADE = ("data", "val_data", "eval_data", "arch")
"""Options whose values are attributes of `Made`."""


@pytest.mark.long
@pytest.mark.parametrize("run", RUNS)
def test_compress_and_report(made: Made, tmp_path: Path, run: str) -> None:
    options = dict(RUNS[run])
    if options.pop("arch", False):
        options["arch"] = made.arch
    options = {
        key: getattr(made, value) if value in ("inputs", "labelled") else value for key, value in options.items()
    }
    path = tmp_path / "net.gbnn.safetensors"
    report = made.compress(output=path, **options)
    again = gbnn_compress.load(path).report()
    for each in (report, again):
        assert faults(as_json(each), schema.Report) == []
        assert each["ratio"] == each["floating_bytes"] / each["artifact"]["bytes"]
        assert sum(each["sections"].values()) == each["artifact"]["bytes"] == path.stat().st_size
        assert sum(each["weights"].values()) == each["checkpoint"]["parameters"]
    assert report["floating_bytes"] == 4 * report["checkpoint"]["parameters"]
    only_then = {"path", "architecture_candidates"}
    assert report["checkpoint"].keys() - again["checkpoint"].keys() == only_then
    assert report.keys() - again.keys() == {"timings"}
    assert (run == "trained") == ("temperature" in again) == ("training" in again)
    assert run != "trained" or report["training"].keys() - again["training"].keys() == OF_THE_RUN
    assert (report["evaluation"] is not None) == (run == "evaluated")


def test_report_of_an_old_file() -> None:
    network = gbnn_compress.load(ROOT / "tests" / "golden" / "version1.gbnn.safetensors")
    report = network.report()
    assert faults(as_json(report), schema.Report) == []
    assert report["floating_bytes"] == floating_bytes(network.artifact) > 0


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"task": "classifier"}, {"task": "other", "target_ratio": 5}])
def test_plan(made: Made, options: dict[str, Any]) -> None:
    plan = gbnn_compress.plan(made.checkpoint, ratios=(4.0, 8.0), settings=SETTINGS, **options)
    assert faults(as_json(plan), schema.PlanReport) == []
    assert plan["floating_bytes"] == gbnn_compress.load(made.artifact).report()["floating_bytes"]


@pytest.mark.parametrize("which", ["checkpoint", "artifact"])
@pytest.mark.parametrize("all_options", [False, True])
def test_evaluate(made: Made, which: str, all_options: bool) -> None:
    more = {"ood": made.inputs, "val_data": made.labelled, "reference": made.checkpoint} if all_options else {}
    result = gbnn_compress.evaluate(getattr(made, which), made.labelled, arch=made.arch, samples=2, **more)
    assert faults(as_json(result), schema.EvaluationReport) == []
    assert {"ood", "agreement", "logit_kl", "temperature", "scaled"} & result.keys() == (
        {"ood", "agreement", "logit_kl", "temperature", "scaled"} if all_options else set()
    )


@pytest.mark.parametrize("data", [None, "inputs", "labelled"])
def test_diff(made: Made, data: str | None) -> None:
    options = {} if data is None else {"data": getattr(made, data), "arch": made.arch}
    result = gbnn_compress.diff(made.checkpoint, made.artifact, samples=2, **options)
    assert faults(as_json(result), schema.DiffReport) == []
    assert ("metrics" in result) == (data == "labelled")


@pytest.mark.long
@pytest.mark.parametrize("weights", ["mean", "samples"])
def test_export(made: Made, tmp_path: Path, weights: str) -> None:
    result = gbnn_compress.export_onnx(
        made.artifact, tmp_path / "net.onnx", weights=weights, arch=made.arch, input_shape=(1, 8, 8), samples=2
    )
    assert faults(as_json(result), schema.ExportReport) == []
