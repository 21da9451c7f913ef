"""The file as a whole: damage, foreign files, and writing that may fail at any moment."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.numpy

from gbnn_compress.errors import ArtifactError
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.format.container import pack, unpack
from gbnn_compress.format.manifest import deflate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GOLDEN = Path(__file__).parents[1] / "golden" / "version1.gbnn.safetensors"
SECTIONS = {"manifest": b"{}" * 100, "bank": b"bank", "maps": b"maps" * 9, "outliers": b"", "values": b"\0\1"}


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
    data = pack(SECTIONS)
    sections, size, _ = unpack(saved(tmp_path / "file", data))
    assert sections == SECTIONS
    assert list(sections) == list(SECTIONS)
    assert size == len(data)


def test_is_a_safetensors_file_of_bytes(tmp_path: Path) -> None:
    tensors = safetensors.numpy.load_file(saved(tmp_path / "file", pack(SECTIONS)))
    assert [(name, tensor.dtype, tensor.ndim) for name, tensor in tensors.items()] == [("data", np.dtype(np.uint8), 1)]


def test_metadata_is_the_version() -> None:
    data = pack(SECTIONS)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == {"gbnn-compress": "1"}


def test_sections_follow_their_lengths_and_checksums() -> None:
    table = [
        *(b"\xc8\x01", zlib.crc32(b"{}" * 100).to_bytes(4, "little")),
        *(b"\4", zlib.crc32(b"bank").to_bytes(4, "little")),
        *(b"\x24", zlib.crc32(b"maps" * 9).to_bytes(4, "little")),
        *(b"\0", b"\2", zlib.crc32(b"\0\1").to_bytes(4, "little")),
    ]
    expected = b"".join([*table, *SECTIONS.values()])
    assert safetensors.numpy.load(pack(SECTIONS))["data"].tobytes() == expected


def test_packing_gives_the_same_bytes_every_time() -> None:
    assert len({pack(SECTIONS) for _ in range(30)}) == 1


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
    part = unpack(GOLDEN)[0][section]
    start = data.index(part, 8 + int.from_bytes(data[:8], "little"))
    flipped = bytearray(data)
    flipped[start + len(part) // 2] ^= 1
    line = refusal(saved(tmp_path / "file", bytes(flipped)))
    assert f"`{section}`" in line
    assert "checksum" in line


def stamped(tensors: dict[str, np.ndarray], version: str = "1") -> bytes:
    """A safetensors file that says it is an artifact."""
    return safetensors.numpy.save(tensors, metadata={"gbnn-compress": version})


def test_a_missing_or_extra_tensor_is_noticed(tmp_path: Path) -> None:
    data = safetensors.numpy.load(pack(SECTIONS))["data"]
    more = np.zeros(1, np.uint8)
    for tensors in (
        {"data": data, "more": more},
        {"more": data},
        {},
        {"data": data[None]},
        {"data": data.view(np.int8)},
    ):
        assert "one tensor of bytes" in refusal(saved(tmp_path / "other", stamped(tensors)))


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b"\0" + data])
def test_sections_that_do_not_add_up_are_noticed(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    data = np.frombuffer(change(safetensors.numpy.load(pack(SECTIONS))["data"].tobytes()), np.uint8)
    assert "do not add up" in refusal(saved(tmp_path / "file", stamped({"data": data})))


@pytest.mark.parametrize("data", [b"", b"\1", b"\xff" * 5, b"\xff" * 30, b"\0\0\0\0"])
def test_lengths_that_are_none_are_noticed(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ArtifactError, match="damaged"):
        read_artifact(saved(tmp_path / "file", stamped({"data": np.frombuffer(data, np.uint8)})))


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_foreign_safetensors_file(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    data = safetensors.numpy.save({"w": np.zeros((2, 2), np.float32)}, metadata=metadata)
    assert "another safetensors file" in refusal(saved(tmp_path / "net.safetensors", data))


@pytest.mark.parametrize("version", ["", "0", "1.1", "1 "])
def test_other_version(tmp_path: Path, version: str) -> None:
    line = refusal(saved(tmp_path / "file", stamped({"data": np.zeros(1, np.uint8)}, version)))
    assert "expected format version 1 or 2" in line
    assert repr(version) in line


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"PK\3\4" + bytes(60), b"\xff" * 40, b"hello"])
def test_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    assert "is not a gbnn-compress artifact" in refusal(saved(tmp_path / "file", content))


def test_no_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none")
    assert "a directory" in refusal(tmp_path)


DIGEST = bytes(32)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        DIGEST,
        DIGEST + b"junk",
        DIGEST + deflate(b"junk"),
        DIGEST + deflate(b"\xff"),
        DIGEST + deflate(b"[]"),
        DIGEST + deflate(b"{}"),
        DIGEST + deflate(b'{"tensors":[],"ties":{},"checkpoint":[]}'),
        DIGEST + deflate(b"[" * 100_000),
        DIGEST + deflate(b"{}") + b"\0",
        DIGEST + deflate(b"{}")[:-1],
    ],
    ids=[
        *(
            "empty",
            "no-json",
            "no-deflate",
            "other-json",
            "no-utf8",
            "no-object",
            "no-tensors",
            "no-checkpoint",
            "deep",
        ),
        *("more", "cut"),
    ],
)
def test_forged_manifest_is_an_artifact_error(tmp_path: Path, manifest: bytes) -> None:
    with pytest.raises(ArtifactError):
        read_artifact(saved(tmp_path / "file", pack({**SECTIONS, "manifest": manifest})))
