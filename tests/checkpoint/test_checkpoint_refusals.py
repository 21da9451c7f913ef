"""Files that `read_checkpoint` refuses, odd and hostile ones."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoint_files import LEGACY, Attack, refusal, saved, weights

from gbnn_compress.checkpoint.read import read_checkpoint


def test_missing_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "net.pth")
    assert "does not exist" in refusal("net\0.pth")


def test_directory(tmp_path):
    assert "is a folder without model.safetensors, pytorch_model.bin or an index" in refusal(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe(tmp_path):
    os.mkfifo(tmp_path / "net.pth")
    assert "is no regular file" in refusal(tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_empty_file(tmp_path, name):
    (tmp_path / name).touch()
    assert "is empty (0 bytes)" in refusal(tmp_path / name)


def test_unreadable_file(tmp_path, monkeypatch):
    path = saved(tmp_path, weights())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(path).endswith("cannot be read: Permission denied")


@pytest.mark.parametrize("content", [b"hello", b"\x89HDF\r\n\x1a\n" + bytes(40), b"{}", b"\x00" * 100])
@pytest.mark.parametrize("name", ["net.pth", "net.safetensors", "net.h5"])
def test_unknown_content(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    line = refusal(tmp_path / name)
    assert "has an unknown format or is truncated: expected a .safetensors file, or .pth" in line


def test_git_lfs_pointer(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refusal(tmp_path / "net.pth")


def test_list_of_shards(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    line = refusal(tmp_path / "model.safetensors.index.json")
    assert f"is the index of a checkpoint in shards: name its folder, `{tmp_path}`" in line


@pytest.mark.parametrize("share", [0.001, 0.05, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_file(tmp_path, kind, share):
    tensors = {f"layer{i}.weight": torch.randn(30, 30) for i in range(8)}
    path = tmp_path / ("net.safetensors" if kind == "safetensors" else "net.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path, **(LEGACY if kind == "legacy" else {}))
    content = path.read_bytes()
    path.write_bytes(content[: max(9, int(share * len(content)))])
    line = refusal(path)
    assert "truncated" in line or "damaged pickle" in line


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_whole_module(tmp_path, options):
    line = refusal(saved(tmp_path, torch.nn.Linear(2, 2), **options))
    assert "holds a pickled `torch.nn.modules.linear.Linear`" in line
    assert "torch.save(model.state_dict(), 'weights.pth')" in line


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_attack_does_not_run(tmp_path, options):
    path = saved(tmp_path, {"w": torch.ones(2), "x": Attack(tmp_path / "owned")}, **options)
    assert "mkdir`, which cannot be loaded without running code" in refusal(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_attack_by_a_bare_pickle_does_not_run(tmp_path, protocol):
    path = tmp_path / "net.pth"
    path.write_bytes(pickle.dumps(Attack(tmp_path / "owned"), protocol=protocol))
    refusal(path)
    assert not (tmp_path / "owned").exists()


def test_pickle_of_other_things(tmp_path):
    path = tmp_path / "net.bin"
    path.write_bytes(pickle.dumps({"a": {1, 2}}, protocol=2))
    assert "truncated" in refusal(path) or "objects that are no weights" in refusal(path)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [4, 5])
def test_later_pickle_protocols_are_refused_by_what_they_are(tmp_path, protocol, options):
    line = refusal(saved(tmp_path, weights(), pickle_protocol=protocol, **options))
    assert f"is written with pickle protocol {protocol}" in line
    assert "torch.save's default, pickle_protocol=2" in line


@pytest.mark.filterwarnings("ignore")
def test_torchscript_archive(tmp_path):
    path = tmp_path / "net.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))
    assert "is a TorchScript archive: load it with torch.jit.load" in refusal(path)


def test_foreign_zip_file(tmp_path):
    path = tmp_path / "net.pth"
    np.savez(path.open("wb"), w=np.ones(2))
    assert "is a zip file that torch.save did not write" in refusal(path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state": {0: {"exp_avg": torch.ones(2)}}}])
def test_no_tensors(tmp_path, content):
    assert "holds no tensors, expected a state dict" in refusal(saved(tmp_path, content))


def test_safetensors_without_tensors(tmp_path):
    safetensors.torch.save_file({}, tmp_path / "net.safetensors")
    assert "holds no tensors" in refusal(tmp_path / "net.safetensors")


@pytest.mark.parametrize(("content", "kind"), [([torch.ones(2)], "list"), (torch.ones(2), "Tensor"), (3, "int")])
def test_no_mapping(tmp_path, content, kind):
    assert f"holds a `{kind}`, expected a state dict" in refusal(saved(tmp_path, content))


def test_several_state_dicts(tmp_path):
    path = saved(tmp_path, {"generator": weights(), "critic": weights()})
    assert "several networks, `generator`, `critic`: choose one with `--key generator`" in refusal(path)


def test_sparse_tensor(tmp_path):
    line = refusal(saved(tmp_path, {"x": torch.eye(3).to_sparse()}))
    assert "tensor `x` is sparse (torch.sparse_coo): only dense tensors can be stored" in line
    assert ".to_dense()" in line


@pytest.mark.filterwarnings("ignore")
def test_quantised_tensor(tmp_path):
    path = saved(tmp_path, {"x": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)})
    assert "tensor `x` is quantised (torch.qint8): call .dequantize() first" in refusal(path)


def test_packed_quantised_weights(tmp_path):
    path = saved(tmp_path, {"fc.scale": torch.ones(1), "fc._packed_params._packed_params": (torch.ones(2), None)})
    assert "holds quantised weights, `fc._packed_params._packed_params`" in refusal(path)


def test_meta_tensor(tmp_path):
    path = saved(tmp_path, {"x": torch.ones(3, device="meta")})
    assert "tensor `x` has no values (meta device)" in refusal(path)


@pytest.mark.filterwarnings("ignore")
def test_nested_tensor(tmp_path):
    path = saved(tmp_path, {"x": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])})
    assert "tensor `x` is nested: store its parts" in refusal(path)


def test_tensor_that_does_not_fit_in_memory(tmp_path):
    path = saved(tmp_path, {"x": torch.zeros(1).expand(2**20, 2**22, 2**10)})
    assert "tensor `x` of shape (1048576, 4194304, 1024) does not fit in memory" in refusal(path)


def test_uninitialised_parameter(tmp_path):
    assert "UninitializedParameter`" in refusal(saved(tmp_path, torch.nn.LazyLinear(2).state_dict()))


def test_names_with_control_characters_stay_on_one_line(tmp_path):
    path = saved(tmp_path, {"x\n\x1b[31m": torch.eye(2).to_sparse()})
    assert "is sparse" in refusal(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_nothing_is_printed_or_warned(tmp_path, options, capfd):
    read_checkpoint(saved(tmp_path, weights(), **options))
    assert capfd.readouterr() == ("", "")
