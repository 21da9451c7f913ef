"""Comparison of two checkpoints or artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gbnn_compress.data.names import match_names, rename
from gbnn_compress.errors import require_seed
from gbnn_compress.predict import metrics
from gbnn_compress.predict.bench import Evaluation, as_evaluation, open_bench
from gbnn_compress.predict.models import dense, read_model
from gbnn_compress.report.schema import SCHEMA, DiffReport, TensorDifference

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


def diff(
    first: str | Path,
    second: str | Path,
    *,
    data: str | Evaluation | None = None,
    arch: str | None = None,
    key: str | None = None,
    samples: int = 16,
    seed: int = 0,
) -> DiffReport:
    """Compare two checkpoints or artifacts, tensor by tensor and on data.

    Tensors are matched by name. Names that differ only by parts that wrappers add, such as `module.`, match.

    Args:
        first: The reference: a checkpoint (file or folder) or an artifact.
        second: The model that is compared with it.
        data: Data specification, or an `Evaluation` that also says how to read the data. Labels are optional.
        arch: Specification of the network. Default: the one that the artifact records or the index finds.
        key: Network to take from each checkpoint that holds several; ignored for artifacts.
        samples: Number of posterior draws of an artifact; ignored if `data` is an `Evaluation`, which has its own.
        seed: Seed of the first posterior draw.

    Returns:
        `bytes` of both files, `tensors` (relative error and largest error of each common tensor), `only_in_first` and
        `only_in_second`. With `data`, also `agreement` and `logit_kl` (nats), both at the posterior mean. With labelled
        data, also `metrics` of both models.

    Raises:
        GbnnError: A model, the architecture or the data cannot be read or do not fit.
    """
    require_seed(seed)
    paths = (Path(first), Path(second))
    models = tuple(read_model(path, key=key) for path in paths)
    a, b = (dense(model) for model in models)
    b = _named_alike(b, a)
    result: DiffReport = {
        "schema": SCHEMA,
        "models": [str(path) for path in paths],
        "bytes": [model.size_bytes for model in models],
        "tensors": [_tensor_difference(name, a[name], b[name]) for name in a if name in b],
        "only_in_first": [name for name in a if name not in b],
        "only_in_second": [name for name in b if name not in a],
    }
    if data is None:
        return result
    bench = open_bench(models[0], as_evaluation(data, samples=samples), arch, labels=None)
    p, q = (bench.predict(model, samples=0).probabilities for model in models)
    result["agreement"], result["logit_kl"] = metrics.agreement(p, q), metrics.logit_kl(p, q)
    if bench.data.labels is not None:
        drawn = [bench.probabilities(model, seed=seed) for model in models]
        result["metrics"] = [metrics.summary(each, bench.labels) for each in drawn]
    return result


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
