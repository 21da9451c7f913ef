"""Make the files in `models/` from the folder of `gbnn-compress demo`.

gbnn-compress demo demo
python examples/browser/make_models.py demo
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import gbnn_compress
from gbnn_compress.data.datasets import load_data

MODELS = Path(__file__).parent / "models"
NETWORK = "gbnn_compress_cli.digits_network:digits_cnn"

ARTIFACTS = {
    "digits-40x": (
        "digits-trained.gbnn.safetensors",
        "Handwritten digits of 8 x 8 pixels. The weights were trained at 0.7 bits each; their draws differ.",
    ),
    "digits-8x": (
        "digits.gbnn.safetensors",
        "Handwritten digits of 8 x 8 pixels. Compressed without data at 3.9 bits per weight; draws hardly differ.",
    ),
}

CLEAR, UNSURE = (0, 1, 3, 6), (17, 335, 449, 226)
"""Positions in `digits:test`."""


def main(demo: Path) -> None:
    """Write graph, artifacts, settings and sample pictures."""
    MODELS.mkdir(exist_ok=True)
    samples = sample_pictures()
    for name, (artifact, about) in ARTIFACTS.items():
        shutil.copyfile(demo / artifact, MODELS / f"{name}.gbnn.safetensors")
        settings = {
            "name": "Handwritten digits",
            "about": about,
            "graph": "digits.onnx",
            "artifact": f"{name}.gbnn.safetensors",
            "labels": list("0123456789"),
            "image": {"size": 8, "channels": 1, "mean": [0], "std": [1], "ink": True},
            "draws": 16,
            "samples": samples,
        }
        (MODELS / f"{name}.json").write_text(json.dumps(settings, indent=1) + "\n")
    # One graph serves both artifacts.
    gbnn_compress.export_onnx(
        demo / "digits.gbnn.safetensors",
        MODELS / "digits.onnx",
        weights="external",
        arch=NETWORK,
        input_shape=(1, 8, 8),
    )


def sample_pictures() -> list[dict[str, Any]]:
    """Write sample pictures, and return their entries in the settings."""
    data = load_data("digits:test")
    assert data.labels is not None
    found = []
    for kind, positions in (("clear", CLEAR), ("hard to read", UNSURE)):
        for position in positions:
            found.append(
                _written(f"digit-{position}", data.images[position], f"the digit {data.labels[position]}, {kind}")
            )
    cross = np.minimum(255, 255 * (np.eye(8) + np.eye(8)[::-1]))
    return [*found, _written("cross", cross.astype(np.uint8), "a cross, not a digit")]


def _written(name: str, image: np.ndarray, about: str) -> dict[str, Any]:
    Image.fromarray(image.squeeze()).save(MODELS / f"{name}.png", optimize=True)
    return {"file": f"{name}.png", "about": about}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
