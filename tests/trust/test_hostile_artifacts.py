"""Artifacts written to do harm: only clear refusals come out, quickly, and nothing is allocated unchecked."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import GOLDEN, manifest_of, mutated, sections_of, with_manifest
from reader import NAMES, corpus, read_fully

import gbnn_compress
from gbnn_compress.errors import ArtifactError, GbnnError
from gbnn_compress.format import container
from gbnn_compress.format.bits import BitWriter
from gbnn_compress.format.dictionary import DICTIONARY
from gbnn_compress.format.manifest import deflate

CORPUS = corpus()


@pytest.mark.long
@given(st.integers(0, 2**32), st.sampled_from(CORPUS))
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_read_ends_well_or_in_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, seed: int, data: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    with contextlib.suppress(GbnnError):
        read_fully(mutated(random.Random(seed), data), folder)


@given(st.binary(max_size=400))
@settings(max_examples=60, deadline=None)
def test_any_bytes_under_a_right_header_end_in_a_refusal(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    version = str(1 + len(data) % 2)
    stamped = safetensors.numpy.save({"data": np.frombuffer(data, np.uint8)}, metadata={"gbnn-compress": version})
    with pytest.raises(ArtifactError):
        read_fully(stamped, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("data", CORPUS, ids=NAMES)
def test_the_corpus_itself_is_read(tmp_path: Path, data: bytes) -> None:
    read_fully(data, tmp_path, page=True)


def golden(**changes: object) -> bytes:
    """The golden file with entries of its manifest replaced."""
    sections = sections_of(GOLDEN.read_bytes())
    return container.pack(with_manifest(sections, {**manifest_of(sections), **changes}))


def with_tensor(row: str, *, place: int = 0) -> bytes:
    sections = sections_of(GOLDEN.read_bytes())
    manifest = manifest_of(sections)
    manifest["tensors"][place] = row
    return container.pack(with_manifest(sections, manifest))


def with_text(text: bytes) -> bytes:
    """The golden file with a manifest of other text."""
    sections = sections_of(GOLDEN.read_bytes())
    return container.pack({**sections, "manifest": bytes(32) + deflate(text, dictionary=DICTIONARY)})


def long_names() -> bytes:
    """Each name repeats the one before and adds to it: 200 MB of names."""
    return golden(tensors=["0s8,3,3,3:float32 a", *(f"{count} a" for count in range(1, 15_000))])


def many_tables() -> bytes:
    """A large bank, and a table of all of it for each of 30,000 tensors of one value."""
    size, tensors = 1 << 16, 30_000
    writer = BitWriter()
    writer.write(2048, width=12)
    writer.write_exp_golomb(size - 1, order=8)
    writer.write_exp_golomb(0, order=8)
    writer.write(0, width=6)
    writer.write_exp_golomb(np.zeros(size - 1), order=0)
    writer.write_exp_golomb(np.zeros(size), order=1)
    for _ in range(2):
        writer.write(0, width=4)
        writer.write_exp_golomb(np.zeros(tensors), order=0)
    sections = sections_of(GOLDEN.read_bytes())
    rows = ["0s1,1:float32 0", *(f"0 {number}" for number in range(1, tensors))]
    manifest = {**manifest_of(sections), "tensors": rows, "ties": {}}
    return container.pack({**with_manifest(sections, manifest), "bank": writer.getvalue()})


def raw_bomb() -> bytes:
    """Zeros where raw tensors of a few bytes should be."""
    sections = sections_of(GOLDEN.read_bytes())
    length = sections["values"][0]
    return container.pack({**sections, "values": sections["values"][: length + 1] + deflate(bytes(300_000_000))})


def long_header() -> bytes:
    header = json.dumps(
        {str(number): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for number in range(200_000)}
    )
    return len(header).to_bytes(8, "little") + header.encode()


BOMBS = {
    "shared": lambda: with_tensor("0s65536,65536:float32 a"),
    "shared-past-64-bits": lambda: with_tensor(f"0s{2**40},{2**40}:float32 a"),
    "unshared": lambda: with_tensor("0u99999999:float32 bn.weight", place=1),
    "raw": lambda: with_tensor("0r99999999999:bool mask", place=16),
    "tied": lambda: with_tensor("0t9999999,9999:float16 half.tied", place=8),
    "empty-but-wide": lambda: with_tensor(f"0r0,{2**62},{2**62}:float32 nothing", place=17),
    "many-dimensions": lambda: with_tensor(f"0r{','.join(['1'] * 9999)}:bool mask", place=16),
    "manifest": lambda: with_text(b" " * 300_000_000),
    "json": lambda: with_text(b"[" + b"[]," * 40_000_000 + b"[]]"),
    "names": long_names,
    "tables": many_tables,
    "raw-bytes": raw_bomb,
    "header": long_header,
    "header-of-nothing": lambda: (2**40).to_bytes(8, "little") + b"{" * 100,
}

MEASURE = """
import json, resource, sys, time, warnings
import torch, safetensors.numpy
import gbnn_compress, gbnn_compress.format.artifact, gbnn_compress.report.sizes
from gbnn_compress.errors import ArtifactError
gbnn_compress.load(sys.argv[1]).state_dict()
for path in sys.argv[2:]:
    start, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        gbnn_compress.load(path)
        line = ""
    except ArtifactError as error:
        line = str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    print(json.dumps([line, time.process_time() - start, grown / 1000]))
"""


@pytest.mark.long
def test_a_bomb_is_refused_at_once_and_in_little_memory(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in BOMBS}
    for name, path in paths.items():
        path.write_bytes(BOMBS[name]())
    words = [sys.executable, "-c", MEASURE, str(GOLDEN), *map(str, paths.values())]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    for (name, path), result in zip(paths.items(), done.stdout.splitlines(), strict=True):
        line, seconds, grown_mb = json.loads(result)
        assert line.startswith(f"`{path}`"), name
        assert "\n" not in line
        assert len(line) < len(str(path)) + 400, name
        assert seconds < 1, name
        assert grown_mb < 200, name


def test_a_file_of_the_largest_size_allowed_is_still_read(tmp_path: Path) -> None:
    """The limit refuses bombs, not the networks that compress best: all weights of one component."""
    path = tmp_path / "constant.gbnn.safetensors"
    tensor = np.zeros((1000, 1000), np.float32)
    safetensors.numpy.save_file({"a.weight": tensor}, tmp_path / "a.safetensors")
    start = time.process_time()
    gbnn_compress.compress(tmp_path / "a.safetensors", target_ratio=8, output=path)
    assert path.stat().st_size < 1000
    assert not gbnn_compress.load(path).state_dict()["a.weight"].any()
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    "spec", ["os:abort", "/tmp/models.py:net", "models.py:net", "antigravity:fly", 3, "", ["timm/a"]]
)
def test_a_file_may_name_no_code_to_run(tmp_path: Path, spec: object) -> None:
    checkpoint = manifest_of(sections_of(GOLDEN.read_bytes()))["checkpoint"]
    path = tmp_path / "file"
    path.write_bytes(golden(checkpoint={**checkpoint, "architecture": spec}))
    with pytest.raises(ArtifactError, match=r"`checkpoint.architecture` is"):
        gbnn_compress.load(path)


def test_a_file_may_name_a_library_s_network(tmp_path: Path) -> None:
    checkpoint = manifest_of(sections_of(GOLDEN.read_bytes()))["checkpoint"]
    path = tmp_path / "file"
    path.write_bytes(golden(checkpoint={**checkpoint, "architecture": "timm/resnet18"}))
    assert gbnn_compress.load(path).report()["checkpoint"]["architecture"] == "timm/resnet18"


HARMLESS = {"drop": 1, "agreement": 1, "logit_kl": 1, "measured": False, "safe_ratio": 1}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint", []),
        ("checkpoint", {"bytes": 1, "parameters": 1, "architecture": None}),
        ("checkpoint", {"bytes": -1, "parameters": 1, "architecture": None, "notes": []}),
        ("checkpoint", {"bytes": 1, "parameters": "1", "architecture": None, "notes": []}),
        ("checkpoint", {"bytes": 1, "parameters": 1, "architecture": None, "notes": [1]}),
        ("damage", {}),
        ("damage", {"drop": "3", "agreement": 1, "logit_kl": 1, "measured": False, "safe_ratio": 1}),
        ("damage", {"drop": 1, "agreement": 1, "logit_kl": 1, "measured": False, "safe_ratio": 1, "assumes": 7}),
        ("damage", {"drop": 1, "agreement": 1, "logit_kl": 1, "measured": False, "safe_ratio": 1, "cosine": [1]}),
        ("damage", {**HARMLESS, "outputs": [1]}),
        ("damage", {**HARMLESS, "outputs": {"a": 0.5}}),
        ("damage", {**HARMLESS, "outputs": {"a": {"relative_error": "0"}}}),
        ("damage", {**HARMLESS, "metric": 0.5}),
        ("damage", {**HARMLESS, "metric": {"before": 1, "after": None}}),
        ("damage", {**HARMLESS, "loss": {"before": "1", "after": 1}}),
        ("task", "detector"),
        ("max_error", 0.05),
        ("damage", {"drop": 1e999, "agreement": 1, "logit_kl": 1, "measured": False, "safe_ratio": 1}),
        ("damage", {"drop": 1, "agreement": 1, "logit_kl": 1, "measured": 0, "safe_ratio": 1}),
        ("warnings", [None]),
        ("warnings", "careful"),
        ("seed", 0.5),
        ("seed", 10**400),
        ("components_before_merging", -1),
        ("target_ratio", None),
        ("target_ratio", 10**400),
        ("max_drop", 1.0),
        ("ratio_of", "file"),
        ("noise", -1),
        ("noise", 10**400),
        ("noise", True),
        ("temperature", 10**400),
        ("training", {"epochs": 1}),
        ("training", {"epochs": 1, "beta": float("nan")}),
        ("training", 3),
        ("recipe", {"name": "\ud800"}),
        ("versions", ["1"]),
    ],
)
def test_facts_that_no_report_could_show_are_refused(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "file"
    path.write_bytes(golden(**{key: value}))
    with pytest.raises(ArtifactError, match="contradicts itself"):
        gbnn_compress.load(path)


@pytest.mark.parametrize("row", ["0r:bool __metadata__", "0r:bool \ud800"])
def test_names_that_no_file_could_hold_are_refused(tmp_path: Path, row: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(with_tensor(row, place=16))
    with pytest.raises(ArtifactError, match="contradicts itself"):
        gbnn_compress.load(path)


@pytest.mark.parametrize(
    ("version", "advice"),
    [("3", "update gbnn-compress"), ("17", "update gbnn-compress"), ("0", "the gbnn-compress release that wrote it")],
)
def test_another_version_comes_with_advice(tmp_path: Path, version: str, advice: str) -> None:
    path = tmp_path / "file"
    data = safetensors.numpy.load(GOLDEN.read_bytes())
    path.write_bytes(safetensors.numpy.save(data, metadata={"gbnn-compress": version}))
    with pytest.raises(ArtifactError, match=advice):
        gbnn_compress.load(path)
