"""Export of an artifact to an ONNX file that is checked in ONNX Runtime."""

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
from gbnn_compress.predict.models import known_architecture
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
"""Batch sizes of the check; with a single input, exported networks may differ from their originals."""

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
    """Write an artifact as one ONNX file, once its outputs in ONNX Runtime equal those of the network.

    The model's input is `input`, float32 (N, *input_shape), preprocessed; N is free.

    Args:
        artifact: The artifact.
        output: The file to write; its name ends in `.onnx`.
        weights: `mean`: dense posterior means, output `logits`. `codebook`: the same as ids and codebooks, which the
            graph decodes. `samples`: posterior samples with common ids; outputs `probabilities`, `entropy` and
            `mutual_information` (nats).
        arch: Specification of the network, or a module. Default: the one that the artifact records or the index finds.
        input_shape: Shape of one input. Default: that of the architecture's published weights.
        samples: Number of posterior samples, >= 1, for `samples`; equal to those of `CompressedNetwork.predict`.
        seed: Seed of the first sample.

    Returns:
        The report; docs/reports.md describes every key.

    Raises:
        GbnnError: The artifact, architecture, shape or output is invalid, or the network cannot be exported.
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
    """The network in float32 with the posterior mean, its name, and notes; the caller's module is not changed."""
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
        raise GbnnError(f"`-o {target}`: ONNX Runtime cannot open a path that is not valid UTF-8; choose another")
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
    """float32 (N_CHECKED, *shape), standard normal, as preprocessed inputs approximately are."""
    import torch

    return torch.randn(N_CHECKED, *shape, generator=torch.Generator().manual_seed(0))


def _expected(
    module: torch.nn.Module, artifact: Artifact, batches: Sequence[torch.Tensor], *, seeds: Sequence[int], spec: str
) -> dict[str, np.ndarray]:
    """The expected outputs; the module holds the posterior mean before and after."""
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
    """The bytes of the file, and its opset."""
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
    except Exception as error:  # any exception of torch's exporter or of the user's network
        raise ArchitectureError(f"`{spec}` cannot be exported to ONNX ({_reason(error)})") from error
    return data, OPSET


def _own_names(module: torch.nn.Module, artifact: Artifact, *, spec: str) -> dict[str, str]:
    """Name in the module -> name of the shared tensor that it holds.

    Found by loading numbers in place of weights: modules may rename what they load, and need not tie the same tensors.
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
    """Write the file if it passes the check, and return the largest relative difference."""
    from gbnn_compress.onnx_files.check import largest_difference, require_equal, run_onnx

    differences: list[float] = []

    def verify(path: Path) -> None:
        differences.append(largest_difference(run_onnx(path, [batch.numpy() for batch in batches]), expected))
        require_equal(differences[0])

    write_atomically(target, data, verify=verify)
    return differences[0]


def _reason(error: BaseException) -> str:
    """The first line of the first exception in a chain; the rest is advice on reporting, or a page of code."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
