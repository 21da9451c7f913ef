"""`examples/train_members.py`: a few steps, stopped and continued."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ensemble_files import MODELS

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = Path(__file__).parents[2] / "examples" / "train_members.py"


class Stop(Exception):
    """Ends a run."""


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    monkeypatch.syspath_prepend(SCRIPT.parent)
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_members_are_trained_and_go_on_where_they_were_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models.py").write_text(MODELS)
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez("data.npz", x=x, y=np.arange(40) % 5)
    words = ("--arch", "models.py:narrow", "--data", "npz:data.npz", "--members", "2", "--epochs", "2")
    run(monkeypatch, *words, "--batch-size", "16", "--val-data", "npz:data.npz", "-o", "whole")
    assert capsys.readouterr().out.count("accuracy ") == 2

    save = torch.save

    def stopping(value: object, path: Path) -> None:
        save(value, path)
        if Path(path).name == "member1.tmp":
            Path(path).replace(Path(path).with_suffix(".state"))
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", stopping)
        with pytest.raises(Stop):
            run(patch, *words, "--batch-size", "16", "-o", "stopped")
    assert sorted(path.name for path in Path("stopped").iterdir()) == ["member0.pth", "member1.state"]
    run(monkeypatch, *words, "--batch-size", "16", "-o", "stopped")
    assert "member0.pth is there" in capsys.readouterr().out
    states = [torch.load(f"{folder}/member1.pth") for folder in ("whole", "stopped")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    first = torch.load("whole/member0.pth")
    assert not torch.equal(first["0.weight"], states[0]["0.weight"])


def test_members_that_start_from_a_checkpoint_have_its_function_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models.py").write_text(MODELS)
    np.savez("data.npz", x=np.zeros((8, 8, 8), dtype=np.uint8), y=np.arange(8) % 5)
    words = ("--arch", "models.py:narrow", "--data", "npz:data.npz", "--epochs", "1", "--batch-size", "8")
    run(monkeypatch, *words, "--members", "1", "-o", "first")
    run(monkeypatch, *words, "--members", "2", "--seed", "7", "--learning-rate", "1e-6", "--start", "first/member0.pth",
        "-o", "next")  # fmt: skip
    first, *members = (torch.load(path) for path in ("first/member0.pth", "next/member7.pth", "next/member8.pth"))
    for member in members:
        assert torch.allclose(member["0.weight"], first["0.weight"], atol=1e-5)
