"""Construction of networks from architecture specifications, loading of weights, and published preprocessing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.names import is_counter, match_names, rename
from gbnn_compress.data.preprocessing import Preprocessing
from gbnn_compress.data.user_code import attempt, user_attribute
from gbnn_compress.errors import ArchitectureError, did_you_mean, listed, nearest
from gbnn_compress.types import Fit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

_IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), image_size=None)
# Their pretrained weights expect transformed inputs. Their initialisation is slow and not needed.
_TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {
    name: {"transform_input": True, "init_weights": False} for name in ("googlenet", "inception_v3")
}
_N_NAMES_SHOWN = 3


def build_network(spec: str, *, n_classes: int | None = None) -> torch.nn.Module:
    """Build a network with newly initialised weights, in evaluation mode. Nothing is downloaded.

    Args:
        spec: `torchvision/NAME` (classifiers), `timm/NAME`, `path/to/models.py:callable` or
            `package.module:callable`. The last two run the user's own code; the callable gets no arguments.
        n_classes: Number of classes, for torchvision and timm. None: the architecture's default.

    Raises:
        ArchitectureError: The name is unknown, or the user's code cannot be loaded, fails or returns no module.
    """
    import torch

    options = {} if n_classes is None else {"num_classes": n_classes}
    if spec.startswith("torchvision/"):
        network = _torchvision_network(spec, options)
    elif spec.startswith("timm/"):
        network = _timm_network(spec, options)
    else:
        network = _own_network(spec)
    if not isinstance(network, torch.nn.Module):
        raise ArchitectureError(f"`{spec}` must return a torch.nn.Module, got `{type(network).__name__}`")
    return network.eval()


def load_weights(
    network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, spec: str, strict: bool | None = None
) -> Fit:
    """Copy a checkpoint's tensors into a network, at the network's dtypes.

    Names may differ by wrappers' parts, as `match_names` describes. Missing `num_batches_tracked` counters keep their
    initial value, because only training uses them. Tensors that are tied in the network are needed under one of their
    names only. Old names that the network itself renames on loading (torchvision's vision transformers) are accepted,
    and so are networks that ask for the version of the saved state (torchvision's MNASNet).

    Args:
        network: The network, built from `spec`. It is changed in place, even if an error is raised.
        tensors: Name -> tensor of any floating dtype.
        spec: The architecture, for messages.
        strict: True: tensors that the network lacks, and missing tensors, are refused. None: tensors that the network
            lacks are left out, missing tensors are refused. False: missing tensors also keep the network's values.

    Returns:
        The names in the network, and the names that were left out.

    Raises:
        ArchitectureError: Tensors are missing or unexpected, no tensor fits, or shapes differ.
    """
    misfit = f"the checkpoint does not fit `{spec}`"
    held = network.state_dict(keep_vars=True)
    own = {name: tuple(tensor.shape) for name, tensor in held.items() if hasattr(tensor, "shape")}
    matched = match_names({name: tuple(tensor.shape) for name, tensor in tensors.items()}, own)
    wrong = {
        mine: f"`{name}` is {list(tensors[name].shape)} in the checkpoint and {list(own[mine])} in `{spec}`"
        for name, mine in matched.items()
        if own[mine] != tuple(tensors[name].shape)
    }
    spelled = rename(tensors, matched)
    offered = {spelled[name]: tensor for name, tensor in tensors.items() if spelled[name] not in wrong}
    missing, unexpected = _attempt(misfit, lambda: _copy(network, offered))
    tied = {id(held[name]) for name in own.keys() - set(missing)}
    missing = [name for name in missing if id(held.get(name)) not in tied]
    missing = [name for name in missing if name not in wrong and not _may_be_missing(name)]
    left = {*unexpected, *wrong}
    extra = [name for name in tensors if spelled[name] in left and matched.get(name) not in wrong]
    nothing = len(extra) == len(tensors)
    if wrong or nothing or (missing and strict is not False) or (extra and strict):
        raise ArchitectureError(
            f"{misfit}: {_differences(wrong, missing, extra)}; give the `--arch` that it was trained with"
        )
    return Fit({name: mine for name, mine in matched.items() if mine not in wrong}, tuple(extra))


def _may_be_missing(name: str) -> bool:
    """Whether the network can keep its initial value of a tensor."""
    return is_counter(name) or name.endswith("_extra_state")


def _differences(wrong: Mapping[str, str], missing: Sequence[str], extra: Sequence[str]) -> str:
    parts = (
        _some(list(wrong.values()), "{} with another shape"),
        _some([f"`{name}`" for name in missing], "{} missing from the checkpoint"),
        _some([f"`{name}`" for name in extra], "{} not in the architecture"),
    )
    return "; ".join(filter(None, parts))


def default_preprocessing(spec: str | None, *, n_channels: int) -> Preprocessing:
    """The preprocessing that an architecture's published weights were trained with.

    For timm: the model's data config. For torchvision: the transforms of the default weights. Otherwise: mean and
    standard deviation of ImageNet, at the stored size. If the data has another number of channels: mean 0 and standard
    deviation 1.

    Args:
        spec: Specification as in `build_network`, or None.
        n_channels: Number of channels of the data.

    Raises:
        ArchitectureError: The torchvision or timm name is unknown.
    """
    if spec is not None and spec.startswith("torchvision/"):
        found = _torchvision_preprocessing(spec)
    elif spec is not None and spec.startswith("timm/"):
        found = _timm_preprocessing(spec)
    else:
        found = _IMAGENET
    if len(found.mean) == n_channels:
        return found
    return replace(found, mean=(0.0,) * n_channels, std=(1.0,) * n_channels)


def _torchvision_network(spec: str, options: dict[str, Any]) -> object:
    import torchvision

    name = _torchvision_name(spec)
    options = _TORCHVISION_OPTIONS.get(name, {}) | options
    return _attempt(f"`{spec}` cannot be built", lambda: torchvision.models.get_model(name, weights=None, **options))


def _torchvision_preprocessing(spec: str) -> Preprocessing:
    import torchvision

    transforms = torchvision.models.get_model_weights(_torchvision_name(spec)).DEFAULT.transforms()
    size = transforms.crop_size[0]
    return Preprocessing(
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        image_size=size,
        crop_fraction=size / transforms.resize_size[0],
    )


def _torchvision_name(spec: str) -> str:
    import torchvision

    name = spec.removeprefix("torchvision/")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ArchitectureError(f"torchvision has no classifier `{spec}`{did_you_mean(nearest(name, known))}")
    return name


def _timm_network(spec: str, options: dict[str, Any]) -> object:
    import timm

    name = _timm_name(spec)
    return _attempt(f"`{spec}` cannot be built", lambda: timm.create_model(name, pretrained=False, **options))


def _timm_preprocessing(spec: str) -> Preprocessing:
    from timm.models import get_pretrained_cfg

    name = _timm_name(spec)
    config = _attempt(f"`{spec}` cannot be built", lambda: get_pretrained_cfg(name))
    if config is None:
        return _IMAGENET
    return Preprocessing(
        mean=tuple(config.mean),
        std=tuple(config.std),
        image_size=config.input_size[1],
        crop_fraction=min(1.0, config.crop_pct),  # above 1 in a few configs that pad
    )


def _timm_name(spec: str) -> str:
    import timm

    # timm accepts more names than it lists: schemes that read from a hub or the disk, and deprecated aliases without a
    # data config.
    name = spec.removeprefix("timm/")
    architecture, known = name.partition(".")[0], timm.list_models()
    if architecture not in known:
        raise ArchitectureError(f"timm has no `{spec}`{did_you_mean(nearest(architecture, known))}")
    return name


def _own_network(spec: str) -> object:
    import torch

    source, _, attribute = spec.rpartition(":")
    if not (source and attribute):
        raise ArchitectureError(
            f"unknown architecture `{spec}`, expected torchvision/NAME, timm/NAME, path/to/models.py:callable"
            " or package.module:callable"
        )
    with user_attribute(spec, error=ArchitectureError) as factory:
        if isinstance(factory, torch.nn.Module):
            return factory
        if not callable(factory):
            raise ArchitectureError(f"`{spec}` must be callable, got `{type(factory).__name__}`")
        return _attempt(f"`{spec}` fails when called without arguments", factory)


def _copy(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Load without versions first, as from safetensors: networks that rename old names do so only then."""
    try:
        return network.load_state_dict(tensors, strict=False)
    except ValueError:
        own = network.state_dict()
        own.clear()
        own.update(tensors)  # keeps the versions of the network's own state dict
        return network.load_state_dict(own, strict=False)


def _attempt(what: str, action: Callable[[], Any]) -> Any:
    """Run code of a library or the user, and turn any exception into a one-line error."""
    return attempt(what, action, error=ArchitectureError)


def _some(items: Sequence[str], heading: str) -> str:
    if not items:
        return ""
    return f"{heading.format(len(items))} ({listed(items, most=_N_NAMES_SHOWN, quote='')})"
