"""The npm package decodes as the C library does."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifacts import GOLDEN, ensemble, of_everything, singles
from mutations import mutated
from native import FOLDER, Decoded, Library, Refused, missing

from gbnn_compress.format.artifact import read_artifact

SCRIPT = Path(__file__).with_name("decode.mjs")

DTYPES = {
    "Uint8Array": "bool uint8 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu",
    "Uint16Array": "uint16 float16 bfloat16 complex32",
    "Float32Array": "float32 complex64",
    "Float64Array": "float64 complex128",
    **{f"{name}Array": name.lower() for name in ("Int8", "Int16", "Int32", "Uint32")},
    "BigInt64Array": "int64",
    "BigUint64Array": "uint64",
}
ARRAYS = {dtype: array for array, dtypes in DTYPES.items() for dtype in dtypes.split()}


def in_node(package: Path, requests: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """What the package makes of files: each a path, a member or None, whether as a response, and normal numbers."""
    lines = "".join(json.dumps([str(path), *rest]) + "\n" for path, *rest in requests)
    done = subprocess.run(["node", SCRIPT, package], input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def described(tensors: dict[str, Decoded]) -> list[list[Any]]:
    return [
        [name, dtype, list(shape), ARRAYS[dtype], hashlib.sha256(data).hexdigest()]
        for name, (dtype, shape, data) in tensors.items()
    ]


def by_library(library: Library, data: bytes) -> dict[str, Any]:
    """What the package should make of a file."""
    try:
        return {"tensors": described(library.decode(data))}
    except Refused as error:
        return {"error": "ArtifactError", "message": str(error)}


def test_the_same_bits(package: Path, library: Library, tmp_path: Path) -> None:
    paths = [*GOLDEN, tmp_path / "1", tmp_path / "2"]
    for version in (1, 2):
        (tmp_path / str(version)).write_bytes(of_everything(version))
    found = in_node(package, [(path, None, index == 0) for index, path in enumerate(paths)])
    for path, got in zip(paths, found, strict=True):
        assert got["tensors"] == described(library.decode(path.read_bytes()))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_draws_from_given_normals(package: Path, library: Library, path: Path) -> None:
    numbers = np.random.default_rng(3).standard_normal(10_000).tolist()
    (found,) = in_node(package, [(path, None, False, numbers)])
    drawn = library.decode(path.read_bytes(), normals=iter(numbers))
    for info in read_artifact(path).tensors:
        if info.tied_to is not None:
            drawn[info.name] = drawn[info.tied_to]
    assert found["tensors"] == described(drawn)
    assert found["tensors"] != described(library.decode(path.read_bytes()))


def test_normals_that_are_no_numbers_are_refused(package: Path) -> None:
    (found,) = in_node(package, [(GOLDEN[0], None, False, [0.5])])  # the second one is undefined
    assert found == {"error": "TypeError", "message": "decode: `normals` must return finite numbers"}


def test_members(package: Path, library: Library, tmp_path: Path) -> None:
    members = [GOLDEN[0].read_bytes(), of_everything(2)]
    (tmp_path / "both").write_bytes(ensemble(members))
    one, two, none, third = in_node(package, [(tmp_path / "both", member, False) for member in (0, 1, None, 2)])
    assert [one["tensors"], two["tensors"]] == [described(library.decode(member)) for member in members]
    for refused in (none, third):
        assert refused["error"] == "RangeError"
        assert "holds 2 networks" in refused["message"]


@pytest.mark.long
def test_errors_are_those_of_the_library(package: Path, library: Library, tmp_path: Path) -> None:
    files = [b"", b"x" * 50]
    chance = random.Random(5)
    files += [mutated(chance, chance.choice(singles())) for _ in range(40)]
    for number, data in enumerate(files):
        (tmp_path / str(number)).write_bytes(data)
    found = in_node(package, [(tmp_path / str(number), None, False) for number in range(len(files))])
    expected = [by_library(library, data) for data in files]
    assert found == expected
    assert 2 < sum("error" in each for each in expected) < len(files)


def test_the_package_is_small(package: Path) -> None:
    files = [FOLDER / "package.json", FOLDER / "README.md", *(FOLDER / "dist").iterdir()]
    assert {path.name for path in package.parent.iterdir()} == {"index.mjs", "index.d.ts"}
    assert sum(path.stat().st_size for path in files) < 60_000


@pytest.mark.long
def test_a_copy_of_the_folder_builds_alone(tmp_path: Path) -> None:
    reason = missing("clang", "wasm-ld", "node")
    if reason:
        pytest.skip(reason)
    copy = tmp_path / "decoder"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("build", "dist"))
    done = subprocess.run(["make", "-C", copy], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    out = tmp_path / "out.safetensors"
    subprocess.run([copy / "build" / "gbnn-decode", GOLDEN[0], out], check=True)
    (first,) = in_node(copy / "dist" / "index.mjs", [(GOLDEN[0], None, False)])
    assert first["tensors"]
