"""Which command a line means, and how its values are read."""

from __future__ import annotations

import pytest
import typer.core
import typer.main
from gbnn_compress_cli import options, usage
from gbnn_compress_cli.main import app

from gbnn_compress.errors import GbnnError


@pytest.fixture(scope="module")
def commands():
    root = typer.main.get_command(app)
    assert isinstance(root, typer.core.TyperGroup)
    return root.commands


@pytest.mark.parametrize(
    ("line", "routed"),
    [
        ("x.pth --target-ratio 50", "compress x.pth --target-ratio 50"),
        ("--target-ratio 8 x.pth", "compress --target-ratio 8 x.pth"),
        ("--target-ratio=8 x.pth", "compress --target-ratio=8 x.pth"),
        ("-qs noise=1 x.pth", "compress -qs noise=1 x.pth"),
        ("-snoise=1 plan", "plan -snoise=1"),
        ("-o report x.pth", "compress -o report x.pth"),
        ("-q report x", "report -q x"),
        ("-v --json - plan x.pth", "plan -v --json - x.pth"),
        ("plan x.pth", "plan x.pth"),
        ("-- plan", "compress -- plan"),
        ("--target-ratio 8", "compress --target-ratio 8"),
        ("a/evalute", "compress a/evalute"),
        ("", "--help"),
        ("-h", "--help"),
        ("--help x.pth", "--help"),
        ("--version", "--version"),
    ],
)
def test_route(commands, line, routed):
    assert usage.route(line.split(), commands) == ["-h" if line == "-h" else word for word in routed.split()]


def test_a_file_without_suffix_is_a_checkpoint(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evalute").touch()
    assert usage.route(["evalute"], commands) == ["compress", "evalute"]


def test_a_mistyped_command_is_no_checkpoint(commands):
    with pytest.raises(GbnnError, match="did you mean `decompress`"):
        usage.route(["decompres", "x"], commands)


@pytest.mark.parametrize(
    ("text", "ratio"),
    [("50", 50), ("50x", 50), ("50X", 50), ("2%", 50), (" 2 % ", 50), ("12.5", 12.5), ("8%", 12.5)],
)
def test_parse_ratio(text, ratio):
    assert options.parse_ratio(text) == ratio


def test_no_ratio_stays_none():
    assert options.parse_ratio(None) is None


@pytest.mark.parametrize("text", ["", "x", "50 times", "0%", "%"])
def test_parse_ratio_refuses(text):
    with pytest.raises(GbnnError, match="--target-ratio"):
        options.parse_ratio(text)


def test_settings_keep_what_follows_the_first_sign():
    assert options.parse_settings(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
