"""What goes wrong is one line on stderr, and an exit code that says whose fault it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

USAGE = [
    ("CHECKPOINT", "give either `--target-ratio` (such as 50) or `--max-drop`"),
    ("CHECKPOINT --target-ratio 8 --max-drop 1", "give either `--target-ratio`"),
    ("CHECKPOINT --target-ratio abc", "`--target-ratio`: expected a number of at least 1"),
    ("CHECKPOINT --target-ratio 0%", "`--target-ratio`: expected a number of at least 1"),
    ("CHECKPOINT --target-ratio 0.5", "`--target-ratio`: expected a number of at least 1"),
    ("CHECKPOINT --max-drop abc", "`--max-drop`: expected a number, got `abc`"),
    ("CHECKPOINT --target-ratio 8 --samples abc", "`--samples`: expected a whole number, got `abc`"),
    ("CHECKPOINT --target-ratio 8 --samples 0", "`--samples`: expected at least 1, got 0"),
    ("CHECKPOINT --target-ratio 8 --ratio-of file", "`--ratio-of`: expected `artifact` or `parameters`"),
    ("CHECKPOINT --target-ratio 8 --mean a,b", "`--mean` must be numbers"),
    ("CHECKPOINT --target-ratio 8 --device cuda:99", "`--device`: expected auto, cpu or a device that torch sees here"),
    (
        "CHECKPOINT --target-ratio 8 --data digits:train",
        "the architecture is not known: no torchvision or timm network fits",
    ),
    ("CHECKPOINT --target-ratio 8 --data digts --arch ARCH", "unknown data `digts`"),
    ("CHECKPOINT --target-ratio 8 --data npz:no.npz --arch ARCH", "`npz:no.npz`: no file `no.npz`"),
    ("CHECKPOINT --target-ratio 8 --data digits:train --arch ARCH --image-size 9", "the network fails on a batch"),
    (
        "CHECKPOINT --target-ratio 8 --data digits:train --arch ARCH --epochs -3",
        "`--epochs`: expected 0 (calibrate only)",
    ),
    ("CHECKPOINT --target-ratio 8 --arch ARCH --epochs 3", "`--epochs 3`: training needs data"),
    (
        "CHECKPOINT --max-drop 1 --data digits:train --epochs 3",
        "`--max-drop`: the drop after training",
    ),
    (
        "CHECKPOINT --target-ratio 8 --data digits:train --val-data digits:test",
        "`--val-data`: it is used only with `--max-drop`",
    ),
    ("CHECKPOINT --target-ratio 8 --epochs x", "`--epochs`: expected a whole number, got `x`"),
    ("CHECKPOINT --target-ratio 8 --seed -1", "`--seed`: expected a whole number from 0 to 4294967295, got -1"),
    ("decompress ARTIFACT -o x.safetensors --sample=-5", "`--sample`: expected a whole number from 0 to"),
    ("export ARTIFACT -o x.onnx --arch ARCH --input-shape 1,8", "fails on a batch of shape"),
    ("CHECKPOINT --target-ratio 8 -s noise", "`-s`: expected key=value (such as noise=0.02), got `noise`"),
    ("CHECKPOINT --target-ratio 8 -s nosie=1", "unknown key `nosie` (did you mean `noise`?)"),
    ("CHECKPOINT --target-ratio 8 --recipe defalt", "unknown recipe `defalt`"),
    ("CHECKPOINT --targt-ratio 8", "unknown option `--targt-ratio` (did you mean `--target-ratio`?)"),
    ("CHECKPOINT --target-ratio 8 --export x", "unknown option `--export`; see"),
    ("CHECKPOINT other --target-ratio 8", "unexpected argument `other`"),
    ("CHECKPOINT --target-ratio", "`--target-ratio` requires an argument"),
    ("--target-ratio 8", "missing argument `CHECKPOINT`"),
    ("missing.pth --target-ratio 8", "`missing.pth` does not exist"),
    ("evalute CHECKPOINT", "`evalute` is neither a command nor a file (did you mean `evaluate`?)"),
    ("report ARTIFACT -o x", "unknown option `-o`"),
    ("plan CHECKPOINT --target-ratio 8 --max-drop 1", "give either `--target-ratio` (such as 50) or `--max-drop`"),
    ("plan CHECKPOINT --target-ratio 0.5", "`--target-ratio`: expected a number of at least 1"),
    ("plan CHECKPOINT --ratio-of file", "`--ratio-of`: expected `artifact` or `parameters`"),
    ("plan CHECKPOINT --data digits:train", "the architecture is not known"),
    ("plan CHECKPOINT --epochs 1", "`--epochs 1`: training needs data"),
    ("evaluate ARTIFACT --data digits --arch ARCH --image-size 1000000", "give a smaller `--image-size`"),
    ("report CHECKPOINT", "is not a gbnn-compress artifact"),
    ("report missing", "expected an artifact, got no such file"),
    ("evaluate CHECKPOINT", "missing option `--data SPEC`"),
    ("evaluate CHECKPOINT --data digts --arch ARCH", "unknown data `digts`"),
    ("evaluate ARTIFACT --data digits --arch ARCH --samples 0", "`--samples`: expected at least 1, got 0"),
    ("evaluate ARTIFACT --data digits --arch ARCH --val-data digts", "unknown data `digts`"),
    ("evaluate ARTIFACT --data digits --arch ARCH --reference missing.pth", "`missing.pth` does not exist"),
    ("diff CHECKPOINT", "missing argument `B`"),
    ("decompress ARTIFACT", "missing option `-o FILE.safetensors`"),
    ("decompress ARTIFACT -o dense.pth", "expected a name that ends in .safetensors"),
    ("decompress ARTIFACT -o dense.safetensors --sample x", "`--sample`: expected a whole number, got `x`"),
    ("export ARTIFACT", "missing option `-o FILE.onnx`"),
    ("export ARTIFACT -o out.pt --arch ARCH", "`-o out.pt`: give a name that ends in .onnx"),
    ("export ARTIFACT -o nowhere/out.onnx --arch ARCH", "the folder `nowhere` does not exist"),
    ("export ARTIFACT -o out.onnx", "the architecture is not known: no torchvision or timm network fits"),
    ("export ARTIFACT -o out.onnx --arch timm/resnet81", "timm has no `timm/resnet81`"),
    ("export ARTIFACT -o out.onnx --arch timm/resnet18", "the checkpoint does not fit `timm/resnet18`"),
    ("export ARTIFACT -o out.onnx --arch ARCH", "has no published input size; give `--input-shape`, such as 1,32,32"),
    ("export ARTIFACT -o out.onnx --arch ARCH --input-shape 1x8x8", "`--input-shape`: expected whole numbers"),
    ("export ARTIFACT -o out.onnx --arch ARCH --input-shape 1,0,8", "`--input-shape`: expected sizes of at least 1"),
    ("export ARTIFACT -o out.onnx --arch ARCH --input-shape 1,9,9", "(16, 1, 9, 9) from `--input-shape 1,9,9`"),
    ("export ARTIFACT -o out.onnx --arch ARCH --input-shape 3,8,8", "3 channel(s), the network expects 1"),
    (
        "export ARTIFACT -o out.onnx --arch ARCH --weights dense",
        "`--weights`: expected mean, codebook, samples or external",
    ),
    ("export ARTIFACT -o out.onnx --arch ARCH --samples 0", "`--samples`: expected at least 1, got 0"),
    ("export ARTIFACT -o out.onnx --json out.onnx", "it is the model; choose another file"),
    ("export CHECKPOINT -o out.onnx --arch ARCH", "is not a gbnn-compress artifact"),
    ("recipe", "missing command: expected one of ls, show, cp, validate"),
    ("recipe shw", "unknown command `shw` (did you mean `show`?)"),
    ("recipe cp nothing FILE", "unknown recipe `nothing`: expected one of default"),
    ("demo CHECKPOINT", "it is a file; give `demo` a folder"),
]


@pytest.mark.long
@pytest.mark.parametrize(("line", "message"), USAGE)
def test_bad_usage_is_one_line_and_exit_code_2(run, files, line, message):
    names = {"CHECKPOINT": files.checkpoint, "ARTIFACT": files.artifact, "ARCH": files.arch}
    words = [names.get(word, word) for word in line.split()]
    outcome = run(*words, *(["-q"] if words[0] != "recipe" and "requires" not in message else []))
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("gbnn-compress: error: ")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "CHECKPOINT --target-ratio 4 --eval-data npz:labels.npz",
            "`--eval-data`: expected labels in 0..9 for a network with 10 classes, got 59",
        ),
        ("CHECKPOINT --max-drop 1 --val-data npz:labels.npz", "`--val-data`: expected labels in 0..9"),
        ("CHECKPOINT --target-ratio 4 --epochs 1 --data npz:labels.npz", "`--data`: expected labels in 0..9"),
        (
            "CHECKPOINT --target-ratio 4 --epochs 1 --data digits --val-data npz:colour.npz",
            "`--val-data` has images with 3 channel(s), the network expects 1",
        ),
        (
            "evaluate ARTIFACT --data digits --reference other.pth",
            "`--reference other.pth`: the checkpoint does not fit",
        ),
    ],
)
def test_data_that_do_not_fit_are_named_before_anything_is_written(run, files, line, message):
    np.savez("labels.npz", x=np.zeros((9, 8, 8), dtype=np.uint8), y=np.arange(51, 60))
    np.savez("colour.npz", x=np.zeros((9, 8, 8, 3), dtype=np.uint8), y=np.arange(9))
    torch.save({"weight": torch.ones(4, 4)}, "other.pth")
    before = sorted(Path().iterdir())
    names = {"CHECKPOINT": files.checkpoint, "ARTIFACT": files.artifact}
    outcome = run(*(names.get(word, word) for word in line.split()), "--arch", files.arch, "-q")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert message in outcome.err
    assert sorted(Path().iterdir()) == before


def test_compress_refuses_to_overwrite_its_own_files(run, files):
    before = Path(files.checkpoint).read_bytes()
    for words, message in [
        (["-o", files.checkpoint], "it is the checkpoint itself"),
        (["--json", files.checkpoint], "it is the checkpoint; choose another file"),
        (["-o", "x.gbnn.safetensors", "--json", "x.gbnn.safetensors"], "it is the artifact"),
        (["--json", "tiny.gbnn.safetensors"], "it is the artifact"),
        (["--json", "nowhere/x.json"], "the folder `nowhere` does not exist"),
    ]:
        outcome = run("-q", files.checkpoint, "--target-ratio", "4", *words)
        assert outcome.code == 2
        assert message in outcome.err
    assert Path(files.checkpoint).read_bytes() == before
    assert list(Path().iterdir()) == []


def test_a_missed_target_is_exit_code_1_and_still_writes(run, files):
    outcome = run("-q", files.checkpoint, "--target-ratio", "1000")
    assert outcome.code == 1
    assert Path("tiny.gbnn.safetensors").is_file()
    assert "target 1,000x: missed" in outcome.out
    assert "warning: target missed: " in outcome.err


def test_anything_else_is_exit_code_3_and_a_traceback_only_when_asked_for(run, files, monkeypatch):
    import gbnn_compress

    def broken(*_, **__):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(gbnn_compress, "diff", broken, raising=False)
    words = ["diff", files.checkpoint, files.artifact, "-q"]
    outcome = run(*words)
    assert outcome.code == 3
    assert "this is a bug of ours, please report it: RuntimeError: two lines" in outcome.err
    assert outcome.err.count("\n") == 1
    outcome = run(*words, "-v")
    assert outcome.code == 3
    assert "Traceback" in outcome.err


def test_an_interrupt_is_one_line(run, files, monkeypatch):
    import gbnn_compress

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(gbnn_compress, "diff", interrupted, raising=False)
    assert run("diff", files.checkpoint, files.artifact, "-q") == (130, "", "gbnn-compress: interrupted\n")


def test_a_reader_that_goes_away_is_no_failure(files):
    code = "import sys; from gbnn_compress_cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "report", files.artifact, "-q"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(), err) == (0, b"")


def test_names_cannot_drive_the_terminal(run):
    outcome = run("report", "evil\x1b[2J", "-q")
    assert outcome.code == 2
    assert "\x1b" not in outcome.err
    assert "\\x1b[2J" in outcome.err
