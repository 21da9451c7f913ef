"""A Hugging Face folder is one checkpoint; what is none says what it lacks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gbnn_compress.checkpoint.paged import LARGE_BYTES, PagedTensors
from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.errors import CheckpointError

PARTS = (
    {"model.embed.weight": torch.full((4, 3), 1.0)},
    {"model.l.weight": torch.full((3, 3), 2.0), "lm_head.weight": torch.full((4, 3), 3.0)},
)
STEMS = {"safetensors": "model", "bin": "pytorch_model"}


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    save_file(dict(tensors), path) if path.suffix == ".safetensors" else torch.save(dict(tensors), path)


def shard(kind: str, number: int) -> str:
    return f"{STEMS[kind]}-{number + 1:05}-of-00002.{kind}"


def sharded(folder: Path, kind: str = "safetensors", **changes: object) -> Path:
    """Two shards and their index; `changes` are made to its map, None takes away."""
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(PARTS):
        write(folder / shard(kind, number), part)
    listed = {name: shard(kind, number) for number, part in enumerate(PARTS) for name in part} | changes
    index = {"metadata": {"total_size": 9}, "weight_map": {n: file for n, file in listed.items() if file is not None}}
    (folder / f"{STEMS[kind]}.{kind}.index.json").write_text(json.dumps(index))
    return folder


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("kind", STEMS)
def test_shards_are_one_checkpoint(tmp_path: Path, kind: str) -> None:
    folder = sharded(tmp_path / "llama", kind)
    checkpoint = read_checkpoint(folder)
    assert {name: float(tensor[0, 0]) for name, tensor in checkpoint.tensors.items()} == {
        "model.embed.weight": 1,
        "model.l.weight": 2,
        "lm_head.weight": 3,
    }
    files = [folder / shard(kind, number) for number in (0, 1)]
    content = b"".join(file.read_bytes() for file in files)
    assert checkpoint.sha256 == hashlib.sha256(content).hexdigest()
    assert checkpoint.size_bytes == len(content)
    assert checkpoint.path == folder


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"],
)
def test_a_single_file_is_the_folder_s_checkpoint(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, PARTS[0])
    (tmp_path / "config.json").write_text("{}")
    checkpoint = read_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["model.embed.weight"]
    assert checkpoint.sha256 == read_checkpoint(tmp_path / name).sha256


def test_safetensors_before_bin_and_the_index_before_a_single_file(tmp_path: Path) -> None:
    write(tmp_path / "pytorch_model.bin", {"bin": torch.ones(2, 2)})
    assert list(read_checkpoint(tmp_path).tensors) == ["bin"]
    sharded(tmp_path, "bin")
    assert len(read_checkpoint(tmp_path).tensors) == 3
    write(tmp_path / "model.safetensors", {"single": torch.ones(2, 2)})
    assert list(read_checkpoint(tmp_path).tensors) == ["single"]
    sharded(tmp_path, "safetensors")
    assert len(read_checkpoint(tmp_path).tensors) == 3


def test_large_shards_leave_memory_again(tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.full((LARGE_BYTES // 4 + 1,), float(i)) for i in range(4)}
    listed = {}
    for number, names in enumerate((("w0", "w1"), ("w2", "w3"))):
        write(tmp_path / shard("safetensors", number), {name: tensors[name] for name in names})
        listed |= dict.fromkeys(names, shard("safetensors", number))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    found = read_checkpoint(tmp_path).tensors
    assert isinstance(found, PagedTensors)
    for _ in range(2):
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("kind", STEMS)
def test_a_missing_shard(tmp_path: Path, kind: str) -> None:
    (sharded(tmp_path, kind) / shard(kind, 1)).unlink()
    assert f"lacks `{shard(kind, 1)}`, a shard that `{STEMS[kind]}.{kind}.index.json` lists" in refused(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"more": shard("safetensors", 1)}, "lacks the tensor `more`, which `model.safetensors.index.json` places in"),
        ({"lm_head.weight": None}, f"`lm_head.weight` in `{shard('safetensors', 1)}`, which `model.safetensors.index"),
        ({"lm_head.weight": shard("safetensors", 0)}, "lacks the tensor `lm_head.weight`"),
    ],
)
def test_an_index_that_does_not_fit_its_shards(tmp_path: Path, changes: dict, words: str) -> None:
    assert words in refused(sharded(tmp_path, **changes))


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    write(tmp_path / shard("safetensors", 0), {**PARTS[0], "lm_head.weight": torch.ones(2)})
    line = refused(tmp_path)
    assert f"holds the tensor `lm_head.weight` in `{shard('safetensors', 0)}`" in line
    assert f"places in `{shard('safetensors', 1)}`" in line


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    path = sharded(tmp_path) / shard("safetensors", 1)
    path.write_bytes(path.read_bytes()[:-9])
    assert f"has a shard, `{path.name}`, that is a damaged or truncated safetensors file" in refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "that is damaged"),
        ("[" * 100_000, "that is damaged"),
        ("[]", "that is damaged"),
        ('{"weight_map": 3}', "that lists no tensors"),
        ('{"weight_map": {}}', "that lists no tensors"),
        ('{"weight_map": {"a": ["x"]}}', "that lists no tensors"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "lists `../x.safetensors`: expected files in the folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "lists `/etc/passwd`: expected files in the folder"),
        ('{"weight_map": {"a": "b\\\\c"}}', "expected files in the folder"),
        ('{"weight_map": {"a": "x\\u0000"}}', "expected files in the folder"),
        ('{"weight_map": {"a": ".."}}', "expected files in the folder"),
        ('{"weight_map": {"a": ""}}', "lacks ``"),
        ('{"weight_map": {"a": "b", "a": "c"}}', "that is damaged: it lists `a` twice"),
        ("\xff", "that is damaged"),
    ],
)
def test_a_hostile_index(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"x")
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    line = refused(folder)
    assert words in line
    assert len(line) < 400 + len(str(folder))


@pytest.mark.parametrize("name", [shard("safetensors", 0), "pytorch_model-00001-of-00003.bin", "x-00001-of-00002.pt"])
def test_a_shard_alone_is_refused_with_the_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, PARTS[0])
    assert f"is one of several shards of a checkpoint: name its folder, `{tmp_path}`" in refused(tmp_path / name)


def test_a_shard_of_any_name_is_told_by_the_index_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "first.safetensors", PARTS[0])
    listed = {"model.embed.weight": "first.safetensors", "other": "second.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    assert "is one of several shards" in refused(tmp_path / "first.safetensors")


def test_one_shard_of_one_is_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "model-00001-of-00001.safetensors", PARTS[0])
    assert read_checkpoint(tmp_path / "model-00001-of-00001.safetensors").tensors


def test_other_folders_say_what_they_lack_and_what_lies_there(tmp_path: Path) -> None:
    assert "is a folder without model.safetensors, pytorch_model.bin or an index" in refused(tmp_path)
    write(tmp_path / "net.pth", PARTS[0])
    assert "name one of its files, `net.pth`" in refused(tmp_path)
    write(tmp_path / shard("safetensors", 0), PARTS[0])
    assert "but not their index: download the index, too" in refused(tmp_path)


def test_a_name_with_counts_is_no_shard(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(20, 20)}, tmp_path / "resnet-fold-3-of-5.pth")
    assert list(read_checkpoint(tmp_path / "resnet-fold-3-of-5.pth").tensors) == ["a.weight"]


def test_a_foreign_index_does_not_hide_a_single_file(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(20, 20)}, tmp_path / "model.safetensors")
    (tmp_path / "x.safetensors.index.json").write_text("{}")
    assert list(read_checkpoint(tmp_path).tensors) == ["a.weight"]


def test_a_tensor_called_as_the_format_is(tmp_path: Path) -> None:
    save_file({"pt": torch.ones(20, 20)}, tmp_path / "net.safetensors", metadata={"format": "pt"})
    assert list(read_checkpoint(tmp_path / "net.safetensors").tensors) == ["pt"]
