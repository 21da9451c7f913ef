"""The request of `compress` and `plan`: all arguments, checked before anything is read."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from gbnn_compress.checkpoint.folders import SUFFIXES
from gbnn_compress.checkpoint.objects import check_type, is_module, name_of_object
from gbnn_compress.data.kind import check_task
from gbnn_compress.data.loaders import check_data
from gbnn_compress.data.made_inputs import parse_inputs
from gbnn_compress.errors import GbnnError, OutputError, listed, require_seed
from gbnn_compress.files import refuse_inputs, require_writable, same_file
from gbnn_compress.format.container import MOST_MEMBERS
from gbnn_compress.predict.bench import as_evaluation
from gbnn_compress.predict.models import check_arch, name_of_arch
from gbnn_compress.predict.use import check_functions, check_output
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
            `model.safetensors`, `pytorch_model.bin` or an index of either; or a `torch.nn.Module`, which is its own
            architecture and stays as it is; or a mapping of tensors.
        target_ratio: Target ratio, >= 1. Give this, `max_drop` or `max_error`. Default: the recipe's.
        max_drop: Largest accuracy drop, in points, measured on `val_data` or else predicted; with `metric`, the largest
            loss of it, in its own units. The result is the smallest file within it.
        max_error: Largest relative error of the outputs, above 0 and below 1, measured on data. The result is the
            smallest file within it.
        ratio_of: `artifact` (bytes of the floating tensors over bytes of the file) or `parameters` (the paper's count).
        output: Path of the artifact: a `Path`, or text that ends in `.safetensors` or has a folder. Default:
            `<stem>.gbnn.safetensors`, `<folder>.gbnn.safetensors`, `<ClassName>.gbnn.safetensors` for a module, or
            `checkpoint.gbnn.safetensors` for a mapping, in the working directory. Any other text, or a whole number:
            the network's output that counts, by name or position. Default: every floating output.
        file: Path of the artifact, beside an `output` of the network.
        arch: Specification of the network, such as `torchvision/resnet18` or `models.py:resnet20`; or a module, of
            which a copy is taken; or a callable that makes one. The weights must fit it. Default: looked up by names
            and shapes of the tensors.
        key: Network to take from a checkpoint that holds several: an entry of the wrapper, such as `g_ema`, or a prefix
            of names, such as `ema_model.`.
        task: `classifier` or `other`. Default: inferred from labels, the index of architectures and the outputs.
            Accuracy drops are predicted only for classifiers.
        recipe: Name of a shipped recipe, or path of a YAML file.
        settings: Further recipe values by key.
        data: Data specification; or an object that yields batches and can be iterated again (a DataLoader, a list, a
            function that returns an iterator), a Dataset, or a tensor; or an `Evaluation` that also says how to read
            the data. With `epochs`, training data; without, calibration inputs. Default: noise as calibration inputs,
            if the architecture is known and has batch norm.
        val_data: Labelled validation data, given like `data`. Training uses it for its choices (default: a held-out
            part of `data`). Without training, `max_drop` is measured on it.
        epochs: Training epochs; 0 calibrates only. Default: the recipe's, which is 0 in most recipes.
        members: Number of networks to train from the checkpoint into one file, an ensemble; they differ by their seeds,
            which start at `seed`. `target_ratio` is then the checkpoint's floating bytes over the whole file.
        eval_data: Data that the finished file is evaluated on, given like `data`.
        forward: `f(network, batch) -> outputs`, where the network is not called with the batch's inputs; or text
            `path.py:callable`.
        metric: `g(network, data) -> float`, more is better, given like `forward`.
        loss: `l(outputs, batch) -> scalar tensor`, given like `forward`.
        inputs: Descriptions `NAME:DTYPE:SHAPE` of inputs to make where there are no data.
        keep: Patterns of names, such as `head.*`, of tensors that are kept bit for bit; added to the recipe's.
        samples: Number of posterior draws of the evaluation; ignored if `eval_data` is an `Evaluation`.
        html: Path of an HTML page with the report.
        seed: Seed of training and of the posterior draws of the evaluation. It is recorded in the artifact.
        restart: Whether to train from the beginning although an earlier run was interrupted. By default the same call
            resumes after the last finished epoch, from the file `<stem>.gbnn.state.safetensors` beside the artifact.
        planned: Whether the request is for `plan`, which writes nothing: the target is optional, and the default output
            is not checked.
        source: Path of the checkpoint; None for an object.
        name: Name of the checkpoint: its path, the class of the module, or `checkpoint`.
        path: Path of the artifact.
        chosen: The network's output that counts, by name or position; None: every floating output.
        configuration: The recipe with the settings and `keep`.
        ratio: Target ratio, given or the recipe's; None with `max_drop`, or for a plan without target.
        passes: Training epochs, given or the recipe's.

    Raises:
        GbnnError: The arguments do not fit together, or an output cannot be written.
    """

    checkpoint: Any
    target_ratio: float | None = None
    max_drop: float | None = None
    ratio_of: str = "artifact"
    output: str | Path | int | None = None
    arch: Any = None
    key: str | None = None
    task: str | None = None
    recipe: str | Path = "default"
    settings: Mapping[str, Any] | None = None
    data: Any = None
    val_data: Any = None
    epochs: int | None = None
    members: int = 1
    eval_data: Any = None
    samples: int = 16
    html: str | Path | None = None
    seed: int = 0
    restart: bool = False
    planned: bool = False
    max_error: float | None = None
    file: str | Path | None = None
    forward: Any = None
    metric: Any = None
    loss: Any = None
    inputs: Sequence[str] = ()
    keep: Sequence[str] = ()

    source: Path | None = field(init=False, repr=False)
    name: str = field(init=False, repr=False)
    path: Path = field(init=False, repr=False)
    chosen: str | int | None = field(init=False, repr=False)
    configuration: Recipe = field(init=False, repr=False)
    ratio: float | None = field(init=False, repr=False)
    passes: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_types(self)
        recipe = _with_keep(resolve(self.recipe, self.settings), self.keep)
        is_file = isinstance(self.checkpoint, str | Path)
        source = Path(self.checkpoint) if is_file else None
        file, chosen = _outputs(self.output, self.file)
        no_target = self.target_ratio is None and self.max_drop is None and self.max_error is None
        derived = {
            "source": source,
            "name": name_of_object(self.checkpoint),
            "path": default_output(self.checkpoint) if file is None else file,
            "chosen": chosen,
            "configuration": recipe,
            "ratio": recipe.target_ratio if no_target else self.target_ratio,
            "passes": recipe.epochs if self.epochs is None else self.epochs,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # a frozen dataclass sets its own fields in this way
        _check_target(self)
        _check_data(self)
        _check_members(self)
        require_seed(self.seed)
        check_task(self.task)
        given = (each for each in (self.data, self.val_data, self.eval_data) if each is not None)
        named = (*(as_evaluation(each, samples=self.samples).data for each in given), self.arch, self.recipe)
        read = [each for each in (*named, self.forward, self.metric, self.loss) if isinstance(each, str | Path)]
        if file is not None or not self.planned:
            _check_output(source, self.path)
            refuse_inputs(self.path, *read, option="-o")
        if self.html is not None:
            taken = {} if source is None else {"checkpoint": source}
            templated.require_writable(Path(self.html), **taken, artifact=self.path)
            refuse_inputs(Path(self.html), *read, option="--html")

    @property
    def arch_name(self) -> str | None:
        """Name of the given architecture: the specification, the module's class or the callable's name."""
        return None if self.arch is None else name_of_arch(self.arch)

    @property
    def architecture(self) -> Any:
        """The given architecture; of a checkpoint that is a module, itself; None if the index is asked."""
        return self.checkpoint if self.arch is None and is_module(self.checkpoint) else self.arch

    @property
    def measures_on_data(self) -> bool:
        """Whether the target is measured on `data`, because there is no `val_data`."""
        by_metric = self.max_drop is not None and self.metric is not None
        return self.val_data is None and self.data is not None and (self.max_error is not None or by_metric)

    @property
    def evaluated(self) -> tuple[Any, str]:
        """Data that the finished file is evaluated on, and the option that names them.

        These are `eval_data`. Without them, a metric or a loss that nothing else measures is measured on `data`.
        """
        asked = self.metric is not None or self.loss is not None
        measured = self.passes > 0 or self.max_drop is not None or self.max_error is not None
        if self.eval_data is None and asked and not measured:
            return self.data, "--data"
        return self.eval_data, "--eval-data"

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


def default_output(checkpoint: Any) -> Path:
    """`<stem>.gbnn.safetensors` in the working directory.

    The stem of a folder is its whole name (`Llama-3.2-1B`), that of a module its class, that of a mapping `checkpoint`.
    """
    if not isinstance(checkpoint, str | Path):
        return Path(name_of_object(checkpoint) + SUFFIX)
    path = Path(checkpoint)
    return Path(((path.resolve().name or "checkpoint") if path.is_dir() else path.stem) + SUFFIX)


def is_file_name(output: Any) -> bool:
    """Whether `output` is the path of a file, and not a name or position of one of the network's outputs."""
    if isinstance(output, str):
        return output.endswith((".safetensors", ".gbnn")) or any(each in output for each in ("/", os.sep))
    return isinstance(output, Path)


def _outputs(output: Any, file: Any) -> tuple[Path | None, str | int | None]:
    """Path of the artifact, and the network's output that counts."""
    if is_file_name(output):
        if file is not None:
            raise GbnnError(f"`output` and `file`: expected one path of the artifact, got `{output}` and `{file}`")
        return Path(output), None
    check_output(output)
    return None if file is None else Path(file), output


def _with_keep(recipe: Recipe, keep: Any) -> Recipe:
    """The recipe with further patterns of tensors to keep."""
    patterns = (keep,) if isinstance(keep, str) else tuple(keep)
    if not all(isinstance(each, str) for each in patterns):
        kinds = ", ".join(type(each).__name__ for each in patterns)
        raise GbnnError(f"`keep`: expected patterns of names, got {kinds}")
    return recipe.model_copy(update={"keep": (*recipe.keep, *patterns)}) if patterns else recipe


def _check_types(request: Request) -> None:
    """Refuse values of another type where a later stage would fail on them with an error of its own."""
    number, whole, text = ("a number", (Real,)), ("a whole number", (Integral,)), ("text", (str,))
    kinds: dict[str, tuple[str, tuple[type, ...]]] = {
        **dict.fromkeys(("target_ratio", "max_drop", "max_error"), number),
        **dict.fromkeys(("epochs", "seed", "samples", "members"), whole),
        **dict.fromkeys(("key", "task"), text),
        **dict.fromkeys(("recipe", "file", "html"), ("a path", (str, Path))),
        **dict.fromkeys(("inputs", "keep"), ("a list of texts", (str, list, tuple))),
        "settings": ("a mapping", (Mapping,)),
    }
    for name, (expected, types) in kinds.items():
        value = getattr(request, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, types)):
            raise GbnnError(f"`{name}`: expected {expected}, got {type(value).__name__}")
    check_type(request.checkpoint, argument="checkpoint")
    check_arch(request.arch)
    parse_inputs(request.inputs)
    check_functions(forward=request.forward, metric=request.metric, loss=request.loss)
    for name in ("data", "val_data", "eval_data"):
        if getattr(request, name) is not None:
            check_data(as_evaluation(getattr(request, name), samples=1).data, argument=name)


def _check_target(request: Request) -> None:
    """Refuse targets that are out of range, two targets, and a missing target unless planning."""
    ratio, drop, error = request.ratio, request.max_drop, request.max_error
    n_given = sum(each is not None for each in (ratio, drop, error))
    if n_given > 1 or (not n_given and not request.planned):
        also = "" if error is None else ", or `--max-error` (such as 0.05)"
        raise GbnnError(f"give either `--target-ratio` (such as 50) or `--max-drop` (such as 1.0){also}")
    if ratio is not None and not 1 <= ratio < float("inf"):
        raise GbnnError(f"`--target-ratio`: expected a number of at least 1 (such as 50, 50x or 2%), got {ratio:g}")
    if error is not None and not 0 < error < 1:
        raise GbnnError(f"`--max-error`: expected a relative error above 0 and below 1 (such as 0.05), got {error:g}")
    if drop is not None and request.metric is not None and not 0 < drop < float("inf"):
        raise GbnnError(f"`--max-drop`: expected a loss of the metric above 0, got {drop:g}")
    if drop is not None and request.metric is None and not 0 < drop <= 100:
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
    if epochs and request.max_error is not None:
        raise GbnnError("`--max-error`: the error after training cannot be predicted; give `--target-ratio`")
    if request.max_error is not None and data is None and request.val_data is None:
        raise GbnnError("`--max-error`: the error is measured on inputs; give `--val-data` or `--data`")
    if epochs and recipe.blending != "none":
        raise GbnnError("`--epochs`: blends cannot be trained; add `-s blending=none`")
    measured = request.max_drop is not None or request.max_error is not None
    if request.val_data is not None and not epochs and not measured:
        raise GbnnError(
            "`--val-data`: it is used only with `--max-drop`, `--max-error` or `--epochs` above 0; give one of these"
        )
    any_data = any(each is not None for each in (data, request.val_data, request.eval_data)) or bool(request.inputs)
    functions = {"--forward": request.forward, "--output": request.chosen, "--metric": request.metric}
    idle = [option for option, each in {**functions, "--loss": request.loss}.items() if each is not None]
    if idle and not any_data:
        raise GbnnError(f"{listed(idle)}: used only on inputs; give `--data` or `--eval-data`, or leave out the option")
    if request.inputs and data is not None:
        raise GbnnError("`--input`: inputs are made only where there are no data; leave out this option or `--data`")
    calibrates = recipe.feedback or recipe.posterior != "data_free"
    if data is not None and not epochs and not calibrates and not request.measures_on_data:
        raise GbnnError("`--data`: a recipe with `feedback: false` does not calibrate; leave out one of the two")


def _check_members(request: Request) -> None:
    """Refuse a number of members that is out of range, and what an ensemble cannot be made with."""
    count = request.members
    if count == 1:
        return
    if not 1 <= count <= MOST_MEMBERS:
        raise GbnnError(f"`--members`: expected 1 to {MOST_MEMBERS} networks, got {count}")
    if request.planned:
        raise GbnnError(
            f"`--members`: `plan` predicts single files; leave it out, and give {count} times the `--target-ratio`"
        )
    if not request.passes:
        raise GbnnError(
            f"`--members {count}`: members differ by their training; give `--epochs` and `--data`, or join finished"
            " files with `gbnn-compress ensemble`"
        )
    if request.ratio_of != "artifact":
        raise GbnnError("`--members`: the target is a ratio of bytes; leave out `--ratio-of`")
    if request.metric is not None:
        raise GbnnError("`--metric`: it is measured on one network, not on an ensemble; leave it out, or `--members`")
    require_seed(request.seed + count - 1)


def _check_output(source: Path | None, path: Path) -> None:
    if source is None:
        require_writable(path)
        return
    if same_file(path, source):
        raise OutputError(f"cannot write `{path}`: it is the checkpoint itself; choose another `-o`")
    taken = path.suffix.lower() in SUFFIXES and not path.name.endswith(SUFFIX)
    if source.is_dir() and taken and same_file(path.parent, source):
        raise OutputError(
            f"cannot write `{path}`: loaders may take it for a part of the checkpoint; choose another `-o`"
        )
    require_writable(path)
