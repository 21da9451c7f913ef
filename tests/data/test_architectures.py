import sys

import pytest
import torch
import torchvision

from gbnn_compress.data.architectures import build_network, default_preprocessing, load_weights
from gbnn_compress.errors import ArchitectureError


@pytest.fixture
def models(tmp_path):
    def write(text: str, name: str = "models.py") -> str:
        (tmp_path / name).write_text("import torch\n" + text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("spec", ["torchvision/shufflenet_v2_x0_5", "timm/test_resnet", "timm/test_resnet.r160_in1k"])
def test_named_architectures(spec):
    network = build_network(spec, n_classes=7)
    assert not network.training
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_architecture_in_a_file_with_a_neighbour_to_import(models):
    models("def head(): return torch.nn.Linear(2, 3)", "neighbour_of_models.py")
    path = models("from neighbour_of_models import head\nclass Net(torch.nn.Linear): pass\nshared = head()")
    before = list(sys.path)
    assert isinstance(build_network(f"{path}:shared", n_classes=9), torch.nn.Linear)
    assert not build_network(f"{path}:head").training
    assert sys.path == before


def test_architecture_in_a_module():
    assert isinstance(build_network("torch.nn:Identity"), torch.nn.Identity)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "unknown architecture `resnet18`, expected torchvision/NAME, timm/NAME, "),
        (
            "torchvision/resnet19",
            r"torchvision has no classifier `torchvision/resnet19` \(did you mean `resnet18`",
        ),
        ("timm/resnet19", r"timm has no `timm/resnet19` \(did you mean `resnet18`\?\)"),
        ("timm/hf-hub:timm/resnet18", "timm has no `timm/hf-hub:timm/resnet18`"),
        (
            "timm/test_resnet.tag",
            r"`timm/test_resnet.tag` cannot be built \(RuntimeError: Invalid pretrained tag",
        ),
        ("nowhere.py:net", "`nowhere.py:net`: no file `nowhere.py`"),
        ("no_such_package:net", "`no_such_package` cannot be imported .*No module named"),
        ("torch.nn:Identitty", r"`torch.nn` has no `Identitty` \(did you mean `Identity`\?\)"),
        ("torch.nn:Linear", "`torch.nn:Linear` fails when called without arguments .*TypeError: "),
        ("math:pi", "`math:pi` must be callable, got `float`"),
        ("builtins:dict", "`builtins:dict` must return a torch.nn.Module, got `dict`"),
    ],
)
def test_error_architecture(spec, message):
    with pytest.raises(ArchitectureError, match=message) as error:
        build_network(spec)
    assert "\n" not in str(error.value)


def test_error_file_of_architectures_fails(models):
    with pytest.raises(ArchitectureError, match=r"models.py` cannot be imported \(NameError: name 'oops'"):
        build_network(f"{models('oops')}:net")


def test_error_impossible_number_of_classes():
    with pytest.raises(ArchitectureError, match="`torchvision/shufflenet_v2_x0_5` cannot be built"):
        build_network("torchvision/shufflenet_v2_x0_5", n_classes=-1)


def small_network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def test_half_precision_weights_are_loaded_without_counters():
    tensors = {
        name: tensor.half().fill_(0.25)
        for name, tensor in small_network().state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    network = small_network()
    load_weights(network, tensors, spec="m:f")
    assert network[0].weight.dtype == torch.float32
    assert (network[0].weight == 0.25).all()
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())


def test_names_that_the_network_renames_are_accepted():
    # torchvision's published vision transformers still use the old names.
    block = torchvision.models.vision_transformer.MLPBlock(2, 3, 0.0)
    old = {"0": "linear_1", "3": "linear_2"}
    tensors = {f"{old[name[0]]}{name[1:]}": tensor + 1 for name, tensor in block.state_dict().items()}
    load_weights(block, tensors, spec="torchvision/vit_b_16")
    assert torch.equal(block[0].weight, tensors["linear_1.weight"])


def test_network_that_asks_for_its_version_takes_tensors_without_one():
    network = torchvision.models.mnasnet0_5(num_classes=2)
    tensors = {name: tensor + 1 for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match="version"):
        network.load_state_dict(tensors)
    load_weights(network, tensors, spec="torchvision/mnasnet0_5")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())


def test_error_names_and_shapes_that_do_not_fit():
    tensors = small_network().state_dict()
    del tensors["1.running_mean"]
    tensors |= {"0.weight": torch.zeros(4, 5)} | {f"head.{k}": torch.zeros(1) for k in range(4)}
    message = (
        r"does not fit `m:f`: 1 with another shape \(`0.weight` is \[4, 5\] in the checkpoint and \[4, 3\] in"
        r" `m:f`\); 1 missing from the checkpoint \(`1.running_mean`\); 4 not in the architecture"
        r" \(`head.0`, `head.1`, `head.2` and 1 more\); give the `--arch`"
    )
    with pytest.raises(ArchitectureError, match=message):
        load_weights(small_network(), tensors, spec="m:f")


def test_missing_tensors_are_refused_unless_the_caller_takes_any():
    tensors = small_network().state_dict()
    del tensors["0.bias"]
    for strict in (None, True):
        with pytest.raises(ArchitectureError, match=r"fit `m:f`: 1 missing from the checkpoint \(`0.bias`\); give"):
            load_weights(small_network(), tensors, spec="m:f", strict=strict)
    assert load_weights(small_network(), tensors, spec="m:f", strict=False).extra == ()


def test_tensors_that_the_network_does_not_have_are_named_or_refused():
    tensors = {**small_network().state_dict(), "a": torch.zeros(1)}
    for strict in (None, False):
        assert load_weights(small_network(), tensors, spec="m:f", strict=strict).extra == ("a",)
    with pytest.raises(ArchitectureError, match=r"`m:f`: 1 not in the architecture \(`a`\); give"):
        load_weights(small_network(), tensors, spec="m:f", strict=True)


def test_a_network_that_nothing_fits_is_refused_even_so():
    with pytest.raises(ArchitectureError, match=r"missing from the checkpoint .* 1 not in the architecture \(`a`\)"):
        load_weights(small_network(), {"a": torch.zeros(1)}, spec="m:f", strict=False)


def test_what_the_network_ties_may_be_stored_once():
    network, other = (torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)}) for _ in range(2))
    for each in (network, other):
        each["b"].weight = each["a"].weight
    tensors = {name: tensor for name, tensor in other.state_dict().items() if name != "a.weight"}
    assert load_weights(network, tensors, spec="m:f").extra == ()
    assert torch.equal(network["a"].weight, other["a"].weight)


def test_error_loading_fails_otherwise():
    class Stubborn(torch.nn.Linear):
        def _load_from_state_dict(self, *args):
            raise RuntimeError("too\nold")

    network = Stubborn(1, 1)
    with pytest.raises(ArchitectureError, match=r"does not fit `m:f` \(RuntimeError: too old\)"):
        load_weights(network, network.state_dict(), spec="m:f")


@pytest.mark.parametrize(
    ("spec", "mean", "image_size", "crop_fraction"),
    [
        (None, 0.485, None, 1.0),
        ("models.py:net", 0.485, None, 1.0),
        ("torchvision/inception_v3", 0.485, 299, 299 / 342),
        ("timm/vit_base_patch16_224", 0.5, 224, 0.9),
        ("timm/resnet50.a1_in1k", 0.485, 224, 0.95),
        ("timm/volo_d4_448", 0.485, 448, 1.0),
    ],
)
def test_default_preprocessing(spec, mean, image_size, crop_fraction):
    found = default_preprocessing(spec, n_channels=3)
    assert (found.mean[0], found.image_size, found.crop_fraction) == (mean, image_size, crop_fraction)


@pytest.mark.parametrize(("spec", "image_size"), [(None, None), ("torchvision/resnet18", 224)])
def test_default_preprocessing_of_greyscale(spec, image_size):
    found = default_preprocessing(spec, n_channels=1)
    assert (found.mean, found.std, found.image_size) == ((0.0,), (1.0,), image_size)


@pytest.mark.parametrize("spec", ["torchvision/resnet19", "timm/resnet19", "timm/test_resnet.tag"])
def test_error_default_preprocessing_of_an_unknown_name(spec):
    with pytest.raises(ArchitectureError, match=spec):
        default_preprocessing(spec, n_channels=3)
