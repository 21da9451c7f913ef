"""Training in two processes over gloo: the same weights in both, and as good as in one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import each_step

from gbnn_compress import compress
from gbnn_compress.data.architectures import build_network
from gbnn_compress.data.datasets import load_data
from gbnn_compress.errors import GbnnError
from gbnn_compress.parallel import STARTED_TOGETHER
from gbnn_compress.predict.evaluation import evaluate
from gbnn_compress.training import processes
from gbnn_compress.training.state import state_path

pytestmark = pytest.mark.usefixtures("one_thread", "training_is_kept")

MODELS = """
from torch import nn

def tiny():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)
    )
"""

PROGRAM = """
import json, sys, torch
from pathlib import Path
from trainings import each_step
from gbnn_compress import compress
from gbnn_compress.training import processes
from gbnn_compress.training.state import StateFile

options, last = json.loads(sys.argv[1]), int(sys.argv[2])
folder, write, seen = Path(options["output"]).parent, StateFile.write, []

def watched(self, state):
    means = state["shared"]["coding"]["means"]
    found = {"latent": state["shared"]["latent"], "means": means, "network": state["network"]}
    found |= {"images": torch.stack(seen), "generators": state["generators"]}
    torch.save(found, folder / f"rank{processes.rank()}.pt")
    write(self, state)

def watch(number, images):
    if number == last:
        sys.exit(9)
    seen.append(images)

StateFile.write = watched
with processes.joined(), each_step(watch):
    mine = torch.tensor([float(processes.rank())]), torch.tensor([[3.0, 4.0]])
    processes.average_(mine)
    assert [each.tolist() for each in mine] == [[0.5], [[3.0, 4.0]]], mine
    options["output"] = options["output"].replace("RANK", str(processes.rank()))
    compress(**options)
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A network of 6,000 weights that knows the digits."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "models.py").write_text(MODELS)
    arch = f"{folder / 'models.py'}:tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(arch).train()
        optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(4):
            for images, labels in batches():
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(network(images), labels).backward()
                optimiser.step()
    torch.save(network.state_dict(), folder / "tiny.pth")
    return {
        "checkpoint": str(folder / "tiny.pth"),
        "target_ratio": 10,
        "arch": arch,
        "data": "digits:train",
        "val_data": "digits:test",
        "epochs": 2,
        "settings": {
            "n_components": 64,
            "em_iterations": 3,
            "finetune.precision": "float32",
            "finetune.augmentation": "none",
        },
    }


def batches() -> Any:
    from gbnn_compress.data.architectures import default_preprocessing

    data = load_data("digits:train")
    return data.batches(default_preprocessing(None, n_channels=1), batch_size=64)


def train_in_two(folder: Path, options: dict[str, Any], *, last: int = -1) -> None:
    """Start two processes as `torchrun` does, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = json.dumps({**options, "output": str(folder / "outRANK.gbnn.safetensors")})
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    together["PYTHONPATH"] = os.pathsep.join(part for part in sys.path if part)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, given, str(last)],
            env={**os.environ, **together, "RANK": rank, "LOCAL_RANK": rank, STARTED_TOGETHER: "test"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0 if last < 0 else 9] * 2, "\n".join(errors)


@pytest.mark.long
def test_two_processes_train_one_network(options: dict[str, Any], tmp_path: Path) -> None:
    train_in_two(tmp_path, options)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in "01")
    for part in ("latent", "network"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(first[part][name], second[part][name]) for name in first[part])
    assert torch.equal(first["means"], second["means"])
    assert all(torch.equal(*both) for both in zip(first["generators"], second["generators"], strict=True))
    assert not torch.equal(*first["generators"])  # each draws its own noise
    files = [(tmp_path / f"out{rank}.gbnn.safetensors").read_bytes() for rank in "01"]
    assert files[0] == files[1]

    alone = tmp_path / "alone.gbnn.safetensors"
    seen: list[torch.Tensor] = []
    with each_step(lambda number, images: seen.append(images)):
        report = compress(**options, output=alone)
    halves = torch.stack([first["images"], second["images"]], dim=2).flatten(1, 2)  # of each batch every second one
    assert torch.equal(halves, torch.stack(seen))
    assert report["target_met"], report["ratio"]
    together = evaluate(tmp_path / "out0.gbnn.safetensors", "digits:test", arch=options["arch"])
    apart = evaluate(alone, "digits:test", arch=options["arch"])
    met = report["ratio"] * report["artifact"]["bytes"] / len(files[0])
    assert 10 <= met <= 10 * 1.03
    assert together["accuracy"] >= apart["accuracy"] - 0.01


@pytest.mark.slow
def test_two_processes_go_on_where_they_were_stopped(options: dict[str, Any], tmp_path: Path) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    train_in_two(tmp_path / "whole", options)
    train_in_two(tmp_path / "stopped", options, last=100)
    assert state_path(tmp_path / "stopped" / "out0.gbnn.safetensors").exists()
    train_in_two(tmp_path / "stopped", options)
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )
    for name in ("out0.gbnn.safetensors", "out1.gbnn.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_torchrun_starts_the_command(options: dict[str, Any], tmp_path: Path) -> None:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = [word for key, value in options["settings"].items() for word in ("-s", f"{key}={value}")]
    given = ["--target-ratio", "10", "--arch", options["arch"], "--data", "digits:train", "--epochs", "1"]
    line += ["-m", "gbnn_compress_cli.main", options["checkpoint"], *given, *settings]
    done = subprocess.run(
        line, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote tiny.gbnn.safetensors in ") == 1
    assert done.stderr.count("epoch 1/1: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gbnn.safetensors"]


@pytest.mark.long
def test_weights_that_have_come_apart_are_noticed(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(value: Any) -> list[Any]:
        return [value, "another" if isinstance(value, str) else value]

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "average_", lambda tensors: None)
    monkeypatch.setattr(processes, "gathered", other)
    monkeypatch.setattr(processes, "from_first", lambda value: value)
    with pytest.raises(GbnnError, match="after epoch 1 the weights of the processes differ"):
        compress(**options, output=tmp_path / "out.gbnn.safetensors")


def test_too_little_memory_is_one_line_where_several_train(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tight(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "from_first", lambda value: value)
    message = r"out of memory with 10 images per process: lower `finetune\.batch_size`"
    with each_step(tight), pytest.raises(GbnnError, match=message):
        compress(**options, output=tmp_path / "out.gbnn.safetensors")


def test_alone_nothing_is_sent() -> None:
    with processes.joined():
        tensor = torch.ones(2)
        processes.average_([tensor])
        assert (processes.count(), processes.rank()) == (1, 0)
        assert processes.gathered(3) == [3]
        assert processes.from_first("x") == "x"
        assert tensor.tolist() == [1.0, 1.0]
