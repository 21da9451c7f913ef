"""What compressing, or planning it, is asked for: checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gbnn_compress.checkpoint.folders import SUFFIXES
from gbnn_compress.data.kind import check_task
from gbnn_compress.errors import GbnnError, OutputError, require_seed
from gbnn_compress.files import require_writable, same_file
from gbnn_compress.report import templated

if TYPE_CHECKING:
    from gbnn_compress.predict.evaluation import Evaluation
    from gbnn_compress.recipe import Recipe

SUFFIX = ".gbnn.safetensors"


@dataclass(frozen=True)
class Request:
    """Arguments that fit together; what is left to the recipe is filled in.

    Attributes:
        source: The checkpoint, a file or a folder.
        path: The artifact.
        target_ratio: Wanted ratio; None with `max_drop`, or where only a plan is wanted.
        max_drop: Accuracy points that may be lost; None with `target_ratio`.
        ratio_of: `artifact` or `parameters`.
        arch: Specification of the network.
        recipe: The configuration.
        data: To train or calibrate on.
        val_data: For choices.
        epochs: Passes over the data.
        seed: Of all chance.
        key: Which network of the checkpoint.
        task: `classifier` or `other`; None where that is to be found out.
    """

    source: Path
    path: Path
    target_ratio: float | None
    max_drop: float | None
    ratio_of: str
    arch: str | None
    recipe: Recipe
    data: str | Evaluation | None
    val_data: str | Evaluation | None
    epochs: int
    seed: int
    key: str | None = None
    task: str | None = None


def requested(
    checkpoint: str | Path,
    *,
    target_ratio: float | None,
    max_drop: float | None,
    ratio_of: str,
    output: str | Path | None,
    arch: str | None,
    recipe: Recipe,
    data: str | Evaluation | None,
    val_data: str | Evaluation | None,
    epochs: int | None,
    html: str | Path | None,
    seed: int,
    key: str | None = None,
    task: str | None = None,
    planned: bool = False,
) -> Request:
    """Arguments as they were given, checked.

    Args:
        checkpoint: As for `compress`, and so are the others.
        target_ratio: None and no `max_drop`: the recipe's.
        max_drop: See `Request`.
        ratio_of: See `Request`.
        output: Default: see `default_output`.
        arch: See `Request`.
        recipe: Resolved.
        data: See `Request`.
        val_data: See `Request`.
        epochs: None: the recipe's.
        html: The page that is to be written as well.
        seed: See `Request`.
        key: See `Request`.
        task: See `Request`.
        planned: Whether nothing will be written: then there need not be a target, nor a place for the default output.

    Raises:
        GbnnError: They do not fit together, or an output cannot be written.
    """
    if target_ratio is None and max_drop is None:
        target_ratio = recipe.target_ratio
    _check_target(target_ratio, max_drop, ratio_of, needed=not planned)
    said = f"the recipe's `epochs: {recipe.epochs}`" if epochs is None else f"`--epochs {epochs}`"
    epochs = recipe.epochs if epochs is None else epochs
    _check_data(data, recipe, epochs=epochs, said=said, val_data=val_data, max_drop=max_drop)
    require_seed(seed)
    check_task(task)
    source = Path(checkpoint)
    path = default_output(source) if output is None else Path(output)
    if output is not None or not planned:
        _check_output(source, path)
    if html is not None:
        templated.require_writable(Path(html), checkpoint=source, artifact=path)
    return Request(
        source=source,
        path=path,
        target_ratio=target_ratio,
        max_drop=max_drop,
        ratio_of=ratio_of,
        arch=arch,
        recipe=recipe,
        data=data,
        val_data=val_data,
        epochs=epochs,
        seed=seed,
        key=key,
        task=task,
    )


def default_output(checkpoint: str | Path) -> Path:
    """`<stem>.gbnn.safetensors` in the working directory; of a folder, its whole name (`Llama-3.2-1B`)."""
    path = Path(checkpoint)
    return Path(((path.resolve().name or "checkpoint") if path.is_dir() else path.stem) + SUFFIX)


def _check_target(target_ratio: float | None, max_drop: float | None, ratio_of: str, *, needed: bool) -> None:
    """Refuse targets that nobody can mean, and none where one is needed."""
    n_given = (target_ratio is not None) + (max_drop is not None)
    if n_given == 2 or (needed and not n_given):
        raise GbnnError("give either `--target-ratio` (such as 50) or `--max-drop` (such as 1.0)")
    if target_ratio is not None and not 1 <= target_ratio < float("inf"):
        raise GbnnError(
            f"`--target-ratio`: expected a number of at least 1 (such as 50, 50x or 2%), got {target_ratio:g}"
        )
    if max_drop is not None and not 0 < max_drop <= 100:
        raise GbnnError(f"`--max-drop`: expected accuracy points above 0 and at most 100, got {max_drop:g}")
    if ratio_of not in ("artifact", "parameters"):
        raise GbnnError(f"`--ratio-of`: expected `artifact` or `parameters`, got `{ratio_of}`")


def _check_data(
    data: str | Evaluation | None,
    recipe: Recipe,
    *,
    epochs: int,
    said: str,
    val_data: str | Evaluation | None,
    max_drop: float | None,
) -> None:
    """Refuse data that a run has no use for, and runs that need others; `said` is who wants so many epochs."""
    if epochs < 0:
        raise GbnnError(f"`--epochs`: expected 0 (calibrate only) or more, got {epochs}")
    if epochs and data is None:
        raise GbnnError(f"{said}: training needs labelled data; name them with `--data`")
    if epochs and max_drop is not None:
        raise GbnnError("`--max-drop`: how much training will lose is not known before; give `--target-ratio`")
    if epochs and recipe.blending != "none":
        raise GbnnError("`--epochs`: blends cannot be trained; add `-s blending=none`")
    if val_data is not None and not epochs and max_drop is None:
        raise GbnnError("`--val-data`: labelled data for choices; give `--max-drop`, or `--epochs` above 0, with them")
    if data is not None and not epochs and not recipe.feedback and recipe.posterior == "data_free":
        raise GbnnError("`--data`: this recipe has `feedback: false` and calibrates on nothing; leave one of them out")


def _check_output(source: Path, path: Path) -> None:
    if same_file(path, source):
        raise OutputError(f"cannot write `{path}`: it is the checkpoint itself; choose another `-o`")
    taken = path.suffix.lower() in SUFFIXES and not path.name.endswith(SUFFIX)
    if source.is_dir() and taken and same_file(path.parent, source):
        raise OutputError(f"cannot write `{path}`: it may be taken for a part of the checkpoint; choose another `-o`")
    require_writable(path)
