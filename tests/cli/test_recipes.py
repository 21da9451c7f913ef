"""Every shipped recipe as its heading says to use it, on small data that look like those it is for."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import look_alikes
import pytest
import torchvision
from gbnn_compress_cli import demo
from gbnn_compress_cli.recipe import summary
from test_docs import code_lines, parse

from gbnn_compress.recipe import heading, resolve, shipped_recipes

pytestmark = pytest.mark.usefixtures("one_thread", "fewer_stages")

REPOSITORY = Path(__file__).parents[2]

PAPERS = "/usr/share/datasets/fashion-mnist"

QUICK = ["--samples", "2", "-q", "-s", "n_components=64", "-s", "em_iterations=2", "-s", "finetune.augmentation=none"]
"""What is added to a command line so that it takes seconds; of an option given twice the last counts."""

WANTED = (
    "default",
    "demo",
    "efficientnet-lite0",
    "lenet5-fashion-mnist",
    "paper",
    "resnet101-imagenet",
    "resnet18-cifar10",
    "resnet18-cifar100",
    "resnet20-cifar10",
    "vit-b16-imagenet",
    "vit-small-cifar10",
)

PAGE = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")

BIG = ("efficientnet-lite0", "resnet101-imagenet", "resnet18-cifar10", "resnet18-cifar100", "vit-b16-imagenet")


def cifar_npz() -> None:
    look_alikes.npz("cifar10_train", "cifar10_dev", "cifar10_test")


def small_model() -> None:
    look_alikes.checkpoint("model.pth", "gbnn_compress_cli.digits_network:digits_cnn")


def resnet18(n_classes: int) -> None:
    look_alikes.cifar(n_classes)
    look_alikes.checkpoint("resnet18.pth", f"examples/networks.py:resnet18_cifar{n_classes}")


def imagenet(path: str, arch: str) -> None:
    look_alikes.image_folders("imagenet")
    look_alikes.checkpoint(path, arch)


def efficientnet() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="its network is in a package of its own")
    imagenet("efficientnet-lite0-57934424.pth", "benchmarks/networks.py:efficientnet_lite0")


def resnet20() -> None:
    cifar_npz()
    look_alikes.checkpoint("resnet20_cifar10.pth", "benchmarks/networks.py:resnet20")


PREPARED: dict[str, Callable[[], None]] = {
    "default": small_model,
    "demo": lambda: look_alikes.checkpoint("demo/digits.pth", "gbnn_compress_cli.digits_network:digits_cnn"),
    "efficientnet-lite0": efficientnet,
    "lenet5-fashion-mnist": lambda: look_alikes.fashion_mnist(Path("published")),
    "paper": small_model,
    "resnet101-imagenet": lambda: imagenet("resnet101-cd907fc2.pth", "torchvision/resnet101"),
    "resnet18-cifar10": lambda: resnet18(10),
    "resnet18-cifar100": lambda: resnet18(100),
    "resnet20-cifar10": resnet20,
    "vit-b16-imagenet": lambda: imagenet("vit_b_16-c867db91.pth", "torchvision/vit_b_16"),
    "vit-small-cifar10": cifar_npz,
}
"""Name -> what lays out the files that the recipe's commands read, besides those that they write."""


def about(name: str) -> str:
    """A recipe's heading as text."""
    return re.sub(r"^# ?", "", heading(shipped_recipes()[name]), flags=re.MULTILINE)


def commands(name: str) -> list[list[str]]:
    return [shlex.split(line.removeprefix("$ ")) for line in code_lines(about(name))]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the parts of a clone that recipes name."""
    for part in ("benchmarks", "examples"):
        (tmp_path / part).symlink_to(REPOSITORY / part)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    return tmp_path


def python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(words[0], run_name="__main__")


def test_the_recipes_that_there_should_be() -> None:
    assert tuple(shipped_recipes()) == WANTED


@pytest.mark.parametrize("name", WANTED)
def test_a_heading_says_what_it_is_the_command_what_it_needs_and_what_to_expect(name: str) -> None:
    text = about(name)
    assert "\nNeeds: " in text
    assert "\nExpect" in text
    assert any(word in text for word in ("measured: ", "not measured here"))
    own = [words[1:] for words in commands(name) if words[0] == "gbnn-compress"]
    assert own
    for words in own:
        parse(words)
        assert words[words.index("--recipe") + 1 if "--recipe" in words else 0] in (name, "model.pth")


@pytest.mark.parametrize("name", WANTED)
def test_a_recipe_for_a_network_sets_only_what_differs(name: str) -> None:
    written = [line for line in shipped_recipes()[name].splitlines() if not line.startswith("#")]
    changed = resolve(name).model_dump(exclude_defaults=True)
    listed = sum(len(value) + 1 if isinstance(value, dict) else 1 for value in changed.values())
    assert name in ("default", "paper") or len(written) == listed > 0


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in BIG else name for name in WANTED]
)
def test_the_commands_of_a_recipe_run(run, clone: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    PREPARED[name]()
    for program, *words in commands(name):
        if program == "python":
            epochs = ["--epochs", "1"] if "--epochs" in words else []
            python([word.replace(PAPERS, "published") for word in words] + epochs, monkeypatch)
            continue
        epochs = ["--epochs", "1"] if resolve(name).epochs else []
        outcome = run(*words, *QUICK, *epochs, "-o", "out.gbnn.safetensors", "--json", "report.json")
        assert outcome.code in (0, 1), outcome.err
        assert "bug" not in outcome.err
        assert Path("out.gbnn.safetensors").stat().st_size > 0


def test_the_page_lists_the_recipes_with_the_first_sentence_of_each() -> None:
    rows = re.findall(r"^\| `(.+)` \| (.+) \|$", PAGE, re.MULTILINE)
    assert rows == [(name, summary(text)) for name, text in shipped_recipes().items()]


@pytest.mark.long
def test_the_commands_of_the_page_run_one_after_the_other(run, clone: Path) -> None:
    PREPARED["demo"]()
    lines = [shlex.split(line.removeprefix("$ "))[1:] for line in code_lines(PAGE)]
    assert len(lines) == len(re.findall(r"^    gbnn-compress ", PAGE, re.MULTILINE)) >= 7
    for words in lines:
        outcome = run(*words, *([] if words[0] == "recipe" else [*QUICK, "--epochs", "1"]))
        assert outcome.code == 0, outcome.err
        assert outcome.out


def test_the_demonstration_trains_as_its_recipe_says() -> None:
    recipe = resolve("demo")
    trained = next(line for line in demo._lines(Path("digits.pth")) if "--epochs" in line)
    assert trained[trained.index("--epochs") + 1] == str(recipe.epochs)
    assert trained[trained.index("--target-ratio") + 1] == f"{recipe.target_ratio:g}x"
