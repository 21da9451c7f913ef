"""Places that are full, protected, elsewhere or shared: one clear line, nothing lost, one run wins whole."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from gbnn_compress_cli.main import main
from mutations import GOLDEN

from gbnn_compress.errors import OutputError
from gbnn_compress.files import require_writable, same_file, write_atomically

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX files")

NOBODY = 65534


class Done(NamedTuple):
    code: int
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]):
    def run_words(*words: object) -> Done:
        capfd.readouterr()
        code = main([str(word) for word in words])
        return Done(code, capfd.readouterr().err)

    return run_words


def assert_refused(done: Done, reason: str) -> None:
    assert done.code == 2
    assert done.err.startswith("gbnn-compress: error: cannot write `")
    assert reason in done.err
    assert done.err.count("\n") == 1


def commands(output: Path) -> dict[str, list[object]]:
    """Every command that writes a file, into `output`."""
    return {
        "decompress": ["decompress", GOLDEN, "-o", output.with_suffix(".safetensors"), "-q"],
        "json": ["report", GOLDEN, "--json", output.with_suffix(".json"), "-q"],
        "html": ["report", GOLDEN, "--html", output.with_suffix(".html"), "-q"],
        "recipe": ["recipe", "cp", "default", output.with_suffix(".yaml")],
    }


@pytest.mark.parametrize("name", commands(Path("x")))
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(run, tmp_path, monkeypatch, name, call):
    words = commands(tmp_path / "out")[name]
    output = next(word for word in words if isinstance(word, Path) and word.parent == tmp_path)
    if name != "recipe":
        output.write_bytes(b"old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        def __init__(self, descriptor: int, _: str) -> None:
            self.descriptor = descriptor

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            os.close(self.descriptor)

        write = full

    monkeypatch.setattr(os, *{"write": ("fdopen", Full)}.get(call, (call, full)))
    done = run(*words)
    monkeypatch.undo()
    assert_refused(done, "No space left on device; nothing was changed")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, where this process may mount one."""
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run(words, check=False, capture_output=True).returncode == 0:
            try:
                yield folder
            finally:
                subprocess.run(["umount", str(folder)], check=True)
            return
    pytest.skip("nothing can be mounted here")


def test_a_disk_that_is_really_full(run, tmp_path):
    with mounted(tmp_path / "small", "size=64k") as folder:
        output = folder / "out.json"
        output.write_bytes(b"old")
        (folder / "ballast").write_bytes(bytes(40_000))
        with pytest.raises(OutputError, match="No space left on device"):
            write_atomically(output, bytes(50_000))
        assert output.read_bytes() == b"old"
        (folder / "more").write_bytes(bytes(16_000))
        assert_refused(run("report", GOLDEN, "--html", folder / "out.html", "-q"), "No space left on device")
        assert {path.name for path in folder.iterdir()} == {"out.json", "ballast", "more"}


def test_a_folder_that_is_read_only(run, tmp_path):
    with mounted(tmp_path / "fixed", "ro") as folder:
        for words in commands(folder / "out").values():
            assert_refused(run(*words), "no permission to write in")


AS_NOBODY = """
import os, sys
from gbnn_compress.files import require_writable, same_file, write_atomically
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.errors import GbnnError
from pathlib import Path
folder = Path(sys.argv[1])
os.setgid(65534); os.setuid(65534)
for action in (
    lambda: write_atomically(folder / "closed" / "file", b""),
    lambda: write_atomically(folder / "hidden" / "file", b""),
    lambda: write_atomically(folder / "open" / "protected", b""),
    lambda: read_artifact(folder / "hidden" / "file"),
    lambda: read_artifact(folder / "open" / "secret"),
    lambda: print(same_file(folder / "hidden" / "a", folder / "hidden" / "b")),
):
    try:
        action()
    except GbnnError as error:
        print(error)
"""


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root can become somebody without permission")
def test_places_without_permission_are_one_line():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part, mode in {"closed": 0o555, "hidden": 0o700, "open": 0o777}.items():
            (folder / part).mkdir()
            (folder / part).chmod(mode)
        for part, mode in {"protected": 0o444, "secret": 0o600}.items():
            (folder / "open" / part).write_bytes(b"old")
            (folder / "open" / part).chmod(mode)
        words = [sys.executable, "-c", AS_NOBODY, name]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=100)
        lines = done.stdout.splitlines()
        assert [(folder / "open" / part).read_bytes() for part in ("protected", "secret")] == [b"old", b"old"]
    expected = (
        *("no permission to write in", "Permission denied", "write-protected; remove it"),
        *("cannot be read: Permission denied", "cannot be read: Permission denied", "False"),
    )
    assert len(lines) == len(expected)
    for line, part in zip(lines, expected, strict=True):
        assert part in line


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "v1", tmp_path / "latest"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert list((tmp_path / "store").iterdir()) == [target]


def test_a_link_to_a_file_that_is_not_there_yet_makes_it(tmp_path):
    link = tmp_path / "latest"
    link.symlink_to("v1")
    write_atomically(link, b"new")
    assert (tmp_path / "v1").read_bytes() == b"new"


def test_links_that_lead_nowhere_are_refused(tmp_path):
    loop, away = tmp_path / "loop", tmp_path / "away"
    loop.symlink_to(loop)
    away.symlink_to(tmp_path / "no" / "file")
    for link, words in ((loop, "refers to itself"), (away, "no` does not exist")):
        with pytest.raises(OutputError, match=words):
            require_writable(link)
        assert link.is_symlink()


def test_an_output_that_is_the_input_behind_a_link_is_refused(run, tmp_path):
    artifact = tmp_path / "net.safetensors"
    artifact.write_bytes(GOLDEN.read_bytes())
    (tmp_path / "other.safetensors").symlink_to(artifact)
    assert_refused(run("decompress", artifact, "-o", tmp_path / "other.safetensors", "-q"), "it is the artifact itself")
    (tmp_path / "dangling.json").symlink_to("page.html")
    assert same_file(tmp_path / "dangling.json", tmp_path / "page.html")


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_atomically(path, b"new")
    assert path.stat().st_mode & 0o777 == 0o640


def test_names_as_long_as_a_folder_takes(tmp_path):
    write_atomically(tmp_path / ("n" * 255), b"new")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]
    with pytest.raises(OutputError, match="File name too long"):
        write_atomically(tmp_path / ("n" * 256), b"new")


TWO_RUNS = """
import sys
from pathlib import Path
from gbnn_compress.files import write_atomically
print("ready", flush=True)
sys.stdin.readline()
for _ in range(60):
    write_atomically(Path(sys.argv[1]), sys.argv[2].encode() * 50_000)
"""


def test_of_two_runs_on_one_output_one_wins_whole(tmp_path):
    path = tmp_path / "file"
    words = [[sys.executable, "-c", TWO_RUNS, str(path), letter] for letter in "ab"]
    runs = [subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for line in words]
    for each in runs:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in runs:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    while any(each.poll() is None for each in runs):
        if path.exists():
            assert path.read_bytes() in (b"a" * 50_000, b"b" * 50_000)
    for each in runs:
        assert each.communicate()[0] == ""
        assert each.returncode == 0
    assert list(tmp_path.iterdir()) == [path]
