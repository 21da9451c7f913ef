"""Modules, state dicts, loaders and functions of the caller: what comes out, and what stays as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gbnn_compress
from gbnn_compress import GbnnError, Request, compress, diff, evaluate, load, plan
from gbnn_compress.pipeline.opening import open_request

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"n_components": 64, "em_iterations": 3}


class Net(nn.Module):
    """A regression network with a norm and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Dropout(0.5), nn.Linear(96, 64))
        self.head = nn.Linear(64, 3)
        self.fail = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fail:
            raise RuntimeError("this network\nfails")
        return self.head(self.body(x))


X = torch.randn(90, 6, generator=torch.Generator().manual_seed(1))


def made() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def facts_of(network: nn.Module) -> dict[str, Any]:
    """Everything about a module that a run must not change."""
    return {
        "tensors": {name: (id(t), t.clone(), t.device) for name, t in network.state_dict(keep_vars=True).items()},
        "requires_grad": {name: p.requires_grad for name, p in network.named_parameters()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()},
        "modes": {name: module.training for name, module in network.named_modules()},
        "hooks": {name: list(module._forward_hooks) for name, module in network.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in network.named_modules()},
    }


def assert_unchanged(before: dict[str, Any], network: nn.Module) -> None:
    after = facts_of(network)
    for name, (identity, tensor, device) in before.pop("tensors").items():
        assert after["tensors"][name][0] == identity
        assert torch.equal(after["tensors"][name][1], tensor), name
        assert after["tensors"][name][2] == device
    after.pop("tensors")
    for name, grad in before.pop("grads").items():
        other = after["grads"][name]
        assert grad is other is None or torch.equal(grad, other)
    after.pop("grads")
    assert before == after


def odd_module() -> Net:
    """In training mode but for one layer, with a frozen layer, a gradient and a hook."""
    network = made().train()
    network.body[1].eval()
    network.body[0].weight.requires_grad_(False)
    network.head(torch.zeros(1, 64)).sum().backward()
    network.head.register_forward_hook(lambda module, args, output: output)
    return network


@pytest.mark.long
def test_a_module_stays_as_it_was(folder: Path) -> None:
    network = odd_module()
    before = facts_of(network)
    loader = DataLoader(TensorDataset(X, X[:, :3]), batch_size=32, num_workers=1)
    report = compress(network, target_ratio=4, eval_data=loader, settings=QUICK)
    plan(network, settings=QUICK)
    evaluate(network, loader, reference=made())
    diff(network, made().state_dict(), data=[X])
    assert_unchanged(before, network)
    assert [each.name for each in folder.iterdir()] == ["Net.gbnn.safetensors"]
    assert report["checkpoint"]["path"] is None
    assert report["checkpoint"]["architecture"] is None
    assert report["checkpoint"]["bytes"] == sum(t.nbytes for t in network.state_dict().values())
    assert report["task"] == "other"
    assert report["evaluation"]["data"] == "DataLoader"
    assert 0 < report["damage"]["relative_error"] < 1
    json.dumps(report, allow_nan=False)


def test_a_module_that_fails_stays_as_it_was_and_nothing_is_written(folder: Path) -> None:
    network = odd_module()
    network.fail = True
    before = facts_of(network)
    with pytest.raises(GbnnError, match=r"the network fails on a batch.*this network fails") as caught:
        compress(network, target_ratio=4, data=[X], settings=QUICK)
    assert "\n" not in str(caught.value)
    assert_unchanged(before, network)
    assert not list(folder.iterdir())


@pytest.mark.long
def test_a_module_a_state_dict_and_a_file_give_the_same_weights(folder: Path) -> None:
    network = made()
    torch.save(network.state_dict(), folder / "net.pth")
    sources: tuple[Any, ...] = (network, network.state_dict(), folder / "net.pth")
    found = [load(compress(each, target_ratio=4, settings=QUICK)["artifact"]["path"]) for each in sources]
    assert sorted(each.name for each in folder.iterdir() if each.suffix == ".safetensors") == [
        "Net.gbnn.safetensors",
        "checkpoint.gbnn.safetensors",
        "net.gbnn.safetensors",
    ]
    for other in found[1:]:
        for name, tensor in found[0].state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor)
    assert found[0].report()["checkpoint"]["sha256"] == found[1].report()["checkpoint"]["sha256"]


@pytest.mark.long
def test_an_architecture_may_be_a_module_or_a_callable(folder: Path) -> None:
    weights = made().state_dict()
    other = Net().train()
    before = facts_of(other)
    for arch in (other, Net, made, lambda: Net()):
        report = compress(weights, target_ratio=4, arch=arch, eval_data=[X], settings=QUICK)
        assert report["task"] == "other"
    assert_unchanged(before, other)
    artifact = load("checkpoint.gbnn.safetensors")
    assert isinstance(artifact.to_module(Net), Net)
    assert evaluate("checkpoint.gbnn.safetensors", [X], arch=Net, reference=weights)["relative_error"] > 0
    assert evaluate("checkpoint.gbnn.safetensors", [X], arch=other, reference=weights)["relative_error"] > 0
    assert_unchanged({**before, **facts_of(other)}, other)


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        (lambda: 5, r"`<lambda>` must return a torch.nn.Module, got `int`"),
        (lambda: 1 / 0, r"`<lambda>` fails when called without arguments \(ZeroDivisionError"),
        (nn.Linear, r"`Linear` fails when called without arguments \(TypeError"),
        (nn.Linear(6, 3), "the checkpoint does not fit `Linear`"),
    ],
)
def test_bad_architectures(arch: Any, words: str, folder: Path) -> None:
    with pytest.raises(GbnnError, match=words):
        compress(made().state_dict(), target_ratio=4, arch=arch, settings=QUICK)
    assert not list(folder.iterdir())


def test_a_module_that_cannot_be_copied(folder: Path) -> None:
    network = made()
    network.stream = Path(__file__).open()  # noqa: SIM115
    with network.stream, pytest.raises(GbnnError, match=r"`Net` cannot be copied.*give its state_dict\(\)"):
        compress(network, target_ratio=4, data=[X])
    assert not list(folder.iterdir())


def test_wrapped_modules() -> None:
    network = nn.DataParallel(made())
    report = compress(network, target_ratio=4, eval_data=[X], settings=QUICK)
    assert report["artifact"]["path"] == "DataParallel.gbnn.safetensors"
    assert all(layer["name"].startswith("module.") for layer in report["layers"])
    assert isinstance(load("DataParallel.gbnn.safetensors").to_module(Net), Net)


def test_a_module_of_torchvision_is_recorded_by_its_name() -> None:
    import torchvision

    network = torchvision.models.squeezenet1_1(weights=None)
    assert open_request(Request(checkpoint=network, target_ratio=4)).candidates == ("torchvision/squeezenet1_1",)
    assert open_request(Request(checkpoint=network, target_ratio=4)).network.spec == "torchvision/squeezenet1_1"


@pytest.mark.long
def test_kept_tensors_and_importance(folder: Path) -> None:
    network = made()
    compress(network, target_ratio=3, keep=["head.*", "body.0.bias"], settings=QUICK)
    found = load("Net.gbnn.safetensors")
    for name in ("head.weight", "head.bias", "body.0.bias"):
        assert torch.equal(found.state_dict()[name], network.state_dict()[name])
    assert not torch.equal(found.state_dict()["body.4.weight"], network.state_dict()["body.4.weight"])
    assert found.report()["recipe"]["keep"] == ["head.*", "body.0.bias"]
    errors = []
    for factor in (1, 20):
        report = compress(network, target_ratio=6, settings={**QUICK, "importance": {"body.0.*": factor}})
        errors.append({layer["name"]: layer["relative_rmse"] for layer in report["layers"]}["body.0.weight"])
    assert errors[1] < 0.7 * errors[0]
    with pytest.raises(GbnnError, match=r"`-s importance bdy\.\*` matches no tensor; there are `body.4.weight`"):
        compress(network, target_ratio=6, settings={**QUICK, "importance": {"bdy.*": 2}})


def twice(network: nn.Module, batch: Any) -> torch.Tensor:
    return 2 * network(batch["features"])


def test_forward_and_output_of_the_user() -> None:
    data = [{"features": X, "other": "text"}]
    report = compress(made(), target_ratio=4, eval_data=data, forward=twice, settings=QUICK)
    assert 0 < report["damage"]["relative_error"] < 1
    report = compress(made(), target_ratio=4, eval_data=[X], output=0, file="a.gbnn.safetensors", settings=QUICK)
    assert report["artifact"]["path"] == "a.gbnn.safetensors"
    with pytest.raises(GbnnError, match=r"`--output 3`: the network has no such output; it has `output`"):
        compress(made(), target_ratio=4, eval_data=[X], output=3, settings=QUICK)


def test_labels_make_a_classifier() -> None:
    data = [(X, torch.arange(90) % 3)]
    report = compress(made(), target_ratio=4, eval_data=data, settings=QUICK)
    assert report["task"] == "classifier"
    assert 0 <= report["evaluation"]["after"]["accuracy"] <= 1
    report = compress(made(), target_ratio=4, eval_data=data, task="other", settings=QUICK)
    assert report["task"] == "other"
    with pytest.raises(GbnnError, match="`--eval-data`: a classifier is measured by integer labels"):
        compress(made(), target_ratio=4, eval_data=[X], task="classifier", settings=QUICK)


@pytest.mark.long
def test_calibration_on_batches_and_on_made_inputs() -> None:
    torch.manual_seed(2)
    mixing = torch.randn(6, 2) @ torch.randn(2, 6)  # inputs of two dimensions, which noise does not know
    x, others = (torch.randn(n, 6) @ mixing for n in (400, 100))
    network, errors = made(), {}
    described = {"inputs": ["x:float32:batch,6"]}
    loader = DataLoader(TensorDataset(x), batch_size=50, shuffle=True, num_workers=1)
    for name, options in {"none": {}, "made": described, "data": {"data": loader}}.items():
        report = compress(network, target_ratio=6, settings=QUICK, **options)
        assert report["task"] in (None, "other")
        artifact = report["artifact"]["path"]
        errors[name] = evaluate(artifact, [others], arch=network, reference=network)["mean"]["relative_error"]
    assert errors["data"] < 0.8 * errors["none"]
    assert errors["data"] < errors["made"]


def one_good_batch() -> Iterator[torch.Tensor]:
    yield X
    raise OSError("gone")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eval_data": (x for x in [X])}, "can be read several times, got `generator`"),
        ({"data": []}, "`--data`: `list` yields nothing"),
        ({"eval_data": [X.double()]}, "the network fails on a batch"),
        ({"eval_data": [X * torch.nan]}, "`--eval-data` has infinite or NaN values"),
        ({"eval_data": [{"a": X}, {"b": X}]}, "`forward` of `Net` needs `x`|the network fails|does not take"),
        ({"eval_data": [X], "forward": lambda network, batch: 1 / 0}, "ZeroDivisionError"),
        ({"eval_data": one_good_batch}, r"`one_good_batch` fails at batch 1 \(OSError: gone\)"),
        ({"eval_data": [X, X * torch.nan]}, "NaN for some inputs"),
        (
            {"eval_data": [X], "metric": lambda network, data: 1 / 0},
            r"`--metric`: `<lambda>` fails \(ZeroDivisionError",
        ),
        ({"eval_data": [X], "metric": lambda network, data: "high"}, "`--metric`: expected a finite number.*got `str`"),
        ({"eval_data": [X], "loss": lambda outputs, batch: outputs}, "`--loss`: expected a finite number"),
        ({"eval_data": [X], "forward": "missing.py:f"}, "no file `missing.py`"),
        ({"forward": twice}, "`--forward`: used only on inputs"),
        ({"inputs": ["x"]}, "`--input`: expected NAME:DTYPE:SHAPE"),
        ({"inputs": ["y:float32:batch,6"], "data": [X]}, "`--input`: inputs are made only where there are no data"),
        ({"inputs": ["x:float32:batch,7"]}, "`Net` fails on inputs made for `--input`"),
        ({"keep": ["nothing*"]}, "`--keep nothing.*` matches no tensor"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(options: dict[str, Any], words: str, folder: Path) -> None:
    network = odd_module()
    before = facts_of(network)
    with pytest.raises(GbnnError, match=words) as caught:
        compress(network, target_ratio=4, settings=QUICK, **options)
    assert "\n" not in str(caught.value)
    assert not list(folder.iterdir())
    assert_unchanged(before, network)


def test_a_folder_s_digest_is_over_its_files_in_order_of_name(folder: Path) -> None:
    import hashlib

    from safetensors.torch import save_file

    (folder / "hf").mkdir()
    state = made().state_dict()
    parts = {"b-00001-of-00002.safetensors": list(state)[:4], "a-00002-of-00002.safetensors": list(state)[4:]}
    for name, names in parts.items():
        save_file({each: state[each].clone() for each in names}, folder / "hf" / name)
    index = {"weight_map": {each: name for name, names in parts.items() for each in names}}
    (folder / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    report = compress(folder / "hf", target_ratio=4, settings=QUICK)
    content = b"".join((folder / "hf" / name).read_bytes() for name in sorted(parts))
    assert report["checkpoint"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert report["checkpoint"]["bytes"] == len(content)
    assert report["artifact"]["path"] == "hf.gbnn.safetensors"


def test_a_copy_is_what_runs(folder: Path) -> None:
    """A network that counts its calls keeps its count."""

    class Counting(Net):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x)

    network = Counting()
    compress(network, target_ratio=4, eval_data=[X], settings=QUICK)
    assert network.calls == 0
    assert copy.deepcopy(network).calls == 0
    assert gbnn_compress.load("Counting.gbnn.safetensors").report()["task"] == "other"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([X, torch.full_like(X, torch.nan)], "`--data`: expected finite outputs, got infinite or NaN values"),
        ([X, X[:0]], "`--data`: expected at least one input in each batch, got none"),
    ],
)
def test_bad_inputs_in_a_later_batch_are_refused(data: list[torch.Tensor], match: str) -> None:
    with pytest.raises(GbnnError, match=match):
        compress(made(), target_ratio=4, data=data, file="late.gbnn.safetensors", settings=QUICK)
    assert not Path("late.gbnn.safetensors").exists()


def test_a_metric_without_data_of_its_own_is_measured_on_the_inputs() -> None:
    report = compress(made(), target_ratio=4, data=[X], metric=lambda network, data: 1.0, settings=QUICK)
    assert report["damage"]["metric"] == {"before": 1.0, "after": 1.0}


def test_a_loss_without_a_gradient_is_refused() -> None:
    with pytest.raises(GbnnError, match="`loss`: expected a value that depends on the outputs and has a gradient"):
        compress(made(), target_ratio=4, data=[X] * 4, epochs=1, loss=lambda y, _: y.detach().mean(), settings=QUICK)
