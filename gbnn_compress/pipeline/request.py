"""The request of `compress` and `plan`: all arguments, checked before anything is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from gbnn_compress.checkpoint.folders import SUFFIXES
from gbnn_compress.data.kind import check_task
from gbnn_compress.errors import GbnnError, OutputError, require_seed
from gbnn_compress.files import refuse_inputs, require_writable, same_file
from gbnn_compress.predict.bench import Evaluation, as_evaluation
from gbnn_compress.recipe import Recipe, resolve
from gbnn_compress.report import templated

SUFFIX = ".gbnn.safetensors"

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `compress` and `plan`.

    Attributes:
        checkpoint: A file (`.safetensors`, `.pth`, `.pt`, `.th`, `.bin` or `.ckpt`), or a Hugging Face folder that has
            `model.safetensors`, `pytorch_model.bin` or an index of either.
        target_ratio: Target ratio, >= 1. Give either this or `max_drop`. Default: the recipe's.
        max_drop: Largest accuracy drop, in points, measured on `val_data` or else predicted. The result is the smallest
            file within it.
        ratio_of: `artifact` (bytes of the floating tensors over bytes of the file) or `parameters` (the paper's count).
        output: Path of the artifact. Default: `<stem>.gbnn.safetensors`, or `<folder>.gbnn.safetensors` for a folder,
            in the working directory.
        arch: Specification of the network, such as `torchvision/resnet18` or `models.py:resnet20`, which the weights
            must fit. Default: looked up by names and shapes of the tensors.
        key: Network to take from a checkpoint that holds several: an entry of the wrapper, such as `g_ema`, or a prefix
            of names, such as `ema_model.`.
        task: `classifier` or `other`. Default: inferred from labels, the index of architectures and the outputs.
            Accuracy drops are predicted only for classifiers.
        recipe: Name of a shipped recipe, or path of a YAML file.
        settings: Further recipe values by key.
        data: Data specification, or an `Evaluation` that also says how to read the data. With `epochs`, labelled
            training data; without, calibration inputs, whose labels are ignored. Default: noise as calibration inputs,
            if the architecture is known and has batch norm.
        val_data: Labelled validation data, given like `data`. Training uses it for its choices (default: a held-out
            part of `data`). Without training, `max_drop` is measured on it.
        epochs: Training epochs; 0 calibrates only. Default: the recipe's, which is 0 in most recipes.
        eval_data: Labelled data that the finished file is evaluated on, given like `data`.
        samples: Number of posterior draws of the evaluation; ignored if `eval_data` is an `Evaluation`.
        html: Path of an HTML page with the report.
        seed: Seed of training and of the posterior draws of the evaluation. It is recorded in the artifact.
        restart: Whether to train from the beginning although an earlier run was interrupted. By default the same call
            resumes after the last finished epoch, from the file `<stem>.gbnn.state.safetensors` beside the artifact.
        planned: Whether the request is for `plan`, which writes nothing: the target is optional, and the default output
            is not checked.
        source: Path of the checkpoint.
        path: Path of the artifact.
        configuration: The recipe with the settings.
        ratio: Target ratio, given or the recipe's; None with `max_drop`, or for a plan without target.
        passes: Training epochs, given or the recipe's.

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
        _check_types(self)
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
            object.__setattr__(self, name, value)  # a frozen dataclass sets its own fields in this way
        _check_target(self)
        _check_data(self)
        require_seed(self.seed)
        check_task(self.task)
        given = (each for each in (self.data, self.val_data, self.eval_data) if each is not None)
        read = [*(as_evaluation(each, samples=self.samples).data for each in given), self.arch, self.recipe]
        if self.output is not None or not self.planned:
            _check_output(source, self.path)
            refuse_inputs(self.path, *read, option="-o")
        if self.html is not None:
            templated.require_writable(Path(self.html), checkpoint=source, artifact=self.path)
            refuse_inputs(Path(self.html), *read, option="--html")

    @property
    def byte_ratio(self) -> float | None:
        """The target ratio if it is one of bytes, else None."""
        return self.ratio if self.ratio_of == "artifact" else None


def takes_options(function: Callable[P, T]) -> Callable[P, T]:
    """Put the fields of `Request` into the signature of a function that takes them as keyword arguments."""
    own = inspect.signature(function).parameters.values()
    given = inspect.signature(Request).parameters.values()
    first = [each for each in own if each.kind is each.POSITIONAL_OR_KEYWORD]
    rest = [each for each in own if each.kind is each.KEYWORD_ONLY]
    options = [each for each in given if each.name not in {"planned", *(each.name for each in first)}]
    function.__signature__ = inspect.Signature([*first, *options, *rest])  # type: ignore[attr-defined]
    return function


def default_output(checkpoint: str | Path) -> Path:
    """`<stem>.gbnn.safetensors` in the working directory; for a folder, its whole name (`Llama-3.2-1B`) as the stem."""
    path = Path(checkpoint)
    return Path(((path.resolve().name or "checkpoint") if path.is_dir() else path.stem) + SUFFIX)


def _check_types(request: Request) -> None:
    """Refuse values of another type where a later stage would fail on them with an error of its own."""
    number, whole, text = ("a number", (Real,)), ("a whole number", (Integral,)), ("text", (str,))
    kinds: dict[str, tuple[str, tuple[type, ...]]] = {
        **dict.fromkeys(("target_ratio", "max_drop"), number),
        **dict.fromkeys(("epochs", "seed", "samples"), whole),
        **dict.fromkeys(("arch", "key", "task"), text),
        **dict.fromkeys(("data", "val_data", "eval_data"), ("text or an Evaluation", (str, Evaluation))),
        "settings": ("a mapping", (Mapping,)),
    }
    for name, (expected, types) in kinds.items():
        value = getattr(request, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, types)):
            raise GbnnError(f"`{name}`: expected {expected}, got {type(value).__name__}")


def _check_target(request: Request) -> None:
    """Refuse targets that are out of range, two targets, and a missing target unless planning."""
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
    """Refuse data that would not be used, and training without the data or the recipe that it needs."""
    recipe, epochs, data = request.configuration, request.passes, request.data
    if epochs < 0:
        raise GbnnError(f"`--epochs`: expected 0 (calibrate only) or more, got {epochs}")
    if epochs and data is None:
        set_by = f"the recipe's `epochs: {epochs}`" if request.epochs is None else f"`--epochs {epochs}`"
        raise GbnnError(f"{set_by}: training needs data; give `--data`")
    if epochs and request.max_drop is not None:
        raise GbnnError("`--max-drop`: the drop after training cannot be predicted; give `--target-ratio`")
    if epochs and recipe.blending != "none":
        raise GbnnError("`--epochs`: blends cannot be trained; add `-s blending=none`")
    if request.val_data is not None and not epochs and request.max_drop is None:
        raise GbnnError("`--val-data`: it is used only with `--max-drop` or with `--epochs` above 0; give one of these")
    if data is not None and not epochs and not recipe.feedback and recipe.posterior == "data_free":
        raise GbnnError("`--data`: a recipe with `feedback: false` does not calibrate; leave out one of the two")


def _check_output(source: Path, path: Path) -> None:
    if same_file(path, source):
        raise OutputError(f"cannot write `{path}`: it is the checkpoint itself; choose another `-o`")
    taken = path.suffix.lower() in SUFFIXES and not path.name.endswith(SUFFIX)
    if source.is_dir() and taken and same_file(path.parent, source):
        raise OutputError(
            f"cannot write `{path}`: loaders may take it for a part of the checkpoint; choose another `-o`"
        )
    require_writable(path)
