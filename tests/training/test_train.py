"""Training from the checkpoint to the file, on scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gbnn_compress_cli import digits_network
from trainings import each_step, stopped_at, trained_with

from gbnn_compress import compress, evaluate, load
from gbnn_compress.data.datasets import load_data
from gbnn_compress.errors import DataError, GbnnError
from gbnn_compress.report import statements
from gbnn_compress.training.encoder import SizeFitting

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread", "fewer_stages", "training_is_kept")]

DIGITS = "gbnn_compress_cli.digits_network:digits_cnn"
QUICK = {"n_components": 64, "em_iterations": 5, "finetune.precision": "float32"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.pth"
    torch.save(digits_network.train(), path)
    return path


def trained(checkpoint: Path, folder: Path, name: str = "out", **options: Any) -> dict[str, Any]:
    given = {"target_ratio": 30, "data": "digits:train", "epochs": 1, "arch": DIGITS, "settings": QUICK} | options
    return compress(checkpoint, output=folder / f"{name}.gbnn.safetensors", **given)


@pytest.fixture(scope="module")
def usual(
    checkpoint: Path,
    one_thread: None,
    fewer_stages: None,
    training_is_kept: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """The report of a training with nothing special."""
    return trained(checkpoint, tmp_path_factory.mktemp("usual"))


@pytest.mark.long
def test_training_meets_the_target_and_beats_the_same_file_without(checkpoint: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    report = trained(checkpoint, tmp_path, epochs=3, eval_data="digits:test", progress=lines.append)
    assert report["target_met"]
    assert 30 <= report["ratio"] <= 30 * 1.03
    plain = compress(checkpoint, target_ratio=30, output=tmp_path / "plain.gbnn.safetensors", settings=QUICK)
    before = evaluate(plain["artifact"]["path"], "digits:test", arch=DIGITS)
    assert report["evaluation"]["after"]["nll"] < before["nll"]
    assert report["evaluation"]["mean"]["accuracy"] > 0.95
    assert report["damage"]["measured"]
    assert sum(line.startswith("epoch ") for line in lines) == 3
    assert any("no `--val-data`" in warning for warning in report["warnings"])


@pytest.mark.long
def test_a_file_that_ends_too_small_is_filled_with_exacter_unshared_values(checkpoint: Path, tmp_path: Path) -> None:
    with trained_with(fitting=SizeFitting(room=1.25, finest_octaves=0.0)):
        small = trained(checkpoint, tmp_path, "small")
    with trained_with(fitting=SizeFitting(room=1.25)):
        filled = trained(checkpoint, tmp_path, "filled")
    assert small["ratio"] > 30 * 1.03
    assert 30 <= filled["ratio"] <= 30 * 1.03
    assert filled["sections"]["index_maps"] == small["sections"]["index_maps"]
    assert filled["sections"]["unshared"] > small["sections"]["unshared"]


@pytest.mark.long
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(
    checkpoint: Path, usual: dict[str, Any], tmp_path: Path
) -> None:
    again, other = (trained(checkpoint, tmp_path, str(seed), seed=seed)["artifact"]["sha256"] for seed in (0, 1))
    assert usual["artifact"]["sha256"] == again != other


@pytest.mark.long
def test_labels_matter(checkpoint: Path, tmp_path: Path) -> None:
    data = load_data("digits:train")
    x = np.stack([data.images[i] for i in range(len(data))])
    files = {}
    for name, y in (("right", data.labels), ("shuffled", np.random.RandomState(0).permutation(data.labels))):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
        files[name] = trained(checkpoint, tmp_path, name, data=f"npz:{tmp_path / name}.npz")["artifact"]
    states = [load(file["path"]).state_dict() for file in files.values()]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.long
def test_only_the_bank_is_trained_when_asked(checkpoint: Path, tmp_path: Path) -> None:
    report = trained(checkpoint, tmp_path, settings={**QUICK, "finetune.trained": "bank"})
    assert report["target_met"]
    assert report["parameter_ratio"] >= 50


@pytest.mark.parametrize(("settings", "stored"), [({}, True), ({"finetune.fold_temperature": False}, False)])
def test_labelled_validation_data_give_the_file_a_temperature(
    checkpoint: Path, usual: dict[str, Any], tmp_path: Path, settings: dict[str, Any], stored: bool
) -> None:
    report = trained(checkpoint, tmp_path, val_data="digits:test", settings=QUICK | settings)
    assert ("temperature" in report) == stored
    assert "temperature" not in usual


def test_the_manifest_says_that_it_was_trained(usual: dict[str, Any]) -> None:
    report = {**usual, "training": dict(usual["training"])}
    facts = load(report["artifact"]["path"]).artifact.facts["training"]
    assert facts == {"epochs": 1, "beta": 1.0, "warm_up": 0.3}
    last = report["training"].pop("last_epoch")
    assert report["training"] == facts
    assert set(last) == {"cross_entropy", "distillation", "divergence", "bits_per_weight"}
    assert all(value > 0 for value in last.values())
    (shown,) = [text for name, text in statements.facts(report, arch=None) if name == "trained"]
    assert shown == "1 epoch, beta 1, warm-up over the first 30 % of the steps"
    (shown,) = [
        text
        for name, text in statements.facts(report | {"training": facts | {"last_epoch": last}}, arch=None)
        if name == "trained"
    ]
    assert f"CE {last['cross_entropy']:.3f}" in shown


@pytest.mark.long
@pytest.mark.parametrize("epochs", [0, 1])
def test_sigma_from_inputs(checkpoint: Path, usual: dict[str, Any], tmp_path: Path, epochs: int) -> None:
    report = trained(checkpoint, tmp_path, epochs=epochs, settings={**QUICK, "posterior": "variational"})
    plain = usual if epochs else trained(checkpoint, tmp_path, "plain", epochs=0)
    assert report["target_met"]
    assert report["recipe"]["posterior"] == "variational"
    assert report["artifact"]["sha256"] != plain["artifact"]["sha256"]


def test_variational_sigma_needs_labels(checkpoint: Path, tmp_path: Path) -> None:
    for name, y, message in (("bare", {}, "expected an array `y`"), ("wrong", {"y": np.arange(64)}, "got 63")):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((64, 8, 8), dtype=np.uint8), **y)
        data = f"npz:{tmp_path / name}.npz"
        with pytest.raises(DataError, match=message):
            trained(checkpoint, tmp_path, data=data, epochs=0, settings={**QUICK, "posterior": "variational"})


def test_ctrl_c_writes_what_there_is(checkpoint: Path, tmp_path: Path) -> None:
    with stopped_at(32, KeyboardInterrupt):
        report = trained(checkpoint, tmp_path)
    assert report["target_met"]
    assert any("training stopped after 0.5 of 1 epochs" in warning for warning in report["warnings"])


@pytest.mark.long
def test_a_loss_that_is_not_finite_ends_it(checkpoint: Path, tmp_path: Path) -> None:
    def broken(last: int) -> Any:
        return each_step(lambda number, images: images * float("nan") if number == last else None)

    with broken(2), pytest.raises(GbnnError, match="the loss became nan at step 3"):
        trained(checkpoint, tmp_path, "first")
    assert not (tmp_path / "first.gbnn.safetensors").exists()
    with broken(70):  # in the second epoch: the first is kept
        report = trained(checkpoint, tmp_path, "second", epochs=2)
    assert report["target_met"]
    assert all(bool(tensor.isfinite().all()) for tensor in load(report["artifact"]["path"]).state_dict().values())


@pytest.mark.long
def test_too_little_memory_halves_the_batch(checkpoint: Path, tmp_path: Path) -> None:
    sizes: list[int] = []

    def tight(number: int, images: torch.Tensor) -> None:
        if len(images) > 9:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        sizes.append(len(images))

    lines: list[str] = []
    with each_step(tight):
        trained(checkpoint, tmp_path, progress=lines.append)
    assert set(sizes) == {9}
    assert "out of memory: continuing with 9 images per step" in lines


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.zeros(64, dtype=np.int64), "one class only"),
        (np.arange(64) % 11, "expected labels in 0..9 for a network with 10 classes, got 10"),
    ],
)
def test_labels_that_training_cannot_use(checkpoint: Path, tmp_path: Path, y: Any, message: str) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((64, 8, 8), dtype=np.uint8), y=y)
    with pytest.raises(DataError, match=message):
        trained(checkpoint, tmp_path, data=f"npz:{tmp_path / 'd.npz'}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "`--epochs`: expected 0"),
        ({"data": None}, "training needs data"),
        ({"target_ratio": None, "max_drop": 1.0}, "`--max-drop`"),
        ({"epochs": 0, "val_data": "digits:test"}, "`--val-data`"),
        ({"epochs": 0, "data": None, "settings": {"posterior": "variational"}}, "name them with `--data`"),
        ({"settings": {"blending": "all"}}, "blends cannot be trained"),
    ],
)
def test_options_that_do_not_go_together(
    checkpoint: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(GbnnError, match=message):
        trained(checkpoint, tmp_path, **options)


def test_too_little_data_to_hold_some_out(checkpoint: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 8, 8), dtype=np.uint8), y=np.arange(3))
    with pytest.raises(DataError, match="too few to train on"):
        trained(checkpoint, tmp_path, data=f"npz:{tmp_path / 'd.npz'}")
