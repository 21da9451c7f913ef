"""The order of the stages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gbnn_compress.codec import container
from gbnn_compress.codec.artifact import BITS, compress_raw, encode_artifact, read_artifact
from gbnn_compress.codec.values import encode_vectors
from gbnn_compress.errors import ArtifactError, GbnnError, OutputError
from gbnn_compress.evaluation import Evaluation, evaluate_compression
from gbnn_compress.output import sizes
from gbnn_compress.rate.cells import build_cells
from gbnn_compress.rate.codebook import HIGH_RATE_STEP, Codebook
from gbnn_compress.rate.control import RateProblem, fit_path, parameters_of, predicted_bytes, solve
from gbnn_compress.rate.damage import SAFE_DROP, WARN_DROP, Damage, predict_damage, relative_error
from gbnn_compress.rate.maps import index_maps, spend_on_outliers, squared_errors
from gbnn_compress.recipe import Recipe, resolve
from gbnn_compress.types import Checkpoint, IndexMap, Posterior, TensorInfo
from gbnn_compress.weights.architecture import find_architectures
from gbnn_compress.weights.blocks import raw_bytes_of
from gbnn_compress.weights.checkpoint import read_checkpoint
from gbnn_compress.weights.posterior import data_free_posterior, typical_size
from gbnn_compress.weights.select import Selection, dtype_name, floating_bytes, floating_shapes, select
from gbnn_compress.weights.values import code_values

SUFFIX = ".gbnn.safetensors"

TOLERANCE = 1.03
"""A target is met when the ratio is not below it and at most this factor above."""

MARGIN = 0.998
"""Share of the budget that each attempt aims for."""

CLOSE = 0.993
"""Share of the budget that a file uses before rate control stops trying for more."""

ATTEMPTS = 6

MANIFEST_BYTES = 1500
"""First guess of what the header and the manifest take; the second attempt knows."""

VERSIONED = ("gbnn-compress", "constriction", "numpy", "safetensors", "torch", "zstandard")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A checkpoint, ready for any target.

    Attributes:
        checkpoint: As read.
        selection: Its tensors by kind.
        posteriors: One a shared tensor.
        sizes: float64 (T,), weights of each shared tensor.
        value_bits: int64 (T,), bits of a value of each shared tensor.
        typical: Size of a typical tensor (see `typical_size`).
        problem: For rate control.
        n_classes: Rows of the last matrix, taken as the number of classes.
        floating_bytes: Bytes that the ratio counts.
        n_unshared: Floating values that are not shared.
    """

    checkpoint: Checkpoint
    selection: Selection
    posteriors: tuple[Posterior, ...]
    sizes: np.ndarray
    value_bits: np.ndarray
    typical: float
    problem: RateProblem
    n_classes: int
    floating_bytes: int
    n_unshared: int


@dataclass(frozen=True)
class Result:
    """A compressed network before it is written.

    Attributes:
        encoded: The bytes of the file.
        maps: What the file must decode to.
        met: Whether the target was met.
    """

    encoded: bytes
    maps: Sequence[IndexMap]
    met: bool


def compress(
    checkpoint: str | Path,
    *,
    target_ratio: float | None = None,
    max_drop: float | None = None,
    ratio_of: str = "artifact",
    output: str | Path | None = None,
    architecture: str | None = None,
    recipe: str | Path = "default",
    settings: Mapping[str, Any] | None = None,
    evaluation: Evaluation | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compress a checkpoint into one artifact file.

    Args:
        checkpoint: `.safetensors`, `.pth`, `.pt`, `.th` or `.bin`.
        target_ratio: Wanted ratio, >= 1; give this or `max_drop`.
        max_drop: Accuracy points that may be lost, as predicted; the smallest file within them.
        ratio_of: `artifact` (bytes of the floating tensors over bytes of the file) or `parameters`.
        output: The artifact; default `<stem>.gbnn.safetensors` in the working directory.
        architecture: Specification of the network (see the README); default: looked up by names and shapes.
        recipe: Name of a shipped recipe, or a YAML file.
        settings: Further recipe values by key.
        evaluation: Data to evaluate on, read once, after the file is written.
        seed: Recorded, and seeds the posterior draws of the evaluation; compressing draws nothing.
        progress: Called with a line whenever a stage begins.

    Returns:
        The report (schema 1 of the interface); `target_met` says whether the target was met.

    Raises:
        GbnnError: Bad input; nothing is written then.
    """
    tell = progress or (lambda line: None)
    chosen = resolve(recipe, settings)
    _check_target(target_ratio, max_drop, ratio_of)
    source = Path(checkpoint)
    path = _output_path(source, output)
    clock = Clock()
    with clock("read"):
        tell(f"reading {source.name}")
        read = read_checkpoint(source)
        selection = select(read)
    with clock("fit"):
        tell(f"fitting the mixture to {sum(read.tensors[name].numel() for name in selection.shared):,} weights")
        finest = target_ratio if target_ratio and ratio_of == "artifact" else 4.0
        prepared = prepare(read, selection, recipe=chosen, finest_ratio=finest)
    with clock("merge"):
        tell("merging components until the file meets the target")
        names = _architectures(read, architecture)
        facts = {
            **_provenance(read, names, recipe=chosen, seed=seed),
            "target_ratio": target_ratio,
            "ratio_of": ratio_of,
            "components_before_merging": prepared.problem.mixture_size,
            "noise": chosen.noise,
        }
        result = _meet(prepared, facts, target_ratio=target_ratio, max_drop=max_drop, ratio_of=ratio_of)
    with clock("encode"):
        tell(f"writing and verifying {path.name}")
        container.write_atomically(path, result.encoded, verify=lambda file: _verify(file, result.maps))
        report = sizes.report(read_artifact(path))
    report["checkpoint"] = {"path": str(source), **report["checkpoint"], "architecture_candidates": list(names)}
    report["artifact"] = {
        "path": str(path),
        "sha256": hashlib.sha256(result.encoded).hexdigest(),
        **report["artifact"],
    }
    report["target_met"] = result.met
    if evaluation is not None:
        tell(f"evaluating on {evaluation.data}")
        report["evaluation"], report["damage"] = evaluate_compression(
            read, path, evaluation, architecture=architecture, safe_ratio=report["damage"]["safe_ratio"], seed=seed
        )
    report["timings"] = clock.timings()
    return report


def plan(
    checkpoint: str | Path,
    *,
    ratios: Sequence[float] = (4, 6, 8, 10, 12, 16, 24, 32, 50),
    recipe: str | Path = "default",
    settings: Mapping[str, Any] | None = None,
    architecture: str | None = None,
) -> dict[str, Any]:
    """What compressing would give, without writing anything.

    Args:
        checkpoint: As for `compress`.
        ratios: Ratios to predict for.
        recipe: As for `compress`.
        settings: As for `compress`.
        architecture: As for `compress`.

    Returns:
        `checkpoint`, `tensors`, `rates` (predicted bytes, components and damage at each ratio), `safe_ratio`,
        `memory_bytes` (about what compressing needs at its peak) and `timings`.

    Raises:
        GbnnError: Bad input.
    """
    clock = Clock()
    with clock("read"):
        read = read_checkpoint(Path(checkpoint))
        selection = select(read)
    chosen = resolve(recipe, settings)
    with clock("fit"):
        prepared = prepare(read, selection, recipe=chosen, finest_ratio=min(ratios))
    with clock("merge"):
        rates = [_rate(prepared, ratio) for ratio in ratios]
        safe = _safe_ratio(prepared)
    names = _architectures(read, architecture)
    facts = _provenance(read, names, recipe=chosen, seed=0)["checkpoint"]
    return {
        "schema": sizes.SCHEMA,
        "checkpoint": {"path": str(checkpoint), **facts, "architecture_candidates": list(names)},
        "tensors": [asdict(info) for info in tensor_infos(read, selection)],
        "rates": rates,
        "safe_ratio": safe,
        "memory_bytes": int(1.5 * prepared.floating_bytes) + 600_000_000,
        "timings": clock.timings(),
    }


def prepare(checkpoint: Checkpoint, selection: Selection, *, recipe: Recipe, finest_ratio: float) -> Prepared:
    """Posterior, cells, mixture and merge path; they serve every ratio from `finest_ratio` up."""
    tensors = checkpoint.tensors
    posteriors = data_free_posterior(tensors, selection.shared)
    sizes_ = np.array([tensors[name].numel() for name in selection.shared], dtype=np.float64)
    typical = typical_size(sizes_)
    counted = floating_bytes(tensors, checkpoint.ties)
    bits = min(8 * counted / finest_ratio / float(sizes_.sum()), 12.0)
    raw_bytes = len(compress_raw([raw_bytes_of(tensors[name]) for name in selection.raw]))
    value_bits = np.array([BITS[dtype_name(tensors[name])] for name in selection.shared])
    problem = fit_path(
        build_cells(tensors, posteriors, resolution=float(np.clip(2.0 ** (bits + 2), 64, 512))),
        n_components=int(np.clip(2.0 ** (bits + 5), min(256, recipe.n_components), recipe.n_components)),
        log_sigma_weight=recipe.log_sigma_weight,
        max_iterations=recipe.em_iterations,
        value_bits=value_bits,
        other_bytes=lambda penalty: (
            len(encode_vectors(_vectors(checkpoint, selection, penalty, typical))) + raw_bytes + MANIFEST_BYTES
        ),
    )
    return Prepared(
        checkpoint=checkpoint,
        selection=selection,
        posteriors=posteriors,
        sizes=sizes_,
        value_bits=value_bits,
        typical=typical,
        problem=problem,
        n_classes=_class_count(checkpoint, selection),
        floating_bytes=counted,
        n_unshared=sum(tensors[name].numel() for name in selection.unshared),
    )


def tensor_infos(checkpoint: Checkpoint, selection: Selection) -> list[TensorInfo]:
    """Every tensor of the checkpoint with what becomes of it."""
    kind = {name: kind for kind in ("shared", "unshared", "raw") for name in getattr(selection, kind)}
    return [
        TensorInfo(name, tuple(t.shape), dtype_name(t), kind.get(name, "tied"), checkpoint.ties.get(name))
        for name, t in checkpoint.tensors.items()
    ]


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stages = dict.fromkeys(("read", "fit", "merge", "finetune", "encode"), 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the block towards a stage."""
        start = time.perf_counter()
        yield
        self._stages[stage] += time.perf_counter() - start

    def timings(self) -> dict[str, float]:
        """Stages and `total`, in seconds."""
        return {**self._stages, "total": time.perf_counter() - self._start}


def _meet(
    prepared: Prepared,
    facts: Mapping[str, Any],
    *,
    target_ratio: float | None,
    max_drop: float | None,
    ratio_of: str,
) -> Result:
    """Find the codebook that meets the target, and encode it."""
    safe_ratio = _safe_ratio(prepared)

    def encode(book: Codebook, exponent: int, maps: Sequence[IndexMap]) -> bytes:
        return _encode(prepared, book, exponent, maps, _with_damage(prepared, facts, book, safe_ratio))

    def maps_of(book: Codebook) -> list[IndexMap]:
        return index_maps(prepared.checkpoint.tensors, prepared.posteriors, book, value_bits=prepared.value_bits)

    if target_ratio is None:
        limit_points = float(max_drop or 0.0)
        book, exponent = solve(
            prepared.problem, lambda book, _: _damage(prepared, book).drop <= limit_points, finest=False
        )
        maps = maps_of(book)
        return Result(encode(book, exponent, maps), maps, True)

    by_bytes = ratio_of == "artifact"
    weights = float(prepared.sizes.sum()) + prepared.n_unshared
    limit = (prepared.floating_bytes if by_bytes else 2 * weights) / target_ratio

    def predicted(book: Codebook, exponent: int) -> float:
        if by_bytes:
            return predicted_bytes(prepared.problem, book, exponent)
        return parameters_of(book, prepared.n_unshared)

    def amount(encoded: bytes, book: Codebook, maps: Sequence[IndexMap]) -> float:
        if by_bytes:
            return len(encoded)
        outliers = sum(len(index_map.outliers) for index_map in maps)
        return 2 * len(book.bank.means) + 2 * outliers + prepared.n_unshared

    aim = MARGIN * limit
    for _ in range(ATTEMPTS):
        book, exponent = solve(prepared.problem, lambda b, e, aim=aim: predicted(b, e) <= aim, finest=True)
        maps = maps_of(book)
        encoded = encode(book, exponent, maps)
        used = amount(encoded, book, maps)
        if CLOSE * limit <= used <= limit or predicted(book, exponent) > aim:
            break
        # What the prediction missed; more than that when over, as the next file may miss by as much again.
        aim += (MARGIN * limit - used) * (1.5 if used > limit else 1.0)
    if used * TOLERANCE < limit:
        maps = spend_on_outliers(
            prepared.checkpoint.tensors,
            prepared.posteriors,
            maps,
            book.bank.means,
            fits=lambda maps: amount(encode(book, exponent, maps), book, maps) <= limit,
        )
        encoded = encode(book, exponent, maps)
        used = amount(encoded, book, maps)
    return Result(encoded, maps, used <= limit)


def _encode(
    prepared: Prepared, book: Codebook, exponent: int, maps: Sequence[IndexMap], facts: Mapping[str, Any]
) -> bytes:
    checkpoint, selection = prepared.checkpoint, prepared.selection
    errors = [
        squared_errors(checkpoint.tensors[posterior.name], posterior, index_map, book.bank.means)
        for posterior, index_map in zip(prepared.posteriors, maps, strict=True)
    ]
    return encode_artifact(
        tensors=tensor_infos(checkpoint, selection),
        bank=book.bank,
        exponent=exponent,
        scales=np.array([posterior.scale for posterior in prepared.posteriors]),
        relative_rmse=np.array([np.sqrt(error / total) if total else 0.0 for error, total in errors]),
        maps=maps,
        vectors=_vectors(checkpoint, selection, book.penalty, prepared.typical),
        raw=[raw_bytes_of(checkpoint.tensors[name]) for name in selection.raw],
        facts=facts,
    )


def _vectors(checkpoint: Checkpoint, selection: Selection, penalty: float, typical: float) -> list[Any]:
    step = float(np.sqrt(HIGH_RATE_STEP * penalty / typical))
    return code_values(checkpoint.tensors, selection.unshared, relative_step=step)


def _verify(file: Path, maps: Sequence[IndexMap]) -> None:
    """Read a file back and compare: every checksum, every id, every outlier."""
    written = read_artifact(file)
    for expected, got in zip(maps, written.maps, strict=True):
        same = np.array_equal(expected.ids, got.ids) and np.array_equal(expected.outliers, got.outliers)
        if not same:
            raise ArtifactError(f"`{file}`: ids of `{expected.name}` did not survive the writing; try again")


def _damage(prepared: Prepared, book: Codebook) -> Damage:
    error = relative_error(book, typical=prepared.typical)
    return predict_damage(error, n_classes=prepared.n_classes)


def _safe_ratio(prepared: Prepared) -> float:
    """The largest ratio at which the predicted drop stays within SAFE_DROP."""
    book, exponent = solve(
        prepared.problem, lambda book, _: _damage(prepared, book).drop <= SAFE_DROP, finest=False
    )
    return prepared.floating_bytes / predicted_bytes(prepared.problem, book, exponent)


def _with_damage(
    prepared: Prepared, facts: Mapping[str, Any], book: Codebook, safe_ratio: float
) -> dict[str, Any]:
    damage = _damage(prepared, book)
    rounded = {key: float(f"{value:.3g}") for key, value in asdict(damage).items()}
    warnings = []
    if damage.drop > WARN_DROP:
        warnings.append(
            f"predicted accuracy drop of {damage.drop:.0f} points: without data this network is thought safe up to "
            f"about {safe_ratio:.2g}x; evaluate the file before use, or ask for a smaller ratio"
        )
    return {
        **facts,
        "damage": {**rounded, "measured": False, "safe_ratio": float(f"{safe_ratio:.3g}")},
        "warnings": warnings,
    }


def _rate(prepared: Prepared, ratio: float) -> dict[str, Any]:
    budget = MARGIN * prepared.floating_bytes / ratio
    book, exponent = solve(
        prepared.problem, lambda b, e: predicted_bytes(prepared.problem, b, e) <= budget, finest=True
    )
    size = predicted_bytes(prepared.problem, book, exponent)
    return {
        "target_ratio": float(ratio),
        "ratio": prepared.floating_bytes / size,
        "bytes": round(size),
        "components": len(book.bank.means),
        **asdict(_damage(prepared, book)),
    }


def _class_count(checkpoint: Checkpoint, selection: Selection) -> int:
    matrices = [name for name in selection.shared if checkpoint.tensors[name].dim() == 2]
    return int(checkpoint.tensors[matrices[-1]].shape[0]) if matrices else 1000


def _architectures(checkpoint: Checkpoint, given: str | None) -> tuple[str, ...]:
    if given is not None:
        return (given,) if given.startswith(("torchvision/", "timm/")) else ()
    return find_architectures(floating_shapes(checkpoint.tensors)).names


def _provenance(
    checkpoint: Checkpoint, architectures: Sequence[str], *, recipe: Recipe, seed: int
) -> dict[str, Any]:
    counted = [t for name, t in checkpoint.tensors.items() if name not in checkpoint.ties and t.is_floating_point()]
    return {
        "checkpoint": {
            "sha256": checkpoint.sha256,
            "bytes": checkpoint.size_bytes,
            "parameters": sum(tensor.numel() for tensor in counted),
            "architecture": architectures[0] if len(architectures) == 1 else None,
            "notes": list(checkpoint.notes),
        },
        "recipe": recipe.model_dump(),
        "seed": seed,
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
    }


def _check_target(target_ratio: float | None, max_drop: float | None, ratio_of: str) -> None:
    if (target_ratio is None) == (max_drop is None):
        raise GbnnError("give either `--target-ratio` (such as 50) or `--max-drop` (such as 1.0)")
    if target_ratio is not None and not 1 <= target_ratio < float("inf"):
        raise GbnnError(f"`--target-ratio`: expected a number of at least 1 (such as 50, 50x or 2%), got {target_ratio:g}")
    if max_drop is not None and not 0 < max_drop <= 100:
        raise GbnnError(f"`--max-drop`: expected accuracy points above 0 and at most 100, got {max_drop:g}")
    if ratio_of not in ("artifact", "parameters"):
        raise GbnnError(f"`--ratio-of`: expected `artifact` or `parameters`, got `{ratio_of}`")


def _output_path(source: Path, output: str | Path | None) -> Path:
    path = Path(output) if output is not None else Path(source.name.removesuffix(source.suffix) + SUFFIX)
    if path.exists() and source.exists() and path.samefile(source):
        raise OutputError(f"cannot write `{path}`: it is the checkpoint itself; choose another `-o`")
    container.require_writable(path)
    return path
