"""The bytes of a file depend on the checkpoint, the recipe and the seed, and on nothing around the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SURROUNDINGS = {
    "plain": {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC"},
    "other": {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "1", "LC_ALL": "C.UTF-8", "TZ": "Pacific/Kiritimati"},
    "ascii": {
        "OMP_NUM_THREADS": "4",
        "PYTHONHASHSEED": "4711",
        "LC_ALL": "C",
        "LANG": "C",
        "TZ": "America/St_Johns",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "COLUMNS": "40",
        "NO_COLOR": "1",
    },
}

COMPRESS = """
import sys, torch
import gbnn_compress
from gbnn_compress_cli.main import main
torch.set_num_threads(int(sys.argv[1]))
sys.exit(main(["net.pth", "--target-ratio", "6", "-q", "--html", "page.html", "-o", "net.gbnn.safetensors"]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Files by their names, by the surroundings that they were made in."""
    torch.manual_seed(0)
    weights = {
        "tête.weight": torch.randn(32, 16, 3, 3) / 12,
        "bn.weight": torch.ones(32),
        "bn.bias": torch.zeros(32),
        "bn.running_mean": torch.randn(32) / 10,
        "bn.running_var": torch.rand(32) + 0.5,
        "fc.weight": torch.randn(100, 32) / 6,
        "fc.bias": torch.randn(100) / 10,
    }
    result = {}
    for name, variables in SURROUNDINGS.items():
        folder = tmp_path_factory.mktemp(name)
        torch.save(weights, folder / "net.pth")
        words = [sys.executable, "-c", COMPRESS, variables["OMP_NUM_THREADS"]]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "PYTHON"))}
        done = subprocess.run(
            words, cwd=folder, env={**environment, **variables}, capture_output=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        result[name] = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return result


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in SURROUNDINGS if name != "plain"])
@pytest.mark.parametrize("file", ["net.gbnn.safetensors", "page.html"])
def test_the_same_bytes_in_all_surroundings(made: dict[str, dict[str, bytes]], name: str, file: str) -> None:
    assert made[name][file] == made["plain"][file]
