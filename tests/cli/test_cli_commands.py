"""Every command once, on a checkpoint of 3,000 weights."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer.main
import yaml
from gbnn_compress_cli.main import app
from safetensors import safe_open


@pytest.mark.parametrize("words", [["--help"], ["compress", "--help"], []])
def test_help_is_quick_and_imports_nothing_heavy(words):
    code = "import sys; from gbnn_compress_cli.main import main; sys.exit(main(sys.argv[1:]))"
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "compress" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")][1:]
    imported = {line.rsplit("|", 1)[1].strip() for line in lines}
    assert not imported & {"torch", "numpy", "rich", "yaml", "safetensors", "scipy"}
    after = os.times()
    taken = after.children_user + after.children_system - before.children_user - before.children_system
    assert taken < 1  # of processor time: other work may be beside


def test_version(run):
    outcome = run("--version")
    assert outcome.code == 0
    assert outcome.out.startswith("gbnn-compress 0.")


def test_compress_max_drop(run, files):
    outcome = run("-q", files.checkpoint, "--max-drop", "0.5", "--task", "classifier")
    assert (outcome.code, outcome.err) == (0, "")
    assert "(target: at most 0.5 points lost)" in outcome.out
    assert "wrote tiny.gbnn.safetensors in " in outcome.out


@pytest.mark.long
def test_plan(run, files):
    outcome = run("plan", files.checkpoint, "-q", "--target-ratio", "100", "-v")
    assert outcome.code == 0
    for text in (
        "shared         2 with 2,952 weights",
        "100x",
        "<- target",
        "safe ratio of about ",
        "of memory and",
    ):
        assert text in outcome.out
    assert "1.num_batches_tracked" in outcome.out


def test_plan_takes_every_option_of_compress():
    commands = typer.main.get_command(app).commands
    taken, wanted = ({tuple(option.opts) for option in commands[name].params} for name in ("plan", "compress"))
    assert wanted == taken


@pytest.mark.long
def test_plan_writes_nothing_where_compress_would(run, files):
    words = ["-o", "there.safetensors", "--html", "page.html", "--restart", "--arch", files.arch]
    more = ["--data", "digits:train", "--val-data", "digits:test", "--epochs", "2", "--eval-data", "digits:test"]
    outcome = run("plan", files.checkpoint, "-q", "--target-ratio", "4", *words, *more)
    assert outcome.code == 0
    assert re.search(r"^predicted without data: safe ratio of about \S+x without training ", outcome.out, re.MULTILINE)
    assert re.search(r"^compressing takes about .* of memory and .*, before training$", outcome.out, re.MULTILINE)
    assert outcome.err == (
        "warning: damage is predicted before training: the gain from 2 epochs of training is not included\n"
    )
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--val-data npz:missing.npz --data digits --epochs 1", "missing.npz"),
        ("--data npz:missing.npz --epochs 1", "missing.npz"),
        ("--seed -1", "`--seed`: expected a whole number from 0 to 4294967295, got -1"),
        ("--eval-data digits --mean 0.5,0.5,0.5 --std 1,1,1", "images with 1 channel(s), `--mean` has 3 number(s)"),
        ("-o missing/there.safetensors", "the folder `missing` does not exist"),
        ("--html missing/page.html", "the folder `missing` does not exist"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "compress"])
def test_plan_refuses_what_compress_refuses_before_it_writes(run, files, command, words, line):
    outcome = run(command, files.checkpoint, "-q", "--target-ratio", "4", "--arch", files.arch, *words.split())
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert line in outcome.err
    assert list(Path().iterdir()) == []


@pytest.mark.long
def test_plan_within_a_drop(run, files):
    assert (
        "predicted to lose at most 1 point\n"
        in run("plan", files.checkpoint, "-q", "--max-drop", "1", "--task", "classifier").out
    )


@pytest.mark.long
def test_compress_and_plan_with_data(run, files, monkeypatch):
    monkeypatch.setattr("gbnn_compress_cli.console.WIDTH", 200)  # so that the line asked for is one
    words = ["-q", files.checkpoint, "--target-ratio", "4", "--arch", files.arch, "--data", "digits:test"]
    outcome = run(*words)
    assert (outcome.code, outcome.err) == (0, "")
    line = r"^measured on calibration inputs: .* of predictions unchanged$"
    assert re.search(line, outcome.out, re.MULTILINE)
    assert re.search(line, run("report", "tiny.gbnn.safetensors", "-q").out, re.MULTILINE)
    outcome = run("plan", *words)
    assert (outcome.code, outcome.err) == (0, "")
    assert "predicted with data: safe ratio of about " in outcome.out


def test_data_of_the_wrong_kind(run, files):
    np.savez("colour.npz", x=np.zeros((5, 8, 8, 3), dtype=np.uint8))
    outcome = run("-q", files.checkpoint, "--target-ratio", "4", "--arch", files.arch, "--data", "npz:colour.npz")
    assert outcome.code == 2
    assert "`--data` has images with 3 channel(s), the network expects 1" in outcome.err
    assert outcome.err.count("\n") == 1


def test_report(run, files):
    outcome = run("report", files.artifact)
    assert outcome.code == 0
    assert "where the bytes went" in outcome.out
    assert "wrote" not in outcome.out


MEASURES = {"accuracy", "nll", "ece", "brier", "adaptive_ece", "coverage_at_5_percent_risk"}


@pytest.mark.parametrize("model", ["checkpoint", "artifact"])
def test_evaluate(run, files, model):
    path = getattr(files, model)
    words = ["--data", "digits:test", "--arch", files.arch, "--samples", "2", "-q"]
    outcome = run("evaluate", path, *words, "--ood", "digits:train", "--json", "out.json")
    assert outcome.code == 0
    doubt = rf"warning: {Path(path).name} has an accuracy of .* % on `--data`, hardly better than .*\n"
    assert re.fullmatch(doubt, outcome.err)
    assert "detecting digits:train   AUROC" in outcome.out
    result = json.loads(Path("out.json").read_text())
    told = {"schema", "model", "data", "inputs", "reference", "samples", "seed", "warnings"}
    assert set(result) == told | {"ood"} | MEASURES
    assert outcome.err == f"warning: {result['warnings'][0]}\n"
    assert result["samples"] == (1 if model == "checkpoint" else 2)
    scores = {"max_probability"} if model == "checkpoint" else {"max_probability", "mutual_information"}
    assert set(result["ood"]) == {"auroc", "fpr95"} | scores
    assert ("by mutual information" in outcome.out) is (model == "artifact")


def test_evaluate_with_a_temperature_and_a_reference(run, files):
    words = ["--data", "digits:test", "--val-data", "digits:train", "--ood", "digits:train", "--arch", files.arch]
    more = ["--reference", files.checkpoint, "--samples", "2", "--json", "out.json", "-q"]
    outcome = run("evaluate", files.artifact, *words, *more)
    assert outcome.code == 0
    result = json.loads(Path("out.json").read_text())
    assert result["reference"] == files.checkpoint
    assert set(result) >= MEASURES | {"temperature", "scaled", "agreement", "logit_kl"}
    assert set(result["scaled"]) == MEASURES | {"ood"}
    assert f"scaled, temperature {result['temperature']:.3g}" in outcome.out
    assert "against tiny.pth: the same top class for " in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 100


def test_diff(run, files):
    outcome = run("diff", files.checkpoint, files.artifact, "-q")
    assert outcome.code == 0
    assert "9 tensors in both: " in outcome.out
    assert "tensors that differ most" in outcome.out


def test_diff_on_data(run, files):
    words = ["--data", "digits:test", "--arch", files.arch, "--samples", "1", "-q"]
    outcome = run("diff", files.checkpoint, files.checkpoint, *words)
    assert outcome.code == 0
    assert "9 equal, 0 differ in values" in outcome.out
    assert "the same top class for 100.0 % of inputs" in outcome.out


def test_decompress_mean_and_sample(run, files):
    assert run("decompress", files.artifact, "-o", "mean.safetensors", "-q").code == 0
    outcome = run("decompress", files.artifact, "-o", "sample.safetensors", "--sample", "3", "-q")
    assert outcome.code == 0
    assert outcome.out.startswith("wrote sample.safetensors: one posterior sample (seed 3), ")
    with safe_open("mean.safetensors", "numpy") as mean, safe_open("sample.safetensors", "numpy") as sample:
        assert list(mean.keys()) == list(sample.keys())
        assert (mean.get_tensor("module.4.weight") != sample.get_tensor("module.4.weight")).any()


@pytest.mark.long
@pytest.mark.parametrize("weights", ["codebook", "samples"])
def test_export(run, files, weights):
    words = ["-o", "tiny.onnx", "--weights", weights, "--samples", "2", "--input-shape", "1,8,8", "--arch", files.arch]
    outcome = run("export", files.artifact, "-q", *words)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(
        r"^checked in ONNX Runtime .* on 64 inputs: largest relative difference \d\.\de-0[5-9]$", outcome.out, re.M
    )
    assert "opset 21, input `input` float32 (batch, 1, 8, 8)" in outcome.out
    assert "wrote tiny.onnx: " in outcome.out
    assert [path.name for path in Path().iterdir()] == ["tiny.onnx"]


def test_export_takes_the_input_shape_from_the_architecture(run):
    from gbnn_compress.data.architectures import build_network
    from gbnn_compress.onnx_files.given import input_shape

    spec = "timm/test_vit"
    assert input_shape(None, build_network(spec), spec) == (3, 160, 160)


def test_recipes(run):
    assert run("recipe", "ls").out.startswith("default ")
    assert re.search(r"^resnet20-cifar10 +ResNet-20 on CIFAR-10, trained to 16x$", run("recipe", "ls").out, re.M)
    assert run("recipe", "show", "demo").out.startswith(
        "# A small network on scikit-learn's digits, trained to 40x.\n#"
    )
    shown = yaml.safe_load(run("recipe", "show", "default").out)
    assert run("recipe", "cp", "default", "mine.yaml").code == 0
    assert yaml.safe_load(Path("mine.yaml").read_text()) == shown
    assert "n_components=" in run("recipe", "validate", "mine.yaml").out
    assert "it exists" in run("recipe", "cp", "default", "mine.yaml").err
    Path("mine.yaml").write_text("n_component: 3\n")
    outcome = run("recipe", "validate", "mine.yaml")
    assert outcome.code == 2
    assert "did you mean `n_components`?" in outcome.err


@pytest.mark.long
def test_plan_says_that_it_counts_bytes(run, files):
    words = ["--target-ratio", "77", "--ratio-of", "parameters", "-q"]
    outcome = run("plan", files.checkpoint, *words)
    assert outcome.code == 0
    assert outcome.err.startswith("warning: `plan` predicts bytes")
    assert "77x" not in outcome.out


@pytest.mark.long
@pytest.mark.parametrize("command", [[], ["plan"]])
def test_options_that_do_nothing_are_said_to(run, files, command):
    words = [*command, files.checkpoint, "--target-ratio", "4", "-q", "--json", "out.json"]
    outcome = run(*words, "--mean", "0.5", "--image-size", "8", "--restart")
    assert outcome.code == 0
    assert outcome.err.splitlines()[:2] == [
        "warning: `--mean`, `--image-size`: ignored without `--data`, `--val-data` or `--eval-data`",
        "warning: `--restart`: ignored without `--epochs`",
    ]


def test_parameters_that_cannot_be_so_few(run, files):
    outcome = run(files.checkpoint, "--target-ratio", "1000", "--ratio-of", "parameters", "-q", "--json", "out.json")
    assert outcome.code == 1
    missed = json.loads(Path("out.json").read_text())["warnings"][0]
    assert missed.startswith("target missed: ")
    assert "x, target 1,000x; 50 unshared values (biases, norms) count in full and limit the ratio to 115x" in missed
