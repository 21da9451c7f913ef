"""`ensemble`, and the commands that take its result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ensemble_files import three, write_inputs

pytestmark = pytest.mark.usefixtures("one_thread")

ARCHS = ("--arch", "models.py:narrow", "--arch", "models.py:narrow", "--arch", "models.py:wide")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> list[Path]:
    return three(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def joined(run: Callable[..., Any], parts: list[Path]) -> Callable[..., Any]:
    """The command line in a folder with the ensemble `e.gbnn.safetensors`, networks and data."""
    write_inputs(Path.cwd())
    assert run("ensemble", *map(str, parts), "-o", "e.gbnn.safetensors", "-q").code == 0
    return run


@pytest.mark.long
def test_ensemble_says_first_how_small_the_file_is(run: Callable[..., Any], parts: list[Path]) -> None:
    done = run("ensemble", *map(str, parts), "-o", "e.gbnn.safetensors")
    assert done.code == 0
    first = done.out.splitlines()[0]
    assert first.startswith("e.gbnn.safetensors   3 networks in a file ")
    assert first.endswith("than the first of them")
    assert done.err == "joining 3 files into e.gbnn.safetensors\n"
    same = run("ensemble", str(parts[0]), str(parts[0]), "-o", "same.gbnn.safetensors", "-q")
    assert same.out.splitlines()[0].endswith("than one of them")


def test_json_is_that_of_the_report(run: Callable[..., Any], parts: list[Path]) -> None:
    made = json.loads(run("ensemble", *map(str, parts), "-o", "e.gbnn.safetensors", "--json", "-").out)
    read = json.loads(run("report", "e.gbnn.safetensors", "--json", "-").out)
    assert made == read
    assert len(made["members"]) == 3


def test_the_table_has_a_row_per_member(joined: Callable[..., Any]) -> None:
    out = joined("report", "e.gbnn.safetensors", "-v").out
    for word in ("ratio to one", "container", "layers of member 2", "where the bytes went"):
        assert word in out


def test_the_page(joined: Callable[..., Any]) -> None:
    assert joined("report", "e.gbnn.safetensors", "--html", "page.html").code == 0
    page = Path("page.html").read_text()
    assert "3 networks in a file" in page
    assert page.count("<h3>Member ") == 3
    assert "<script" not in page
    ids = [part.partition('"')[0] for part in page.split(' id="')[1:]]
    assert len(set(ids)) == len(ids)


def test_evaluate(joined: Callable[..., Any]) -> None:
    words = ("evaluate", "e.gbnn.safetensors", "--data", "npz:labelled.npz", "--samples", "2", *ARCHS)
    done = joined(*words, "--ood", "npz:other.npz", "--html", "page.html")
    assert done.code == 0
    assert "e.gbnn.safetensors, 3 networks x 2" in done.out
    assert "by mutual information" in done.out
    assert "whose probabilities are averaged" in Path("page.html").read_text()
    found = json.loads(joined(*words, "--json", "-").out)
    assert (found["members"], found["samples"]) == (3, 2)


@pytest.mark.long
def test_diff_and_export(joined: Callable[..., Any], parts: list[Path]) -> None:
    done = joined("diff", str(parts[0]), "e.gbnn.safetensors", "--data", "npz:labelled.npz", "--samples", "1", *ARCHS)
    assert done.code == 0
    assert "\n1." in done.out
    words = ("export", "e.gbnn.safetensors", "-o", "e.onnx", "--input-shape", "1,8,8", "--samples", "2", *ARCHS)
    done = joined(*words, "--weights", "samples")
    assert done.code == 0
    assert "2 posterior samples of each of 3 networks" in done.out
    done = joined(*words)
    assert done.code == 2
    assert "give `--weights samples`" in done.err


def test_decompress_takes_one_member(joined: Callable[..., Any], parts: list[Path]) -> None:
    done = joined("decompress", "e.gbnn.safetensors", "-o", "dense.safetensors")
    assert done.code == 2
    assert "is an ensemble of 3 networks: expected `--member` with one of 0 (" in done.err
    assert not Path("dense.safetensors").exists()
    done = joined("decompress", "e.gbnn.safetensors", "-o", "dense.safetensors", "--member", "2")
    assert done.code == 0
    assert "the posterior mean of member 2" in done.out
    joined("decompress", str(parts[2]), "-o", "alone.safetensors")
    assert Path("dense.safetensors").read_bytes() == Path("alone.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("ensemble", "-o", "x.gbnn.safetensors"), "missing argument"),
        (("ensemble", "e.gbnn.safetensors"), "missing option `-o"),
        (
            ("ensemble", "e.gbnn.safetensors", "no.gbnn.safetensors", "-o", "x"),
            "`no.gbnn.safetensors`: expected an artif",
        ),
        (("ensemble", "e.gbnn.safetensors", "-o", "e.gbnn.safetensors"), "is one of the files to join"),
        (("ensemble", "labelled.npz", "-o", "x"), "is not a gbnn-compress artifact"),
        (("ensemble", *["e.gbnn.safetensors"] * 22, "-o", "x"), "expected 2 to 64 networks, got 66"),
        (("ensemble", "e.gbnn.safetensors", "-o", "x", "--json", "x"), "it is the file to write"),
        (("e.gbnn.safetensors", "--target-ratio", "4"), "is already compressed"),
        (("evaluate", "e.gbnn.safetensors", "--data", "npz:labelled.npz", *ARCHS[:4]), "one for all or a list of 3"),
        (("evaluate", "e.gbnn.safetensors", "--data", "npz:labelled.npz", *ARCHS[:2]), "member 2: "),
        (("x.pth", "--target-ratio", "4", "--members", "2"), "`--members 2`: members differ by their training"),
    ],
)
def test_refusals_are_one_line(joined: Callable[..., Any], words: tuple[str, ...], line: str) -> None:
    before = Path("e.gbnn.safetensors").read_bytes()
    done = joined(*words, "-q")
    assert done.code == 2
    assert line in done.err
    assert done.err.count("\n") == 1
    assert Path("e.gbnn.safetensors").read_bytes() == before
