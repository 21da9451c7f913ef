"""Inputs that once went wrong in silence: what was finite comes out finite, and the network puts out what it did."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import gbnn_compress
from gbnn_compress.checkpoint.exact_tables import is_faithful, is_table

QUICK = {"n_components": 128, "em_iterations": 4}


def there_and_back(
    state: dict[str, torch.Tensor], folder: Path, *, ratio: float
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The dense weights of a file of this ratio, and its report."""
    torch.save(state, folder / "net.pth")
    file = folder / "net.gbnn.safetensors"
    report = gbnn_compress.compress(folder / "net.pth", target_ratio=ratio, output=file, settings=QUICK)
    return gbnn_compress.load(file).state_dict(), report


def relative(after: torch.Tensor, before: torch.Tensor) -> float:
    return float((after - before).norm() / before.norm())


def normalised(size: int = 24) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, size, 3, bias=False), nn.BatchNorm2d(size), nn.ReLU(), nn.Conv2d(size, size, 3, bias=False))
    return nn.Sequential(*layers, nn.BatchNorm2d(size)).eval()


@pytest.mark.long
@pytest.mark.parametrize("ratio", [4, 8, 16])
def test_a_norm_of_zero_weights_puts_out_its_biases(tmp_path: Path, ratio: float) -> None:
    network = normalised()
    state = network.state_dict()
    state["1.weight"].zero_()
    state["1.bias"].copy_(torch.linspace(-0.76, 0.4, 24))
    dense, _ = there_and_back(state, tmp_path, ratio=ratio)
    assert float((dense["1.bias"] - state["1.bias"]).abs().max()) < 0.02
    assert not dense["1.weight"].any()


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_a_first_norm_on_raw_columns(tmp_path: Path, eps: float) -> None:
    """Age, income, unix time, interest rate, ratio, children."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm1d(6, eps=eps), nn.Linear(6, 200), nn.ReLU(), nn.Linear(200, 100)).eval()
    norm = network[0]
    norm.running_mean.copy_(torch.tensor([41.0, 5.2e4, 1.6e9, 0.031, 0.4, 1.3]))
    norm.running_var.copy_(torch.tensor([13.0, 2.9e4, 1.9e7, 0.02, 0.29, 1.1]) ** 2)
    dense, _ = there_and_back(network.state_dict(), tmp_path, ratio=8)
    x = norm.running_mean.double() + norm.running_var.double().sqrt() * torch.randn(500, 6).double()
    before = norm.double()(x)
    norm.load_state_dict({key: dense[f"0.{key}"] for key in norm.state_dict()})
    assert float((norm.double()(x) - before).detach().abs().max()) < 0.05


@pytest.mark.long
@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_half_precision_near_its_largest_number(tmp_path: Path, ratio: float) -> None:
    torch.manual_seed(0)
    state = {
        "w.weight": (torch.randn(64, 64) * 8000).clamp(-65504, 65504).half(),
        "bn.weight": torch.ones(32).half(),
        "bn.bias": torch.zeros(32).half(),
        "bn.running_mean": torch.zeros(32).half(),
        "bn.running_var": torch.linspace(3e4, 6.5e4, 32).half(),
        "mask": torch.full((50, 50), -65504.0).triu(1).half(),
    }
    dense, _ = there_and_back(state, tmp_path, ratio=ratio)
    assert all(bool(tensor.isfinite().all()) for tensor in dense.values())
    draws = gbnn_compress.load(tmp_path / "net.gbnn.safetensors").state_dict(seed=3)
    assert all(bool(tensor.isfinite().all()) for tensor in draws.values())
    gbnn_compress.decompress(tmp_path / "net.gbnn.safetensors", tmp_path / "dense.safetensors")
    again = gbnn_compress.compress(
        tmp_path / "dense.safetensors", target_ratio=2, output=tmp_path / "again.safetensors"
    )
    assert again["target_met"]


@pytest.mark.long
@pytest.mark.parametrize("ratio", [7, 8, 10, 24])
@pytest.mark.parametrize("form", ["parametrization", "hooks"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_rows_that_weight_norm_divides_by(tmp_path: Path, ratio: float, form: str) -> None:
    norm = nn.utils.parametrizations.weight_norm if form == "parametrization" else nn.utils.weight_norm
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    for layer in (network[0], network[2]):
        layer.weight.data *= torch.exp(torch.randn(64, 1))
        norm(layer)
    network.eval()
    state, x = network.state_dict(), torch.randn(50, 64)
    before = network(x)
    dense, _ = there_and_back(state, tmp_path, ratio=ratio)
    assert {name: tensor.shape for name, tensor in dense.items()} == {n: t.shape for n, t in state.items()}
    network.load_state_dict(dense)
    assert bool(network(x).isfinite().all())
    assert relative(network(x), before) < (0.25 if ratio <= 10 else 2)


@pytest.mark.parametrize("ratio", [4, 8])
def test_tables_are_exact(tmp_path: Path, ratio: float) -> None:
    torch.manual_seed(0)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    tables = {
        "rotary_emb.inv_freq": 1e4 ** -(torch.arange(0, 64, 2) / 64),
        "alphas_cumprod": torch.cumprod(1 - betas, 0).float(),
        "bins": torch.logspace(-6, 6, 50),
        "energies.weight": -9 * torch.rand(1, 94),
    }
    weights = {f"layers.{i}.w.weight": torch.randn(256, 256) / 16 for i in range(4)}
    dense, report = there_and_back(weights | tables, tmp_path, ratio=ratio)
    assert report["target_met"]
    for name, table in tables.items():
        assert torch.equal(dense[name], table), name


def test_one_huge_filter_whose_norm_divides_it_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 64, 3, bias=False), nn.BatchNorm2d(64), nn.Conv2d(64, 32, 3)).eval()
    network[0].weight.data[5] *= 1e4
    network[1].running_var[5] *= 1e8
    x = torch.randn(8, 3, 9, 9)
    before = network[:2](x)
    dense, _ = there_and_back(network.state_dict(), tmp_path, ratio=6)
    network.load_state_dict(dense)
    after = network[:2](x)
    others = [channel for channel in range(64) if channel != 5]
    assert relative(after[:, others], before[:, others]) < 0.2
    assert relative(after[:, 5], before[:, 5]) < 0.2


magnitudes = st.one_of(st.floats(0.01, 30), st.floats(-30, 12).map(lambda exponent: 10**exponent), st.just(0.0))
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])


@pytest.mark.long
@given(st.data(), dtypes, st.floats(1.5, 40))
@settings(max_examples=10, deadline=None)
def test_any_network_there_and_back(data: st.DataObject, dtype: torch.dtype, ratio: float) -> None:
    """Norms, range, divided rows and tables, at random ratios and dtypes; and the result is a checkpoint again."""
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))

    def drawn(size: int) -> torch.Tensor:
        return torch.tensor(data.draw(st.lists(magnitudes, min_size=size, max_size=size)), dtype=torch.float64)

    ends = torch.finfo(dtype)
    wide = {
        "norm.weight": drawn(6),
        "norm.bias": drawn(6) - drawn(6),
        "norm.running_mean": drawn(6),
        "norm.running_var": drawn(6),
        "layer.weight_v": torch.randn(12, 40, generator=random).double() * drawn(12)[:, None],
        "layer.weight_g": drawn(12)[:, None],
        "matrix.weight": torch.randn(20, 40, generator=random).double() * drawn(1),
        "table": drawn(9),
    }
    state = {name: tensor.clamp(ends.min, ends.max).to(dtype) for name, tensor in wide.items()}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dense, _ = there_and_back(state, folder, ratio=ratio)
        for name, tensor in dense.items():
            assert (tensor.dtype, tensor.shape) == (dtype, state[name].shape)
            assert bool(tensor.isfinite().all()), name
            if is_table(name, tensor):
                assert is_faithful(state[name].double().flatten().numpy(), tensor.double().flatten().numpy())
        alive = state["layer.weight_v"].abs().amax(dim=1) > 0
        assert bool((dense["layer.weight_v"].abs().amax(dim=1) > 0)[alive].all())
        gbnn_compress.decompress(folder / "net.gbnn.safetensors", folder / "dense.safetensors")
        again = load_file(folder / "dense.safetensors")
        assert all(torch.equal(again[name], tensor) for name, tensor in dense.items())
        there_and_back(again, folder, ratio=ratio)
