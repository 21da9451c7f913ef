"""What is shown of networks that are no classifiers: JSON, page and tables speak of outputs, not of classes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gbnn_compress_cli.main import main
from test_schema import as_json, faults

from gbnn_compress import compress, load
from gbnn_compress.report import schema

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = """
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.value, self.other = nn.Linear(64, 2), nn.Linear(64, 3)

    def forward(self, x):
        h = self.body(x)
        return {"value": self.value(h), "other": self.other(h)}

def spread(network, data):
    return float(sum(network(x)["value"].std() for x in data))
"""
WRONG_WORDS = ("points", "accuracy", "class", "NLL", "ECE", "unchanged")


class Files(NamedTuple):
    """Code, a checkpoint, and inputs as float32 arrays."""

    arch: str
    metric: str
    checkpoint: Path
    data: str


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    (tmp_path / "nets.py").write_text(MODELS)
    scope: dict[str, Any] = {}
    exec(MODELS, scope)
    torch.manual_seed(0)
    torch.save(scope["Two"]().state_dict(), tmp_path / "two.pth")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return Files("nets.py:Two", "nets.py:spread", tmp_path / "two.pth", "npz:x.npz")


def test_compress_reports_outputs(files: Files, tmp_path: Path) -> None:
    report = compress(
        files.checkpoint,
        target_ratio=4,
        output=tmp_path / "two.gbnn.safetensors",
        arch=files.arch,
        eval_data=files.data,
        metric=files.metric,
        samples=2,
        settings={"n_components": 64, "em_iterations": 3},
        html=tmp_path / "page.html",
    )
    assert faults(as_json(report), schema.Report) == []
    damage, evaluation = report["damage"], report["evaluation"]
    assert [damage[key] for key in ("drop", "agreement", "logit_kl", "safe_ratio")] == [None] * 4
    assert damage["measured"]
    assert damage["outputs"].keys() == {"value", "other"}
    assert damage["relative_error"] == evaluation["mean"]["relative_error"]
    assert damage["metric"] == {"before": evaluation["before"]["metric"], "after": evaluation["mean"]["metric"]}
    assert evaluation["before"].keys() == {"metric"}
    page = (tmp_path / "page.html").read_text()
    for expected in ("relative output error", '<td class="name">value</td>', "Metric: "):
        assert expected in page
    text = re.sub(r"<[^>]*>", " ", page.partition("<body>")[2].partition("<footer>")[0])
    assert not [word for word in WRONG_WORDS if word in text]
    assert faults(as_json(load(tmp_path / "two.gbnn.safetensors").report()), schema.Report) == []


def test_the_command_line_shows_outputs(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    common = ["--arch", files.arch, "-q"]
    measured = ["--eval-data", files.data, "--samples", "2", "-s", "n_components=64", "-s", "em_iterations=3"]
    assert main(["compress", "two.pth", "--target-ratio", "4", *measured, *common]) == 0
    shown = capsys.readouterr().out
    assert "relative output error" in shown
    assert "relative error of each output: " in shown
    assert not [word for word in WRONG_WORDS if word in shown]
    words = ["evaluate", "two.gbnn.safetensors", "--data", files.data, "--samples", "2", *common]
    assert main([*words, "--reference", "two.pth", "--metric", files.metric]) == 0
    shown = capsys.readouterr().out
    for expected in ("relative error", "posterior mean", "cosine", "metric: ", "against two.pth"):
        assert expected in shown
    assert not [word for word in WRONG_WORDS if word in shown]
    assert main(["diff", "two.pth", "two.gbnn.safetensors", "--data", files.data, *common]) == 0
    assert "relative error of the outputs" in capsys.readouterr().out
    assert main(words) == 2
    assert "`--reference`" in capsys.readouterr().err
    assert main([*words, "--reference", "two.pth", "--json", "out.json"]) == 0
    assert faults(json.loads((tmp_path / "out.json").read_text()), schema.OutputEvaluationReport) == []
