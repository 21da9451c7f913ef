"""Training of networks of any kind, with and without targets: what it aims at, and which file is kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gbnn_compress
from gbnn_compress.errors import GbnnError
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.predict.running import class_rows
from gbnn_compress.training.goal import Goal, centred, output_variances
from gbnn_compress.training.state import state_path
from gbnn_compress.types import Artifact

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread", "fewer_stages")]

QUICK = {"n_components": 64, "em_iterations": 4, "finetune.precision": "float32"}
WRECKED = {**QUICK, "finetune.learning_rate": 1, "finetune.bank_learning_rate": 1, "finetune.plain_learning_rate": 1}
"""Rates at which training does nothing but harm."""


def seeded(make: Any, *, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def inputs(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def regression(width: int = 48) -> nn.Module:
    return seeded(
        lambda: nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3))
    )


def filled(network: nn.Module, artifact: Artifact, *, seed: int | None) -> nn.Module:
    """A copy with the posterior mean, or with a draw."""
    other = copy.deepcopy(network)
    other.load_state_dict(rebuild(artifact, seed=seed))
    return other


def error(network: nn.Module, report: dict[str, Any], x: torch.Tensor) -> float:
    """Relative error of the posterior mean."""
    with torch.no_grad():
        before = network(x)
        after = filled(network, gbnn_compress.load(report["artifact"]["path"]).artifact, seed=None)(x)
    return float(((after - before).square().sum() / (before - before.mean(dim=0)).square().sum()).sqrt())


def trained(network: Any, data: Any, folder: Path, name: str = "out", **options: Any) -> dict[str, Any]:
    given = {"target_ratio": 8, "epochs": 2, "settings": QUICK} | options
    return gbnn_compress.compress(network, data=data, output=folder / f"{name}.gbnn.safetensors", **given)


def test_a_regression_network_without_targets_comes_nearer_to_the_checkpoint_than_by_calibration(
    tmp_path: Path,
) -> None:
    network, x = regression(), inputs(1024, 8)
    before = copy.deepcopy(network.state_dict())
    report = trained(network, list(x.split(32)), tmp_path, epochs=4)
    calibrated = trained(network, list(x.split(32)), tmp_path, "calibrated", epochs=0)
    said = report["training"]
    assert (said["kept"], said["measure"]) == ("trained", "relative_error")
    assert said["trained"] < 0.8 * said["calibrated"]
    assert report["target_met"]
    others = inputs(500, 8, seed=1)
    assert error(network, report, others) < 0.8 * error(network, calibrated, others)
    assert set(said["last_epoch"]) == {"distillation", "divergence", "bits_per_weight"}
    assert report["damage"]["measured"]
    assert report["damage"]["drop"] is None
    assert any("no `--val-data`" in warning for warning in report["warnings"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_draws_of_a_file_without_targets_hardly_differ(tmp_path: Path) -> None:
    network, x = regression(), inputs(512, 8)
    report = trained(network, list(x.split(32)), tmp_path)
    artifact = gbnn_compress.load(report["artifact"]["path"]).artifact
    with torch.no_grad():
        before, mean, drawn = network(x), *(filled(network, artifact, seed=seed)(x) for seed in (None, 1))
    assert float((drawn - mean).norm()) <= 1.2 * float((mean - before).norm())


def test_worse_than_calibration_is_not_kept(tmp_path: Path) -> None:
    network, (*x, validation) = regression(128), inputs(256, 8).split(32)
    fine = WRECKED | {"n_components": 1024}
    report = trained(network, x, tmp_path, settings=fine, epochs=1, val_data=[validation])
    said = report["training"]
    assert said["kept"] == "calibrated"
    assert said["calibrated"] < said["trained"]
    assert any("the calibrated file was written" in warning for warning in report["warnings"])
    assert report["target_met"]
    written = gbnn_compress.load(report["artifact"]["path"]).artifact
    assert "training" not in written.facts
    alone = trained(network, x, tmp_path, "alone", settings=fine, epochs=0)
    maps = gbnn_compress.load(alone["artifact"]["path"]).artifact.maps
    assert [each.trellis for each in written.maps] == [each.trellis for each in maps]
    assert all((each.ids == other.ids).all() for each, other in zip(written.maps, maps, strict=True))
    assert any(each.trellis for each in maps), "training itself writes no trellis"


def test_several_members_that_fell_back_to_calibration_are_told(tmp_path: Path) -> None:
    network, (*x, validation) = regression(128), inputs(256, 8).split(32)
    report = trained(network, x, tmp_path, settings=WRECKED, epochs=1, val_data=[validation], members=2)
    assert [member["training"]["kept"] for member in report["members"]] == ["calibrated", "calibrated"]
    assert any(
        warning.startswith("for 2 of 2 members the calibrated file was better") for warning in report["warnings"]
    )


class Parts(nn.Module):
    """Takes keyword arguments, changes one of them, and returns a nesting."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 16)
        self.layer = nn.GRU(16, 24, batch_first=True)
        self.norm = nn.Dropout(0.5)
        self.value, self.vector = nn.Linear(24, 2), nn.Linear(24, 7)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mask.mul_(0.5)
        x = self.layer(self.words(ids))[0] * mask[..., None]
        x = self.norm(x.mean(dim=1))
        return self.value(x), {"vector": self.vector(x), "lengths": ids.sum(dim=1)}


def sentences(count: int, *, length: int = 9) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 60, (count, length), generator=torch.Generator().manual_seed(length))
    return {"ids": ids, "mask": torch.ones(count, length)}


def test_mappings_in_and_nestings_out(tmp_path: Path) -> None:
    batches = [sentences(16, length=length) for length in (5, 6, 7, 8) for _ in range(3)]
    report = trained(seeded(Parts), batches, tmp_path, target_ratio=4, epochs=3)
    assert report["training"]["kept"] == "trained"
    assert report["training"]["measure"] == "relative_error"
    assert all(bool(batch["mask"].all()) for batch in batches), "batches are copied"


def squared(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
    return (outputs - batch[1]).square().mean()


def test_a_loss_with_targets(tmp_path: Path) -> None:
    network, x = regression(), inputs(768, 8)
    with torch.no_grad():
        y = network(x) + 0.5
    batches = list(zip(x.split(32), y.split(32), strict=True))
    report = trained(network, batches, tmp_path, loss=squared, epochs=3, settings={**QUICK, "finetune.distillation": 0})
    said = report["training"]
    assert (said["kept"], said["measure"]) == ("trained", "loss")
    assert said["trained"] < said["calibrated"]
    assert "loss" in said["last_epoch"]


def tiny() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10))
    )


def test_an_image_classifier_without_labels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (200, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=x)
    lines: list[str] = []
    report = trained(tiny().eval(), f"npz:{tmp_path / 'x.npz'}", tmp_path, epochs=2, progress=lines.append)
    assert report["training"]["measure"] == "logit_kl"
    assert report["task"] == "classifier"
    assert 0 < report["damage"]["agreement"] <= 1
    assert sum("validation KL" in line for line in lines) == 2


def test_labels_of_batches_of_any_kind(tmp_path: Path) -> None:
    network, x = (
        seeded(lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))),
        inputs(640, 8),
    )
    with torch.no_grad():
        y = network(x).argmax(dim=1)
    report = trained(network, list(zip(x.split(32), y.split(32), strict=True)), tmp_path, target_ratio=4)
    assert report["training"]["measure"] == "nll"
    assert "cross_entropy" in report["training"]["last_epoch"]


class Stop(BaseException):
    """Ends a run as a kill would: nothing catches it."""


def stop_after_the_first(line: str) -> None:
    if line.startswith("epoch 1/"):
        raise Stop


def test_a_stopped_training_continues_to_the_same_bytes(tmp_path: Path) -> None:
    x = list(inputs(320, 8).split(20))
    options: dict[str, Any] = {"epochs": 2, "val_data": [inputs(40, 8, seed=5)]}
    whole = Path(trained(regression(), x, tmp_path, "whole", **options)["artifact"]["path"]).read_bytes()
    with pytest.raises(Stop):
        trained(regression(), x, tmp_path, "stopped", progress=stop_after_the_first, **options)
    assert state_path(tmp_path / "stopped.gbnn.safetensors").exists()
    lines: list[str] = []
    report = trained(regression(), x, tmp_path, "stopped", progress=lines.append, **options)
    assert Path(report["artifact"]["path"]).read_bytes() == whole
    assert any(line.startswith("continuing after epoch 1") for line in lines)


def test_other_data_start_over(tmp_path: Path) -> None:
    x, lines = list(inputs(160, 8).split(20)), list[str]()
    with pytest.raises(Stop):
        trained(regression(), x, tmp_path, progress=stop_after_the_first)
    trained(regression(), [x[1], *x[1:]], tmp_path, progress=lines.append)
    assert any(line.startswith("starting over") and "other data" in line for line in lines)


class Named:
    """An input that holds no tensor where anybody would look."""

    def __init__(self, seed: int) -> None:
        self.seed = seed


def made_of(network: nn.Module, batch: Named) -> torch.Tensor:
    return network(inputs(16, 8, seed=batch.seed))


def test_data_without_tensors_cannot_be_compared(tmp_path: Path) -> None:
    options: dict[str, Any] = {"forward": made_of, "val_data": [Named(90), Named(91)]}
    with pytest.raises(Stop):
        trained(regression(), [Named(1), Named(2)], tmp_path, progress=stop_after_the_first, **options)
    report = trained(regression(), [Named(3), Named(4)], tmp_path, **options)
    assert any("hold no tensors by which they could be compared" in warning for warning in report["warnings"])


def raises(outputs: Any, batch: Any) -> torch.Tensor:
    raise ValueError("no such\ntarget")


def in_place(network: nn.Sequential, batch: torch.Tensor) -> torch.Tensor:
    middle = network[:2](batch)
    outputs = network[2:](middle)
    middle.zero_()
    return outputs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": raises}, r"`loss` fails on a batch of `--data` \(ValueError: no such target\)"),
        ({"loss": lambda outputs, batch: outputs}, r"`loss`: expected a floating tensor with one number, got shape"),
        ({"loss": lambda outputs, batch: 1.0}, r"`loss`: expected .*, got `float`"),
        ({"forward": lambda network, batch: network(batch).detach()}, "the network gives no gradients"),
        ({"forward": in_place}, r"the network gives no gradients \(RuntimeError: "),
        ({"data": None}, "training needs data; give `--data`"),
    ],
)
def test_refusals(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    given = {"data": list(inputs(128, 8).split(32)), **options}
    with pytest.raises(GbnnError, match=message) as caught:
        trained(regression(), given.pop("data"), tmp_path, epochs=1, **given)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.gbnn.safetensors"))


def test_variances_are_over_the_inputs() -> None:
    first, second = torch.tensor([[0.0, 10.0], [2.0, 10.0]]), torch.tensor([[4.0, 10.0]])
    assert output_variances([{"a": first}, {"a": second}])["a"] == pytest.approx(8 / 6)
    assert output_variances([{"a": torch.full((3, 2), 2.0)}])["a"] == pytest.approx(4.0)
    assert [part.tolist() for part in centred([torch.tensor([1.0, 3.0]), torch.tensor(5.0)])] == [[-2.0, 0.0], [2.0]]


def test_the_error_is_relative_to_the_variance_of_each_output() -> None:
    goal = Goal(classifier=False, labelled=False, variances={"0": 4.0, "1": 1.0})
    wanted = {"0": torch.zeros(3), "1": torch.zeros(3, 2)}
    assert float(goal.error((torch.full((3,), 2.0), torch.full((3, 2), 2.0)), wanted)) == pytest.approx(2.5)
    assert float(goal.error((torch.full((3,), 2.0), torch.zeros(4, 2)), wanted)) == pytest.approx(1.0)
    with pytest.raises(GbnnError, match="depend on the weights"):
        goal.error((torch.zeros(2), torch.zeros(4, 2)), wanted)


def test_positions_count_as_inputs() -> None:
    logits = inputs(2, 3, 4, 5)
    assert torch.equal(class_rows(logits)[7], logits[0, :, 1, 2])
