"""Networks are recognised by names and shapes alone, from the shipped index."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import timm
import torch
import torchvision

from gbnn_compress.checkpoint.architecture_index import (
    INDEX_NAME,
    ArchitectureMatch,
    find_architectures,
    number_of_classes,
    signature,
)
from gbnn_compress.checkpoint.select import floating_shapes

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_architecture_index.py"


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of each floating tensor of the state dict, as the pipeline looks it up."""
    return floating_shapes(model.state_dict())


def torchvision_shapes(name: str, **options: object) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes_of(torchvision.models.get_model(name, weights=None, **options))


def timm_shapes(name: str, **options: object) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes_of(timm.create_model(name, pretrained=False, **options))


@pytest.fixture(scope="module")
def resnet18() -> dict[str, tuple[int, ...]]:
    return torchvision_shapes("resnet18", num_classes=10)


@pytest.fixture(scope="module")
def index() -> dict[str, dict[str, str]]:
    return json.loads(resources.files("gbnn_compress.checkpoint").joinpath(INDEX_NAME).read_text("utf-8"))


def test_resnet18_with_ten_classes_is_found(resnet18):
    match = find_architectures(resnet18)
    assert match.n_classes == 10
    assert {"timm/resnet18", "torchvision/resnet18"} <= set(match.names)
    assert list(match.names) == sorted(match.names)


def test_order_does_not_matter(resnet18):
    backwards = dict(reversed(resnet18.items()))
    assert find_architectures(backwards) == find_architectures(resnet18)
    assert list(backwards) == list(reversed(resnet18))


@pytest.mark.parametrize("n_classes", [1, 2, 1000, 21841])
def test_any_number_of_classes_is_found(n_classes):
    match = find_architectures(torchvision_shapes("resnet50", num_classes=n_classes))
    assert "torchvision/resnet50" in match.names
    assert match.n_classes == n_classes


@pytest.mark.parametrize(
    "name",
    [
        "vgg11",
        "densenet121",
        "squeezenet1_1",
        "googlenet",
        "inception_v3",
        "vit_b_16",
        "swin_t",
        "convnext_tiny",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_torchvision_families_are_found(name):
    match = find_architectures(torchvision_shapes(name, num_classes=12))
    assert f"torchvision/{name}" in match.names
    assert match.n_classes == 12


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "crossvit_9_240",
        "levit_128s",
        "mixer_b16_224",
    ],
)
def test_timm_families_are_found(name):
    match = find_architectures(timm_shapes(name, num_classes=12))
    assert f"timm/{name}" in match.names
    assert match.n_classes == 12


def test_network_without_a_classifier_is_found():
    name = "vit_small_patch14_dinov2"
    plain = find_architectures(timm_shapes(name))
    assert f"timm/{name}" in plain.names
    assert plain.n_classes is None
    with_classifier = find_architectures(timm_shapes(name, num_classes=12))
    assert f"timm/{name}" in with_classifier.names
    assert with_classifier.n_classes == 12


def test_unknown_network_is_not_found():
    unknown = {"conv1.weight": (16, 3, 3, 3), "fc.weight": (10, 16), "fc.bias": (10,)}
    assert find_architectures(unknown) == ArchitectureMatch(names=(), n_classes=None)
    assert find_architectures({}).names == ()


@pytest.mark.parametrize(
    "change",
    [
        {"fc.bias": (11,)},
        {"fc.weight": (10, 513)},
        {"conv1.weight": (64, 1, 7, 7)},
        {"extra.weight": (1,)},
        {"fc.weight": ()},
    ],
)
def test_any_other_difference_is_not_found(resnet18, change):
    assert find_architectures({**resnet18, **change}).names == ()


def test_missing_tensor_is_not_found(resnet18):
    assert find_architectures({name: resnet18[name] for name in resnet18 if name != "fc.bias"}).names == ()


def test_number_of_classes_wants_every_module_and_one_number():
    shapes = {"head.weight": (5, 8), "head.bias": (5,), "head_dist.weight": (5, 8), "norm.weight": (8,)}
    assert number_of_classes(shapes, classifier=("head",)) == 5
    assert number_of_classes(shapes, classifier=("head", "head_dist")) == 5
    assert number_of_classes(shapes, classifier=("fc",)) is None
    assert number_of_classes(shapes, classifier=("head", "norm")) is None


def test_signature_is_frozen():
    shapes = {"fc.weight": (10, 4), "scale": ()}
    assert signature(shapes, classifier=()) == "b317261a26e0"
    assert signature(shapes, classifier=("fc",)) == signature({**shapes, "fc.weight": (3, 4)}, classifier=("fc",))
    assert signature(shapes, classifier=("fc",)) != signature(shapes, classifier=())


def test_lookup_imports_no_framework():
    code = (
        "import sys; from gbnn_compress.checkpoint.architecture_index import find_architectures;"
        "find_architectures({'fc.weight': (10, 4)});"
        "sys.exit(bool({'torch', 'timm', 'torchvision', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_index_is_small_sorted_and_says_its_versions(index):
    assert set(index) == {"versions", "classifiers", "with_classifier", "without_classifier"}
    assert set(index["versions"]) == {"timm", "torchvision"}
    assert index["classifiers"] == sorted(index["classifiers"])
    for kind in ("with_classifier", "without_classifier"):
        assert list(index[kind]) == sorted(index[kind])
        assert all(re.fullmatch("[0-9a-f]{12}", digest) for digest in index[kind].values())
    assert {name.partition("/")[0] for name in index["with_classifier"]} == {"timm", "torchvision"}
    size_bytes = len(resources.files("gbnn_compress.checkpoint").joinpath(INDEX_NAME).read_bytes())
    assert size_bytes <= 300_000


def test_builder_agrees_with_the_shipped_index(index):
    spec = importlib.util.spec_from_file_location("build_architecture_index", SCRIPT)
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    built, skipped = builder.build_index(only="resnet18")
    if built["versions"] != index["versions"]:
        pytest.skip("the index was built from other versions of torchvision and timm")
    assert skipped == {}
    assert built["classifiers"] == ["fc", "last_linear"]
    shipped = {name: digest for name, digest in index["with_classifier"].items() if "resnet18" in name}
    assert built["with_classifier"] == shipped


@pytest.mark.parametrize(
    ("spec", "spell"),
    [
        ("torchvision/shufflenet_v2_x0_5", lambda name: f"module.{name}"),
        ("torchvision/shufflenet_v2_x0_5", lambda name: f"_orig_mod.module.model.{name}"),
        ("torchvision/shufflenet_v2_x0_5", lambda name: name.replace("stage2.", "stage2.module.", 1)),
        ("torchvision/shufflenet_v2_x0_5", lambda name: f"net.{name}"),
        ("timm/test_resnet", lambda name: f"model.{name}"),
    ],
)
def test_wrapped_names_are_looked_up_too(spec, spell):
    from gbnn_compress.data.architectures import build_network

    network = build_network(spec, n_classes=7)
    shapes = {spell(name): tuple(t.shape) for name, t in network.state_dict().items() if t.is_floating_point()}
    for beside in ({}, {"criterion.weight": (7,)} if spell("x.y").partition(".")[0] != "x" else {}):
        match = find_architectures(shapes | beside)
        assert spec in match.names
        assert match.n_classes == 7


def test_a_network_beside_another_is_not_looked_up():
    from gbnn_compress.data.architectures import build_network

    network = build_network("torchvision/shufflenet_v2_x0_5")
    shapes = {f"a.{name}": tuple(t.shape) for name, t in network.state_dict().items() if t.is_floating_point()}
    assert find_architectures(shapes | {"b.weight": (1000, 1000)}).names == ()
