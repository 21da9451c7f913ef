"""`gbnn-decode`: its file, its messages and its exit codes."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from artifacts import GOLDEN, GOLDEN_ENSEMBLE, ensemble, of_everything
from safetensors import safe_open

import gbnn_compress


def run(tool: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=False)


def tensors(path: Path) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    raw = {name: tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in found.items()}
    return {name: (tensor.dtype, tensor.shape, raw[name]) for name, tensor in found.items()}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name.partition(".")[0])
def test_the_file_holds_what_decompress_writes(tool: Path, tmp_path: Path, path: Path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    gbnn_compress.decompress(path, theirs)
    done = run(tool, path, ours)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert tensors(ours) == tensors(theirs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.safetensors", "theirs.safetensors"]


@pytest.mark.parametrize("member", [0, 1, 2])
def test_each_member_of_an_ensemble_is_what_decompress_writes(tool: Path, tmp_path: Path, member: int) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    gbnn_compress.decompress(GOLDEN_ENSEMBLE, theirs, member=member)
    assert run(tool, GOLDEN_ENSEMBLE, ours, "--member", member).returncode == 0
    assert tensors(ours) == tensors(theirs)


def test_an_ensemble_needs_a_member(tool: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "both.gbnn.safetensors", tmp_path / "out.safetensors"
    path.write_bytes(ensemble([GOLDEN[1].read_bytes(), GOLDEN[0].read_bytes()]))
    for option in ([], ["--member", "2"], ["--member", "x"], ["--member=-1"]):
        refused = run(tool, path, out, *option)
        assert refused.returncode == 2
        assert "ensemble of 2" in refused.stderr
        assert "--member 1" in refused.stderr
        assert not out.exists()
    gbnn_compress.decompress(GOLDEN[0], tmp_path / "theirs.safetensors")
    assert run(tool, path, out, "--member", "1").returncode == 0
    assert tensors(out) == tensors(tmp_path / "theirs.safetensors")


def test_a_single_network_is_member_0(tool: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert run(tool, GOLDEN[0], out, "--member=0").returncode == 0
    assert run(tool, GOLDEN[0], out, "--member=1").returncode == 2


def test_errors_are_one_line_that_names_the_file(tool: Path, tmp_path: Path) -> None:
    out, damaged = tmp_path / "out.safetensors", tmp_path / "damaged.gbnn.safetensors"
    data = bytearray(GOLDEN[1].read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    lacking = tmp_path / "complex.gbnn.safetensors"
    lacking.write_bytes(of_everything(1))
    for path, reason in [
        (damaged, "checksum"),
        (tmp_path / "none", "No such file"),
        (tmp_path, "directory"),
        (lacking, "complex32, which safetensors lacks"),
    ]:
        refused = run(tool, path, out)
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert str(path) in refused.stderr
        assert reason in refused.stderr
    assert not list(tmp_path.glob("out*"))


def test_the_artifact_is_not_overwritten(tool: Path, tmp_path: Path) -> None:
    path, link = tmp_path / "a.gbnn.safetensors", tmp_path / "b.gbnn.safetensors"
    path.write_bytes(GOLDEN[0].read_bytes())
    link.hardlink_to(path)
    for output in (path, link):
        refused = run(tool, path, output)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "is the artifact itself" in refused.stderr
    assert path.read_bytes() == GOLDEN[0].read_bytes()


def test_the_damaged_member_is_named(tool: Path, tmp_path: Path) -> None:
    path = tmp_path / "both.gbnn.safetensors"
    data = bytearray(ensemble([GOLDEN[1].read_bytes(), GOLDEN[1].read_bytes()]))
    data[-1] ^= 1
    path.write_bytes(data)
    refused = run(tool, path, tmp_path / "out.safetensors", "--member", "0")
    assert refused.returncode == 2
    assert f"`{path}, member 1`" in refused.stderr


def test_help(tool: Path) -> None:
    done = run(tool, "--help")
    assert (done.returncode, done.stdout[:6], done.stderr) == (0, "usage:", "")


@pytest.mark.parametrize("arguments", [[], ["a"], ["a", "b", "c"], ["a", "b", "--wrong"], ["a", "b", "--member"]])
def test_usage(tool: Path, arguments: list[str]) -> None:
    refused = run(tool, *arguments)
    assert refused.returncode == 2
    assert refused.stderr == "usage: gbnn-decode ARTIFACT OUT.safetensors [--member N]\n"


def test_outputs_are_replaced_as_by_decompress(tool: Path, tmp_path: Path) -> None:
    """What is behind a link is replaced, permissions stay, and what is no file is refused."""
    behind, link, fifo = tmp_path / "behind.safetensors", tmp_path / "link.safetensors", tmp_path / "fifo"
    behind.write_bytes(b"old")
    behind.chmod(0o600)
    link.symlink_to(behind)
    assert run(tool, GOLDEN[0], link).returncode == 0
    assert link.is_symlink()
    assert behind.stat().st_mode & 0o777 == 0o600
    assert tensors(behind)
    os.mkfifo(fifo)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for path, reason in ((fifo, "a device or a pipe"), (tmp_path, "a directory"), (tmp_path / "broken", "broken link")):
        refused = run(tool, GOLDEN[0], path)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert reason in refused.stderr
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    long = tmp_path / ("x" * 250)
    assert run(tool, GOLDEN[0], long).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [behind.name, link.name, fifo.name, "broken", long.name]
    )


def test_what_is_no_artifact_is_not_read_to_its_end(tool: Path, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    refused = run(tool, path, tmp_path / "out.safetensors")
    assert refused.returncode == 2
    assert "not a safetensors file" in refused.stderr


def test_a_folder_that_cannot_be_written(tool: Path, tmp_path: Path) -> None:
    refused = run(tool, GOLDEN[0], tmp_path / "missing" / "out.safetensors")
    assert refused.returncode == 2
    assert "No such file" in refused.stderr
