"""Every kind of checkpoint file, good, odd and hostile, as `read_checkpoint` sees it."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from gbnn_compress.errors import CheckpointError
from gbnn_compress.weights.checkpoint import read_checkpoint

LEGACY = {"_use_new_zipfile_serialization": False}


def weights() -> dict[str, torch.Tensor]:
    """Some tensors with names as a network has them, shapes (4, 3) and (4,)."""
    return {"fc.weight": torch.arange(12.0).reshape(4, 3), "fc.bias": torch.ones(4)}


def saved(folder: Path, content: object, *, name: str = "net.pth", **options: object) -> Path:
    path = folder / name
    torch.save(content, path, **options)
    return path


def refusal(path: str | Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 300 + len(str(path))
    assert Path(path).name.replace("\0", " ") in line
    return line


def assert_holds(path: Path, expected: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """Checks names, order and values, and returns the notes."""
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.tensors) == list(expected)
    for name, tensor in checkpoint.tensors.items():
        assert type(tensor) is torch.Tensor
        assert tensor.dtype == expected[name].dtype
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert torch.equal(tensor, expected[name])
    return checkpoint.notes


class Attack:
    """Creates a file where it is unpickled carelessly."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("name", ["net.pth", "net.pt", "net.th", "net.bin", "net.ckpt", "net.pth.tar"])
@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_torch_files_are_read(tmp_path, name, options):
    assert assert_holds(saved(tmp_path, weights(), name=name, **options), weights()) == ()


def test_safetensors_files_are_read_in_the_order_of_their_bytes(tmp_path):
    path = tmp_path / "net.safetensors"
    tensors = {"z": torch.ones(2), "a": torch.zeros(3, dtype=torch.int64)}
    safetensors.torch.save_file(tensors, path)
    with safetensors.safe_open(path, framework="pt") as file:
        order = file.offset_keys()
    assert_holds(path, {name: tensors[name] for name in order})


def test_file_is_described(tmp_path):
    path = saved(tmp_path, weights())
    checkpoint = read_checkpoint(str(path))
    assert checkpoint.path == path
    assert checkpoint.size_bytes == path.stat().st_size
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.ties == {}


def test_safetensors_named_pth_is_read_with_a_note(tmp_path):
    path = tmp_path / "net.pth"
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    (note,) = assert_holds(path, {"w": torch.ones(2)})
    assert ".pth" in note
    assert "safetensors" in note


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_torch_file_named_safetensors_is_read_with_a_note(tmp_path, options):
    (note,) = assert_holds(saved(tmp_path, weights(), name="net.safetensors", **options), weights())
    assert ".safetensors" in note
    assert "PyTorch" in note


def test_safetensors_header_that_begins_like_a_pickle_is_read(tmp_path):
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(0x280)
    assert struct.pack("<Q", len(header))[:2] == b"\x80\x02"
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", 1.0))
    assert_holds(path, {"w": torch.ones(1)})


def test_compressed_archive_is_read(tmp_path):
    stored = saved(tmp_path, weights(), name="stored.pth")
    path = tmp_path / "deflated.pth"
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    assert_holds(path, weights())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "dtype",
    [
        *(
            torch.float32,
            torch.float16,
            torch.bfloat16,
            torch.float64,
            torch.float8_e4m3fn,
            torch.float8_e5m2,
        ),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64),
    ],
    ids=str,
)
def test_dtypes_are_kept(tmp_path, dtype, suffix):
    path = tmp_path / f"net{suffix}"
    tensors = {"w": torch.tensor([0, 1, 1]).to(dtype)}
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)
    (tensor,) = read_checkpoint(path).tensors.values()
    assert tensor.dtype == dtype
    assert torch.equal(tensor.to(torch.complex64), tensors["w"].to(torch.complex64))


def test_parameters_views_and_scalars_become_plain_contiguous_tensors(tmp_path):
    base = torch.arange(12.0)
    path = saved(
        tmp_path,
        {
            "parameter": torch.nn.Parameter(base.clone()),
            "transposed": base.reshape(3, 4).T,
            "overlapping": base[2:5],
            "scalar": torch.tensor(3.0),
            "empty": torch.empty(0, 2),
        },
    )
    expected = {
        "parameter": base,
        "transposed": base.reshape(3, 4).T,
        "overlapping": base[2:5],
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 2),
    }
    assert assert_holds(path, expected) == ()
    assert read_checkpoint(path).ties == {}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_large_files_are_mapped_not_copied(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    tensors = {f"w{i}": torch.zeros(16_000_000) for i in range(4)}
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)
    code = f"""
import resource, torch, safetensors.torch
from gbnn_compress.weights.checkpoint import read_checkpoint
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
before = anonymous()
checkpoint = read_checkpoint({str(path)!r})
total = sum(float(tensor.sum()) for tensor in checkpoint.tensors.values())
raise SystemExit(0 if anonymous() - before < 60_000 else 1)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_ties_map_later_names_to_the_first(tmp_path, options):
    shared = torch.arange(6.0).reshape(2, 3)
    content = {"first": shared, "other": torch.arange(6.0).reshape(2, 3), "second": shared, "third": shared}
    checkpoint = read_checkpoint(saved(tmp_path, content, **options))
    assert checkpoint.ties == {"second": "first", "third": "first"}
    assert list(checkpoint.tensors) == ["first", "other", "second", "third"]
    assert torch.equal(checkpoint.tensors["second"], shared)


def test_ties_share_memory_even_where_the_tensor_had_to_be_copied(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3).T
    checkpoint = read_checkpoint(saved(tmp_path, {"first": shared, "second": shared}))
    first, second = checkpoint.tensors.values()
    assert checkpoint.ties == {"second": "first"}
    assert first.data_ptr() == second.data_ptr()


def test_ties_follow_stripped_prefixes(tmp_path):
    shared = torch.ones(2)
    checkpoint = read_checkpoint(saved(tmp_path, {"module.a": shared, "module.b": shared}))
    assert checkpoint.ties == {"b": "a"}


def test_safetensors_ties_are_restored_from_metadata(tmp_path):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_model(model, str(path))
    checkpoint = read_checkpoint(path)
    assert set(checkpoint.tensors) == set(model.state_dict())
    assert checkpoint.ties == {"b.weight": "a.weight"}


@pytest.mark.parametrize(
    "key",
    [
        "state_dict",
        "model",
        "model_state_dict",
        "state_dict_ema",
        "model_ema",
        "net",
        "ema",
        "module",
        "weights",
    ],
)
def test_nested_state_dicts_are_unwrapped_with_a_note(tmp_path, key):
    path = saved(tmp_path, {"epoch": 3, key: weights(), "optimizer": {"state": {0: {"m": torch.ones(2)}}}})
    assert assert_holds(path, weights()) == (f"Took the state dict under `{key}`.",)


def test_unknown_wrapper_with_a_single_state_dict_is_unwrapped(tmp_path):
    path = saved(tmp_path, {"teacher": weights(), "optimizer": {"exp_avg": torch.ones(2)}})
    assert assert_holds(path, weights()) == ("Took the state dict under `teacher`.",)


def test_averaged_weights_come_first_and_the_note_names_the_others(tmp_path):
    other = {name: tensor + 1 for name, tensor in weights().items()}
    path = saved(tmp_path, {"state_dict": other, "state_dict_ema": weights()})
    assert assert_holds(path, weights()) == ("Took the state dict under `state_dict_ema`, left `state_dict`.",)


def test_nesting_and_prefixes_are_unwrapped_repeatedly(tmp_path):
    inner = {f"module._orig_mod.model.{name}": tensor for name, tensor in weights().items()}
    path = saved(tmp_path, {"model": {"state_dict": OrderedDict(inner)}})
    assert assert_holds(path, weights()) == (
        "Took the state dict under `model`.",
        "Took the state dict under `state_dict`.",
        "Stripped the prefix `module.` from every name.",
        "Stripped the prefix `_orig_mod.` from every name.",
        "Stripped the prefix `model.` from every name.",
    )


def test_prefix_that_not_all_names_carry_stays(tmp_path):
    content = {"model.weight": torch.ones(2), "head.weight": torch.ones(3)}
    assert assert_holds(saved(tmp_path, content), content) == ()


def test_tensors_beside_a_known_wrapper_do_not_hide_it(tmp_path):
    path = saved(tmp_path, {"best": torch.tensor(0.9), "state_dict": weights()})
    assert_holds(path, weights())


def test_averaged_model_loses_its_counter_and_prefix(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(3, 4))
    path = saved(tmp_path, {"model_ema": averaged.state_dict()})
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.tensors) == ["weight", "bias"]
    assert "`n_averaged`" in " ".join(checkpoint.notes)


def test_entries_that_are_not_tensors_are_ignored_with_a_note(tmp_path):
    content = {**weights(), "_extra_state": {"a": 1}, "epoch": 3, "lr": 0.1, "tag": "best", 7: torch.ones(1)}
    (note,) = assert_holds(saved(tmp_path, content), weights())
    assert note == "Ignored entries that are not tensors: `_extra_state`, `epoch`, `lr`, `tag`, `7`."


def test_long_lists_of_ignored_entries_are_cut(tmp_path):
    (note,) = assert_holds(saved(tmp_path, {**weights(), **{f"e{i}": i for i in range(9)}}), weights())
    assert note.endswith("`e4` and 4 more.")


def test_options_and_numpy_scalars_beside_the_weights_are_harmless(tmp_path):
    arguments = argparse.Namespace(lr=0.1, model="resnet")
    content = {"state_dict": weights(), "args": arguments, "best": np.float64(0.9), "epoch": np.int64(3)}
    assert_holds(saved(tmp_path, content), weights())


def test_missing_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "net.pth")
    assert "does not exist" in refusal("net\0.pth")


def test_directory(tmp_path):
    assert "is a directory: name the checkpoint file" in refusal(tmp_path)


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
    assert "is of another kind or cut short: expected a .safetensors file, or .pth" in line


def test_git_lfs_pointer(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refusal(tmp_path / "net.pth")


def test_list_of_shards(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "shards: merge them" in refusal(tmp_path / "model.safetensors.index.json")


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
    assert "cut short" in line or "damaged pickle" in line


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_whole_module(tmp_path, options):
    line = refusal(saved(tmp_path, torch.nn.Linear(2, 2), **options))
    assert "holds a pickled `torch.nn.modules.linear.Linear`" in line
    assert "torch.save(model.state_dict(), 'weights.pth')" in line


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_attack_does_not_run(tmp_path, options):
    path = saved(tmp_path, {"w": torch.ones(2), "x": Attack(tmp_path / "owned")}, **options)
    assert "mkdir`, which needs code to be run" in refusal(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_attack_by_a_bare_pickle_does_not_run(tmp_path, protocol):
    path = tmp_path / "net.pth"
    path.write_bytes(pickle.dumps(Attack(tmp_path / "owned"), protocol=protocol))
    refusal(path)
    assert not (tmp_path / "owned").exists()


def test_pickle_of_other_things(tmp_path):
    path = tmp_path / "net.bin"
    path.write_bytes(pickle.dumps({"a": {1, 2}}, protocol=4))
    assert "holds a damaged pickle, or other things than weights" in refusal(path)


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
    assert "several state dicts, `generator`, `critic`: save one of them alone" in refusal(path)


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
