"""The command line with the user's own network, data and functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gbnn_compress_cli.main import main
from safetensors import safe_open

pytestmark = pytest.mark.usefixtures("one_thread")

CODE = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, 96), nn.ReLU(), nn.Linear(96, 3))

def loader():
    return list(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).split(16))

def named():
    for x in loader():
        yield {"features": x, "id": "a"}

def forward(network, batch):
    return {"first": network(batch["features"]), "second": network(-batch["features"])}

def metric(network, data):
    return -float(sum(network(batch["features"]).abs().mean() for batch in data))

def loss(outputs, batch):
    return outputs["first"].square().mean()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(CODE)
    scope: dict[str, Any] = {}
    exec(CODE, scope)
    torch.manual_seed(0)
    torch.save(scope["net"]().state_dict(), "net.pth")
    return tmp_path


QUICK = ("-s", "n_components=64", "-s", "em_iterations=3", "-q")
COMPRESS = ("net.pth", "--target-ratio", "4", *QUICK)
OWN = ("--arch", "own.py:net", "--forward", "own.py:forward", "--metric", "own.py:metric", "--loss", "own.py:loss")


def test_own_functions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*COMPRESS, *OWN, "--eval-data", "own.py:named", "--output", "second", "-o", "a.gbnn.safetensors"]
    assert main([*words, "--keep", "2.*", "--json", "-"]) in (0, 1)
    report = json.loads(capsys.readouterr().out)
    assert report["damage"]["outputs"].keys() == {"second"}
    assert report["damage"]["metric"].keys() == report["damage"]["loss"].keys() == {"before", "after"}
    assert report["recipe"]["keep"] == ["2.*"]
    kept = {tensor["name"] for tensor in report["layers"]}
    assert "2.weight" not in kept
    assert report["artifact"]["path"] == "a.gbnn.safetensors"
    words = ["evaluate", "a.gbnn.safetensors", "--data", "own.py:named", *OWN, "--reference", "net.pth", "--json", "-"]
    assert main([*words, "--output", "0", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"].keys() == {"first"}
    words = ["diff", "net.pth", "a.gbnn.safetensors", "--data", "own.py:named", *OWN, "--json", "-", "-q"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["outputs"].keys() == {"first", "second"}


def test_output_names_a_file_too(folder: Path) -> None:
    assert main([*COMPRESS, "--output", "b.gbnn.safetensors"]) in (0, 1)
    with safe_open("b.gbnn.safetensors", framework="pt") as file:
        assert file.keys()
    assert main([*COMPRESS, "--output", "b.gbnn.safetensors", "-o", "c.gbnn.safetensors"]) == 2
    assert not Path("c.gbnn.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--output", "first"), "`--output`: used only on inputs; give `--data` or `--eval-data`"),
        (("--metric", "own.py:metric"), "`--metric`: used only on inputs"),
        (
            ("--arch", "own.py:net", "--eval-data", "own.py:loader", "--output", "7"),
            "`--output 7`: the network has no such",
        ),
        (
            ("--arch", "own.py:net", "--eval-data", "own.py:loader", "--forward", "own.py:frwd"),
            "did you mean `forward`",
        ),
        (("--arch", "own.py:net", "--eval-data", "own.py:lodaer"), "did you mean `loader`"),
        (("--arch", "own.py:net", "--eval-data", "own.py:named"), "`forward` of `Sequential` needs `input`"),
        (("--keep", "1.*"), "`--keep 1.*` matches no tensor; there are `0.weight`"),
        (("--max-error", "0.1"), "give either `--target-ratio`"),
        (("--max-error", "much"), "`--max-error`: expected a number, got `much`"),
    ],
)
def test_what_is_refused(folder: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(each.name for each in folder.iterdir() if each.name != "__pycache__")
    assert main([*COMPRESS, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert sorted(each.name for each in folder.iterdir() if each.name != "__pycache__") == before


def test_what_a_run_reads_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--arch", "own.py:net", "--eval-data", "own.py:loader", "--forward", "own.py:forward")
    for option in ("-o", "--html", "--json"):
        assert main([*COMPRESS, *words, option, "own.py"]) == 2
    assert Path("own.py").read_text() == CODE
