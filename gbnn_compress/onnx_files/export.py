"""Export of an artifact to an ONNX file that is checked in ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.architectures import load_weights
from gbnn_compress.data.kind import CLASSIFIER, check_task
from gbnn_compress.data.made_inputs import parse_inputs
from gbnn_compress.errors import ArchitectureError, GbnnError, listed, require_seed
from gbnn_compress.files import refuse_inputs, require_writable, same_file, write_atomically
from gbnn_compress.format.ensembles import read_ensemble
from gbnn_compress.onnx_files.call import Call
from gbnn_compress.onnx_files.given import Given, from_data, made_inputs, random_images
from gbnn_compress.onnx_files.graph import OPSET, FixedAxisError
from gbnn_compress.onnx_files.reference import Outputs, Reference, require_steady, run
from gbnn_compress.onnx_files.signature import Signature, signature_of
from gbnn_compress.predict.alike import in_member, per_member
from gbnn_compress.predict.draws import place, sampler
from gbnn_compress.predict.forward import Forward
from gbnn_compress.predict.models import extra_notes, open_network
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.predict.running import logits
from gbnn_compress.predict.task import settled_task
from gbnn_compress.predict.temperature import FACT as TEMPERATURE
from gbnn_compress.predict.temperature import folded_temperature
from gbnn_compress.predict.use import use_of
from gbnn_compress.report.schema import SCHEMA, ExportReport, OnnxInput
from gbnn_compress.report.sizes import n_values

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import onnx_ir as ir
    import torch

    from gbnn_compress.data.made_inputs import InputSpec
    from gbnn_compress.types import Artifact, Ensemble

FORMS = ("mean", "codebook", "samples", "external")


def export_onnx(
    artifact: str | Path,
    file: str | Path | None = None,
    *,
    weights: str = "mean",
    arch: Any = None,
    input_shape: Sequence[int] | None = None,
    inputs: Sequence[str] = (),
    data: Any = None,
    forward: Callable[[torch.nn.Module, Any], Any] | str | None = None,
    output: str | int | Path | None = None,
    task: str | None = None,
    samples: int = 16,
    seed: int = 0,
) -> ExportReport:
    """Write an artifact as one ONNX file, once its outputs in ONNX Runtime equal those of the network.

    Of an ensemble, whose `weights` must be `samples`, the file has the outputs averaged over all members.

    By default the model's input is `input`, float32 (N, *input_shape), preprocessed; N is free. `inputs` or `data` name
    and shape the inputs of other networks. Floating inputs and weights are float32.

    Args:
        artifact: The artifact, or an ensemble.
        file: The file to write; its name ends in `.onnx`.
        weights: `mean`: dense posterior means. `codebook`: the same as ids and codebooks, which the graph decodes. Both
            have the outputs of the network: a lone one is `logits` of classifiers and `output` of others, several have
            the names of the network's nesting (`value`, `parts.0`). `samples`: posterior samples with common ids. Of
            classifiers, the outputs are `probabilities`, `entropy` and `mutual_information` (nats); of others, each
            floating output is the mean, and `NAME.std` the standard deviation. `external`: a graph with the outputs of
            `mean` and without weights. Its initialisers are external data: the location is the name of a tensor of the
            artifact, and the values are those of `decompress`, or of a posterior sample.
        arch: Specification of the network, a module, or a callable that makes one. Default: the one that the artifact
            records or the index finds. Of an ensemble, also a list with one for each member.
        input_shape: Shape of one input. Default: that of the architecture's published weights.
        inputs: In place of `input_shape`: the inputs as `NAME:DTYPE:SHAPE`, such as `input_ids:int64:batch,sequence`.
            Axes with a name are free.
        data: In place of `input_shape` and `inputs`: data whose first batches are the inputs of the check: a
            specification, or an object that yields batches. The batch axis is free, and so are axes whose sizes differ
            between batches.
        forward: `f(network, batch) -> outputs`, where calling the network with the batch does not fit; or text
            `path.py:callable`.
        output: Name or position of the one output to export. Default: all. In place of `file`: the file to write.
        task: `classifier` or `other`. Default: what the artifact records, or what inputs and outputs suggest.
        samples: Number of posterior samples, >= 1, for `samples`; equal to those of `CompressedNetwork.predict`. Each
            member of an ensemble has as many.
        seed: Seed of the first sample.

    Returns:
        The report; docs/reports.md describes every key.

    Raises:
        GbnnError: The artifact, architecture, inputs or file are invalid, or the network cannot be exported.
    """
    target, chosen = _file_and_output(file, output)
    archs = arch if isinstance(arch, list | tuple) else [arch]
    reads = [each for each in (*archs, data, forward) if isinstance(each, str)]
    _check_request(target, Path(artifact), weights=weights, samples=samples, reads=reads)
    require_seed(seed)
    check_task(task)
    specs = parse_inputs(inputs)
    if sum((input_shape is not None, bool(specs), data is not None)) > 1:
        raise GbnnError("expected one of `--input-shape`, `--input` and `--data`, got several; leave out the others")
    found = read_ensemble(Path(artifact))
    count = len(found.members)
    if count > 1 and weights != "samples":
        raise GbnnError(
            f"`--weights {weights}`: an ensemble of {count} networks has no one set of weights; give `--weights"
            " samples`, or export the members' own files"
        )
    asked = _Asked(
        weights=weights,
        seeds=tuple(range(seed, seed + samples)) if weights == "samples" else (),
        forward=use_of(forward=forward, output=chosen).forward,
        task=task,
        data=data,
        specs=specs,
        input_shape=input_shape,
    )
    traced: list[_Traced] = []
    for number, (member, own) in enumerate(zip(found.members, per_member(arch, count), strict=True)):
        with in_member(number) if count > 1 else nullcontext():
            traced.append(_traced(member, own, asked, like=traced[0] if traced else None))
    return _written(target, found, traced, asked, seed=seed)


@dataclass(frozen=True)
class _Asked:
    """What a file is asked to hold, and the inputs that it is checked with."""

    weights: str
    seeds: tuple[int, ...]
    forward: Forward
    task: str | None
    data: Any
    specs: Sequence[InputSpec]
    input_shape: Sequence[int] | None


@dataclass(frozen=True, eq=False)
class _Traced:
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
    made: _Made
    notes: tuple[str, ...]


def _traced(artifact: Artifact, arch: Any, asked: _Asked, *, like: _Traced | None) -> _Traced:
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
    return _Traced(artifact, given, expected, made, (*notes, *made.notes))


def _require_alike(signature: Signature, outputs: Sequence[Outputs], first: _Traced) -> None:
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


def _written(target: Path, found: Ensemble, traced: Sequence[_Traced], asked: _Asked, *, seed: int) -> ExportReport:
    """Write the file, checked, and report on it."""
    from gbnn_compress.onnx_files.forms import serialised
    from gbnn_compress.onnx_files.members import average_outputs, averaged_model

    first, draws = traced[0], len(asked.seeds)
    # One network that takes batches of one size only makes it so for all.
    made = next((each.made for each in traced if not any(each.made.signature.axes)), first.made)
    expected, model = first.expected, made.model
    if len(traced) > 1:
        of_members = zip(*(each.expected for each in traced), strict=True)
        expected = [average_outputs(each, made.signature, n_samples=draws) for each in of_members]
        model = averaged_model(
            [each.made.model for each in traced], made.signature, n_samples=draws, inputs_of=made.model
        )
    data, inputs = serialised(model), tuple(str(value.name) for value in model.graph.inputs)
    calls = first.given.calls
    kept = [number for number, call in enumerate(calls) if _fits(call, made.signature, calls[0])]
    difference = _write_checked(
        target,
        data,
        [calls[n] for n in kept],
        [expected[n] for n in kept],
        tensors=rebuild(first.artifact) if asked.weights == "external" else None,
    )
    result: ExportReport = {
        "schema": SCHEMA,
        "onnx": {
            "path": str(target),
            "bytes": len(data),
            "dense_bytes": 4 * sum(n_values(member) for member in found.members),
            "opset": OPSET,
            "weights": asked.weights,
        },
        "samples": draws or None,
        "seed": seed if draws else None,
        "input_shape": list(calls[0].tensors[0].shape[1:]) if first.given.images else None,
        "inputs": _inputs(calls[0], made.signature, inputs),
        "outputs": list(expected[0]),
        "check": {
            "inputs": sum(calls[number].size for number in kept),
            "largest_relative_difference": difference,
            "onnxruntime": version("onnxruntime"),
        },
    }
    if asked.weights == "external":
        result["onnx"]["artifact_bytes"] = found.size_bytes
    if len(traced) > 1:
        result["members"] = len(traced)
    temperatures = [folded_temperature(member) for member in found.members]
    if any(TEMPERATURE in member.facts for member in found.members) and made.signature.classifier:
        if len(traced) > 1:
            result["temperatures"] = temperatures
        else:
            result["temperature"] = temperatures[0]
    if notes := list(dict.fromkeys(note for each in traced for note in each.notes)):
        result["notes"] = notes
    return result


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


def _inputs(call: Call, signature: Signature, kept: Collection[str]) -> list[OnnxInput]:
    """Name, dtype and shape of each input that the file has."""
    return [
        {
            "name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": [axes.get(axis, size) for axis, size in enumerate(tensor.shape)],
        }
        for name, tensor, axes in zip(signature.inputs, call.tensors, signature.axes, strict=True)
        if name in kept
    ]


def _fits(call: Call, signature: Signature, traced: Call) -> bool:
    """Whether the sizes of a call's fixed axes are those of the traced call."""
    return all(
        axis in free or size == its.shape[axis]
        for mine, its, free in zip(call.tensors, traced.tensors, signature.axes, strict=True)
        for axis, size in enumerate(mine.shape)
    )


def _file_and_output(file: str | Path | None, output: str | int | Path | None) -> tuple[Path, str | int | None]:
    """The file to write, and the output to export."""
    names_file = isinstance(output, Path) or (isinstance(output, str) and output.endswith(".onnx"))
    if names_file and file is not None:
        raise GbnnError(f"`-o {file}` and `--output {output}`: expected one file to write; leave out one")
    if file is None and not names_file:
        raise GbnnError("`file`: expected the file to write, a name that ends in .onnx, got none")
    if names_file:
        return Path(str(output)), None
    assert file is not None
    assert not isinstance(output, Path)
    return Path(file), output


def _check_request(target: Path, artifact: Path, *, weights: str, samples: int, reads: Sequence[str]) -> None:
    if weights not in FORMS:
        raise GbnnError(f"`--weights`: expected {', '.join(FORMS[:-1])} or {FORMS[-1]}, got `{weights}`")
    if samples < 1:
        raise GbnnError(f"`--samples`: expected at least 1, got {samples}")
    if target.suffix != ".onnx":
        raise GbnnError(f"`-o {target}`: give a name that ends in .onnx")
    if os.fspath(target.absolute()).encode(errors="replace").decode() != os.fspath(target.absolute()):
        raise GbnnError(f"`-o {target}`: ONNX Runtime cannot open a path that is not valid UTF-8; choose another")
    if same_file(target, artifact):
        raise GbnnError(f"cannot write `{target}`: it is the artifact itself; choose another `-o`")
    refuse_inputs(target, *reads, option="-o")
    require_writable(target)


def _reference(
    module: torch.nn.Module, artifact: Artifact, given: Given, signature: Signature, *, spec: str
) -> Reference:
    """The module with the draws of the artifact; it holds the posterior mean."""
    source = sampler(artifact, module, load=lambda tensors: load_weights(module, tensors, spec=spec))
    temperature = folded_temperature(artifact) if signature.classifier else 1.0
    return Reference(module, given, signature, lambda seed: place(source, seed), temperature)


@dataclass(frozen=True)
class _Made:
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
) -> _Made:
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
        return _Made(attempt(signature, given.traced), signature)
    except ArchitectureError as error:
        if given.required or not any(signature.axes):
            raise _refusal(error, given) from error
        fixed = replace(signature, axes=({},) * len(signature.axes))
        note = f"The file takes batches of {given.calls[0].size} input(s) only: {error}."
        return _Made(attempt(fixed, given.calls[0]), fixed, (note,))


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


def _write_checked(
    target: Path,
    data: bytes,
    calls: Sequence[Call],
    expected: Sequence[Outputs],
    *,
    tensors: Mapping[str, torch.Tensor] | None,
) -> float:
    """Write the file if it passes the check, and return the largest relative difference."""
    from gbnn_compress.onnx_files.check import largest_over_runs, require_equal, run_onnx

    feeds = [{name: tensor.numpy() for name, tensor in zip(call.names, call.tensors, strict=True)} for call in calls]
    differences: list[float] = []

    def verify(path: Path) -> None:
        differences.append(largest_over_runs(run_onnx(path, feeds, tensors=tensors), expected))
        require_equal(differences[0])

    write_atomically(target, data, verify=verify)
    return differences[0]


def _reason(error: BaseException) -> str:
    """The first line of the first exception in a chain; the rest is advice on reporting, or a page of code."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
