"""Calibration from the checkpoint to the file: real inputs, noise, and networks of many kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gbnn_compress_cli import digits_network
from safetensors.torch import load_file, save_file

from gbnn_compress import compress, decompress, diff, plan
from gbnn_compress.calibration.on_data import calibration_device, calibration_on, synthetic_calibration
from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.checkpoint.select import select
from gbnn_compress.data.architectures import build_network
from gbnn_compress.data.datasets import load_data
from gbnn_compress.errors import ArchitectureError, DataError, GbnnError
from gbnn_compress.predict.bench import Evaluation, open_bench

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]

DIGITS = "gbnn_compress_cli.digits_network:digits_cnn"
QUICK = {"n_components": 64, "em_iterations": 10}

MODELS = '''
import torch
from torch import nn

class Block(nn.Module):
    """A transformer's block on 4 x 4 patches."""

    def __init__(self, attention):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        self.before, self.after = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True) if attention else nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.before(x)
        x = x + (self.attention(y, y, y)[0] if hasattr(self.attention, "num_heads") else y)
        return self.head((x + self.mlp(self.after(x))).mean(1))

class Tied(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 32, 4, stride=4), nn.Linear(32, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 10)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x):
        x = self.stem(x).mean((2, 3))
        return self.head(self.second(self.first(x).relu()).relu())

def vit():
    return Block(True)

def mixer():
    return Block(False)

def tied():
    return Tied(True)

def untied():
    return Tied(False)

def sequence(*layers):
    return nn.Sequential(*layers)

def grey():
    return sequence(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, bias=False),
        nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

def depthwise():
    return sequence(nn.Conv2d(3, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU6(inplace=True),
        nn.Conv2d(32, 32, 3, groups=32, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU6(inplace=True),
        nn.Conv2d(32, 64, 1, groups=2, bias=False), nn.BatchNorm2d(64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

def same():
    return sequence(nn.Conv2d(3, 32, 3, padding="same"), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(128, 10))

def plain():
    return sequence(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))

def one_dimensional():
    return sequence(nn.Flatten(2), nn.Conv1d(3, 32, 9, stride=4), nn.BatchNorm1d(32), nn.ReLU(),
        nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(64, 10))

def three_dimensional():
    return sequence(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 32, 3), nn.BatchNorm3d(32), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 10))

def transposed():
    return sequence(nn.ConvTranspose2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))

class Fails(nn.Sequential):
    def forward(self, x):
        if x.std() < 5:
            raise RuntimeError("these are no photographs")
        return super().forward(x)

def fails():
    return Fails(*grey())

class Scores(nn.Sequential):
    def forward(self, x):
        return super().forward(x)[..., None]

def scores():
    return Scores(*plain())
'''


class Digits(NamedTuple):
    """The trained network, and its artifact at 12x with `digits:train`."""

    checkpoint: Path
    calibrated: Path
    report: dict[str, Any]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Digits:
    folder = tmp_path_factory.mktemp("digits")
    checkpoint, calibrated = folder / "digits.safetensors", folder / "calibrated.gbnn.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits_network, "EPOCHS", 2)
        save_file(digits_network.train(), checkpoint)
    report = compress(checkpoint, target_ratio=12, output=calibrated, arch=DIGITS, data="digits:train", settings=QUICK)
    return Digits(checkpoint, calibrated, report)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of architectures; beside it `grey.npz` and `colour.npz`, 200 images without labels each."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "models.py").write_text(MODELS)
    for name, shape in (("grey", (200, 12, 12)), ("colour", (200, 12, 12, 3))):
        np.savez(folder / f"{name}.npz", x=np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8))
    return folder / "models.py"


def spec_of(models: Path, *, grey: bool = False) -> str:
    return f"npz:{models.parent / ('grey.npz' if grey else 'colour.npz')}"


def saved(models: Path, name: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> tuple[Path, str]:
    """A checkpoint of fresh weights, whose batch norms have seen the data, and its architecture."""
    arch = f"{models}:{name}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(arch).train()
        size = 1 if name in ("grey", "fails") else 3
        with torch.no_grad():
            for _ in range(20):
                network(6 * torch.randn(64, size, 12, 12))
    path = folder / f"{name}.pth"
    state = {key: t.to(dtype) if t.is_floating_point() else t for key, t in network.state_dict().items()}
    torch.save(state, path)
    return path, arch


def compressed(path: Path, output: Path, **options: Any) -> bytes:
    compress(path, **{"target_ratio": 3, "output": output, "settings": QUICK, **options})
    return output.read_bytes()


def test_data_lower_the_damage_at_the_same_size(digits: Digits, tmp_path: Path) -> None:
    plain = tmp_path / "plain.gbnn.safetensors"
    compress(digits.checkpoint, target_ratio=12, output=plain, settings=QUICK)
    assert abs(plain.stat().st_size / digits.calibrated.stat().st_size - 1) < 0.04
    before, after = (
        diff(digits.checkpoint, each, data="digits:test", arch=DIGITS) for each in (plain, digits.calibrated)
    )
    assert after["logit_kl"] < 0.5 * before["logit_kl"]
    assert after["agreement"] >= before["agreement"] - 0.01


def test_damage_is_measured_on_the_inputs(digits: Digits) -> None:
    assert digits.report["target_met"]
    damage = digits.report["damage"]
    assert damage["measured"] is True
    on_inputs = diff(digits.checkpoint, digits.calibrated, data="digits:train", arch=DIGITS)
    assert damage["agreement"] == pytest.approx(on_inputs["agreement"], abs=0.01)
    # Norms and biases are not yet in as few bits in the measurement as they are in the file.
    assert damage["logit_kl"] == pytest.approx(on_inputs["logit_kl"], rel=0.5)


@pytest.mark.long
def test_same_bytes_again_without_labels_and_at_two_threads(digits: Digits, tmp_path: Path) -> None:
    images = load_data("digits:train").images
    np.savez(tmp_path / "images.npz", x=np.stack([images[i] for i in range(len(images))]))
    output = tmp_path / "again.gbnn.safetensors"
    torch.set_num_threads(2)
    try:
        compress(
            digits.checkpoint,
            target_ratio=12,
            output=output,
            arch=DIGITS,
            data=f"npz:{tmp_path / 'images.npz'}",
            settings=QUICK,
        )
    finally:
        torch.set_num_threads(1)
    assert output.read_bytes() == digits.calibrated.read_bytes()


def test_within_a_drop(digits: Digits, tmp_path: Path) -> None:
    report = compress(
        digits.checkpoint,
        max_drop=1,
        output=tmp_path / "out.gbnn.safetensors",
        arch=DIGITS,
        data="digits:test",
        settings=QUICK,
    )
    assert report["target_met"]
    assert report["damage"]["drop"] <= 1


def test_planning_with_data_thinks_larger_ratios_safe(digits: Digits) -> None:
    with_data = plan(digits.checkpoint, ratios=[8.0], arch=DIGITS, data="digits:test", settings=QUICK)
    without = plan(digits.checkpoint, ratios=[8.0], settings=QUICK)
    assert with_data["safe_ratio"] > without["safe_ratio"]


def test_heavy_damage_is_said_to_be_measured(models: Path, tmp_path: Path) -> None:
    path, arch = saved(models, "mixer", tmp_path)
    output = tmp_path / "out.gbnn.safetensors"
    report = compress(path, target_ratio=30, output=output, arch=arch, data=spec_of(models), settings=QUICK)
    assert report["damage"]["measured"]
    assert report["damage"]["drop"] > 2
    assert "measured" in report["warnings"][-1]
    assert not any("without data" in warning for warning in report["warnings"])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("grey", torch.float32),
        ("grey", torch.float16),
        ("depthwise", torch.float32),
        ("depthwise", torch.bfloat16),
        ("mixer", torch.float32),
        ("vit", torch.float32),
        ("tied", torch.float32),
        ("untied", torch.float32),
        ("plain", torch.float64),
        ("same", torch.float32),
        ("one_dimensional", torch.float32),
        ("three_dimensional", torch.float32),
        ("transposed", torch.float32),
    ],
)
def test_networks_of_many_kinds(models: Path, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    path, arch = saved(models, name, tmp_path, dtype=dtype)
    spec, output = spec_of(models, grey=name == "grey"), tmp_path / "out.gbnn.safetensors"
    report = compress(path, target_ratio=3, output=output, arch=arch, data=spec, settings=QUICK)
    assert report["damage"]["measured"]
    decompress(output, tmp_path / "dense.safetensors")
    dense, original = load_file(tmp_path / "dense.safetensors"), torch.load(path)
    assert {key: (t.dtype, t.shape) for key, t in dense.items()} == {
        key: (t.dtype, t.shape) for key, t in original.items()
    }
    assert diff(path, output, data=spec, arch=arch)["logit_kl"] < 0.01


def test_what_only_the_file_ties_is_left_plain(models: Path, tmp_path: Path) -> None:
    path, arch = saved(models, "untied", tmp_path)
    state = torch.load(path)
    torch.save(state | {"second.weight": state["first.weight"]}, path)
    checkpoint = read_checkpoint(path)
    bench = open_bench(checkpoint, Evaluation(spec_of(models)), arch, labels=False)
    calibration = calibration_on(bench, checkpoint, select(checkpoint))
    assert calibration.layers.keys() == {"stem.weight", "head.weight"}


def test_outputs_of_more_axes_are_measured_by_their_error(models: Path, tmp_path: Path) -> None:
    path, arch = saved(models, "scores", tmp_path)
    output = tmp_path / "out.gbnn.safetensors"
    report = compress(path, target_ratio=3, output=output, arch=arch, data=spec_of(models), settings=QUICK)
    assert report["task"] == "other"
    assert report["damage"]["measured"]
    assert report["damage"]["drop"] is None
    assert 0 < report["damage"]["relative_error"] < 0.1


@pytest.mark.parametrize("name", ["plain", "fails", "one_dimensional"])
def test_without_noise_the_architecture_changes_nothing(models: Path, tmp_path: Path, name: str) -> None:
    """No batch norm, no run on noise, no 2-D convolution."""
    path, arch = saved(models, name, tmp_path)
    plain, known = (tmp_path / f"{each}.gbnn.safetensors" for each in ("plain", "known"))
    told: list[str] = []
    assert compressed(path, plain) == compressed(path, known, arch=arch, progress=told.append)
    assert any(line.startswith("no calibration: ") for line in told)


def test_noise_lowers_the_error_where_there_are_batch_norms(models: Path, tmp_path: Path) -> None:
    path, arch = saved(models, "depthwise", tmp_path)
    plain, noise = (tmp_path / f"{each}.gbnn.safetensors" for each in ("plain", "noise"))
    compressed(path, plain, target_ratio=6)
    compressed(path, noise, target_ratio=6, arch=arch)
    before, after = (diff(path, each, data=spec_of(models), arch=arch)["logit_kl"] for each in (plain, noise))
    assert after < before


def test_the_stem_is_found_in_a_file_of_any_order(models: Path, tmp_path: Path) -> None:
    path, arch = saved(models, "depthwise", tmp_path)
    torch.save(dict(reversed(torch.load(path).items())), path)
    checkpoint = read_checkpoint(path)
    calibration = synthetic_calibration(checkpoint, select(checkpoint), arch)
    assert calibration is not None
    assert calibration.synthetic
    assert calibration.batches[0].inputs.shape[1] == 3


def test_an_architecture_that_cannot_be_built_gives_no_noise(models: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(saved(models, "grey", tmp_path)[0])
    assert synthetic_calibration(checkpoint, select(checkpoint), f"{models}:depthwise") is None


@pytest.mark.parametrize(
    ("name", "data", "options", "error", "words"),
    [
        ("grey", "colour", {}, DataError, "3 channel(s), the network expects 1"),
        ("grey", "missing", {}, DataError, "no file"),
        ("grey", "grey", {"arch": None}, ArchitectureError, "name it with `--arch`"),
        ("fails", "grey", {}, ArchitectureError, "these are no photographs"),
    ],
)
def test_refusals(
    models: Path, tmp_path: Path, name: str, data: str, options: dict[str, Any], error: type[GbnnError], words: str
) -> None:
    path, arch = saved(models, name, tmp_path)
    chosen = {"arch": arch, "data": f"npz:{models.parent / data}.npz", **options}
    for action in (
        lambda: compress(path, target_ratio=3, output=tmp_path / "out.gbnn.safetensors", **chosen),
        lambda: plan(path, **chosen),
    ):
        with pytest.raises(error) as caught:
            action()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_inputs_are_chosen_from_all_of_the_data(digits: Digits, tmp_path: Path) -> None:
    """As from an image folder: sorted by class, here by brightness."""
    x = np.repeat(np.arange(200, dtype=np.uint8), 64).reshape(200, 8, 8)
    np.savez(tmp_path / "x.npz", x=x)
    bench = open_bench(
        read_checkpoint(digits.checkpoint), Evaluation(f"npz:{tmp_path / 'x.npz'}"), DIGITS, labels=False
    )
    some = (bench.inputs(at_most=50)[:, 0, 0, 0] * 255).round().int().tolist()
    assert len(set(some)) == 50
    assert some == sorted(some)
    assert some[0] < 30
    assert some[-1] > 170
    assert some == (bench.inputs(at_most=50)[:, 0, 0, 0] * 255).round().int().tolist()
    assert len(bench.inputs(at_most=500)) == 200


def test_auto_calibrates_on_the_cpu_and_a_named_device_on_itself() -> None:
    assert calibration_device("auto") == torch.device("cpu")
    assert calibration_device("meta") == torch.device("meta")
    with pytest.raises(GbnnError, match="--device"):
        calibration_device("no-such-device")
