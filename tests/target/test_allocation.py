"""How layers share the bits where there are inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gbnn_compress import compress, load
from gbnn_compress.calibration.on_data import calibration_on
from gbnn_compress.checkpoint.read import read_checkpoint
from gbnn_compress.checkpoint.select import select
from gbnn_compress.data.architectures import build_network
from gbnn_compress.data.kind import CLASSIFIER, Kind
from gbnn_compress.predict.bench import Evaluation, open_bench
from gbnn_compress.rate.posterior import data_free_posterior
from gbnn_compress.recipe import resolve
from gbnn_compress.target.allocation import HALF_TRUSTED, POWER, measured_costs
from gbnn_compress.target.prepared import prepare

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"n_components": 64, "em_iterations": 10}
N_INPUTS = 48

MODELS = """
import torch
from torch import nn

class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.loud, self.quiet, self.idle = (nn.Linear(192, 40, bias=False) for _ in range(3))
        self.head = nn.Linear(40, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(torch.tanh(self.loud(x)) + 0.05 * torch.tanh(self.quiet(x)))

class Opaque(Branches):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("branches")
    (folder / "models.py").write_text(MODELS)
    random = np.random.RandomState(0)
    np.savez(folder / "inputs.npz", x=random.randint(0, 256, (N_INPUTS, 8, 8, 3)).astype(np.uint8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(f"{folder / 'models.py'}:Branches")
    network.head.weight.data *= 10
    save_file(network.state_dict(), folder / "net.safetensors")
    return folder


def found(folder: Path, *, name: str = "Branches", ratio: float = 10) -> Mapping[str, float]:
    read = read_checkpoint(folder / "net.safetensors")
    selection, evaluation = select(read), Evaluation(f"npz:{folder / 'inputs.npz'}")
    bench = open_bench(read, evaluation, f"{folder / 'models.py'}:{name}", labels=False)
    calibration = calibration_on(bench, read, selection)
    prepared = prepare(
        read,
        selection,
        recipe=resolve(settings=QUICK),
        finest_ratio=ratio,
        facts={"checkpoint": {"sha256": read.sha256}, "recipe": {}},
        kind=Kind(CLASSIFIER),
        calibration=calibration,
    )
    costs = measured_costs(prepared, ratio=ratio)
    assert costs is None or not costs.rows  # filters of classifiers are weighed by their batch norms
    return {} if costs is None else costs.factors


def test_what_is_hardly_heard_counts_less(folder: Path) -> None:
    factors = found(folder)
    assert factors["quiet.weight"] < 0.5 * factors["loud.weight"]
    assert "idle.weight" not in factors


def test_factors_have_the_mean_one_over_the_weights(folder: Path) -> None:
    factors = found(folder)
    sizes = {"loud.weight": 192 * 40, "quiet.weight": 192 * 40, "head.weight": 400}
    assert sum(sizes[name] * np.log(factor) for name, factor in factors.items()) == pytest.approx(0, abs=1e-6)


def test_few_inputs_are_believed_less(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many, quarter_of_the_power = found(folder), 3 * N_INPUTS + 4 * HALF_TRUSTED
    monkeypatch.setattr("gbnn_compress.target.allocation.HALF_TRUSTED", quarter_of_the_power)
    for name, factor in found(folder).items():
        assert np.log(factor) == pytest.approx(np.log(many[name]) / 4)
    assert POWER == 0.5


def test_scales_take_them_up(folder: Path) -> None:
    tensors = read_checkpoint(folder / "net.safetensors").tensors
    names = ["loud.weight", "quiet.weight"]
    plain = data_free_posterior(tensors, names)
    weighed = data_free_posterior(tensors, names, importances={"quiet.weight": 1 / 16})
    assert weighed[0].scale == plain[0].scale
    assert weighed[1].scale == pytest.approx(4 * plain[1].scale, rel=0.01)


def compressed(folder: Path, output: Path, **options: Any) -> dict[str, float]:
    """Layer -> relative error of its weights in a file with inputs."""
    report = compress(
        folder / "net.safetensors",
        target_ratio=8,
        output=output,
        **{"arch": f"{folder / 'models.py'}:Branches", "data": f"npz:{folder / 'inputs.npz'}", **options},
    )
    return {layer["name"]: layer["relative_rmse"] for layer in report["layers"]}


@pytest.mark.long
def test_the_file_spends_its_bits_where_they_are_felt(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.gbnn.safetensors"
    by_norms = compressed(folder, output, settings={**QUICK, "allocation": "norms"})
    by_costs = compressed(folder, output, settings=QUICK)
    assert by_costs["quiet.weight"] > 1.2 * by_norms["quiet.weight"]
    assert by_costs["loud.weight"] < by_norms["loud.weight"]


@pytest.mark.long
def test_a_network_without_gradients_is_calibrated_all_the_same(folder: Path, tmp_path: Path) -> None:
    assert found(folder, name="Opaque") == {}
    opaque = compressed(
        folder, tmp_path / "out.gbnn.safetensors", arch=f"{folder / 'models.py'}:Opaque", settings=QUICK
    )
    by_norms = compressed(folder, tmp_path / "out.gbnn.safetensors", settings={**QUICK, "allocation": "norms"})
    assert opaque == pytest.approx(by_norms, rel=0.06)  # the manifests differ, and so does the room for ids


def vanished(folder: Path, tensors: dict[str, torch.Tensor], *, ratio: float) -> dict[str, float]:
    """Deviation after compression over deviation before, of each tensor."""
    save_file(tensors, folder / "net.safetensors")
    path = folder / "net.gbnn.safetensors"
    report = compress(folder / "net.safetensors", target_ratio=ratio, output=path, settings=QUICK)
    assert report["target_met"]
    return {name: float(dense.std() / tensors[name].std()) for name, dense in load(path).state_dict().items()}


@pytest.mark.long
def test_large_layers_do_not_vanish_for_the_sum_of_all_errors(tmp_path: Path) -> None:
    """Each of the small layers costs as much as the large one that has most of the weights."""
    random = torch.Generator().manual_seed(0)
    small = {f"{i}.weight": torch.randn(64, 64, generator=random) for i in range(12)}
    large = {f"large.{i}.weight": torch.randn(512, 256, generator=random) for i in range(2)}
    left = vanished(tmp_path, small | large, ratio=45)
    assert min(left.values()) > 0.1


def test_layers_are_left_alone_where_none_would_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    tensors = {f"{i}.weight": torch.randn(64, 64, generator=random) for i in range(4)}
    save_file(tensors, tmp_path / "net.safetensors")
    told: list[str] = []
    options = {"output": tmp_path / "net.gbnn.safetensors", "settings": QUICK, "progress": told.append}
    compress(tmp_path / "net.safetensors", target_ratio=8, **options)
    assert not any("vanish" in line for line in told)
