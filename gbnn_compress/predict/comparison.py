"""Comparison of two checkpoints or artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from gbnn_compress.data.kind import OTHER
from gbnn_compress.data.names import match_names, rename
from gbnn_compress.errors import require_seed
from gbnn_compress.predict import metrics
from gbnn_compress.predict.alike import require_alike
from gbnn_compress.predict.bench import Bench, Evaluation, as_evaluation, open_bench
from gbnn_compress.predict.differences import as_json, left_out_note, lost_warnings
from gbnn_compress.predict.evaluation import labelled
from gbnn_compress.predict.measuring import Measured
from gbnn_compress.predict.models import arch_of, dense, read_model
from gbnn_compress.predict.output_evaluation import (
    AFTER,
    BEFORE,
    MEAN,
    changed_numbers,
    measured_outputs,
    require_measurable,
)
from gbnn_compress.predict.running import IGNORED
from gbnn_compress.predict.task import recorded_task
from gbnn_compress.predict.trial import first_batch, run_first, settled
from gbnn_compress.predict.use import Use, use_of
from gbnn_compress.report import words
from gbnn_compress.report.schema import SCHEMA, DiffReport, TensorDifference
from gbnn_compress.types import Artifact, Ensemble, Model

if TYPE_CHECKING:
    import torch


def diff(
    first: Any,
    second: Any,
    *,
    data: Any = None,
    arch: Any = None,
    key: str | None = None,
    task: str | None = None,
    forward: Callable[[torch.nn.Module, Any], Any] | str | None = None,
    output: str | int | None = None,
    metric: Callable[[torch.nn.Module, Any], Any] | str | None = None,
    loss: Callable[[Any, Any], Any] | str | None = None,
    samples: int = 16,
    seed: int = 0,
) -> DiffReport:
    """Compare two checkpoints, artifacts or ensembles, tensor by tensor and on data.

    Tensors are matched by name. Names that differ only by parts that wrappers add, such as `module.`, match. Of
    ensembles, members of the same number are compared, or each member with the one other network; the number of the
    member and a dot come before the names of its tensors. Predictions are those of whole ensembles.

    Args:
        first: The reference: a checkpoint (file, folder, module or mapping), an artifact or an ensemble.
        second: The model that is compared with it.
        data: Data specification or object, or an `Evaluation` that also says how to read the data. Labels are optional.
        arch: Specification of the network, a module, or a callable that makes one. Default: the one that the artifact
            records or the index finds. Of an ensemble, also a list with one for each member.
        key: Network to take from each checkpoint that holds several; ignored for artifacts.
        task: `classifier` or `other`. Default: the task that an artifact records, or else what labels, the index of
            architectures and the outputs suggest.
        forward: `f(network, batch) -> outputs`, where calling the network with the inputs does not fit; or text
            `path.py:callable`, as for `metric` and `loss`.
        output: Name or position of the one output that counts. Default: every floating output.
        metric: `g(network, data) -> float`, more is better.
        loss: `l(outputs, batch) -> scalar tensor`.
        samples: Number of posterior draws of an artifact; ignored if `data` is an `Evaluation`, which has its own.
        seed: Seed of the first posterior draw.

    Returns:
        `bytes` of both files, `tensors` (relative error and largest error of each common tensor), `only_in_first` and
        `only_in_second`. With `data`, of classifiers also `agreement` and `logit_kl` (nats), both at the posterior
        mean, and with labels, `metrics` of both models; of other networks `relative_error`, `cosine` and `outputs`, at
        the posterior mean. With `metric` and `loss`, their values in both models.

    Raises:
        GbnnError: A model, the architecture or the data cannot be read or do not fit.
    """
    require_seed(seed)
    given = (first, second)
    models = tuple(
        read_model(each, key=key, argument=name) for each, name in zip(given, ("first", "second"), strict=True)
    )
    pairs = _pairs(*map(_dense_members, models))
    result: DiffReport = {
        "schema": SCHEMA,
        "models": [words.path_of(each) for each in given],
        "bytes": [model.size_bytes for model in models],
        "tensors": [_tensor_difference(name, a[name], b[name]) for a, b in pairs for name in a if name in b],
        "only_in_first": [name for a, b in pairs for name in a if name not in b],
        "only_in_second": [name for a, b in pairs for name in b if name not in a],
    }
    if data is None:
        return result
    use = use_of(forward=forward, output=output, metric=metric, loss=loss, task=task)
    network = arch_of(first, arch_of(second, arch))
    benches = _benches(models, as_evaluation(data, samples=samples), network, use)
    require_measurable(benches[0], *models)
    compare = _outputs if benches[0].task == OTHER else _classes
    return cast("DiffReport", {**result, **compare(benches, models, seed=seed)})


def _dense_members(model: Model) -> list[Mapping[str, torch.Tensor]]:
    """The dense weights of each network of a model."""
    return [dense(each) for each in (model.members if isinstance(model, Ensemble) else [model])]


def _pairs(
    first: Sequence[Mapping[str, torch.Tensor]], second: Sequence[Mapping[str, torch.Tensor]]
) -> list[tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]]:
    """The networks to compare, named alike: one with one; one with each member; or members of the same number.

    With an ensemble, the number of the member and a dot come before each name.
    """
    count = max(len(first), len(second))
    found = []
    for number in range(count):
        a, b = (each[0] if len(each) == 1 else each[number] if number < len(each) else {} for each in (first, second))
        b = _named_alike(b, a) if a and b else b
        prefix = f"{number}." if count > 1 else ""
        found.append((_prefixed(a, prefix), _prefixed(b, prefix)))
    return found


def _prefixed(tensors: Mapping[str, torch.Tensor], prefix: str) -> Mapping[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _benches(models: Sequence[Model], evaluation: Evaluation, arch: Any, use: Use) -> tuple[Bench, Bench]:
    """Each model's network on the data, with the task of both; the same one if each model is one network.

    Raises:
        GbnnError: A network or the data cannot be opened or do not fit, or the outputs differ in kind or shape.
    """
    if not any(isinstance(model, Ensemble) for model in models):
        recorded = next((model for model in models if _records_task(model)), models[0])
        bench = settled(open_bench(models[0], evaluation, arch, labels=None, use=use), recorded)
        return bench, bench
    found, outputs = [], []
    for model in models:
        own = arch[0] if isinstance(arch, list | tuple) and not isinstance(model, Ensemble) else arch
        found.append(settled(open_bench(model, evaluation, own, labels=None, use=use), model))
        outputs.append(run_first(found[-1], first_batch(found[-1])))
    require_alike([str(bench.task) for bench in found], outputs, what="model")
    return found[0], found[1]


def _records_task(model: Model) -> bool:
    return isinstance(model, Artifact) and recorded_task(model.facts) is not None


def _classes(benches: tuple[Bench, Bench], models: Sequence[Model], *, seed: int) -> dict[str, Any]:
    """What differs between the predictions of two classifiers."""
    both = list(zip(benches, models, strict=True))
    p, q = (bench.predict(model, samples=0) for bench, model in both)
    labels = benches[0].class_labels()
    result: dict[str, Any] = {}
    if labels is not None:
        known = labels[labels != IGNORED]
        p, q = labelled(p, labels), labelled(q, labels)
        drawn = [labelled(bench.predict(model, seed=seed), labels).probabilities for bench, model in both]
        result["metrics"] = [metrics.summary(each, known) for each in drawn]
    result["agreement"] = metrics.agreement(p.probabilities, q.probabilities)
    result["logit_kl"] = metrics.logit_kl(p.probabilities, q.probabilities)
    if benches[0].metric is not None or benches[0].loss is not None:
        result |= changed_numbers(_measured(benches, models, seed=seed, compare=False))
    return result


def _measured(
    benches: tuple[Bench, Bench], models: Sequence[Model], *, seed: int, compare: bool = True
) -> dict[str, Measured]:
    """The measures of the second model against the first."""
    (its, mine), (first, second) = benches, models
    return measured_outputs(mine, second, first, seed=seed, compare=compare, reference_bench=its)


def _outputs(benches: tuple[Bench, Bench], models: Sequence[Model], *, seed: int) -> dict[str, Any]:
    """What differs between the outputs of two networks that are no classifiers, at the posterior mean."""
    found = _measured(benches, models, seed=seed)
    at_mean = {BEFORE: found[BEFORE], AFTER: found[MEAN]}
    difference = found[MEAN].difference
    assert difference is not None
    note = left_out_note(difference)
    warnings = [
        *lost_warnings(difference, inputs=f"`{benches[0].option}`", reference="the first"),
        *([note] if note else []),
    ]
    return {**as_json(difference), **changed_numbers(at_mean), **({"warnings": warnings} if warnings else {})}


def _named_alike(tensors: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename tensors to the names that `others` uses, where the two differ only by wrappers' parts."""
    shapes, own = ({name: tuple(t.shape) for name, t in each.items()} for each in (tensors, others))
    spelled = rename(tensors, match_names(shapes, own))
    return {spelled[name]: tensor for name, tensor in tensors.items()}


def _tensor_difference(name: str, a: torch.Tensor, b: torch.Tensor) -> TensorDifference:
    import torch

    if a.shape != b.shape:
        return {
            "name": name,
            "shapes": [list(a.shape), list(b.shape)],
            "relative_rmse": None,
            "max_error": None,
        }
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    difference, reference = (b.to(wide) - a.to(wide)).abs(), a.to(wide).abs()
    norm = float((reference**2).sum().sqrt())
    error = float((difference**2).sum().sqrt())
    return {
        "name": name,
        "shapes": [list(a.shape)],
        "relative_rmse": error / norm if norm else (0.0 if error == 0 else None),
        "max_error": float(difference.max()) if difference.numel() else 0.0,
    }
