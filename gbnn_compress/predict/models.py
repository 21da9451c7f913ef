"""Reading of checkpoints and artifacts, and construction of the network that the weights belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbnn_compress.checkpoint.architecture_index import ArchitectureMatch, find_architectures
from gbnn_compress.checkpoint.objects import is_module, read_any
from gbnn_compress.checkpoint.select import floating_shapes
from gbnn_compress.data.architectures import build_network, load_weights
from gbnn_compress.data.user_code import attempt
from gbnn_compress.errors import ArchitectureError, GbnnError, listed, one_line
from gbnn_compress.format.container import FORMAT
from gbnn_compress.format.ensembles import read_ensemble
from gbnn_compress.predict.alike import in_member, per_member
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.predict.running import copied
from gbnn_compress.report import words
from gbnn_compress.types import Artifact, Checkpoint, Ensemble, Fit, Model

if TYPE_CHECKING:
    import torch


MOST_LEFT_OUT = 0.2
"""Fraction of a checkpoint's weights that the network may lack before a warning says so."""


@dataclass(frozen=True)
class OpenedNetwork:
    """A network that holds the weights of a checkpoint, or the posterior mean of an artifact.

    Attributes:
        network: The network, on the CPU.
        spec: Specification of its architecture; of a module, the index's name for it or its class.
        fit: Names of the model's tensors in the network.
    """

    network: torch.nn.Module
    spec: str
    fit: Fit

    def on(self, device: torch.device) -> torch.nn.Module:
        """The network itself if the device is the CPU, else a copy on the device."""
        return self.network if device.type == "cpu" else copied(self.network).to(device)

    def copied(self) -> OpenedNetwork:
        """The same with a copy of the network, for runs with other weights."""
        return replace(self, network=copied(self.network))


def open_network(
    model: Checkpoint | Artifact,
    arch: Any = None,
    *,
    match: ArchitectureMatch | None = None,
    strict: bool | None = None,
) -> OpenedNetwork:
    """Build a model's network and load its weights.

    Args:
        model: The weights.
        arch: Specification of the network; or a module, of which a copy is taken; or a callable that makes one; or a
            list of one of these. Default: the one that the artifact records or the index finds.
        match: Result of `match_of` for the model, if it was called before.
        strict: As in `load_weights`: True refuses tensors that the network lacks, None leaves them out, False also
            keeps the network's values of tensors that the model lacks.

    Raises:
        ArchitectureError: The architecture is unknown, cannot be built, or does not fit the weights.
    """
    (arch,) = per_member(arch, 1)
    match = match or match_of(model)
    if arch is None or isinstance(arch, str):
        spec = arch or known_architecture(model, match=match)
        network = build_network(spec, n_classes=match.n_classes)
    else:
        network = made_network(arch)
        spec = published_name(network, match) or type(network).__name__
    return OpenedNetwork(network, spec, load_weights(network, dense(model), spec=spec, strict=strict))


def match_of(model: Checkpoint | Artifact) -> ArchitectureMatch:
    """The architectures of the index that fit a model's tensors."""
    return find_architectures(shapes_of(model))


def made_network(arch: Any) -> torch.nn.Module:
    """A copy of the user's module, or what the user's callable makes; on the CPU, in evaluation mode.

    Raises:
        ArchitectureError: The callable fails or makes no module, or the module cannot be copied.
        GbnnError: The object is of another type.
    """
    check_arch(arch)
    if not is_module(arch):
        made = attempt(f"`{name_of_arch(arch)}` fails when called without arguments", arch, error=ArchitectureError)
        if not is_module(made):
            got = type(made).__name__
            raise ArchitectureError(f"`{name_of_arch(arch)}` must return a torch.nn.Module, got `{got}`")
        return made.cpu().eval()
    try:
        return copied(_unwrapped(arch)).cpu().eval()
    except Exception as error:  # whatever the user's own module raises
        raise ArchitectureError(
            f"`{name_of_arch(arch)}` cannot be copied ({one_line(error)}); give its state_dict() as the checkpoint, and"
            " a callable that makes the network as `arch`"
        ) from error


def check_arch(arch: Any) -> None:
    """Refuse an architecture of another type.

    Raises:
        GbnnError: It is neither None nor text, nor a module or a callable.
    """
    if arch is not None and not isinstance(arch, str) and not callable(arch):
        raise GbnnError(
            "`arch`: expected text (such as torchvision/resnet18), a torch.nn.Module or a callable that makes one, got"
            f" `{type(arch).__name__}`"
        )


def name_of_arch(arch: Any) -> str:
    """Name of an architecture for messages: the specification, the module's class or the callable's name."""
    if isinstance(arch, str):
        return arch
    return type(arch).__name__ if is_module(arch) else str(getattr(arch, "__name__", type(arch).__name__))


def published_name(network: torch.nn.Module, match: ArchitectureMatch) -> str | None:
    """The architecture of the index that a module of torchvision or timm is; None if it is not known or not theirs."""
    package = type(network).__module__.partition(".")[0]
    names = [name for name in match.names if name.partition("/")[0] == package]
    return names[0] if len(names) == len(match.names) == 1 else None


def _unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """The module inside wrappers that run it on several devices or compile it, which cannot be copied."""
    import torch

    while isinstance(network, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        network = network.module
    inner = getattr(network, "_orig_mod", None)
    return inner if isinstance(inner, torch.nn.Module) else network


def open_members(model: Ensemble, arch: Any = None) -> list[OpenedNetwork]:
    """Build the network of each member of an ensemble and load its weights.

    Members that have one architecture and tensors of the same names and shapes share one network, which holds the
    weights of the first of them.

    Args:
        model: The ensemble.
        arch: One architecture for all members, or a list with one for each, as for `open_network`.

    Raises:
        GbnnError: There are more or fewer architectures than members, or one is unknown or does not fit.
    """
    opened: list[tuple[Any, dict[str, tuple[int, ...]], OpenedNetwork]] = []
    for number, (member, own) in enumerate(zip(model.members, per_member(arch, len(model.members)), strict=True)):
        shapes = {info.name: info.shape for info in member.tensors}
        made_by = member.facts["checkpoint"]["architecture"] if own is None else own
        alike = (known for other, names, known in opened if other == made_by and names == shapes)
        with in_member(number):
            opened.append((made_by, shapes, next(alike, None) or open_network(member, own)))
    return [known for _, _, known in opened]


def read_model(given: Any, *, key: str | None = None, argument: str = "model") -> Model:
    """Read a checkpoint, an artifact or an ensemble. A file's header says which it is.

    Args:
        given: A file, a folder, a module or a mapping of tensors.
        key: Network to take from a checkpoint that holds several; ignored for an artifact, which holds one.
        argument: Name of the argument, for messages.

    Raises:
        GbnnError: The object is neither a checkpoint nor an artifact, or is damaged.
    """
    if isinstance(given, str | Path) and is_artifact(Path(given)):
        found = read_ensemble(Path(given))
        return found.members[0] if len(found.members) == 1 else found
    return read_any(given, key=key, argument=argument)


def arch_of(given: Any, arch: Any) -> Any:
    """The architecture of a checkpoint: the given one, or a module's own; of an ensemble, a list of them."""
    for each in arch if isinstance(arch, list | tuple) else [arch]:
        check_arch(each)
    return given if arch is None and is_module(given) else arch


def extra_notes(fit: Fit, *, spec: str) -> tuple[str, ...]:
    """A sentence that names the checkpoint's tensors that the network lacks; empty if it has all."""
    if not fit.extra:
        return ()
    return (f"`{spec}` has no {listed(fit.extra)}: kept in the file, not used by the network.",)


def left_out_warnings(fit: Fit, model: Checkpoint | Artifact, *, spec: str) -> list[str]:
    """A warning if the network lacks more of a checkpoint's weights than counters, heads and losses account for."""
    sizes = {name: math.prod(shape) for name, shape in shapes_of(model).items()}
    left = sum(sizes.get(name, 0) for name in fit.extra) / max(sum(sizes.values()), 1)
    if left <= MOST_LEFT_OUT:
        return []
    found = f"`{spec}` has no tensor for {words.percent(left)} of the weights"
    return [f"{found} ({listed(fit.extra)}): calibration and evaluation run without them; check `--arch`"]


def is_artifact(path: Path) -> bool:
    """Whether a file is a safetensors container in this package's format."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return f'{{"__metadata__":{{"{FORMAT}":'.encode() in file.read(64)
    except OSError:
        return False


def dense(model: Checkpoint | Artifact) -> Mapping[str, torch.Tensor]:
    """The state dict of a checkpoint, or the posterior mean of an artifact."""
    return rebuild(model) if isinstance(model, Artifact) else model.tensors


def shapes_of(model: Checkpoint | Artifact) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each floating tensor."""
    if isinstance(model, Checkpoint):
        return floating_shapes(model.tensors)
    return {info.name: info.shape for info in model.tensors if "float" in info.dtype}


def known_architecture(model: Checkpoint | Artifact, *, match: ArchitectureMatch | None = None) -> str:
    """The architecture that the artifact records, or the only one in the index that fits the tensors.

    Args:
        model: The weights.
        match: Result of `match_of` for the model, if it was called before.

    Raises:
        ArchitectureError: No architecture fits, or several do.
    """
    recorded = model.facts["checkpoint"]["architecture"] if isinstance(model, Artifact) else None
    names = (recorded,) if recorded else (match or match_of(model)).names
    if len(names) == 1:
        return names[0]
    found = f"several fit ({', '.join(names[:6])})" if names else "no torchvision or timm network fits its tensors"
    raise ArchitectureError(
        f"the architecture is not known: {found}; name it with `--arch`, such as torchvision/resnet18 or"
        " models.py:resnet20"
    )
