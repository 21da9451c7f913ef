"""Runs killed at every step of writing: the output is the old file, none, or the whole new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gbnn_compress import files
from gbnn_compress.files import write_atomically

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

OLD, NEW = b"old" * 100, b"new" * 70_000

WRITER = """
import os, signal, sys
from pathlib import Path
from gbnn_compress import files

path, step, data = Path(sys.argv[1]), sys.argv[2], b"new" * 70_000

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def killed_before(owner, name):
    setattr(owner, name, die)

def killed_after(owner, name):
    real = getattr(owner, name)
    def call(*words, **named):
        real(*words, **named)
        die()
    setattr(owner, name, call)

class Half:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        self.file.__enter__()
        return self
    def __exit__(self, *words):
        return self.file.__exit__(*words)
    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        die()

verify = None
if step == "write":
    real = os.fdopen
    os.fdopen = lambda *words: Half(real(*words))
elif step == "verify":
    verify = die
elif step != "none":
    when, name = step.split()
    owner = files.tempfile if name == "mkstemp" else Path if name in ("chmod", "unlink") else os
    {"before": killed_before, "after": killed_after}[when](owner, name)
files.write_atomically(path, data, verify=verify)
"""

BEFORE = ("before mkstemp", "after mkstemp", "write", "before fsync", "after fsync", "verify", "before chmod")
STEPS = (*BEFORE, "after chmod", "before replace")
AFTER = ("after replace", "before unlink", "after unlink")


def killed(path: Path, step: str) -> None:
    done = subprocess.run([sys.executable, "-c", WRITER, str(path), step], check=False, timeout=100)
    assert done.returncode == -signal.SIGKILL, step


@pytest.mark.long
@pytest.mark.parametrize("old", [None, OLD], ids=["none", "old"])
def test_killed_before_the_new_file_is_in_place_leaves_what_was_there(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    for step in STEPS:
        killed(path, step)
        assert (path.read_bytes() if path.exists() else None) == old, step


@pytest.mark.parametrize("step", AFTER)
def test_killed_afterwards_leaves_the_whole_new_file(tmp_path: Path, step: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    killed(path, step)
    assert path.read_bytes() == NEW


def test_what_killed_runs_leave_is_removed_when_it_is_an_hour_old(tmp_path: Path) -> None:
    path = tmp_path / "a[b]*.file"
    for step in ("after mkstemp", "write"):
        killed(path, step)
    left = list(tmp_path.iterdir())
    assert len(left) == 2
    write_atomically(path, b"new")  # other runs may be at work on them
    assert len(list(tmp_path.iterdir())) == 3
    hour_ago = time.time() - files.STALE_SECONDS - 1
    for file in (*left, path):
        os.utime(file, (hour_ago, hour_ago))
    foreign = tmp_path / ".other.abcdefgh.tmp"
    foreign.touch()
    os.utime(foreign, (hour_ago, hour_ago))
    write_atomically(path, b"newer")
    assert {file.name for file in tmp_path.iterdir()} == {path.name, foreign.name}
    assert path.read_bytes() == b"newer"


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
from gbnn_compress_cli.main import main

golden, path = sys.argv[1], Path(sys.argv[2])
lines = [["decompress", golden, "-o", str(path), "-q", *more] for more in ([], ["--sample", "1"])]
whole, found, chance = set(), set(), random.Random(0)
for line in lines:
    assert main(line) == 0
    whole.add(path.read_bytes())
for _ in range(50):
    child = os.fork()
    while not child:
        for line in lines:
            main(line)
    time.sleep(chance.uniform(0, 0.4))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found.add(path.read_bytes())
print(len(whole), found == whole)
"""


@pytest.mark.slow
def test_fifty_random_kills_leave_whole_files(tmp_path: Path) -> None:
    """Of a loop that writes the mean and a sample over each other, again and again."""
    from mutations import GOLDEN

    line = [sys.executable, "-c", KILLS, str(GOLDEN), str(tmp_path / "dense.safetensors")]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.stdout.splitlines()[-1:] == ["2 True"], done.stderr
