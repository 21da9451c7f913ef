"""Tracing the network of an artifact: from the weights and a first run to an ONNX model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.architectures import load_weights
from gbnn_compress.data.kind import CLASSIFIER
from gbnn_compress.errors import ArchitectureError, GbnnError, listed
from gbnn_compress.onnx_files.call import Call
from gbnn_compress.onnx_files.given import Given, from_data, made_inputs, random_images
from gbnn_compress.onnx_files.graph import FixedAxisError
from gbnn_compress.onnx_files.reference import Outputs, Reference, require_steady, run
from gbnn_compress.onnx_files.signature import Signature, signature_of
from gbnn_compress.predict.draws import place, sampler
from gbnn_compress.predict.forward import Forward
from gbnn_compress.predict.models import extra_notes, open_network
from gbnn_compress.predict.running import logits
from gbnn_compress.predict.task import settled_task
from gbnn_compress.predict.temperature import folded_temperature

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir
    import torch

    from gbnn_compress.data.made_inputs import InputSpec
    from gbnn_compress.types import Artifact


@dataclass(frozen=True)
class Asked:
    """What a file is asked to hold, and the inputs that it is checked with."""

    weights: str
    seeds: tuple[int, ...]
    forward: Forward
    task: str | None
    data: Any
    specs: Sequence[InputSpec]
    input_shape: Sequence[int] | None


@dataclass(frozen=True, eq=False)
class Traced:
    """One network as a model.

    Attributes:
        artifact: The artifact.
        given: The inputs of the check.
        expected: The outputs that the file must give, for each call of the check.
        made: The model.
        notes: Sentences for the report.
    """

    artifact: Artifact
    given: Given
    expected: list[Outputs]
    made: Made
    notes: tuple[str, ...]


def traced_network(artifact: Artifact, arch: Any, asked: Asked, *, like: Traced | None) -> Traced:
    """Run a network on the inputs of the check, and convert it.

    Args:
        artifact: The artifact.
        arch: Its architecture, as for `export_onnx`.
        asked: The form and the inputs.
        like: The first member of the ensemble, for the others, which take inputs of the same shape.

    Raises:
        GbnnError: The network cannot be opened, run or exported, or has other inputs or outputs than the first.
    """
    module, spec, notes = _network(artifact, arch)
    if asked.data is not None:
        given = from_data(module, asked.forward, asked.data, spec=spec)
    elif asked.specs:
        given = made_inputs(module, asked.forward, asked.specs)
    else:
        shape = asked.input_shape if like is None else like.given.calls[0].tensors[0].shape[1:]
        given = random_images(module, asked.forward, shape=shape, spec=spec)
    signature = _signature(module, artifact, given, task=asked.task, indexed=arch is None)
    reference = _reference(module, artifact, given, signature, spec=spec)
    expected = reference.averaged(asked.seeds) if asked.seeds else reference.at_mean()
    if like is not None:
        _require_alike(signature, expected, like)
    made = _converted(module, artifact, reference, weights=asked.weights, seeds=asked.seeds, spec=spec)
    return Traced(artifact, given, expected, made, (*notes, *made.notes))


def _require_alike(signature: Signature, outputs: Sequence[Outputs], first: Traced) -> None:
    """Refuse a member whose inputs or outputs are not those of the first member."""
    ours, its = (
        (each.inputs, each.floating, {name: array.shape for name, array in found[0].items()})
        for each, found in ((signature, outputs), (first.made.signature, first.expected))
    )
    if ours != its:
        raise ArchitectureError(
            f"expected the inputs and outputs of member 0, {_ends(*its)}, got {_ends(*ours)}; choose one output with"
            " `--output`, check `--arch`, or join other networks"
        )


def _ends(inputs: Sequence[str], floating: Sequence[bool], outputs: Mapping[str, Sequence[int]]) -> str:
    shapes = ", ".join(f"`{name}` {list(shape)}" for name, shape in outputs.items())
    return f"from {listed(inputs)} to {shapes}"


def _network(artifact: Artifact, arch: Any) -> tuple[torch.nn.Module, str, list[str]]:
    """The network in float32 with the posterior mean, its name, and notes; the caller's module is not changed."""
    opened = open_network(artifact, arch)
    return opened.network.float().eval(), opened.spec, list(extra_notes(opened.fit, spec=opened.spec))


def _signature(
    module: torch.nn.Module, artifact: Artifact, given: Given, *, task: str | None, indexed: bool
) -> Signature:
    """Names of inputs and outputs, and the task, from a first run."""
    try:
        outputs = run(module, given.calls[0], option=given.option)
    except ArchitectureError:
        if given.images and given.calls[0].forward == Forward():
            logits(module, [given.batch], option=given.option)  # the message names channels and sizes
        raise

    require_steady(module, given.calls[0], outputs, option=given.option)

    def floating() -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in outputs.items() if tensor.is_floating_point()}

    settled = settled_task(
        given.batch, floating, task=task, facts=artifact.facts, labelled=given.labelled, indexed=indexed
    )
    return signature_of(given.names, given.axes, outputs, classifier=settled == CLASSIFIER)


def _reference(
    module: torch.nn.Module, artifact: Artifact, given: Given, signature: Signature, *, spec: str
) -> Reference:
    """The module with the draws of the artifact; it holds the posterior mean."""
    source = sampler(artifact, module, load=lambda tensors: load_weights(module, tensors, spec=spec))
    temperature = folded_temperature(artifact) if signature.classifier else 1.0
    return Reference(module, given, signature, lambda seed: place(source, seed), temperature)


@dataclass(frozen=True)
class Made:
    """A model.

    Attributes:
        model: The model.
        signature: Inputs and outputs, with the axes that are free in the model.
        notes: Sentences on axes that are fixed.
    """

    model: ir.Model
    signature: Signature
    notes: tuple[str, ...] = ()


def _converted(
    module: torch.nn.Module, artifact: Artifact, reference: Reference, *, weights: str, seeds: Sequence[int], spec: str
) -> Made:
    """The model; where the batch size of data cannot be free, for that of the first batch."""
    from gbnn_compress.onnx_files.forms import onnx_model

    given, signature = reference.given, reference.signature
    names = _names(module, artifact, weights=weights, spec=spec)

    def attempt(signature: Signature, traced: Call) -> ir.Model:
        try:
            return onnx_model(
                module,
                artifact,
                traced,
                signature=signature,
                names=names,
                weights=weights,
                seeds=seeds,
                temperature=reference.temperature,
            )
        except GbnnError:
            raise
        except Exception as error:  # any exception of torch's exporter or of the user's network
            raise ArchitectureError(f"`{spec}` cannot be exported to ONNX ({_reason(error)})") from error

    try:
        return Made(attempt(signature, given.traced), signature)
    except ArchitectureError as error:
        if given.required or not any(signature.axes):
            raise _refusal(error, given) from error
        fixed = replace(signature, axes=({},) * len(signature.axes))
        note = f"The file takes batches of {given.calls[0].size} input(s) only: {error}."
        return Made(attempt(fixed, given.calls[0]), fixed, (note,))


def _refusal(error: ArchitectureError, given: Given) -> ArchitectureError:
    """The same error with the way out."""
    if not isinstance(error, FixedAxisError):
        return error
    if given.images:
        return ArchitectureError(
            "the network can be exported for one batch size only, because it loops over the images of a batch or"
            " holds their number as a constant; rewrite its `forward` without either"
        )
    way_out = "give its size in place of its name" if given.option == "--input" else "give batches of one size"
    return ArchitectureError(f"{error}; {way_out}, or rewrite its `forward`")


def _names(module: torch.nn.Module, artifact: Artifact, *, weights: str, spec: str) -> dict[str, str]:
    """Name in the module -> name in the artifact of the tensors that the file does not hold as they are."""
    from gbnn_compress.onnx_files.external import KINDS, can_be_external
    from gbnn_compress.onnx_files.own_names import own_names

    if weights != "external":
        return own_names(module, artifact, kinds=("shared",), spec=spec)
    outside = {info.name for info in artifact.tensors if can_be_external(info)}
    return {own: name for own, name in own_names(module, artifact, kinds=KINDS, spec=spec).items() if name in outside}


def _reason(error: BaseException) -> str:
    """The first line of the first exception in a chain; the rest is advice on reporting, or a page of code."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
