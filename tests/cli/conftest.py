from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from gbnn_compress_cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODELS = """
from torch import nn

def tiny():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    )
"""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


class Files(NamedTuple):
    """A checkpoint of 3,000 weights, the architecture that fits it, and an artifact at 4x."""

    checkpoint: str
    arch: str
    artifact: str


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    import torch

    import gbnn_compress
    from gbnn_compress.data.architectures import build_network

    folder: Path = tmp_path_factory.mktemp("files")
    (folder / "models.py").write_text(MODELS)
    arch = f"{folder / 'models.py'}:tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = build_network(arch).state_dict()
    checkpoint, artifact = folder / "tiny.pth", folder / "tiny.gbnn.safetensors"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, checkpoint)
    gbnn_compress.compress(checkpoint, target_ratio=4, output=artifact)
    return Files(str(checkpoint), arch, str(artifact))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def run_words(*words: str) -> Outcome:
        capfd.readouterr()
        code = main(words)
        return Outcome(code, *capfd.readouterr())

    return run_words
