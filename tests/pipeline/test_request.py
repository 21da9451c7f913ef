"""One request for `compress`, `plan` and the command line."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import gbnn_compress
from gbnn_compress import GbnnError, Request
from gbnn_compress.data.architectures import build_network
from gbnn_compress.pipeline.opening import open_request


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    weights = {"fc.weight": torch.randn(16, 40, generator=torch.Generator().manual_seed(0)), "fc.bias": torch.zeros(16)}
    torch.save(weights, tmp_path / "net.pth")
    return tmp_path / "net.pth"


@pytest.mark.long
def test_compress_is_run_of_a_request(checkpoint: Path, tmp_path: Path) -> None:
    options = {"target_ratio": 4, "settings": {"noise": 0.2}, "seed": 3}
    gbnn_compress.compress(checkpoint, output=tmp_path / "a.gbnn.safetensors", **options)
    gbnn_compress.run(Request(checkpoint=checkpoint, output=tmp_path / "b.gbnn.safetensors", **options))
    assert (tmp_path / "a.gbnn.safetensors").read_bytes() == (tmp_path / "b.gbnn.safetensors").read_bytes()


def test_a_request_is_frozen_and_checked_again_when_replaced(checkpoint: Path) -> None:
    request = Request(checkpoint=checkpoint, target_ratio=8, output=checkpoint.with_name("a.gbnn.safetensors"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.target_ratio = 4  # type: ignore[misc]
    with pytest.raises(GbnnError, match="`--target-ratio`: expected a number of at least 1"):
        dataclasses.replace(request, target_ratio=0.5)


def test_what_was_not_given_comes_from_the_recipe(checkpoint: Path) -> None:
    request = Request(checkpoint=checkpoint, planned=True, settings={"target_ratio": 20, "epochs": 0})
    assert (request.ratio, request.byte_ratio, request.passes) == (20, 20, 0)
    assert request.path == Path("net.gbnn.safetensors")
    assert Request(checkpoint=checkpoint, planned=True, target_ratio=9, ratio_of="parameters").byte_ratio is None


def test_a_request_for_a_plan_is_not_run(checkpoint: Path) -> None:
    with pytest.raises(GbnnError, match="`planned`"):
        gbnn_compress.run(Request(checkpoint=checkpoint, target_ratio=8, planned=True))


@pytest.mark.parametrize("function", [gbnn_compress.compress, gbnn_compress.plan])
def test_every_field_is_an_argument(function: object) -> None:
    shown = inspect.signature(function).parameters  # type: ignore[arg-type]
    fields = {field.name for field in dataclasses.fields(Request) if field.init} - {"planned"}
    assert fields <= set(shown)
    with pytest.raises(TypeError, match="target_rato"):
        function("net.pth", target_rato=8)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_ratio": True}, "`target_ratio`: expected a number, got bool"),
        ({"target_ratio": "8x"}, "`target_ratio`: expected a number, got str"),
        ({"target_ratio": 8, "seed": "a"}, "`seed`: expected a whole number, got str"),
        ({"target_ratio": 8, "arch": 5}, "`arch`: expected text .*, a torch.nn.Module or a callable .*, got `int`"),
        ({"target_ratio": 8, "checkpoint": 5}, "`checkpoint`: expected a path, a torch.nn.Module .*, got `int`"),
        ({"target_ratio": 8, "checkpoint": torch.nn.Linear}, "got `Linear`; give an instance"),
        ({"target_ratio": 8, "data": 5}, "`data`: expected a specification, a DataLoader.*, got `int`"),
        ({"target_ratio": 8, "data": torch.nn.Linear(2, 2)}, "`data`: expected a specification.*, got `Linear`"),
        ({"target_ratio": 8, "data": iter([1])}, "`data`: expected data that can be read several times"),
        ({"target_ratio": 8, "eval_data": iter([1])}, "`eval_data`: expected data that can be read several times"),
        ({"target_ratio": 8, "forward": 5}, r"`forward`: expected a function f\(network, batch\)"),
        ({"target_ratio": 8, "metric": 5}, r"`metric`: expected a function g\(network, data\) -> float"),
        ({"target_ratio": 8, "loss": 5}, r"`loss`: expected a function l\(outputs, batch\)"),
        ({"target_ratio": 8, "output": -1}, "`output`: expected the name of one of the network's outputs"),
        ({"target_ratio": 8, "output": 0}, "`--output`: used only on inputs; give `--data`"),
        ({"target_ratio": 8, "output": "a.safetensors", "file": "b.safetensors"}, "`output` and `file`"),
        ({"target_ratio": 8, "keep": [1]}, "`keep`: expected patterns of names, got int"),
        ({"max_error": 0.1}, "`--max-error`: the error is measured on inputs; give `--val-data` or `--data`"),
        ({"max_error": 1.0, "data": "digits"}, "`--max-error`: expected a relative error above 0 and below 1"),
        ({"max_error": 0.1, "max_drop": 1.0}, "give either `--target-ratio`.*`--max-drop`.*or `--max-error`"),
        ({"target_ratio": 8, "settings": "noise=1"}, "`settings`: expected a mapping, got str"),
    ],
)
def test_values_of_another_type(checkpoint: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(GbnnError, match=message):
        Request(**{"checkpoint": checkpoint, **options})


@pytest.mark.parametrize("output", [{"output": "FILE"}, {"html": "FILE"}])
@pytest.mark.parametrize(
    ("name", "option", "spec"),
    [
        ("x.npz", "eval_data", "npz:{}"),
        ("x.npz", "data", "npz:{}"),
        ("models.py", "arch", "{}:net"),
        ("mine.yaml", "recipe", "{}"),
    ],
)
def test_what_a_run_reads_is_not_overwritten(
    checkpoint: Path, tmp_path: Path, output: dict[str, str], name: str, option: str, spec: str
) -> None:
    read = tmp_path / name
    read.write_text("noise: 0.1\n")
    outputs: dict[str, Any] = {"output": tmp_path / "a.gbnn.safetensors", **dict.fromkeys(output, read)}
    with pytest.raises(GbnnError, match="this command reads that file; choose another one"):
        Request(checkpoint=checkpoint, target_ratio=8, **outputs, **{option: spec.format(read)})
    assert read.read_text() == "noise: 0.1\n"


@pytest.mark.parametrize("data", [None, "digits:train"])
def test_measuring_a_file_leaves_the_weights_that_calibration_needs(tmp_path: Path, data: str | None) -> None:
    arch = "gbnn_compress_cli.digits_network:digits_cnn"
    network = build_network(arch)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    output = tmp_path / "net.gbnn.safetensors"
    request = Request(
        checkpoint=tmp_path / "net.pth", output=output, arch=arch, data=data, max_drop=1.0, val_data="digits:test"
    )
    opened = open_request(request)
    assert opened.network is not None
    assert opened.validation is not None
    opened.validation.run({name: torch.zeros_like(each) for name, each in opened.checkpoint.tensors.items()})
    for name, tensor in opened.network.network.state_dict().items():
        assert torch.equal(tensor, opened.checkpoint.tensors[name]), name
