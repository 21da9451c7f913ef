"""The file as a whole: damage, foreign files, and writing that may fail at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.numpy
import zstandard

from gbnn_compress.codec.artifact import read_artifact
from gbnn_compress.codec.container import pack, require_writable, unpack, write_atomically
from gbnn_compress.errors import ArtifactError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

GOLDEN = Path(__file__).parents[1] / "golden" / "version0.gbnn.safetensors"
SECTIONS = {"bank": b"bank", "maps": b"maps" * 9, "outliers": b"", "values": b"\0\1"}


def refusal(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(ArtifactError) as caught:
        read_artifact(path)
    line = str(caught.value)
    assert "\n" not in line
    return line


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_round_trip(tmp_path: Path) -> None:
    data = pack({"names": ["a"], "x": {"ü": 1.5}}, SECTIONS)
    manifest, sections, size = unpack(saved(tmp_path / "file", data))
    assert manifest == {"names": ["a"], "x": {"ü": 1.5}}
    assert sections == SECTIONS
    assert size == len(data)


def test_is_a_safetensors_file_of_bytes(tmp_path: Path) -> None:
    tensors = safetensors.numpy.load_file(saved(tmp_path / "file", pack({}, SECTIONS)))
    assert set(tensors) == {"bank", "maps", "values", "manifest"}
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.uint8)}


def test_metadata_is_one_entry_with_version_and_checksum() -> None:
    data = pack({"names": ["a"]}, SECTIONS)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    manifest = safetensors.numpy.load(data)["manifest"].tobytes()
    assert header["__metadata__"] == {"gbnn-compress": f"0 {zlib.crc32(manifest):08x}"}


def test_packing_gives_the_same_bytes_every_time() -> None:
    assert len({pack({"names": ["a"]}, SECTIONS) for _ in range(30)}) == 1


@pytest.mark.parametrize("stamp", ["0", "0 ", "0 0", "0 00000000 "])
def test_a_stamp_without_its_checksum_is_damage(tmp_path: Path, stamp: str) -> None:
    tensors = safetensors.numpy.load(pack({}, SECTIONS))
    data = safetensors.numpy.save(tensors, metadata={"gbnn-compress": stamp})
    assert "checksum of `manifest`" in refusal(saved(tmp_path / "file", data))


def flips(data: bytes) -> Iterator[tuple[int, int]]:
    """Positions and masks: one bit of every byte; within the header also the case of a letter."""
    header = 8 + int.from_bytes(data[:8], "little")
    for position in range(len(data)):
        for mask in {1 << position % 8, 0x20} if position < header else {1 << position % 8}:
            yield position, mask


def test_no_flip_of_any_byte_goes_unnoticed(tmp_path: Path) -> None:
    data = GOLDEN.read_bytes()
    assert len(data) < 3000
    path = tmp_path / "flipped.gbnn.safetensors"
    for position, mask in flips(data):
        flipped = bytearray(data)
        flipped[position] ^= mask
        path.write_bytes(flipped)
        try:
            read_artifact(path)
        except ArtifactError:
            continue
        pytest.fail(f"byte {position} with {mask:#x} flipped was accepted")


def test_no_cut_goes_unnoticed(tmp_path: Path) -> None:
    data = GOLDEN.read_bytes()
    path = tmp_path / "cut.gbnn.safetensors"
    for length in (*range(0, len(data), 3), len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ArtifactError):
            read_artifact(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(ArtifactError):
        read_artifact(path)


@pytest.mark.parametrize("section", ["bank", "maps", "outliers", "values", "manifest"])
def test_a_damaged_section_is_named(tmp_path: Path, section: str) -> None:
    data = GOLDEN.read_bytes()
    part = safetensors.numpy.load(data)[section].tobytes()
    start = data.index(part, 8 + int.from_bytes(data[:8], "little"))
    flipped = bytearray(data)
    flipped[start + len(part) // 2] ^= 1
    line = refusal(saved(tmp_path / "file", bytes(flipped)))
    assert f"`{section}`" in line
    assert "checksum" in line


def test_a_missing_or_extra_section_is_noticed(tmp_path: Path) -> None:
    data = pack({}, SECTIONS)
    tensors = safetensors.numpy.load(data)
    with safetensors.safe_open(saved(tmp_path / "file", data), framework="numpy") as handle:
        metadata = handle.metadata()
    for other in (
        {**tensors, "more": np.zeros(1, np.uint8)},
        {k: v for k, v in tensors.items() if k != "bank"},
    ):
        line = refusal(saved(tmp_path / "other", safetensors.numpy.save(other, metadata=metadata)))
        assert "the list of sections" in line
    without = {name: part for name, part in tensors.items() if name != "manifest"}
    line = refusal(saved(tmp_path / "other", safetensors.numpy.save(without, metadata=metadata)))
    assert "`manifest`" in line


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_foreign_safetensors_file(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    data = safetensors.numpy.save({"w": np.zeros((2, 2), np.float32)}, metadata=metadata)
    assert "some other safetensors file" in refusal(saved(tmp_path / "net.safetensors", data))


@pytest.mark.parametrize("version", ["", "1", "0.1"])
def test_other_version(tmp_path: Path, version: str) -> None:
    metadata = {"gbnn-compress": f"{version} 00000000"}
    data = safetensors.numpy.save({"manifest": np.zeros(1, np.uint8)}, metadata=metadata)
    line = refusal(saved(tmp_path / "file", data))
    assert "expected format version 0" in line
    assert repr(version) in line


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"PK\3\4" + bytes(60), b"\xff" * 40, b"hello"])
def test_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    assert "is not a gbnn-compress artifact" in refusal(saved(tmp_path / "file", content))


def test_no_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none")
    assert "a directory" in refusal(tmp_path)


def forged(manifest: bytes) -> bytes:
    """A file with a manifest of any bytes, and the right checksum."""
    metadata = {"gbnn-compress": f"0 {zlib.crc32(manifest):08x}"}
    return safetensors.numpy.save({"manifest": np.frombuffer(manifest, np.uint8)}, metadata=metadata)


@pytest.mark.parametrize(
    "manifest",
    [
        b"junk",
        zstandard.compress(b"junk"),
        zstandard.compress(b"\xff"),
        zstandard.compress(b"[]"),
        zstandard.compress(b"{}"),
        zstandard.compress(b'{"crc32":[]}'),
        zstandard.compress(b"[" * 100_000),
    ],
    ids=["no-zstd", "no-json", "no-utf8", "no-object", "no-checksums", "no-object-of-checksums", "deep"],
)
def test_forged_manifest_is_an_artifact_error(tmp_path: Path, manifest: bytes) -> None:
    with pytest.raises(ArtifactError):
        read_artifact(saved(tmp_path / "file", forged(manifest)))


def test_write_replaces_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = saved(tmp_path / "file", b"old")
    seen: list[bytes] = []
    write_atomically(path, b"new", verify=lambda file: seen.append(file.read_bytes()))
    assert seen == [b"new"]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    usual = saved(tmp_path / "usual", b"")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize("old", [None, b"old"])
def test_failed_verification_leaves_what_was_there(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)

    def verify(file: Path) -> None:
        assert file != path
        raise ArtifactError("no good")

    with pytest.raises(ArtifactError, match="no good"):
        write_atomically(path, b"new", verify=verify)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if old is None else [old])


@pytest.mark.parametrize("old", [None, b"old"])
def test_killed_while_writing_leaves_the_old_file_or_none(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    program = (
        "import sys, time; from pathlib import Path\n"
        "from gbnn_compress.codec.container import write_atomically\n"
        "def wait(file): print('written', flush=True); time.sleep(60)\n"
        "write_atomically(Path(sys.argv[1]), b'new', verify=wait)"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "written\n"
        child.send_signal(signal.SIGKILL)
    assert (path.read_bytes() if path.exists() else None) == old


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "no" / "file", "does not exist"), (tmp_path, "is a directory")):
        with pytest.raises(OutputError, match=words):
            require_writable(path)
        with pytest.raises(OutputError, match=words):
            write_atomically(path, b"new")
    require_writable(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="no permission"):
        require_writable(tmp_path / "file")
