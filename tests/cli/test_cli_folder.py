"""A folder of checkpoints: every one compressed, one table, the worst exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(files, tmp_path):
    """A checkpoint, a broken one, and what this program left there."""
    place = tmp_path / "zoo"
    place.mkdir()
    shutil.copy(files.checkpoint, place / "a.pth")
    (place / "b.pth").write_bytes(b"")
    shutil.copy(files.artifact, place / "old.gbnn.safetensors")
    (place / "run.gbnn.state.safetensors").write_bytes(b"")
    (place / "notes.txt").write_text("no checkpoint")
    return place


@pytest.mark.long
def test_every_checkpoint_has_a_row_and_the_worst_code_counts(run, folder):
    Path("out").mkdir()
    outcome = run("zoo", "--target-ratio", "4", "-s", "noise=0.2", "-o", "out", "--seed", "3")
    assert outcome.code == 2
    assert [path.name for path in Path("out").iterdir()] == ["a.gbnn.safetensors"]
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["checkpoint", "bytes", "artifact", "ratio", "points", "lost", "seconds", "result"]
    assert lines[1].startswith("a.pth ")
    assert lines[1].endswith("done")
    assert lines[2].startswith("b.pth ")
    assert lines[2].endswith("failed, exit code 2")
    assert "1 of 2: a.pth" in outcome.err
    assert "`zoo/b.pth` is empty" in outcome.err


def test_reports_of_all_as_json(run, folder):
    (folder / "b.pth").unlink()
    outcome = run("zoo", "--target-ratio", "1000", "--json", "-", "-q", "--seed", "3", "-s", "noise=0.2")
    assert outcome.code == 1
    (found,) = json.loads(outcome.out)["checkpoints"]
    assert (found["path"], found["exit_code"]) == ("zoo/a.pth", 1)
    assert found["report"]["seed"] == 3
    assert found["report"]["recipe"]["noise"] == 0.2
    assert found["report"]["artifact"]["path"] == "a.gbnn.safetensors"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("zoo --target-ratio 4 -o nowhere", "`-o nowhere`: a folder of checkpoints needs a folder"),
        ("zoo --target-ratio 4 --html page.html", "`--html`: a page is of one checkpoint"),
        ("zoo --target-ratio 4 --json nowhere/x.json", "the folder `nowhere` does not exist"),
        ("zoo --target-ratio x", "`--target-ratio`: expected a number"),
        ("empty --target-ratio 4", "`empty` has no checkpoint in it, expected files in .safetensors, .pth"),
        ("twice --target-ratio 4", "`a.pt` and `a.pth` would both become `a.gbnn.safetensors`"),
    ],
)
def test_bad_usage_is_one_line(run, folder, words, message):
    Path("empty").mkdir()
    Path("twice").mkdir()
    for name in ("a.pt", "a.pth"):
        Path("twice", name).write_bytes(b"")
    outcome = run(*words.split())
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_folder_is_not_for_many_processes(run, folder, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "0")
    outcome = run("zoo", "--target-ratio", "4")
    assert outcome.code == 2
    assert "start it without `torchrun`" in outcome.err
