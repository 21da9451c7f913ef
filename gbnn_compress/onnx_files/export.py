"""Export of an artifact to an ONNX file that is checked in ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gbnn_compress.data.kind import check_task
from gbnn_compress.data.made_inputs import parse_inputs
from gbnn_compress.errors import GbnnError, require_seed
from gbnn_compress.files import refuse_inputs, require_writable, same_file, write_atomically
from gbnn_compress.format.ensembles import read_ensemble
from gbnn_compress.onnx_files.call import Call
from gbnn_compress.onnx_files.graph import OPSET
from gbnn_compress.onnx_files.reference import Outputs
from gbnn_compress.onnx_files.signature import Signature
from gbnn_compress.onnx_files.tracing import Asked, Traced, traced_network
from gbnn_compress.predict.alike import in_member, per_member
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.predict.temperature import FACT as TEMPERATURE
from gbnn_compress.predict.temperature import folded_temperature
from gbnn_compress.predict.use import use_of
from gbnn_compress.report.schema import SCHEMA, ExportReport, OnnxInput
from gbnn_compress.report.sizes import n_values

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import torch

    from gbnn_compress.types import Ensemble

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
    asked = Asked(
        weights=weights,
        seeds=tuple(range(seed, seed + samples)) if weights == "samples" else (),
        forward=use_of(forward=forward, output=chosen).forward,
        task=task,
        data=data,
        specs=specs,
        input_shape=input_shape,
    )
    traced: list[Traced] = []
    for number, (member, own) in enumerate(zip(found.members, per_member(arch, count), strict=True)):
        with in_member(number) if count > 1 else nullcontext():
            traced.append(traced_network(member, own, asked, like=traced[0] if traced else None))
    return _written(target, found, traced, asked, seed=seed)


def _written(target: Path, found: Ensemble, traced: Sequence[Traced], asked: Asked, *, seed: int) -> ExportReport:
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
