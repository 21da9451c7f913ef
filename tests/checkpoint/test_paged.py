"""Large tensors of a mapped file leave memory when another is asked for, and are the same when they come back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gbnn_compress.checkpoint.paged import LARGE_BYTES, PagedTensors
from gbnn_compress.checkpoint.read import read_checkpoint

SIZE = 4 * LARGE_BYTES
COUNT = 12


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("paged") / "net.safetensors"
    tensors = {f"layer{i}.weight": torch.full((SIZE // 8, 4), i, dtype=torch.float16) for i in range(COUNT)}
    save_file({**tensors, "a": torch.ones(3, dtype=torch.uint8), "empty": torch.zeros(0, 4)}, file)
    return file


def mapped_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssFile"))


def test_a_pass_over_all_tensors_holds_one_at_a_time(path: Path) -> None:
    tensors = read_checkpoint(path).tensors
    assert isinstance(tensors, PagedTensors)
    before = mapped_bytes()
    for i in range(COUNT):
        assert float(tensors[f"layer{i}.weight"].double().sum()) == i * SIZE / 2
        assert mapped_bytes() - before < 2 * SIZE


def test_a_tensor_that_was_handed_out_stays_what_it_is(path: Path) -> None:
    tensors = read_checkpoint(path).tensors
    held = dict(tensors)
    assert list(held) == list(tensors)
    assert len(held) == len(tensors) == COUNT + 2
    for i in range(COUNT):
        assert held[f"layer{i}.weight"].shape == (SIZE // 8, 4)
        assert bool((held[f"layer{i}.weight"] == i).all())
    assert held["a"].tolist() == [1, 1, 1]
    assert held["empty"].shape == (0, 4)


def test_a_file_that_is_replaced_meanwhile_is_read_as_it_was(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "net.safetensors"
    copy.write_bytes(path.read_bytes())
    tensors = read_checkpoint(copy).tensors
    save_file({"other": torch.zeros(3)}, tmp_path / "new.safetensors")
    (tmp_path / "new.safetensors").replace(copy)
    assert float(tensors["layer7.weight"].double().sum()) == 7 * SIZE / 2
