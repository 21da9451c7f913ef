"""A training that was stopped goes on, to the same bytes as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from trainings import Stop, digits_options, stopped_at

from gbnn_compress import compress
from gbnn_compress.data.datasets import Dataset
from gbnn_compress.errors import OutputError
from gbnn_compress.rate.codebook import Codebook
from gbnn_compress.training.state import StateFile, fingerprint, packed, state_path, unpacked
from gbnn_compress.types import Bank, Posterior

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread", "training_is_kept")]

MODELS = """
from torch import nn

def tiny():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(288, 10)
    )
"""
EPOCHS = 3

KILLED = """
import os, signal
from trainings import each_step
from gbnn_compress import compress

def kill(number, images):
    if number == {number}:
        os.kill(os.getpid(), signal.SIGKILL)

with each_step(kill):
    compress(**{options!r})
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A network with batch norm and dropout, and 160 digits: ten steps an epoch."""
    return digits_options(tmp_path_factory.mktemp("tiny"), MODELS, n_validation=60) | {
        "target_ratio": 5,
        "epochs": EPOCHS,
    }


@pytest.fixture(scope="module")
def whole(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The artifact of a run that nothing stopped."""
    return finished(options, tmp_path_factory.mktemp("whole"))


def finished(options: dict[str, Any], folder: Path, **more: Any) -> bytes:
    output = folder / "out.gbnn.safetensors"
    compress(**options, output=output, **more)
    assert sorted(path.name for path in folder.iterdir()) == ["out.gbnn.safetensors"]
    return output.read_bytes()


def stop(options: dict[str, Any], folder: Path, number: int) -> None:
    with stopped_at(number, Stop), pytest.raises(Stop):
        compress(**options, output=folder / "out.gbnn.safetensors")


def test_a_run_that_was_killed_ends_with_the_same_bytes(options: dict[str, Any], whole: bytes, tmp_path: Path) -> None:
    output = tmp_path / "out.gbnn.safetensors"
    program = KILLED.format(number=15, options={**options, "output": str(output)})
    path = os.pathsep.join(part for part in sys.path if part)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert not output.exists()
    assert state_path(output).exists()
    lines: list[str] = []
    assert finished(options, tmp_path, progress=lines.append) == whole
    assert "continuing after epoch 1 from `out.gbnn.state.safetensors`; --restart starts over" in lines
    assert [line[:9] for line in lines if line.startswith("epoch ")] == ["epoch 2/3", "epoch 3/3"]


@pytest.mark.parametrize("number", [0, 9, 10, 29])
def test_wherever_it_was_stopped(options: dict[str, Any], whole: bytes, tmp_path: Path, number: int) -> None:
    stop(options, tmp_path, number)
    assert state_path(tmp_path / "out.gbnn.safetensors").exists() == (number >= 10)
    assert finished(options, tmp_path) == whole


def test_stopped_after_the_last_epoch_nothing_is_trained_again(
    options: dict[str, Any], whole: bytes, tmp_path: Path
) -> None:
    def stop_after_the_last(line: str) -> None:
        if line.startswith(f"epoch {EPOCHS}/"):
            raise Stop

    with pytest.raises(Stop):
        compress(**options, output=tmp_path / "out.gbnn.safetensors", progress=stop_after_the_last)
    lines: list[str] = []
    with stopped_at(0, Stop):
        assert finished(options, tmp_path, progress=lines.append) == whole
    assert not any(line.startswith("epoch ") for line in lines)


def test_ctrl_c_writes_a_file_and_the_same_command_continues(
    options: dict[str, Any], whole: bytes, tmp_path: Path
) -> None:
    lines: list[str] = []
    with stopped_at(25, KeyboardInterrupt):
        report = compress(**options, output=tmp_path / "out.gbnn.safetensors", progress=lines.append)
    assert "interrupted: writing the file of the steps done; Ctrl-C again writes nothing" in lines
    assert "training stopped after 2.5 of 3 epochs; the same command continues after epoch 2" in report["warnings"]
    assert (tmp_path / "out.gbnn.safetensors").exists()
    assert finished(options, tmp_path) == whole


def test_ctrl_c_in_the_first_epoch_says_that_the_command_starts_over(options: dict[str, Any], tmp_path: Path) -> None:
    with stopped_at(5, KeyboardInterrupt):
        report = compress(**options, output=tmp_path / "out.gbnn.safetensors")
    assert "training stopped after 0.5 of 3 epochs; the same command starts over" in report["warnings"]


def test_restart_and_other_runs_start_over(options: dict[str, Any], whole: bytes, tmp_path: Path) -> None:
    stop(options, tmp_path, 15)
    state = state_path(tmp_path / "out.gbnn.safetensors").read_bytes()
    lines: list[str] = []
    assert finished(options, tmp_path, restart=True, progress=lines.append) == whole
    assert sum(line.startswith("epoch ") for line in lines) == EPOCHS
    state_path(tmp_path / "out.gbnn.safetensors").write_bytes(state)
    lines.clear()
    assert finished({**options, "epochs": 1}, tmp_path, seed=1, progress=lines.append) != whole
    assert "starting over: `out.gbnn.state.safetensors` is of a run with other epochs, seed" in lines


@pytest.mark.parametrize("schema", [None, "0", "2", "new"])
def test_the_state_of_another_version_starts_over(tmp_path: Path, schema: str | None) -> None:
    path, lines = tmp_path / "out.gbnn.state.safetensors", list[str]()
    file = StateFile(path, {"seed": 0}, torch.device("cpu"), lines.append)
    file.write({"epoch": 1, "latent": torch.ones(2)})
    assert file.read(restart=False) is not None
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata = {**opened.metadata(), "tree": "of another kind"}
    metadata.pop("schema")
    path.write_bytes(safetensors.torch.save({}, metadata if schema is None else {**metadata, "schema": schema}))
    lines.clear()
    assert file.read(restart=True) is None
    assert lines == []
    assert file.read(restart=False) is None
    assert lines == ["starting over: `out.gbnn.state.safetensors` was written by another version"]


def test_a_file_that_is_no_state_is_left_alone(options: dict[str, Any], tmp_path: Path) -> None:
    other = state_path(tmp_path / "out.gbnn.safetensors")
    for content in (b"mine", Path(options["checkpoint"]).read_bytes()):
        other.write_bytes(content)
        with pytest.raises(OutputError, match=r"`.*out\.gbnn\.state\.safetensors`: another file is there"):
            compress(**options, output=tmp_path / "out.gbnn.safetensors")
        assert other.read_bytes() == content


def test_a_state_that_cannot_be_written_does_not_stop_training(
    options: dict[str, Any], whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OutputError("cannot write `x`: No space left on device")

    monkeypatch.setattr("gbnn_compress.training.state.write_atomically", full)
    lines: list[str] = []
    assert finished(options, tmp_path, progress=lines.append) == whole
    assert "the state of training is not kept: cannot write `x`: No space left on device" in lines


def test_packing_keeps_every_bit() -> None:
    bank = Bank(np.array([-1.0, np.pi]), np.array([0.1, 1e-300]))
    book = Codebook(bank, np.arange(6.0).reshape(2, 3), penalty=1 / 3, distortion=np.ones(2))
    value = {
        "step": 7,
        "shared": {"book": book, "posteriors": (Posterior("w", 0.1, np.zeros(3)),), "noise": np.float64(0.1)},
        "moments": {0: {"exp_avg": torch.randn(2, 3).T, "step": torch.tensor(3.0)}, 2: {}},
        "rates": [0.1, 1e-9],
        "mask": torch.tensor([True, False]),
        "none": None,
    }
    tensors: dict[str, torch.Tensor] = {}
    tree = packed(value, tensors)
    again = unpacked(tree, tensors, device=torch.device("cpu"))
    assert repr(again) == repr({**value, "shared": {**value["shared"], "noise": 0.1}})  # type: ignore[dict-item]
    assert again["shared"]["book"].counts.dtype == np.float64
    assert torch.equal(again["moments"][0]["exp_avg"], value["moments"][0]["exp_avg"])  # type: ignore[index]


def changed_image(x: np.ndarray, y: np.ndarray) -> None:
    x[-1] += 1


def changed_label(x: np.ndarray, y: np.ndarray) -> None:
    y[50] += 1


@pytest.mark.parametrize("change", [changed_image, changed_label])
def test_the_fingerprint_tells_data_apart_by_content(change: Callable[[np.ndarray, np.ndarray], None]) -> None:
    x, y = np.zeros((100, 4, 4), dtype=np.uint8), np.arange(100) % 10
    found = fingerprint(Dataset("a", x, y))
    assert found == fingerprint(Dataset("b", x.copy(), y.copy()))
    assert found != fingerprint(Dataset("a", x[:99], y[:99]))
    change(x, y)
    assert found != fingerprint(Dataset("a", x, y))
