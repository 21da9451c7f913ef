"""An artifact as an ONNX file that ONNX Runtime has run."""

from __future__ import annotations

import copy
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from gbnn_compress.data.architectures import default_preprocessing, load_weights
from gbnn_compress.errors import ArchitectureError, GbnnError, require_seed
from gbnn_compress.files import require_writable, same_file, write_atomically
from gbnn_compress.format.artifact import read_artifact
from gbnn_compress.predict.draws import place, sampler
from gbnn_compress.predict.evaluation import known_architecture
from gbnn_compress.predict.network import CompressedNetwork
from gbnn_compress.predict.prediction import at_temperature, average
from gbnn_compress.predict.rebuild import rebuild
from gbnn_compress.predict.running import logits
from gbnn_compress.predict.temperature import FACT as TEMPERATURE
from gbnn_compress.predict.temperature import folded_temperature
from gbnn_compress.report.schema import SCHEMA, ExportReport
from gbnn_compress.report.sizes import n_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import torch

    from gbnn_compress.types import Artifact

FORMS = ("mean", "codebook", "samples")

BATCH_SIZES = (16, 16, 16, 15, 1)
"""Inputs of the check that run at once; a single one is where networks and exporters part."""

N_CHECKED = sum(BATCH_SIZES)


def export_onnx(
    artifact: str | Path,
    output: str | Path,
    *,
    weights: str = "mean",
    arch: torch.nn.Module | str | None = None,
    input_shape: Sequence[int] | None = None,
    samples: int = 16,
    seed: int = 0,
) -> ExportReport:
    """Write an artifact as one ONNX file, after ONNX Runtime has given the same outputs as the network.

    The model's input is `input`, float32 (N, *input_shape), preprocessed, for any N.

    Args:
        artifact: The artifact.
        output: The file to write, a name that ends in `.onnx`.
        weights: `mean`: dense posterior means, output `logits`. `codebook`: the same as ids and codebooks, which
            nodes decode. `samples`: posterior samples that share ids; outputs `probabilities`, `entropy` and
            `mutual_information` (nats).
        arch: Specification of the network, or a module; default: what the artifact records or the index finds.
        input_shape: Of one input; default: that of the architecture's published weights.
        samples: Posterior samples, >= 1, for `samples`; equal to those of `CompressedNetwork.predict`.
        seed: Of the first sample.

    Returns:
        `{"schema", "onnx": {"path", "bytes", "dense_bytes", "opset", "weights"}, "samples", "seed", "input_shape",
        "outputs", "temperature", "check": {"inputs", "largest_relative_difference", "onnxruntime"}}`.
        `dense_bytes` is what the weights take in a runtime that decodes them once,
        when it loads the file; `temperature` there where the artifact holds one, which the outputs then have;
        `notes` where the network left something out.

    Raises:
        GbnnError: Bad artifact, architecture, shape or output, or a network that cannot be exported.
    """
    target = Path(output)
    _check_request(target, Path(artifact), weights=weights, samples=samples)
    require_seed(seed)
    loaded = read_artifact(Path(artifact))
    module, spec, notes = _network(loaded, arch)
    shape = _input_shape(input_shape, module, spec)
    batches = _inputs(shape).split(BATCH_SIZES)
    seeds = range(seed, seed + samples) if weights == "samples" else ()
    expected = _expected(module, loaded, batches, seeds=seeds, spec=spec)
    data, opset = _converted(module, loaded, shape=shape, weights=weights, seeds=seeds, spec=spec)
    difference = _write_checked(target, data, batches, expected)
    result: ExportReport = {
        "schema": SCHEMA,
        "onnx": {
            "path": str(target),
            "bytes": len(data),
            "dense_bytes": 4 * n_values(loaded),
            "opset": opset,
            "weights": weights,
        },
        "samples": len(seeds) or None,
        "seed": seed if seeds else None,
        "input_shape": list(shape),
        "outputs": list(expected),
        "check": {
            "inputs": N_CHECKED,
            "largest_relative_difference": difference,
            "onnxruntime": version("onnxruntime"),
        },
    }
    if TEMPERATURE in loaded.facts:
        result["temperature"] = folded_temperature(loaded)
    if notes:
        result["notes"] = notes
    return result


def _network(artifact: Artifact, arch: torch.nn.Module | str | None) -> tuple[torch.nn.Module, str, list[str]]:
    """In float32 with the posterior mean, what to call it, and what it left out; the caller's module stays as it is."""
    network = CompressedNetwork(artifact)
    if arch is None or isinstance(arch, str):
        spec = arch or known_architecture(artifact)
        return network.to_module(spec).float(), spec, list(network.notes)
    return network.to_module(copy.deepcopy(arch)).float(), type(arch).__name__, list(network.notes)


def _check_request(target: Path, artifact: Path, *, weights: str, samples: int) -> None:
    if weights not in FORMS:
        raise GbnnError(f"`--weights`: expected {', '.join(FORMS[:-1])} or {FORMS[-1]}, got `{weights}`")
    if samples < 1:
        raise GbnnError(f"`--samples`: expected at least 1, got {samples}")
    if target.suffix != ".onnx":
        raise GbnnError(f"`-o {target}`: give a name that ends in .onnx")
    if os.fspath(target.absolute()).encode(errors="replace").decode() != os.fspath(target.absolute()):
        raise GbnnError(f"`-o {target}`: ONNX Runtime opens no file whose path is not valid UTF-8; choose another")
    if same_file(target, artifact):
        raise GbnnError(f"cannot write `{target}`: it is the artifact itself; choose another `-o`")
    require_writable(target)


def _input_shape(given: Sequence[int] | None, module: torch.nn.Module, spec: str) -> tuple[int, ...]:
    if given is not None:
        if not given or not all(size >= 1 for size in given):
            raise GbnnError(f"`--input-shape`: expected sizes of at least 1, such as 3,32,32, got {list(given)}")
        return tuple(given)
    kernels = [tensor for tensor in module.state_dict().values() if tensor.dim() == 4]
    channels = kernels[0].shape[1] if kernels else 3
    size = default_preprocessing(spec, n_channels=channels).image_size
    if size is None:
        raise GbnnError(f"`{spec}` has no published input size; give `--input-shape`, such as {channels},32,32")
    return channels, size, size


def _inputs(shape: Sequence[int]) -> torch.Tensor:
    """float32 (N_CHECKED, *shape), standard normal as preprocessed inputs about are."""
    import torch

    return torch.randn(N_CHECKED, *shape, generator=torch.Generator().manual_seed(0))


def _expected(
    module: torch.nn.Module, artifact: Artifact, batches: Sequence[torch.Tensor], *, seeds: Sequence[int], spec: str
) -> dict[str, np.ndarray]:
    """What the model's outputs should be; the module holds the posterior mean, before and after."""
    option = f"--input-shape {','.join(map(str, batches[0].shape[1:]))}"
    temperature = folded_temperature(artifact)
    if not seeds:
        return {"logits": logits(module, [(batch, None) for batch in batches], option=option).numpy() / temperature}
    source = sampler(artifact, module, load=lambda tensors: load_weights(module, tensors, spec=spec))

    def draws() -> Iterator[torch.Tensor]:
        for seed in seeds:
            place(source, seed)
            yield logits(module, [(batch, None) for batch in batches], option=option).double().softmax(dim=1)

    found = at_temperature(average(draws()), temperature)
    place(source, None)
    return {name: getattr(found, name).numpy() for name in ("probabilities", "entropy", "mutual_information")}


def _converted(
    module: torch.nn.Module, artifact: Artifact, *, shape: Sequence[int], weights: str, seeds: Sequence[int], spec: str
) -> tuple[bytes, int]:
    """The file's bytes, and its opset."""
    from gbnn_compress.onnx_files.forms import onnx_bytes
    from gbnn_compress.onnx_files.graph import OPSET

    shared = _own_names(module, artifact, spec=spec)
    try:
        data = onnx_bytes(
            module,
            artifact,
            shared=shared,
            input_shape=shape,
            weights=weights,
            seeds=seeds,
            temperature=folded_temperature(artifact),
        )
    except GbnnError:
        raise
    except Exception as error:  # whatever torch's exporter or the user's own network raises
        raise ArchitectureError(f"`{spec}` cannot be exported to ONNX ({_reason(error)})") from error
    return data, OPSET


def _own_names(module: torch.nn.Module, artifact: Artifact, *, spec: str) -> dict[str, str]:
    """Name in the module -> the shared tensor that it holds.

    Told by loading numbers in place of weights: modules may rename what they load, and ties need not be theirs.
    """
    import torch

    shared = [info for info in artifact.tensors if info.kind == "shared"]
    numbers = {info.name: number for number, info in enumerate(shared, start=1)}
    marked = {
        info.name: torch.tensor(float(numbers.get(info.tied_to or info.name, 0))).expand(info.shape)
        for info in artifact.tensors
    }
    load_weights(module, marked, spec=spec)
    filled = {own: tensor for own, tensor in module.state_dict().items() if tensor.numel()}
    marks = {own: (tensor.flatten()[0].item(), tuple(tensor.shape)) for own, tensor in filled.items()}
    load_weights(module, rebuild(artifact), spec=spec)
    names = {(numbers[info.name], info.shape): info.name for info in shared}
    return {own: names[mark] for own, mark in marks.items() if mark in names}


def _write_checked(
    target: Path, data: bytes, batches: Sequence[torch.Tensor], expected: Mapping[str, np.ndarray]
) -> float:
    """Write the file unless ONNX Runtime gives other outputs with it; how much they differ."""
    from gbnn_compress.onnx_files.check import largest_difference, require_equal, run_onnx

    differences: list[float] = []

    def verify(path: Path) -> None:
        differences.append(largest_difference(run_onnx(path, [batch.numpy() for batch in batches]), expected))
        require_equal(differences[0])

    write_atomically(target, data, verify=verify)
    return differences[0]


def _reason(error: BaseException) -> str:
    """The first line of the first of a chain of exceptions: the rest says how to report it, or is a page of code."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
