"""`evaluate` and `diff` of networks that are no classifiers, against plain formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from gbnn_compress import compress, diff, evaluate, load
from gbnn_compress.errors import ArchitectureError, DataError, GbnnError

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.value, self.parts = nn.Linear(64, 2), nn.Linear(64, 3)

    def forward(self, x):
        h = self.body(x)
        return {"value": self.value(h), "parts": (self.parts(h), h.argmax(dim=1))}

def two():
    return Two()

class Growing(Two):
    def forward(self, x):
        h = self.body(x)
        return {"boxes": h[h > 0][:, None], "count": (h > 0).sum()}

def growing():
    return Growing()

class Stateful(Two):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.value(self.body(x)) + self.calls

def stateful():
    return Stateful()

def classes():
    return nn.Sequential(nn.Conv2d(3, 32, 1), nn.Tanh(), nn.Conv2d(32, 4, 1))
"""


class Files(NamedTuple):
    """A checkpoint with two outputs, its artifact at 6x, and inputs."""

    folder: Path
    checkpoint: Path
    artifact: Path
    arch: str
    x: torch.Tensor

    def arch_of(self, name: str) -> str:
        return self.arch.replace(":two", f":{name}")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Files:
    folder = tmp_path_factory.mktemp("two")
    (folder / "nets.py").write_text(MODELS)
    scope: dict[str, Any] = {}
    exec(MODELS, scope)
    torch.manual_seed(0)
    network = scope["two"]()
    torch.save(network.state_dict(), folder / "two.pth")
    artifact = folder / "two.gbnn.safetensors"
    settings = {"n_components": 64, "em_iterations": 3}
    compress(folder / "two.pth", target_ratio=4, output=artifact, settings=settings)
    x = torch.randn(70, 6, generator=torch.Generator().manual_seed(1))
    return Files(folder, folder / "two.pth", artifact, f"{folder / 'nets.py'}:two", x)


def outputs(weights: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, np.ndarray]:
    scope: dict[str, Any] = {}
    exec(MODELS, scope)
    network = scope["two"]()
    network.load_state_dict(weights)
    with torch.inference_mode():
        found = network.eval()(x)
    return {"value": found["value"].double().numpy(), "parts.0": found["parts"][0].double().numpy()}


def relative_error(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    errors = sum(((after - before) ** 2).sum() for before, after in pairs)
    return math.sqrt(errors / sum(((before - before.mean(axis=0)) ** 2).sum() for before, _ in pairs))


def cosine(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    rows = [(a, b) for before, after in pairs for a, b in zip(before, after, strict=True)]
    return float(np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in rows]))


def assert_measures(found: dict[str, Any], before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
    pairs = {name: (before[name], after[name]) for name in before}
    assert found["relative_error"] == pytest.approx(relative_error(list(pairs.values())), rel=1e-4)
    assert found["cosine"] == pytest.approx(cosine(list(pairs.values())), rel=1e-5)
    assert found["outputs"] == {
        name: {"relative_error": pytest.approx(relative_error([pair]), rel=1e-4)} for name, pair in pairs.items()
    }


def test_outputs_against_a_reference(files: Files) -> None:
    loader = list(files.x.split(16))
    result = evaluate(files.artifact, loader, arch=files.arch, reference=files.checkpoint, samples=3, seed=5)
    before = outputs(torch.load(files.checkpoint), files.x)
    network = load(files.artifact)
    draws = [outputs(network.state_dict(seed=seed), files.x) for seed in (5, 6, 7)]
    assert_measures(result, before, {name: np.mean([draw[name] for draw in draws], axis=0) for name in before})
    assert_measures(result["mean"], before, outputs(network.state_dict(), files.x))
    assert (result["inputs"], result["samples"], result["seed"], result["task"]) == (70, 3, 5, "other")
    assert result["data"] == "list"
    assert result["warnings"] == []
    assert not {"accuracy", "agreement", "logit_kl"} & result.keys()


def test_a_checkpoint_does_not_differ_from_itself(files: Files) -> None:
    result = evaluate(files.checkpoint, [files.x], arch=files.arch, reference=files.checkpoint)
    assert (result["relative_error"], result["cosine"]) == (0.0, pytest.approx(1))
    assert (result["samples"], result["seed"]) == (1, None)


def test_one_output(files: Files) -> None:
    options = {"arch": files.arch, "reference": files.checkpoint, "samples": 2}
    result = evaluate(files.artifact, [files.x], output="parts.0", **options)
    assert result["outputs"].keys() == {"parts.0"}
    assert result == evaluate(files.artifact, [files.x], output=1, **options)
    with pytest.raises(ArchitectureError, match=r"`--output nothing`.*`value`, `parts.0`"):
        evaluate(files.artifact, [files.x], output="nothing", **options)


def test_metric_and_loss_before_and_after(files: Files) -> None:
    y = files.x[:, :2]
    loader = list(zip(files.x.split(16), y.split(16), strict=True))

    def metric(network: nn.Module, data: Any) -> float:
        assert not network.training
        assert not torch.is_grad_enabled()
        return -float(np.mean([float((network(x)["value"] - y).abs().mean()) for x, y in data]))

    def loss(found: Any, batch: Any) -> torch.Tensor:
        return ((found["value"] - batch[1]) ** 2).mean()

    options = {"arch": files.arch, "metric": metric, "loss": loss, "samples": 2}
    result = evaluate(files.artifact, loader, reference=files.checkpoint, **options)
    weights, network = torch.load(files.checkpoint), load(files.artifact)
    for name, state in (("before", weights), ("after", network.state_dict())):
        parts = [np.abs(outputs(state, x)["value"] - y.numpy()).mean() for x, y in loader]
        assert result["metric"][name] == pytest.approx(-np.mean(parts), rel=1e-5)
    drawn = np.mean([outputs(network.state_dict(seed=seed), files.x)["value"] for seed in (0, 1)], axis=0)
    assert result["loss"]["after"] == pytest.approx(((drawn - y.numpy()) ** 2).mean(), rel=1e-5)
    assert result["loss"]["before"] == pytest.approx(
        ((outputs(weights, files.x)["value"] - y.numpy()) ** 2).mean(), rel=1e-5
    )
    alone = evaluate(files.artifact, loader, **options)
    assert alone["metric"] == {"before": None, "after": result["metric"]["after"]}
    assert "relative_error" not in alone
    assert alone["inputs"] == 70


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (lambda network, data: 1 / 0, r"`--metric`: `<lambda>` fails \(ZeroDivisionError: division by zero\)"),
        (lambda network, data: None, "`--metric`: expected a finite number from `<lambda>`, got `NoneType`"),
        (lambda network, data: float("nan"), "`--metric`: expected a finite number from `<lambda>`, got nan"),
        (lambda network, data: torch.ones(2), "`--metric`: expected a finite number from `<lambda>`, got `Tensor`"),
    ],
)
def test_metrics_that_fail(files: Files, metric: Any, words: str) -> None:
    with pytest.raises(GbnnError, match=words):
        evaluate(files.artifact, [files.x], arch=files.arch, metric=metric)


def test_a_reference_or_a_metric_is_needed(files: Files) -> None:
    with pytest.raises(GbnnError, match=r"no classifier.*`--reference`.*`--metric`.*`--task classifier`"):
        evaluate(files.artifact, [files.x], arch=files.arch)


def test_options_for_classifiers_are_refused(files: Files) -> None:
    for option in ("ood", "val_data"):
        with pytest.raises(GbnnError, match=f"`--{option.replace('_', '-')}`"):
            evaluate(files.artifact, [files.x], arch=files.arch, reference=files.checkpoint, **{option: [files.x]})


def test_boxes_whose_number_differs(files: Files) -> None:
    options = {"arch": files.arch_of("growing"), "reference": files.checkpoint, "samples": 2}
    with pytest.raises(DataError, match=r"`boxes`.*`--output`.*`--forward`.*`--metric`"):
        evaluate(files.artifact, [files.x], **options)
    result = evaluate(files.artifact, [files.x], metric=lambda network, data: 1.0, **options)
    assert result["metric"] == {"before": 1.0, "after": 1.0}
    assert any("`boxes`" in warning for warning in result["warnings"])


def test_a_network_of_nan_inputs_is_refused(files: Files) -> None:
    x = files.x.clone()
    x[30] = torch.nan
    options = {"arch": files.arch, "reference": files.checkpoint}
    with pytest.raises(DataError, match=r"`value` of the network before compression is NaN for some inputs"):
        evaluate(files.artifact, list(x.split(16)), **options)
    with pytest.raises(DataError, match="`--data` has infinite or NaN values"):
        evaluate(files.artifact, [x], **options)


def test_outputs_that_are_lost_or_do_not_vary_are_warned_of(files: Files) -> None:
    broken = {name: 9 * tensor for name, tensor in torch.load(files.checkpoint).items()}
    torch.save(broken, files.folder / "broken.pth")
    options = {"arch": files.arch, "reference": files.checkpoint}
    (warning,) = evaluate(files.folder / "broken.pth", [files.x], **options)["warnings"]
    assert "on `--data` its outputs are no nearer to those of two.pth than their mean (relative error " in warning
    torch.save({name: tensor * torch.nan for name, tensor in broken.items()}, files.folder / "nan.pth")
    result = evaluate(files.folder / "nan.pth", [files.x], **options)
    assert (result["relative_error"], result["cosine"]) == (None, None)
    assert "are not finite" in result["warnings"][0]
    result = evaluate(files.artifact, [torch.ones(5, 6)], **options)
    assert result["relative_error"] is None
    assert "do not vary" in result["warnings"][0]


def test_diff(files: Files) -> None:
    result = diff(files.checkpoint, files.artifact, data=list(files.x.split(16)), arch=files.arch)
    network = load(files.artifact)
    assert_measures(result, outputs(torch.load(files.checkpoint), files.x), outputs(network.state_dict(), files.x))
    assert not {"agreement", "metrics"} & result.keys()


def test_predict_in_the_network_s_nesting(files: Files) -> None:
    network = load(files.artifact)
    network.to_module(files.arch)
    found = network.predict_with_uncertainty(files.x, samples=3, seed=2, batch_size=16)
    draws = [outputs(network.state_dict(seed=seed), files.x) for seed in (2, 3, 4)]
    for mean, deviation, name in (
        (found.mean["value"], found.standard_deviation["value"], "value"),
        (found.mean["parts"][0], found.standard_deviation["parts"][0], "parts.0"),
    ):
        stack = np.stack([draw[name] for draw in draws])
        np.testing.assert_allclose(mean.numpy(), stack.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(deviation.numpy(), stack.std(axis=0, ddof=1), atol=1e-5)
    assert found.samples == 3
    whole = network.predict({"x": files.x}, samples=3, seed=2)
    torch.testing.assert_close(whole["value"], found.mean["value"])
    torch.testing.assert_close(network.predict((files.x, files.x), samples=3, seed=2)["value"], found.mean["value"])
    one = network.predict(files.x, samples=3, seed=2, output="value")
    torch.testing.assert_close(one, found.mean["value"])
    custom = network.predict(files.x, samples=3, seed=2, forward=lambda net, batch: net(batch)["value"])
    torch.testing.assert_close(custom, one)
    as_classes = network.predict(files.x, samples=0, task="classifier", output="parts.0")
    torch.testing.assert_close(as_classes.sum(dim=1), torch.ones(70, dtype=torch.float64))


def test_positions_of_a_classifier_count_as_inputs(files: Files) -> None:
    scope: dict[str, Any] = {}
    exec(MODELS, scope)
    torch.manual_seed(1)
    network = scope["classes"]()
    path = files.folder / "classes.pth"
    torch.save(network.state_dict(), path)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, 5, 6, generator=generator)
    y = torch.randint(0, 4, (12, 5, 6), generator=generator)
    y[0, 0] = -100
    loader = list(zip(x.split(5), y.split(5), strict=True))
    result = evaluate(path, loader, arch=files.arch_of("classes"), task="classifier", reference=path)
    with torch.inference_mode():
        p = network(x).double().softmax(dim=1).movedim(1, -1).reshape(-1, 4)
    known = y.flatten() != -100
    assert result["inputs"] == int(known.sum())
    assert result["accuracy"] == pytest.approx(float((p.argmax(dim=1) == y.flatten())[known].double().mean()))
    assert result["nll"] == pytest.approx(float(nn.functional.cross_entropy(p.log(), y.flatten())), rel=1e-5)
    assert result["agreement"] == 1.0
    with pytest.raises(GbnnError, match="no classifier"):
        evaluate(path, loader, arch=files.arch_of("classes"))
    artifact = files.folder / "classes.gbnn.safetensors"
    compress(path, target_ratio=1, output=artifact, task="classifier", settings={"n_components": 16})
    compressed = load(artifact)
    compressed.to_module(network)
    assert compressed.predict(x, samples=0).shape == (12 * 5 * 6, 4)


def test_a_classifier_on_batches_with_labels(files: Files) -> None:
    y = torch.arange(70) % 2
    loader = [{"x": x, "labels": labels} for x, labels in zip(files.x.split(16), y.split(16), strict=True)]
    result = evaluate(files.artifact, loader, arch=files.arch, output="value", samples=2)
    network = load(files.artifact)
    network.to_module(files.arch)
    p = network.predict(files.x, samples=2, task="classifier", output="value")
    assert result["accuracy"] == pytest.approx(float((p.argmax(dim=1) == y).double().mean()))
    assert result["nll"] == pytest.approx(float(-p[torch.arange(70), y].log().mean()), rel=1e-6)
    with pytest.raises(DataError, match=r"`--data`: a classifier is measured by integer labels, and `list` has none"):
        evaluate(files.artifact, [files.x], arch=files.arch, task="classifier", output="value")


def test_a_network_that_keeps_a_state_is_refused(files: Files) -> None:
    with pytest.raises(ArchitectureError, match=r"`--data`: the network returns another `output`.*`--forward`"):
        evaluate(files.artifact, [files.x], arch=files.arch_of("stateful"), reference=files.checkpoint)


def test_the_page_shows_outputs_and_no_classes(files: Files, tmp_path: Path) -> None:
    evaluate(
        files.artifact,
        [files.x],
        arch=files.arch,
        reference=files.checkpoint,
        metric=lambda network, data: 0.5,
        samples=2,
        html=tmp_path / "page.html",
    )
    page = (tmp_path / "page.html").read_text()
    for expected in ("relative output error", "posterior mean", "parts.0", "metric, 0.5 before", "two.pth"):
        assert expected in page
    for word in ("accuracy", "NLL", "ECE", "top class", "points"):
        assert word not in page
