"""Pages of a small network whose names are hostile."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

import gbnn_compress
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.report import page

if TYPE_CHECKING:
    from pathlib import Path

MODELS = """
from collections import OrderedDict
from torch import nn

def tiny():
    return nn.Sequential(OrderedDict({
        "<script>alert(1)</script>": nn.Conv2d(1, 8, 3), "norm": nn.BatchNorm2d(8), "relu": nn.ReLU(),
        "flatten": nn.Flatten(), 'x" onload="alert(1)': nn.Linear(288, 28), "\\x1b[2J\\u202e": nn.Linear(28, 10),
    }))
"""


QUICK = {"n_components": 64, "em_iterations": 3}
"""Settings with which the mixture takes no time, and pages look the same."""


class Pages(NamedTuple):
    """HTML by what was known: a run with data, the same without, the file alone, and an evaluation of it."""

    folder: Path
    settings: dict[str, int]
    report: dict[str, object]
    evaluated: str
    bare: str
    of_file: str
    of_data: str


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    import torch

    from gbnn_compress.data.architectures import build_network

    folder = tmp_path_factory.mktemp("pages")
    (folder / "models.py").write_text(MODELS)
    arch = f"{folder / 'models.py'}:tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(build_network(arch).state_dict(), folder / "tiny<b>.pth")
    artifact = folder / "tiny.gbnn.safetensors"

    def html(name: str, **options: object) -> dict[str, object]:
        target = {"target_ratio": 6, "output": artifact, "html": folder / name, "samples": 2, "settings": QUICK}
        return gbnn_compress.compress(folder / "tiny<b>.pth", **target, **options)  # type: ignore[arg-type]

    html("bare.html")
    report = html("evaluated.html", eval_data="digits:test", arch=arch)
    page.write(page.file_page(read_artifact(artifact), name=artifact.name), folder / "file.html")
    noise = np.random.default_rng(0).integers(0, 256, (100, 8, 8), dtype=np.uint8)
    np.savez(folder / "<i>noise.npz", x=noise)
    gbnn_compress.evaluate(
        artifact,
        gbnn_compress.Evaluation("digits:test", samples=2),
        arch=arch,
        ood=f"npz:{folder / '<i>noise.npz'}",
        val_data="digits:train",
        reference=folder / "tiny<b>.pth",
        html=folder / "data.html",
    )
    texts = [(folder / f"{name}.html").read_text() for name in ("evaluated", "bare", "file", "data")]
    return Pages(folder, QUICK, report, *texts)
