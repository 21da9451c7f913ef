"""The demonstration, as a newcomer runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gbnn_compress_cli import demo, digits_network

COMMANDS = ["plan", "compress", "report", "evaluate", "evaluate", "decompress", "diff", "compress", "export"]
LAST_WORDS = "writes a file of that size."


@pytest.mark.slow
def test_demo(run):
    outcome = run("demo", "-q")
    assert outcome.code == 0, outcome.err
    assert re.findall(r"^\$ gbnn-compress (\w+)", outcome.out, re.MULTILINE) == COMMANDS
    assert {path.name for path in Path("demo").iterdir()} == {
        "digits.pth",
        "digits.gbnn.safetensors",
        "digits.html",
        "digits-trained.gbnn.safetensors",
        "digits-dense.safetensors",
        "digits.onnx",
    }
    accuracies = [float(each) for each in re.findall(r"^(?:before|after).* (\d+\.\d+) %", outcome.out, re.MULTILINE)]
    assert len(accuracies) == 6
    assert min(accuracies) > 97
    assert outcome.out.rstrip().splitlines()[-1].endswith(LAST_WORDS)


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(digits_network, "train", lambda: digits_network.digits_cnn().state_dict())


def test_demo_shows_the_commands_that_it_runs(run, untrained, monkeypatch):
    lines = []
    monkeypatch.setattr(demo, "_run", lambda line: lines.append(line) or 0)
    outcome = run("demo", "there", "-q")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line[0] for line in lines] == COMMANDS
    shown = re.findall(r"^\$ gbnn-compress (.*)", outcome.out, re.MULTILINE)
    assert [f"{each} -q" for each in shown] == [" ".join(line) for line in lines]
    assert [path.name for path in Path("there").iterdir()] == ["digits.pth"]
    assert outcome.out.rstrip().endswith(LAST_WORDS)


def test_demo_stops_at_the_first_command_that_fails(run, untrained, monkeypatch):
    lines = []
    monkeypatch.setattr(demo, "_run", lambda line: lines.append(line) or 2)
    assert run("demo", "-q").code == 2
    assert len(lines) == 1
