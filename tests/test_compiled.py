"""Compiled loops: the same bytes with and without numba, one line where it cannot be used, small jobs without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gbnn_compress import compiled

PROGRAM = """
import hashlib, sys
import numpy as np
sys.modules.update({blocked})
from gbnn_compress import compiled
from gbnn_compress.format.contexts import whole_values
from gbnn_compress.format.symbols import decode_maps, encode_maps

random = np.random.default_rng(0)
shape = (24, 20, 3, 3)
x = np.exp(random.normal(size=(24, 1, 1))) * (random.normal(size=(24, 20, 9)) + random.normal(size=(24, 20, 1)))
ids = np.clip(np.rint(2 * x + 20), 0, 40).astype(np.uint8).ravel()
values, lines = whole_values(np.linspace(-1, 1, 41)), []
with compiled.heard_by(lines.append):
    for _ in range(2):
        tables, stream = encode_maps([ids], [shape], values)
    decode_maps(stream, tables, [shape], values, consume=lambda _, part: np.testing.assert_array_equal(part, ids))
assert tables[0].rule is not None
print(hashlib.sha256(stream).hexdigest(), sys.modules.get("numba") is not None)
print(*lines, sep="\\n")
"""


def coded(*, blocked: str = "", **variables: str) -> tuple[str, bool, list[str]]:
    """Of a process: the hash of an encoded map, whether numba was imported, and the lines that a listener heard."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{blocked}", blocked)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    first, *lines = done.stdout.strip().split("\n")
    digest, imported = first.split()
    return digest, imported == "True", lines


@pytest.fixture(scope="module")
def plain() -> str:
    digest, imported, lines = coded()
    assert not imported, "small jobs need no numba"
    assert lines == []
    return digest


@pytest.mark.long
def test_the_same_bytes_with_numba(plain: str) -> None:
    assert coded(GBNN_COMPRESS_NUMBA="1")[:2] == (plain, True)


def test_without_numba_one_note_and_the_same_bytes(plain: str) -> None:
    digest, _, lines = coded(blocked="numba=None", GBNN_COMPRESS_NUMBA="1")
    assert digest == plain
    assert len(lines) == 1
    assert lines[0].startswith("note: compiled loops are off")
    assert "numba cannot be imported" in lines[0]


def test_switched_off(plain: str) -> None:
    digest, imported, lines = coded(GBNN_COMPRESS_NUMBA="0")
    assert (digest, imported) == (plain, False)
    assert lines == [
        "note: compiled loops are off, so this takes longer, with the same result: GBNN_COMPRESS_NUMBA is 0"
    ]


def test_without_a_place_for_the_cache(plain: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "cache")
    only = "UserProvidedCacheLocator"  # the package's folder and the user's are writable here
    digest, _, lines = coded(GBNN_COMPRESS_NUMBA="1", NUMBA_CACHE_DIR=nowhere, NUMBA_CACHE_LOCATOR_CLASSES=only)
    assert digest == plain
    assert len(lines) == 1
    assert "NUMBA_CACHE_DIR can name one" in lines[0]


@pytest.mark.long
def test_the_first_compilation_is_told_and_cached(plain: str, tmp_path: Path) -> None:
    first = coded(GBNN_COMPRESS_NUMBA="1", NUMBA_CACHE_DIR=str(tmp_path))
    assert first[0] == plain
    assert [line.partition(",")[0] for line in first[2]] == ["compiling inner loops"]
    assert coded(GBNN_COMPRESS_NUMBA="1", NUMBA_CACHE_DIR=str(tmp_path)) == (plain, True, [])


def test_jobs_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    monkeypatch.setattr(compiled, "_work", 0)
    monkeypatch.setattr(compiled, "WORTHWHILE", 100)
    assert compiled.loops("format.count_loops", work=60) is None
    assert compiled.loops("format.count_loops", work=60) is not None
    assert compiled.loops("format.count_loops", work=1) is not None
    assert compiled.loops("format.count_loops") is not None
