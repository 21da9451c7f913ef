"""What `compress` and `plan` are asked for: checked when it is made, before anything is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from gbnn_compress.checkpoint.folders import SUFFIXES
from gbnn_compress.data.kind import check_task
from gbnn_compress.errors import GbnnError, OutputError, require_seed
from gbnn_compress.files import require_writable, same_file
from gbnn_compress.predict.bench import Evaluation
from gbnn_compress.recipe import Recipe, resolve
from gbnn_compress.report import templated

SUFFIX = ".gbnn.safetensors"

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `compress` and `plan`.

    Attributes:
        checkpoint: `.safetensors`, `.pth`, `.pt`, `.th`, `.bin` or `.ckpt`, or a Hugging Face folder: one with
            `model.safetensors`, `pytorch_model.bin` or an index of either.
        target_ratio: Wanted ratio, >= 1; give this or `max_drop`. Default: the recipe's.
        max_drop: Accuracy points that may be lost, measured on `val_data` or predicted; the smallest file within them.
        ratio_of: `artifact` (bytes of the floating tensors over bytes of the file) or `parameters`.
        output: The artifact; default `<stem>.gbnn.safetensors` (of a folder `<folder>.gbnn.safetensors`) in the working
            directory.
        arch: Specification of the network (see the README), which the weights must fit; default: looked up by names
            and shapes.
        key: Which network of the checkpoint, where it holds several: an entry of the wrapper, such as `g_ema`, or a
            prefix of names, such as `ema_model.`.
        task: `classifier` or `other`: whether the network tells classes apart. Default: found out by labels, the index
            of architectures, and outputs; lost points are predicted only where that is a classifier.
        recipe: Name of a shipped recipe, or a YAML file.
        settings: Further recipe values by key.
        data: Data specification (or an `Evaluation` that also says how to read it) of inputs to train on, or, without
            epochs, to calibrate on; labels are not used then. Without data, and where the architecture is known and has
            batch norm, noise serves.
        val_data: The same, of labelled validation data for the choices of training (default: a part of `data`, held
            out), or for what `max_drop` is measured on.
        epochs: Passes over the data to train for; 0: calibrate only. Default: the recipe's, 0 in most.
        eval_data: Data specification, or an `Evaluation` that also says how to read it; read once, after writing.
        samples: Posterior draws for the evaluation (an `Evaluation` has its own).
        html: Where to write the report as a page.
        seed: Recorded; seeds training and the posterior draws of the evaluation.
        restart: Whether to train from the beginning where an earlier run was stopped; by default the same call goes on
            after its last finished epoch, from a file beside the artifact, `<stem>.gbnn.state.safetensors`.
        planned: Whether nothing will be written: then there need not be a target, nor a place for the default output.
        source: The checkpoint's path.
        path: The artifact's path.
        configuration: The recipe with the settings.
        ratio: The wanted ratio, given or the recipe's; None with `max_drop`, or where only a plan is wanted.
        passes: Passes over the data, given or the recipe's.

    Raises:
        GbnnError: The arguments do not fit together, or an output cannot be written.
    """

    checkpoint: str | Path
    target_ratio: float | None = None
    max_drop: float | None = None
    ratio_of: str = "artifact"
    output: str | Path | None = None
    arch: str | None = None
    key: str | None = None
    task: str | None = None
    recipe: str | Path = "default"
    settings: Mapping[str, Any] | None = None
    data: str | Evaluation | None = None
    val_data: str | Evaluation | None = None
    epochs: int | None = None
    eval_data: str | Evaluation | None = None
    samples: int = 16
    html: str | Path | None = None
    seed: int = 0
    restart: bool = False
    planned: bool = False

    source: Path = field(init=False, repr=False)
    path: Path = field(init=False, repr=False)
    configuration: Recipe = field(init=False, repr=False)
    ratio: float | None = field(init=False, repr=False)
    passes: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        recipe = resolve(self.recipe, self.settings)
        source = Path(self.checkpoint)
        no_target = self.target_ratio is None and self.max_drop is None
        derived = {
            "source": source,
            "path": default_output(source) if self.output is None else Path(self.output),
            "configuration": recipe,
            "ratio": recipe.target_ratio if no_target else self.target_ratio,
            "passes": recipe.epochs if self.epochs is None else self.epochs,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # the way in which a frozen dataclass fills its own fields
        _check_target(self)
        _check_data(self)
        require_seed(self.seed)
        check_task(self.task)
        if self.output is not None or not self.planned:
            _check_output(source, self.path)
        if self.html is not None:
            templated.require_writable(Path(self.html), checkpoint=source, artifact=self.path)

    @property
    def byte_ratio(self) -> float | None:
        """The target, where it is a ratio of bytes."""
        return self.ratio if self.ratio_of == "artifact" else None


def takes_options(function: Callable[P, T]) -> Callable[P, T]:
    """Show the fields of `Request` in the signature of a function that takes them as keyword arguments."""
    own = inspect.signature(function).parameters.values()
    given = inspect.signature(Request).parameters.values()
    first = [each for each in own if each.kind is each.POSITIONAL_OR_KEYWORD]
    rest = [each for each in own if each.kind is each.KEYWORD_ONLY]
    options = [each for each in given if each.name not in {"planned", *(each.name for each in first)}]
    function.__signature__ = inspect.Signature([*first, *options, *rest])  # type: ignore[attr-defined]
    return function


def default_output(checkpoint: str | Path) -> Path:
    """`<stem>.gbnn.safetensors` in the working directory; of a folder, its whole name (`Llama-3.2-1B`)."""
    path = Path(checkpoint)
    return Path(((path.resolve().name or "checkpoint") if path.is_dir() else path.stem) + SUFFIX)


def _check_target(request: Request) -> None:
    """Refuse targets that nobody can mean, and none where one is needed."""
    ratio, drop = request.ratio, request.max_drop
    n_given = (ratio is not None) + (drop is not None)
    if n_given == 2 or (not n_given and not request.planned):
        raise GbnnError("give either `--target-ratio` (such as 50) or `--max-drop` (such as 1.0)")
    if ratio is not None and not 1 <= ratio < float("inf"):
        raise GbnnError(f"`--target-ratio`: expected a number of at least 1 (such as 50, 50x or 2%), got {ratio:g}")
    if drop is not None and not 0 < drop <= 100:
        raise GbnnError(f"`--max-drop`: expected accuracy points above 0 and at most 100, got {drop:g}")
    if request.ratio_of not in ("artifact", "parameters"):
        raise GbnnError(f"`--ratio-of`: expected `artifact` or `parameters`, got `{request.ratio_of}`")


def _check_data(request: Request) -> None:
    """Refuse data that a run does not use, and runs that need other data."""
    recipe, epochs, data = request.configuration, request.passes, request.data
    if epochs < 0:
        raise GbnnError(f"`--epochs`: expected 0 (calibrate only) or more, got {epochs}")
    if epochs and data is None:
        set_by = f"the recipe's `epochs: {epochs}`" if request.epochs is None else f"`--epochs {epochs}`"
        raise GbnnError(f"{set_by}: training needs labelled data; name them with `--data`")
    if epochs and request.max_drop is not None:
        raise GbnnError("`--max-drop`: how much training will lose is not known before; give `--target-ratio`")
    if epochs and recipe.blending != "none":
        raise GbnnError("`--epochs`: blends cannot be trained; add `-s blending=none`")
    if request.val_data is not None and not epochs and request.max_drop is None:
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
