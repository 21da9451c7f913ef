"""The order of the stages."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gbnn_compress.codec import container
from gbnn_compress.codec.artifact import BITS, compress_raw, encode_artifact, header_bytes, read_artifact
from gbnn_compress.codec.values import vector_bits
from gbnn_compress.errors import ArtifactError, CheckpointError, GbnnError, OutputError
from gbnn_compress.evaluation import Bench, Evaluation, as_evaluation, evaluate_compression, is_artifact
from gbnn_compress.output import sizes
from gbnn_compress.rate.cells import build_cells
from gbnn_compress.rate.codebook import Codebook, noise_deviation, relative_step
from gbnn_compress.rate.control import RateProblem, fit_path, parameters_of, predicted_bytes, solve_damage, solve_size
from gbnn_compress.rate.damage import SAFE_DROP, WARN_DROP, Damage, predict_damage, relative_error
from gbnn_compress.rate.maps import index_maps, spend_on_outliers, squared_errors
from gbnn_compress.recipe import Recipe, resolve
from gbnn_compress.tasks import build_network, load_weights
from gbnn_compress.types import Artifact, Checkpoint, IndexMap, Posterior, TensorInfo
from gbnn_compress.weights.architecture import find_architectures
from gbnn_compress.weights.blocks import raw_bytes_of
from gbnn_compress.weights.checkpoint import read_checkpoint
from gbnn_compress.weights.posterior import data_free_posterior, typical_size
from gbnn_compress.weights.recentre import recentred_statistics
from gbnn_compress.weights.select import Selection, dtype_name, floating_bytes, floating_shapes, select
from gbnn_compress.weights.values import code_values, read_unshared

SUFFIX = ".gbnn.safetensors"

TOLERANCE = 1.03
"""A target is met when the ratio is not below it and at most this factor above."""

MARGIN = 0.998
"""Share of the budget that each attempt aims for."""

CLOSE = 0.993
"""Share of the budget that a file uses before rate control stops trying for more."""

ATTEMPTS = 6

PLANNED_RATIOS = (4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0, 50.0)

FINEST_RATIO = 4.0
"""The mixture is fitted finely enough for this ratio when the target does not say how fine it must be."""

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
        facts: What the manifest says of the checkpoint.
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
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """A compressed network before it is written.

    Attributes:
        encoded: The bytes of the file.
        maps: What the file must decode to.
    """

    encoded: bytes
    maps: Sequence[IndexMap]


def compress(
    checkpoint: str | Path,
    *,
    target_ratio: float | None = None,
    max_drop: float | None = None,
    ratio_of: str = "artifact",
    output: str | Path | None = None,
    arch: str | None = None,
    recipe: str | Path = "default",
    settings: Mapping[str, Any] | None = None,
    eval_data: str | Evaluation | None = None,
    samples: int = 16,
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
        arch: Specification of the network (see the README), which the weights must fit; default: looked up by names
            and shapes.
        recipe: Name of a shipped recipe, or a YAML file.
        settings: Further recipe values by key.
        eval_data: Data specification, or an `Evaluation` that also says how to read it; read once, after writing.
        samples: Posterior draws for the evaluation (an `Evaluation` has its own).
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
    path = default_output(source) if output is None else Path(output)
    _check_output(source, path)
    clock = Clock()
    with clock("read"):
        tell(f"reading {source.name}")
        read, names = _open(source, arch)
        selection = select(read)
        bench = Bench(read, as_evaluation(eval_data, samples=samples), arch) if eval_data is not None else None
    facts = {
        **_provenance(read, names, recipe=chosen, seed=seed),
        "target_ratio": target_ratio,
        "max_drop": max_drop,
        "ratio_of": ratio_of,
    }
    with clock("fit"):
        tell(f"fitting the mixture to {sum(read.tensors[name].numel() for name in selection.shared):,} weights")
        finest = target_ratio if target_ratio and ratio_of == "artifact" else FINEST_RATIO
        prepared = prepare(read, selection, recipe=chosen, finest_ratio=finest, facts=facts)
    with clock("merge"):
        tell("merging components until the file meets the target")
        result = _meet(prepared, target_ratio=target_ratio, max_drop=max_drop, ratio_of=ratio_of)
    with clock("encode"):
        tell(f"writing and verifying {path.name}")
        verified: list[Artifact] = []
        container.write_atomically(
            path, result.encoded, verify=lambda file: verified.append(_verified(file, result.maps))
        )
        artifact = verified[0]
    report = sizes.report(artifact)
    report["checkpoint"] = {
        "path": str(source),
        **report["checkpoint"],
        "architecture_candidates": list(names),
    }
    report["artifact"] = {"path": str(path), **report["artifact"]}
    missed = [] if report["target_met"] else [_missed(report)]
    if bench is not None:
        tell(f"evaluating on {bench.evaluation.data}")
        report["evaluation"], measured = evaluate_compression(bench, read, artifact, seed=seed)
        report["damage"] = {**report["damage"], **measured}
        report["warnings"] = _warnings(measured["drop"], report["damage"]["safe_ratio"], measured=True)
    report["warnings"] = [*missed, *report["warnings"]]
    report["timings"] = clock.timings()
    return report


def plan(
    checkpoint: str | Path,
    *,
    ratios: Sequence[float] = PLANNED_RATIOS,
    recipe: str | Path = "default",
    settings: Mapping[str, Any] | None = None,
    arch: str | None = None,
) -> dict[str, Any]:
    """What compressing would give, without writing anything.

    Args:
        checkpoint: As for `compress`.
        ratios: Ratios to predict for.
        recipe: As for `compress`.
        settings: As for `compress`.
        arch: As for `compress`.

    Returns:
        `checkpoint`, `tensors`, `rates` (predicted bytes, components and damage at each ratio), `safe_ratio`,
        `memory_bytes` (about what compressing needs at its peak) and `timings`.

    Raises:
        GbnnError: Bad input.
    """
    clock = Clock()
    with clock("read"):
        read, names = _open(Path(checkpoint), arch)
        selection = select(read)
    chosen = resolve(recipe, settings)
    with clock("fit"):
        facts = _provenance(read, names, recipe=chosen, seed=0)
        prepared = prepare(read, selection, recipe=chosen, finest_ratio=min(ratios), facts=facts)
    with clock("merge"):
        rates = [_rate(prepared, ratio) for ratio in ratios]
        safe = _safe_ratio(prepared)
    return {
        "schema": sizes.SCHEMA,
        "checkpoint": {
            "path": str(checkpoint),
            **facts["checkpoint"],
            "architecture_candidates": list(names),
        },
        "tensors": [asdict(info) for info in tensor_infos(read, selection)],
        "rates": rates,
        "safe_ratio": safe,
        "memory_bytes": int(1.5 * prepared.floating_bytes) + 600_000_000,
        "timings": clock.timings(),
    }


def prepare(
    checkpoint: Checkpoint,
    selection: Selection,
    *,
    recipe: Recipe,
    finest_ratio: float,
    facts: Mapping[str, Any],
) -> Prepared:
    """Posterior, cells, mixture and merge path; they serve every ratio from `finest_ratio` up.

    Args:
        checkpoint: As read.
        selection: Its tensors by kind.
        recipe: The configuration.
        finest_ratio: Smallest ratio that will be asked for.
        facts: What the manifest will say of the checkpoint.
    """
    tensors = checkpoint.tensors
    posteriors = data_free_posterior(tensors, selection.shared)
    sizes_ = np.array([tensors[name].numel() for name in selection.shared], dtype=np.float64)
    typical = typical_size([tensors[name].numel() for name in selection.shared])
    counted = floating_bytes(tensors, checkpoint.ties)
    bits = min(8 * counted / finest_ratio / float(sizes_.sum()), 12.0)
    infos = tensor_infos(checkpoint, selection)
    unshared = read_unshared(tensors, selection.unshared)
    fixed_bytes = len(compress_raw([raw_bytes_of(tensors[name]) for name in selection.raw]))
    fixed_bytes += header_bytes(infos, {**facts, **_DAMAGE_PLACEHOLDER})
    value_bits = np.array([BITS[dtype_name(tensors[name])] for name in selection.shared])
    problem = fit_path(
        build_cells(tensors, posteriors, resolution=float(np.clip(2.0 ** (bits + 2), 64, 512))),
        n_components=int(np.clip(2.0 ** (bits + 5), min(256, recipe.n_components), recipe.n_components)),
        log_sigma_weight=recipe.log_sigma_weight,
        max_iterations=recipe.em_iterations,
        value_bits=value_bits,
        other_bytes=lambda penalty: (
            vector_bits(code_values(unshared, relative_step=relative_step(penalty, typical))) // 8 + fixed_bytes
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
        facts=facts,
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


def _meet(prepared: Prepared, *, target_ratio: float | None, max_drop: float | None, ratio_of: str) -> Result:
    """Find the codebook that meets the target, and encode it."""
    safe_ratio = _safe_ratio(prepared)

    def encoded_as(book: Codebook, exponent: int, maps: Sequence[IndexMap]) -> bytes:
        return _encode(prepared, book, exponent, maps, safe_ratio)

    if target_ratio is None:
        points = float(max_drop or 0.0)
        book, exponent = solve_damage(prepared.problem, lambda book: _damage(prepared, book).drop, limit=points)
        maps = _maps(prepared, book)
        return Result(encoded_as(book, exponent, maps), maps)
    return _meet_budget(prepared, _budget(prepared, target_ratio, ratio_of), encoded_as)


@dataclass(frozen=True)
class Budget:
    """What a ratio allows, in bytes of the file or in numbers of the paper's measure.

    Attributes:
        limit: Not to be exceeded.
        predicted: What a codebook (with its grid's exponent) will use.
        used: What a file, of so many components and with these maps, does use.
    """

    limit: float
    predicted: Callable[[Codebook, int], float]
    used: Callable[[bytes, int, Sequence[IndexMap]], float]


def _budget(prepared: Prepared, target_ratio: float, ratio_of: str) -> Budget:
    if ratio_of == "artifact":
        return Budget(
            prepared.floating_bytes / target_ratio,
            lambda book, exponent: predicted_bytes(prepared.problem, book, exponent),
            lambda encoded, n_components, maps: len(encoded),
        )
    weights = float(prepared.sizes.sum()) + prepared.n_unshared
    return Budget(
        2 * weights / target_ratio,
        lambda book, exponent: parameters_of(book, prepared.n_unshared),
        lambda encoded, n_components, maps: (
            2 * n_components + 2 * sum(len(m.outliers) for m in maps) + prepared.n_unshared
        ),
    )


def _meet_budget(
    prepared: Prepared, budget: Budget, encoded_as: Callable[[Codebook, int, Sequence[IndexMap]], bytes]
) -> Result:
    """Aim, write, correct the aim by what the prediction missed; spend what is left on exact outliers."""
    aim, best, best_used = MARGIN * budget.limit, None, -1.0
    for _ in range(ATTEMPTS):
        book, exponent = solve_size(prepared.problem, budget.predicted, limit=aim)
        maps = _maps(prepared, book)
        encoded = encoded_as(book, exponent, maps)
        foreseen, used = budget.predicted(book, exponent), budget.used(encoded, len(book.bank.means), maps)
        if best_used < used <= budget.limit:
            best, best_used = (book, exponent, maps, encoded), used
        surprise = abs(used - foreseen) / budget.limit
        if CLOSE * budget.limit <= best_used or foreseen > aim:
            break
        if budget.limit / TOLERANCE <= used <= budget.limit and surprise < 1 - CLOSE:
            break  # sizes jump here: aiming again would give the same file
        aim += (MARGIN * budget.limit - used) * (1.5 if used > budget.limit else 1.0)
    if best is None:
        return Result(encoded, maps)
    book, exponent, maps, encoded = best
    if best_used * TOLERANCE < budget.limit:
        maps = spend_on_outliers(
            prepared.checkpoint.tensors,
            prepared.posteriors,
            maps,
            book.bank.means,
            spare=lambda maps: budget.limit - budget.used(encoded_as(book, exponent, maps), len(book.bank.means), maps),
            close=(1 - CLOSE) * budget.limit,
        )
        encoded = encoded_as(book, exponent, maps)
    return Result(encoded, maps)


def _maps(prepared: Prepared, book: Codebook) -> list[IndexMap]:
    return index_maps(prepared.checkpoint.tensors, prepared.posteriors, book, value_bits=prepared.value_bits)


def _encode(prepared: Prepared, book: Codebook, exponent: int, maps: Sequence[IndexMap], safe_ratio: float) -> bytes:
    checkpoint, selection = prepared.checkpoint, prepared.selection
    scales = np.array([posterior.scale for posterior in prepared.posteriors])
    statistics = recentred_statistics(checkpoint.tensors, maps, means=book.bank.means, scales=scales)
    errors = [
        squared_errors(checkpoint.tensors[posterior.name], posterior, index_map, book.bank.means)
        for posterior, index_map in zip(prepared.posteriors, maps, strict=True)
    ]
    return encode_artifact(
        tensors=tensor_infos(checkpoint, selection),
        bank=book.bank,
        exponent=exponent,
        scales=scales,
        relative_rmse=np.array([np.sqrt(error / total) if total else 0.0 for error, total in errors]),
        maps=maps,
        vectors=code_values(
            read_unshared({**checkpoint.tensors, **statistics}, selection.unshared),
            relative_step=relative_step(book.penalty, prepared.typical),
        ),
        raw=[raw_bytes_of(checkpoint.tensors[name]) for name in selection.raw],
        facts={
            **prepared.facts,
            **_damage_facts(prepared, book, safe_ratio),
            "noise": noise_deviation(book, relative=float(prepared.facts["recipe"]["noise"]), typical=prepared.typical),
        },
    )


def _verified(file: Path, maps: Sequence[IndexMap]) -> Artifact:
    """Read a file back and compare: every checksum, every id, every outlier."""
    written = read_artifact(file)
    for expected, got in zip(maps, written.maps, strict=True):
        same = np.array_equal(expected.ids, got.ids) and np.array_equal(expected.outliers, got.outliers)
        if not same:
            raise ArtifactError(f"`{file}`: ids of `{expected.name}` did not survive the writing; try again")
    return written


def _damage(prepared: Prepared, book: Codebook) -> Damage:
    error = relative_error(book, typical=prepared.typical)
    return predict_damage(error, n_classes=prepared.n_classes)


def _safe_ratio(prepared: Prepared) -> float:
    """The largest ratio at which the predicted drop stays within SAFE_DROP."""
    book, exponent = solve_damage(prepared.problem, lambda book: _damage(prepared, book).drop, limit=SAFE_DROP)
    return prepared.floating_bytes / predicted_bytes(prepared.problem, book, exponent)


def _damage_facts(prepared: Prepared, book: Codebook, safe_ratio: float) -> dict[str, Any]:
    damage = _damage(prepared, book)
    safe = float(f"{safe_ratio:.3g}")
    rounded = {key: float(f"{value:.3g}") for key, value in asdict(damage).items()}
    return {
        "components_before_merging": prepared.problem.mixture_size,
        "damage": {**rounded, "measured": False, "safe_ratio": safe},
        "warnings": _warnings(damage.drop, safe, measured=False),
    }


_DAMAGE_PLACEHOLDER = {
    "components_before_merging": 1000,
    "noise": 0.1234,
    "damage": {"drop": 0.123, "agreement": 0.123, "logit_kl": 0.123, "measured": False, "safe_ratio": 12.3},
    "warnings": [],
}
"""As long as what `_damage_facts` will say, for the prediction of sizes."""


def _warnings(drop: float, safe_ratio: float, *, measured: bool) -> list[str]:
    if drop <= WARN_DROP:
        return []
    if measured:
        return [f"accuracy dropped by {drop:.1f} points, measured; ask for a smaller ratio"]
    return [
        f"predicted accuracy drop of {drop:.0f} points: without data this network is thought safe up to about "
        f"{safe_ratio:.2g}x; evaluate the file before use, or ask for a smaller ratio"
    ]


def _rate(prepared: Prepared, ratio: float) -> dict[str, Any]:
    budget = MARGIN * prepared.floating_bytes / ratio
    book, exponent = solve_size(
        prepared.problem, lambda book, exponent: predicted_bytes(prepared.problem, book, exponent), limit=budget
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


def _open(path: Path, arch: str | None) -> tuple[Checkpoint, tuple[str, ...]]:
    """Read a checkpoint, and find the architectures that it fits: the given one, or those of the index."""
    if is_artifact(path):
        raise CheckpointError(
            f"`{path}` is an artifact already: `gbnn-compress report` shows it, `gbnn-compress decompress` gives dense "
            "weights back"
        )
    checkpoint = read_checkpoint(path)
    if arch is not None:
        classes = find_architectures(floating_shapes(checkpoint.tensors)).n_classes
        load_weights(build_network(arch, n_classes=classes), checkpoint.tensors, spec=arch)
    return checkpoint, _architectures(checkpoint, arch)


def _missed(report: Mapping[str, Any]) -> str:
    written = "the file is written all the same"
    if report["target_ratio"] is None:
        drop, wanted = report["damage"]["drop"], report["max_drop"]
        return f"target missed: predicted drop of {drop:.2g} points for at most {wanted:.2g}; {written}"
    got = report["ratio" if report["ratio_of"] == "artifact" else "parameter_ratio"]
    excess = report["target_ratio"] / got
    wanted = f"{report['target_ratio']:.4g}x"
    return f"target missed: {got:.3g}x for a target of {wanted} ({excess:.3g} times the size); {written}"


def _architectures(checkpoint: Checkpoint, given: str | None) -> tuple[str, ...]:
    if given is not None:
        return (given,) if given.startswith(("torchvision/", "timm/")) else ()
    return find_architectures(floating_shapes(checkpoint.tensors)).names


def _provenance(checkpoint: Checkpoint, architectures: Sequence[str], *, recipe: Recipe, seed: int) -> dict[str, Any]:
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
        raise GbnnError(
            f"`--target-ratio`: expected a number of at least 1 (such as 50, 50x or 2%), got {target_ratio:g}"
        )
    if max_drop is not None and not 0 < max_drop <= 100:
        raise GbnnError(f"`--max-drop`: expected accuracy points above 0 and at most 100, got {max_drop:g}")
    if ratio_of not in ("artifact", "parameters"):
        raise GbnnError(f"`--ratio-of`: expected `artifact` or `parameters`, got `{ratio_of}`")


def default_output(checkpoint: str | Path) -> Path:
    """`<stem>.gbnn.safetensors` in the working directory."""
    return Path(Path(checkpoint).stem + SUFFIX)


def _check_output(source: Path, path: Path) -> None:
    if container.same_file(path, source):
        raise OutputError(f"cannot write `{path}`: it is the checkpoint itself; choose another `-o`")
    container.require_writable(path)
