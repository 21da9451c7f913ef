"""The demonstration, as a newcomer runs it."""

from __future__ import annotations

import re
from pathlib import Path


def test_demo(run):
    outcome = run("demo", "-q")
    assert outcome.code == 0, outcome.err
    commands = re.findall(r"^\$ gbnn-compress (\w+)", outcome.out, re.MULTILINE)
    assert commands == ["plan", "compress", "report", "evaluate", "evaluate", "decompress", "diff"]
    assert {path.name for path in Path("demo").iterdir()} == {
        "digits.pth",
        "digits.gbnn.safetensors",
        "digits-dense.safetensors",
    }
    accuracies = [float(each) for each in re.findall(r"^(?:before|after).* (\d+\.\d+) %", outcome.out, re.MULTILINE)]
    assert len(accuracies) == 3
    assert min(accuracies) > 97
    assert outcome.out.rstrip().splitlines()[-1].endswith("writes the smallest file thought safe.")
