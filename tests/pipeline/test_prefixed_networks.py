"""A network whose names were wrapped is calibrated, trained, run, exported and compared as the plain one is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gbnn_compress
from gbnn_compress.errors import ArchitectureError, GbnnError
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.types import Artifact

pytestmark = pytest.mark.long


MODELS = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = net()

    def forward(self, x):
        return self.model(x)


def larger():
    return nn.Sequential(*net(), nn.Linear(10, 10))


def part():
    return nn.Sequential(*net()[:2])
"""

WRAPPED: dict[str, Callable[[str], str]] = {
    "module": lambda name: f"module.{name}",
    "lightning": lambda name: f"model._orig_mod.{name}",
    "part": lambda name: f"{name[0]}.module{name[1:]}",
    "net": lambda name: f"net.{name}",
}
EXTRA = {"criterion.weight": torch.rand(10), "val_acc.correct": torch.tensor(3)}


def network() -> nn.Module:
    space: dict = {}
    exec(MODELS, space)
    torch.manual_seed(0)
    return space["net"]()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network plain, and wrapped in each way with a loss and a counter beside it."""
    place = tmp_path_factory.mktemp("prefixed")
    (place / "models.py").write_text(MODELS)
    weights = network().state_dict()
    torch.save(weights, place / "plain.pth")
    torch.save(weights | EXTRA, place / "beside.pth")
    for name, spell in WRAPPED.items():
        torch.save({spell(key): tensor for key, tensor in weights.items()} | EXTRA, place / f"{name}.pth")
    rng = np.random.default_rng(0)
    np.savez(place / "data.npz", x=rng.integers(0, 255, (120, 8, 8), dtype=np.uint8), y=np.arange(120) % 10)
    return place


@pytest.fixture
def options(folder: Path) -> dict:
    return {"arch": f"{folder}/models.py:net", "data": f"npz:{folder}/data.npz"}


def compressed(folder: Path, name: str, **options: object) -> Path:
    output = folder / f"{name}-{len(options)}.gbnn.safetensors"
    if not output.exists():
        # Nothing that is chosen by bytes: longer names leave fewer of them for ids.
        given = {"target_ratio": 20, "ratio_of": "parameters", "settings": {"allocation": "norms"}, "output": output}
        given |= options
        gbnn_compress.compress(folder / f"{name}.pth", **given)
    return output


def same_ids(a: Artifact, b: Artifact) -> bool:
    maps = all(np.array_equal(mine.ids, other.ids) for mine, other in zip(a.maps, b.maps, strict=True))
    return maps and np.array_equal(a.bank.means, b.bank.means)


@pytest.mark.parametrize("name", WRAPPED)
def test_calibration_gives_the_same_ids_and_predictions(folder: Path, options: dict, name: str) -> None:
    first, second = (compressed(folder, each, **options) for each in ("beside", name))
    a, b = read_artifact(first), read_artifact(second)
    assert [WRAPPED[name](index_map.name) for index_map in a.maps] == [index_map.name for index_map in b.maps]
    assert a.facts["damage"]["logit_kl"] == b.facts["damage"]["logit_kl"] > 0
    assert same_ids(a, b)
    assert b.facts["damage"]["measured"] is True
    notes = " ".join(b.facts["checkpoint"]["notes"])
    assert "has no `criterion.weight`, `val_acc.correct`: kept in the file" in notes


def test_names_alone_change_no_id(folder: Path, options: dict) -> None:
    weights = network().state_dict()
    torch.save({f"module.model.{name}": tensor for name, tensor in weights.items()}, folder / "names.pth")
    a, b = (read_artifact(compressed(folder, each, **options)) for each in ("plain", "names"))
    assert same_ids(a, b)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    predictions = []
    for each in ("plain", "names"):
        loaded = gbnn_compress.load(compressed(folder, each, **options))
        loaded.to_module(network())
        predictions.append(loaded.predict(x, samples=4))
    assert torch.equal(*predictions)


@pytest.mark.parametrize("name", WRAPPED)
def test_the_module_holds_the_weights_and_the_notes_what_it_left_out(folder: Path, options: dict, name: str) -> None:
    loaded = gbnn_compress.load(compressed(folder, name, **options))
    module = loaded.to_module(network())
    found = loaded.state_dict()
    assert set(found) == {WRAPPED[name](key) for key in network().state_dict()} | set(EXTRA)
    assert all(torch.equal(tensor, found[WRAPPED[name](key)]) for key, tensor in module.state_dict().items())
    assert loaded.notes == (
        "`Sequential` has no `criterion.weight`, `val_acc.correct`: kept in the file, not used by the network.",
    )
    with pytest.raises(ArchitectureError, match=r"2 not in the architecture \(`criterion.weight`, `val_acc.correct`\)"):
        loaded.to_module(network(), strict=True)
    larger = nn.Sequential(*network(), nn.Linear(10, 10))
    with pytest.raises(ArchitectureError, match=r"2 missing from the checkpoint"):
        loaded.to_module(larger)
    own = larger[5].weight.clone()
    assert torch.equal(loaded.to_module(larger, strict=False)[5].weight, own)
    assert loaded.predict(torch.zeros(1, 1, 8, 8), samples=2).shape == (1, 10)


def test_draws_are_placed_in_memory_whatever_the_names_are(folder: Path, options: dict) -> None:
    loaded = gbnn_compress.load(compressed(folder, "lightning", **options))
    loaded.to_module(network())
    source = loaded._sampler(torch.device("cpu"))
    assert source.names == (("0.weight",), ("4.weight",))


@pytest.mark.usefixtures("training_is_kept")
@pytest.mark.parametrize("name", ["plain", "lightning"])
def test_training_trains_all_of_it(folder: Path, options: dict, name: str) -> None:
    before = torch.load(folder / f"{name}.pth")
    path = compressed(folder, name, epochs=1, settings={"finetune.learning_rate": "0.5"}, **options)
    report = gbnn_compress.load(path).report()
    assert not [line for line in report["warnings"] if "not trained" in line]
    after = gbnn_compress.load(path).state_dict()
    spell = WRAPPED.get(name, lambda key: key)
    for key in ("1.running_mean", "1.bias", "4.bias"):
        assert not torch.equal(after[spell(key)], before[spell(key)])
    assert name == "plain" or torch.equal(after["val_acc.correct"], EXTRA["val_acc.correct"])


def test_sigma_comes_from_the_same_gradients(folder: Path, options: dict) -> None:
    settings = {"posterior": "variational", "feedback": "false"}
    weights = network().state_dict()
    torch.save({f"module.{name}": tensor for name, tensor in weights.items()}, folder / "wrapped.pth")
    torch.save(weights, folder / "bare.pth")
    a, b = (compressed(folder, each, settings=settings, **options) for each in ("bare", "wrapped"))
    assert same_ids(read_artifact(a), read_artifact(b))


def test_evaluate_and_diff_see_through_names(folder: Path, options: dict) -> None:
    plain, wrapped = (gbnn_compress.evaluate(folder / f"{each}.pth", **options) for each in ("plain", "lightning"))
    assert "notes" not in plain
    assert "`criterion.weight`" in wrapped["notes"][0]
    assert plain["nll"] == wrapped["nll"]
    found = gbnn_compress.diff(folder / "plain.pth", folder / "lightning.pth", **options)
    assert found["agreement"] == 1
    assert found["only_in_first"] == []
    assert set(found["only_in_second"]) == set(EXTRA)
    assert all(each["max_error"] == 0 for each in found["tensors"])


def test_onnx_takes_wrapped_names(folder: Path, options: dict) -> None:
    path = compressed(folder, "lightning", **options)
    result = gbnn_compress.export_onnx(
        path, folder / "net.onnx", arch=options["arch"], input_shape=(1, 8, 8), weights="codebook"
    )
    assert result["check"]["largest_relative_difference"] < 1e-4
    assert "`criterion.weight`" in result["notes"][0]


def test_a_class_of_the_user_s_own_keeps_its_prefix(folder: Path) -> None:
    own = {f"model.{name}": tensor for name, tensor in network().state_dict().items()}
    torch.save(own, folder / "own.pth")
    path = compressed(folder, "own", arch=f"{folder}/models.py:Own")
    assert list(gbnn_compress.load(path).state_dict()) == list(own)


def test_the_wrong_network_is_refused_or_warned_of(folder: Path) -> None:
    with pytest.raises(ArchitectureError, match="2 missing from the checkpoint"):
        gbnn_compress.plan(folder / "module.pth", arch=f"{folder}/models.py:larger")
    with pytest.raises(GbnnError, match="missing from the checkpoint"):
        gbnn_compress.plan(folder / "module.pth", arch="torchvision/resnet18")
    (warning,) = gbnn_compress.plan(folder / "plain.pth", arch=f"{folder}/models.py:part")["warnings"]
    assert "part` has no tensor for 9" in warning
    assert "(`4.weight`, `4.bias`)" in warning
