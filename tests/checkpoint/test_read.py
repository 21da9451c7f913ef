"""Every kind of checkpoint file that `read_checkpoint` reads."""

from __future__ import annotations

import argparse
import hashlib
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
from checkpoint_files import LEGACY, assert_holds, saved, weights

from gbnn_compress.checkpoint.read import read_checkpoint


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


@pytest.mark.long
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
from gbnn_compress.checkpoint.read import read_checkpoint
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


def test_ties_keep_their_prefixes(tmp_path):
    shared = torch.ones(2)
    checkpoint = read_checkpoint(saved(tmp_path, {"module.a": shared, "module.b": shared}))
    assert checkpoint.ties == {"module.b": "module.a"}


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
    assert assert_holds(path, weights()) == (f"Took the state dict under `{key}`, left `epoch`, `optimizer`.",)


def test_unknown_wrapper_with_a_single_state_dict_is_unwrapped(tmp_path):
    path = saved(tmp_path, {"teacher": weights(), "optimizer": {"exp_avg": torch.ones(2)}})
    assert assert_holds(path, weights()) == ("Took the state dict under `teacher`, left `optimizer`.",)


def test_averaged_weights_come_first_and_the_note_names_the_others(tmp_path):
    other = {name: tensor + 1 for name, tensor in weights().items()}
    path = saved(tmp_path, {"state_dict": other, "state_dict_ema": weights()})
    assert assert_holds(path, weights()) == ("Took the state dict under `state_dict_ema`, left `state_dict`.",)


def test_nesting_is_unwrapped_repeatedly_and_prefixes_stay(tmp_path):
    inner = {f"module._orig_mod.model.{name}": tensor for name, tensor in weights().items()}
    path = saved(tmp_path, {"model": {"state_dict": OrderedDict(inner)}})
    assert assert_holds(path, inner) == (
        "Took the state dict under `model`.",
        "Took the state dict under `state_dict`.",
    )


def test_prefix_that_not_all_names_carry_stays(tmp_path):
    content = {"model.weight": torch.ones(2), "head.weight": torch.ones(3)}
    assert assert_holds(saved(tmp_path, content), content) == ()


def test_tensors_beside_a_known_wrapper_do_not_hide_it(tmp_path):
    path = saved(tmp_path, {"best": torch.tensor(0.9), "state_dict": weights()})
    assert_holds(path, weights())


def test_averaged_model_keeps_its_counter_and_prefix(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(3, 4))
    path = saved(tmp_path, {"model_ema": averaged.state_dict()})
    assert list(read_checkpoint(path).tensors) == ["n_averaged", "module.weight", "module.bias"]


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
