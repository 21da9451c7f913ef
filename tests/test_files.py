"""Files are written whole or not at all (tests/trust/test_crashes.py kills the writer)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gbnn_compress.errors import ArtifactError, OutputError
from gbnn_compress.files import refuse_inputs, require_writable, write_atomically


def test_write_replaces_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    seen: list[bytes] = []
    write_atomically(path, b"new", verify=lambda file: seen.append(file.read_bytes()))
    assert seen == [b"new"]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
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


@pytest.mark.parametrize("specification", ["{}", "npz:{}", "{}:net"])
def test_what_a_command_reads_is_not_its_output(tmp_path: Path, specification: str) -> None:
    path = tmp_path / "read"
    path.touch()
    with pytest.raises(OutputError, match=r"`--html .*read`: this command reads that file"):
        refuse_inputs(path, None, "digits:test", specification.format(path), option="--html")
    refuse_inputs(tmp_path / "other", specification.format(path), option="--html")
