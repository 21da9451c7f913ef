"""`--html`: a page beside everything else, and refused before the work where it cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.mark.long
def test_compress_writes_a_page_beside_the_table(run, files):
    outcome = run(files.checkpoint, "--target-ratio", "4", "--html", "page.html")
    assert outcome.code == 0
    assert "4x: met" in outcome.out
    assert "writing page.html" in outcome.err.splitlines()
    text = Path("page.html").read_text()
    assert text.startswith("<!doctype html>")
    assert "<title>tiny.pth, 4" in text


def test_report_writes_what_the_file_holds(run, files):
    outcome = run("report", files.artifact, "-q", "--html", "page.html", "--json", "-")
    assert (outcome.code, outcome.err) == (0, "")
    text = Path("page.html").read_text()
    assert "<title>tiny.gbnn.safetensors, 4" in text
    assert "The merge path" not in text


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--html", "{checkpoint}"], "it is the checkpoint"),
        (["--html", "out.gbnn.safetensors"], "it is the artifact"),
        (["--html", "page.html", "--json", "page.html"], "it is the page"),
        (["--html", "nowhere/page.html"], "the folder `nowhere` does not exist"),
        (["--html", "."], "it is a directory"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_the_work(run, files, words, reason):
    words = [word.format(checkpoint=files.checkpoint) for word in words]
    outcome = run("-q", files.checkpoint, "--target-ratio", "4", "-o", "out.gbnn.safetensors", *words)
    assert outcome.code == 2
    assert reason in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(("target", "reason"), [("{artifact}", "it is the artifact"), ("a/b.html", "does not exist")])
def test_the_page_of_a_report_is_refused_too(run, files, target, reason):
    before = Path(files.artifact).read_bytes()
    outcome = run("report", files.artifact, "-q", "--html", target.format(artifact=files.artifact))
    assert outcome.code == 2
    assert reason in outcome.err
    assert Path(files.artifact).read_bytes() == before


def test_evaluate_writes_a_page_of_its_own(run, files):
    words = ["--data", "digits:test", "--arch", files.arch, "--samples", "2", "--ood", "digits:train"]
    outcome = run("evaluate", files.artifact, *words, "-q", "--html", "page.html", "--json", "-")
    assert outcome.code == 0
    assert json.loads(outcome.out)["ood"]
    assert "inputs, and on digits:train." in Path("page.html").read_text()


def test_the_page_of_an_evaluation_is_refused_before_the_work(run, files):
    words = ["--data", "digits:test", "--arch", files.arch, "-q"]
    for target, reason in ((files.artifact, "it is the model"), ("a/b.html", "does not exist")):
        outcome = run("evaluate", files.artifact, *words, "--html", target)
        assert outcome.code == 2
        assert reason in outcome.err
