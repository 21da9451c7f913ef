"""A file whose recorded recipe holds keys and values that recipes no longer have.

`removed_keys.gbnn.safetensors` was written by the code of commit 4660832 (version 0.1) from a network of 196 weights:
`compress(..., target_ratio=1, data=..., settings={"posterior": "fisher", "blending": "rate", "bank": "grid",
"contexts": False, "allocation": "norms"})`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from gbnn_compress_cli.main import main
from safetensors.torch import load_file

import gbnn_compress
from gbnn_compress.recipe import REMOVED

ARTIFACT = Path(__file__).parent / "removed_keys.gbnn.safetensors"

DENSE = "98c4b05528e8022ea9cf9d3c0f34e07e35c1300ab0bc92a243bae7f25f8e8cc4"
"""SHA-256 of the weights as the code that wrote the file gave them back."""


def test_the_recorded_recipe_is_reported_as_it_stands() -> None:
    recipe = gbnn_compress.load(ARTIFACT).report()["recipe"]
    removed = {key: recipe[key] for key in ("bank", "contexts", "posterior", "blending")}
    assert removed == {"bank": "grid", "contexts": False, "posterior": "fisher", "blending": "rate"}
    assert {"bank", "contexts", "posterior: fisher", "blending: rate"} <= REMOVED.keys()


def test_its_weights_are_the_recorded_ones(tmp_path: Path) -> None:
    gbnn_compress.decompress(ARTIFACT, output=tmp_path / "dense.safetensors")
    dense = load_file(tmp_path / "dense.safetensors")
    names = [info.name for info in gbnn_compress.load(ARTIFACT).artifact.tensors]
    assert hashlib.sha256(b"".join(dense[name].numpy().tobytes() for name in names)).hexdigest() == DENSE


def test_the_command_line_reports_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(ARTIFACT), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["posterior"] == "fisher"
