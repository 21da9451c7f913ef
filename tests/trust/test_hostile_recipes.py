"""Recipes made to run code, to fill the memory or to take for ever: exit code 2, one line, at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from gbnn_compress_cli.main import main

LAUGHS = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)), "noise: *a29"]
)

RECIPES = {
    "python-object": "noise: !!python/object/apply:os.system ['touch owned']",
    "python-new": "noise: !!python/object/new:os.system ['touch owned']",
    "python-name": "noise: !!python/name:os.system",
    "python-module": "!!python/module:antigravity",
    "tag": "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch owned']",
    "billion-laughs": LAUGHS,
    "alias": "noise: &a 0.1\noutlier_threshold: *a",
    "cycle": "&a [*a]",
    "merge": "<<: &a {noise: 0.1}\nx: *a",
    "deep-list": "noise: " + "[" * 20_000,
    "deep-map": "{a: " * 10_000,
    "deep-block": "\n".join(" " * i + "a:" for i in range(300)),
    "long-number": "noise: " + "9" * 16_000,
    "sexagesimal": "n_components: 1" + ":59" * 20_000,
    "infinite": "noise: .inf",
    "huge-float": "noise: 1e999",
    "no-date": "noise: 2024-99-99",
    "long-key": "k" * 16_000 + ": 1",
    "long-text": "bank: " + "x" * 16_000,
    "long-list": "noise: [" + "1," * 8_000 + "1]",
    "odd-key": "? [a, b]\n: 1",
    "twice": "noise: 0.1\nnoise: 0.2",
    "binary": "noise: !!binary '***'",
    "nul": "noise: \0",
    "two-documents": "noise: 0.1\n---\nnoise: 0.2",
    "too-long": "# " + "x" * 100_000_000,
    "no-mapping": "finetune: 3",
    "group-of-groups": "finetune: {finetune: {finetune: 1}}",
}


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_runs_and_one_line_says_why(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["recipe", "validate", "missing.yaml"])
    Path("own.yaml").write_text(RECIPES[name])
    capfd.readouterr()
    start = time.process_time()
    code = main(["recipe", "validate", "own.yaml"])
    seconds = time.process_time() - start
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("gbnn-compress: error: recipe `own.yaml`")
    assert err.count("\n") == 1
    assert len(err) < 1000
    assert list(tmp_path.iterdir()) == [tmp_path / "own.yaml"]
    assert seconds < 1


@pytest.mark.parametrize("setting", ["noise.x=1", "finetune.noise.x=1", "noise=" + "9" * 5000, "finetune=3"])
def test_settings_are_no_better(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["net.pth", "--target-ratio", "8", "-q", "-s", setting]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
