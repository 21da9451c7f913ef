"""Evaluation on real data: the digits network, before and after."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gbnn_compress_cli import digits_network
from safetensors.torch import save_file

from gbnn_compress import compress, diff, evaluate
from gbnn_compress.data.datasets import load_data
from gbnn_compress.errors import ArchitectureError, ArtifactError, CheckpointError, DataError, GbnnError
from gbnn_compress.predict.bench import Evaluation, open_bench
from gbnn_compress.predict.models import is_artifact, known_architecture, read_model
from gbnn_compress.predict.rebuild import rebuild

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]

ARCHITECTURE = "gbnn_compress_cli.digits_network:digits_cnn"
DIGITS = Evaluation("digits:test", samples=4, device="cpu")
METRICS = {"accuracy", "nll", "ece", "brier"}


class Files(NamedTuple):
    """The trained network, its artifact at 8x, the report, and digits in a file."""

    checkpoint: Path
    artifact: Path
    report: dict[str, Any]
    digits: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Files:
    folder = tmp_path_factory.mktemp("digits")
    checkpoint, artifact = folder / "digits.safetensors", folder / "digits.gbnn.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits_network, "EPOCHS", 4)
        save_file(digits_network.train(), checkpoint)
    report = compress(checkpoint, target_ratio=8, output=artifact, arch=ARCHITECTURE, eval_data=DIGITS, seed=3)
    digits = load_data("digits:test")
    np.savez(folder / "digits.npz", x=digits.images, y=digits.labels)
    return Files(checkpoint, artifact, report, folder / "digits.npz")


def assert_sane(metrics: dict[str, float]) -> None:
    assert metrics.keys() >= METRICS
    assert 0.9 < metrics["accuracy"] <= 1
    assert 0 <= metrics["nll"] < 0.5
    assert 0 <= metrics["ece"] < 0.2
    assert 0 <= metrics["brier"] < 0.3


def test_a_checkpoint_is_run_once_as_it_is(files: Files) -> None:
    result = evaluate(files.checkpoint, DIGITS, arch=ARCHITECTURE)
    assert_sane(result)
    assert (result["samples"], result["seed"], result["reference"], result["warnings"]) == (1, None, None, [])
    assert (result["data"], result["inputs"]) == ("digits:test", 500)
    assert result["model"] == str(files.checkpoint)
    assert "ood" not in result
    assert result == evaluate(files.checkpoint, replace(DIGITS, samples=9), arch=ARCHITECTURE, seed=5)


def test_an_artifact_is_averaged_over_draws(files: Files) -> None:
    result = evaluate(files.artifact, DIGITS, arch=ARCHITECTURE, seed=3)
    assert_sane(result)
    assert result["samples"] == 4
    assert result == evaluate(str(files.artifact), DIGITS, arch=ARCHITECTURE, seed=3)
    assert result["nll"] != evaluate(files.artifact, DIGITS, arch=ARCHITECTURE, seed=30)["nll"]


def test_draws_average_probabilities_of_consecutive_seeds(files: Files) -> None:
    artifact = read_model(files.artifact)
    bench = open_bench(artifact, DIGITS, ARCHITECTURE)
    expected = torch.stack([bench.run(rebuild(artifact, seed=7 + draw)) for draw in range(4)]).mean(dim=0)
    found = bench.probabilities(artifact, seed=7)
    assert found.dtype == torch.float64
    assert found.shape == (500, 10)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(500, dtype=torch.float64))


def test_one_bench_runs_one_set_of_weights_after_the_other(files: Files) -> None:
    checkpoint, artifact = read_model(files.checkpoint), read_model(files.artifact)
    bench = open_bench(checkpoint, DIGITS, ARCHITECTURE)
    first = bench.probabilities(checkpoint, seed=0)
    bench.probabilities(artifact, seed=0)
    assert torch.equal(bench.probabilities(checkpoint, seed=0), first)


def test_the_same_bench_on_other_data(files: Files) -> None:
    checkpoint = read_model(files.checkpoint)
    bench = open_bench(checkpoint, DIGITS, ARCHITECTURE)
    other = bench.on(load_data("digits:train", labels=False), option="--ood")
    assert other.network is bench.network
    assert (other.option, bench.option) == ("--ood", "--data")
    assert len(other.probabilities(checkpoint, seed=0)) == 1797 - 500
    assert len(bench.probabilities(checkpoint, seed=0)) == 500


def test_noise_is_less_certain_than_digits(files: Files, tmp_path: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (200, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "noise.npz", x=noise)
    for model in (files.checkpoint, files.artifact):
        result = evaluate(model, DIGITS, arch=ARCHITECTURE, ood=f"npz:{tmp_path / 'noise.npz'}")
        assert 0.6 < result["ood"]["auroc"] <= 1


def test_other_data_are_told_apart_by_several_scores(files: Files) -> None:
    scores = {"auroc", "fpr95"}
    checkpoint, artifact = (
        evaluate(model, DIGITS, arch=ARCHITECTURE, ood="digits:train")["ood"]
        for model in (files.checkpoint, files.artifact)
    )
    assert set(checkpoint) == scores | {"max_probability"}
    assert set(artifact) == scores | {"max_probability", "mutual_information"}
    assert all(set(artifact[name]) == scores for name in ("max_probability", "mutual_information"))
    assert evaluate(files.artifact, DIGITS, arch=ARCHITECTURE, ood="digits:test")["ood"]["auroc"] == 0.5


def test_a_temperature_is_fitted_on_other_data_and_told(files: Files) -> None:
    for model in (files.checkpoint, files.artifact):
        plain = evaluate(model, DIGITS, arch=ARCHITECTURE)
        result = evaluate(model, DIGITS, arch=ARCHITECTURE, val_data="digits:train")
        assert plain.items() <= result.items()
        assert METRICS < result["scaled"].keys() < plain.keys()
        assert result["scaled"]["accuracy"] == plain["accuracy"]
        judged_by_itself = evaluate(model, DIGITS, arch=ARCHITECTURE, val_data="digits:test")
        assert judged_by_itself["scaled"]["nll"] <= plain["nll"]
        assert judged_by_itself["temperature"] != result["temperature"]


def test_a_reference_is_compared_with(files: Files) -> None:
    itself = evaluate(files.checkpoint, DIGITS, arch=ARCHITECTURE, reference=files.checkpoint)
    assert (itself["agreement"], itself["logit_kl"]) == (1.0, pytest.approx(0, abs=1e-12))
    result = evaluate(files.artifact, DIGITS, arch=ARCHITECTURE, reference=files.checkpoint)
    assert 0.97 < result["agreement"] <= 1
    assert 0 < result["logit_kl"] < 0.1


def test_measuring_a_network_that_knows_nothing_is_warned_of(files: Files, tmp_path: Path) -> None:
    with np.load(files.digits) as data:
        images, labels = data["x"], data["y"]
    np.savez(tmp_path / "wrong.npz", x=images, y=(labels + 1) % 10)
    wrong = replace(DIGITS, data=f"npz:{tmp_path / 'wrong.npz'}")
    for model in (files.checkpoint, files.artifact):
        (warning,) = evaluate(model, wrong, arch=ARCHITECTURE)["warnings"]
        assert warning.startswith(f"{model.name} has an accuracy of ")
        assert "`--data`, hardly better than always predicting the most frequent label: check labels" in warning
    report = compress(
        files.checkpoint, target_ratio=8, output=tmp_path / "out.safetensors", arch=ARCHITECTURE, eval_data=wrong
    )
    assert "the checkpoint has an accuracy of" in report["warnings"][0]
    assert "`--eval-data`" in report["warnings"][0]


def test_answers_worse_than_guessing_are_warned_of(files: Files, tmp_path: Path) -> None:
    """A few right by luck, the others wrong and sure of it."""
    with np.load(files.digits) as data:
        images, labels = data["x"], data["y"]
    np.savez(tmp_path / "wrong.npz", x=images, y=np.where(np.arange(500) < 150, labels, (labels + 1) % 10))
    (warning,) = evaluate(files.checkpoint, replace(DIGITS, data=f"npz:{tmp_path / 'wrong.npz'}"), arch=ARCHITECTURE)[
        "warnings"
    ]
    assert warning.startswith("digits.safetensors has an NLL of ")
    assert "on `--data`, while guessing among 10 labels gives 2.3: check labels" in warning


def test_few_inputs_are_warned_of(files: Files, tmp_path: Path) -> None:
    with np.load(files.digits) as data:
        np.savez(tmp_path / "few.npz", x=data["x"][:20], y=data["y"][:20])
    few = replace(DIGITS, data=f"npz:{tmp_path / 'few.npz'}")
    assert evaluate(files.checkpoint, few, arch=ARCHITECTURE)["warnings"] == [
        "`--data` has only 20 inputs: each is 5 points of accuracy"
    ]


def test_compressing_reports_what_it_measured(files: Files) -> None:
    evaluation, damage = files.report["evaluation"], files.report["damage"]
    assert (evaluation["data"], evaluation["samples"]) == ("digits:test", 4)
    for name in ("before", "after", "mean"):
        assert_sane(evaluation[name])
    assert damage["measured"] is True
    assert damage["drop"] == pytest.approx(100 * (evaluation["before"]["accuracy"] - evaluation["mean"]["accuracy"]))
    assert abs(damage["drop"]) < 2
    assert 0.97 < damage["agreement"] <= 1
    assert 0 <= damage["logit_kl"] < 0.1
    assert damage["safe_ratio"] > 1
    assert files.report["warnings"] == []


def test_the_report_s_metrics_are_those_of_evaluate(files: Files) -> None:
    for name, model in (("before", files.checkpoint), ("after", files.artifact)):
        result = evaluate(model, DIGITS, arch=ARCHITECTURE, seed=3)
        assert files.report["evaluation"][name] == {key: result[key] for key in files.report["evaluation"][name]}


def test_evaluating_changes_no_byte_of_the_file(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "other.gbnn.safetensors"
    report = compress(files.checkpoint, target_ratio=8, output=path, arch=ARCHITECTURE, seed=3)
    assert path.read_bytes() == files.artifact.read_bytes()
    assert report["evaluation"] is None
    assert report["damage"]["measured"] is False


def test_diff_of_tensors_alone(files: Files) -> None:
    result = diff(files.checkpoint, files.artifact)
    assert result["bytes"] == [files.checkpoint.stat().st_size, files.artifact.stat().st_size]
    assert result["only_in_first"] == result["only_in_second"] == []
    errors = {entry["name"]: entry["relative_rmse"] for entry in result["tensors"]}
    assert 0 < errors["conv2.weight"] < 0.2
    assert errors["norm1.num_batches_tracked"] == 0
    assert "agreement" not in result


def test_diff_on_data(files: Files) -> None:
    result = diff(files.checkpoint, files.artifact, data=DIGITS, arch=ARCHITECTURE, seed=3)
    assert result["agreement"] == files.report["damage"]["agreement"]
    assert result["logit_kl"] == pytest.approx(files.report["damage"]["logit_kl"])
    for name, metrics in zip(("before", "after"), result["metrics"], strict=True):
        assert metrics == files.report["evaluation"][name]


def test_diff_with_itself_is_nothing(files: Files) -> None:
    result = diff(files.checkpoint, files.checkpoint, data=DIGITS, arch=ARCHITECTURE)
    assert result["agreement"] == 1
    assert result["logit_kl"] == pytest.approx(0, abs=1e-12)
    assert {entry["relative_rmse"] for entry in result["tensors"]} == {0.0}


def test_diff_without_labels_has_no_metrics(files: Files, tmp_path: Path) -> None:
    images = np.random.RandomState(0).randint(0, 256, (20, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x=images)
    evaluation = replace(DIGITS, data=f"npz:{tmp_path / 'images.npz'}")
    result = diff(files.checkpoint, files.artifact, data=evaluation, arch=ARCHITECTURE)
    assert 0 <= result["agreement"] <= 1
    assert "metrics" not in result


def test_diff_of_other_networks(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 3), "b": torch.zeros(2), "c": torch.ones(1)}, tmp_path / "x.safetensors")
    save_file({"a": torch.ones(3, 2), "b": torch.ones(2), "d": torch.ones(1)}, tmp_path / "y.safetensors")
    result = diff(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    assert (result["only_in_first"], result["only_in_second"]) == (["c"], ["d"])
    assert result["tensors"] == [
        {"name": "a", "shapes": [[2, 3], [3, 2]], "relative_rmse": None, "max_error": None},
        {"name": "b", "shapes": [[2]], "relative_rmse": None, "max_error": 1.0},
    ]


def test_labels_of_validation_data_are_needed_and_checked(files: Files, tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "bare.npz", x=images)
    np.savez(tmp_path / "high.npz", x=images, y=np.full(4, 12))
    np.savez(tmp_path / "from-one.npz", x=images, y=[1, 2, 3, 10])
    for name, words in (
        ("bare", "expected an array `y` (labels, which are required here), got x; write it with"),
        ("high", "`--val-data`: expected labels in 0..9 for a network with 10 classes, got 12"),
        ("from-one", "got 10; if they start at 1, subtract 1 from each"),
    ):
        val_data = f"npz:{tmp_path / name}.npz"
        assert words in refusal(DataError, evaluate, files.checkpoint, DIGITS, arch=ARCHITECTURE, val_data=val_data)


def refusal(error: type[GbnnError], call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ArchitectureError, "name it with `--arch`"),
        ({"arch": "torchvision/resnet81"}, ArchitectureError, "`torchvision/resnet81`"),
        ({"arch": "nothing.here:net"}, ArchitectureError, "`nothing.here` cannot be imported"),
        ({"arch": "torchvision/resnet18"}, ArchitectureError, "torchvision/resnet18"),
        ({"arch": ARCHITECTURE, "eval_data": Evaluation("digts")}, DataError, "unknown data `digts`"),
        ({"arch": ARCHITECTURE, "eval_data": replace(DIGITS, samples=0)}, GbnnError, "`--samples`"),
        ({"arch": ARCHITECTURE, "eval_data": replace(DIGITS, device="abacus")}, GbnnError, "`--device`"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_written(
    files: Files, tmp_path: Path, options: dict[str, Any], error: type[GbnnError], words: str
) -> None:
    given = {"eval_data": DIGITS, **options}
    stages: list[str] = []
    path = tmp_path / "out.gbnn.safetensors"
    line = refusal(error, compress, files.checkpoint, target_ratio=8, output=path, progress=stages.append, **given)
    assert words in line
    assert list(tmp_path.iterdir()) == []
    assert [stage.split()[0] for stage in stages] == ["reading"]


def test_an_unknown_network_is_refused(files: Files) -> None:
    for call in (evaluate, lambda model, evaluation: diff(model, model, data=evaluation)):
        assert "the architecture is not known" in refusal(ArchitectureError, call, files.checkpoint, DIGITS)
    assert "the architecture is not known" in refusal(ArchitectureError, known_architecture, read_model(files.artifact))


def test_kinds_of_models_are_told_apart(files: Files, tmp_path: Path) -> None:
    assert is_artifact(files.artifact)
    assert not is_artifact(files.checkpoint)
    assert not is_artifact(tmp_path)
    assert not is_artifact(tmp_path / "none")
    refusal(CheckpointError, read_model, tmp_path / "none")
    cut = tmp_path / "cut.gbnn.safetensors"
    cut.write_bytes(files.artifact.read_bytes()[:-5])
    refusal(ArtifactError, read_model, cut)
