"""The configuration of compression and training, and recipes: YAML files that set its values."""

from __future__ import annotations

import importlib.resources
import itertools
import reprlib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gbnn_compress.errors import RecipeError, did_you_mean, nearest

MOST_BYTES = 1 << 14
"""Largest size of a recipe file, in bytes."""

MOST_QUOTED = 200
"""Largest number of characters of a file that a message quotes."""


TRAINED_NOISE, UNTRAINED_NOISE = 0.35, 0.1
"""Default of `noise` with and without training. Without labels it is not known whether a network is over- or
underconfident, so its noise should change predictions much less than weight sharing does."""


class TrainingSettings(BaseModel):
    """Settings of training; ignored without `--epochs` above 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trained: Literal["all", "bank"] = Field(
        default="all",
        description="What is trained besides norms and biases: weights and the bank, or (the paper) only the bank.",
    )
    learning_rate: float = Field(
        default=0.03,
        gt=0,
        le=1,
        description="Adam's learning rate of latent weights, in steps of the bank, for 1,000 steps of training."
        " It is proportional to one over the root of the number of steps, so that weights move equally far.",
    )
    bank_learning_rate: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="Learning rate of component means, in units of their median gap, and of log deviations.",
    )
    plain_learning_rate: float = Field(default=0.001, gt=0, le=1, description="Learning rate of norms and biases.")
    batch_size: int = Field(
        default=64,
        ge=2,
        le=65536,
        description="Images per step; fewer if an epoch would have less than 64 steps.",
    )
    ramp: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Fraction of the steps over which the ratio rises to the target.",
    )
    size_power: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Exponent p: the squared quantisation step of a tensor, relative to its mean square, is"
        " proportional to its size to the power p.",
    )
    distillation: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Weight of the checkpoint's probabilities in the loss; the labels have the rest.",
    )
    beta: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="Weight of KL / dataset size in the loss: 1 is Bayes' rule.",
    )
    warm_up: float = Field(default=0.3, ge=0, le=1, description="Fraction of the steps over which beta rises from 0.")
    noise: bool = Field(
        default=True,
        description="Train with one posterior draw per step, instead of at the posterior mean; without labels only if"
        " the key `noise` is set, too.",
    )
    augmentation: Literal["auto", "none"] = Field(
        default="auto",
        description="Shift and flip images if the checkpoint's accuracy hardly drops under it, or never.",
    )
    fold_temperature: bool | None = Field(
        default=None,
        description="Fit a temperature on the validation data, and store it in the file. Default: true with labelled"
        " `--val-data`; false without, and with `--members`, whose average needs none.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Precision of the layers in training; `auto`: bfloat16 if the machine supports it."
    )


class Recipe(BaseModel):
    """All settings that change the artifact, except the seed. Options override the target and the epochs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target_ratio: float | None = Field(
        default=None,
        ge=1,
        allow_inf_nan=False,
        description="Target ratio if neither `--target-ratio` nor `--max-drop` is given.",
    )
    epochs: int = Field(default=0, ge=0, description="Training epochs if `--epochs` is not given.")
    n_components: int = Field(1024, ge=1, le=4096, description="Largest number of mixture components before merging.")
    em_iterations: int = Field(20, ge=1, le=1000, description="Largest number of EM steps.")
    log_sigma_weight: float = Field(
        default=0.1, gt=0, le=100, description="Weight c of the coordinate log sigma, relative to mu."
    )
    noise: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="Ratio of posterior noise to quantisation error, both as root mean square over the layers; 0: no"
        " noise. Default: 0.35 with training, which then adapts the noise by the labels; 0.1 without, which has"
        " little effect.",
    )
    refinements: int = Field(
        default=3, ge=1, le=100, description="Rounds of assignment at one lambda; components are updated in between."
    )
    merging: Literal["rate", "wasserstein"] = Field(
        default="rate",
        description="Merge components if that adds less distortion than lambda times the saved bits, or (the paper) if"
        " they are close.",
    )
    merge_distance: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Threshold tau_d of `merging: wasserstein`, in steps of the best uniform quantiser at lambda.",
    )
    merge_variance: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="Threshold tau_v of `merging: wasserstein`: components whose log sigma differ by more do not"
        " merge.",
    )
    outliers: Literal["rate", "magnitude"] = Field(
        default="rate", description="Keep a weight exactly if that costs less, or (the paper) if it is large."
    )
    outlier_threshold: float = Field(
        default=0.2,
        gt=0,
        description="Threshold tau_w of `outliers: magnitude`: abs(weight) from which a weight is kept exactly.",
    )
    blending: Literal["none", "all"] = Field(
        default="none",
        description="Blends of two components for weights that fit neither: none, or (the paper) all.",
    )
    posterior: Literal["data_free", "variational"] = Field(
        default="data_free",
        description="Source of sigma: the curvature of the filter in the checkpoint; or (the paper), with `--data`,"
        " variational inference with the data's labels.",
    )
    feedback: bool = Field(
        default=True,
        description="Use error feedback if the network is known, instead of assigning each weight by itself.",
    )
    trellis: bool = Field(
        default=True,
        description="Choose components along a trellis in files of more than about 1.4 bits per weight, which makes"
        " them smaller; without training only. Releases before 0.2 do not open such files.",
    )
    allocation: Literal["norms", "costs"] = Field(
        default="costs",
        description="Allocation of bits to layers: by their norms, or, with calibration inputs, by measured costs of"
        " errors.",
    )
    keep: tuple[str, ...] = Field(
        default=(),
        description="Patterns of names, such as `[head.*]`, of tensors that are kept bit for bit.",
    )
    importance: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(
        default={},
        description="Pattern of names -> factor: errors in these tensors count so many times more.",
    )
    finetune: TrainingSettings = Field(TrainingSettings(), description="Settings of training.")

    def recorded(self, *, epochs: int) -> dict[str, Any]:
        """The values that an artifact records: those of FAMILIAR, and all that differ from their defaults.

        Target and epochs are left out, because the artifact records them separately.

        Args:
            epochs: Training epochs, on which the default of `noise` depends.
        """
        changed = self.model_dump(exclude_defaults=True, exclude={"target_ratio", "epochs"})
        values = self.model_dump()
        if self.noise is None:
            values["noise"] = TRAINED_NOISE if epochs else UNTRAINED_NOISE
        return {key: value for key, value in values.items() if key in FAMILIAR or key in changed}


REMOVED = {
    "bank": "the bank always comes from a mixture; leave `bank` out",
    "contexts": "ids are always coded by context where that is shorter; leave `contexts` out",
    "sigma": "sigma comes from the curvature, or from data with `posterior: variational`; leave `sigma` out",
    "posterior: fisher": "set `posterior: data_free` (the default, as good) or `posterior: variational`",
    "blending: rate": "set `blending: none` (the default: no blend ever paid) or `blending: all`",
}
"""Keys and values of version 0.1 that no recipe may set any more -> what replaces them."""

FAMILIAR = ("n_components", "em_iterations", "log_sigma_weight", "noise")
"""Keys that are always recorded. They are in the compression dictionary of the manifest, so they take hardly a byte."""


def resolve(recipe: str | Path = "default", settings: Mapping[str, Any] | None = None) -> Recipe:
    """Make the configuration of a recipe. Settings override the recipe, which overrides the defaults.

    Args:
        recipe: Name of a shipped recipe, or path of a YAML file.
        settings: Key -> value; strings are parsed as YAML. A key of `finetune` is written `finetune.KEY`.

    Raises:
        RecipeError: The recipe or a key is unknown (the message suggests the nearest match), or a value is out of
            range.
    """
    values = read_recipe(recipe)
    for key, value in (settings or {}).items():
        loaded = _load_yaml(value, where=f"`-s {key}={value}`") if isinstance(value, str) else value
        group, dot, inner = key.partition(".")
        if dot:
            before = values.get(group)
            values[group] = {**(before if isinstance(before, Mapping) else {}), inner: loaded}
        else:
            values[key] = loaded
    changed = f" with {', '.join(f'`-s {key}`' for key in settings)}" if settings else ""
    return _validate(values, where=f"recipe `{recipe}`{changed}")


def shipped_recipes() -> dict[str, str]:
    """Name -> YAML text of every shipped recipe."""
    folder = importlib.resources.files("gbnn_compress.recipes")
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".yaml")), key=lambda item: item.name)
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """The values that a recipe sets, not yet validated.

    Raises:
        RecipeError: The recipe does not exist, or is no YAML mapping.
    """
    values = _load_yaml(recipe_text(recipe), where=f"recipe `{recipe}`") or {}
    if not isinstance(values, dict):
        raise RecipeError(f"recipe `{recipe}`: expected `key: value` lines, got {type(values).__name__}")
    return values


def recipe_text(recipe: str | Path) -> str:
    """The YAML text of a recipe.

    Raises:
        RecipeError: The recipe does not exist.
    """
    shipped = shipped_recipes()
    path = Path(recipe)
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    if path.is_file():
        return _read_text(path)
    hint = did_you_mean(nearest(str(recipe), shipped))
    raise RecipeError(f"unknown recipe `{recipe}`: expected a YAML file or one of {', '.join(shipped)}{hint}")


def heading(text: str) -> str:
    """The comment at the start of a recipe: its purpose, the command, and the expected result."""
    return "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RecipeError(f"recipe `{path}` is longer than {MOST_BYTES:,} bytes; expected a few `key: value` lines")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe `{path}` cannot be read as text ({error}); expected a YAML file") from None


def _load_yaml(text: str, *, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: dates, numbers; RecursionError: nesting
        raise RecipeError(f"{where} is not valid YAML: {_short(' '.join(str(error).split()))}") from None


class _PlainLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses repeated keys, and aliases, a few of which can exhaust memory."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read the next value."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="a recipe cannot have aliases", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.MarkedYAMLError(problem="a key occurs twice", problem_mark=node.start_mark)
        return mapping


def _short(text: str) -> str:
    return textwrap.shorten(text, MOST_QUOTED, placeholder=" ...") if len(text) > MOST_QUOTED else text


def _shown(value: Any) -> str:
    """A value for a message, shortened if it is long."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not print integers of thousands of digits
        return f"a huge {type(value).__name__}"


def _validate(values: Mapping[str, Any], *, where: str) -> Recipe:
    _check_removed(values, where=where)
    _check_keys(values, Recipe.model_fields, where=where)
    if isinstance(values.get("finetune"), Mapping):
        _check_keys(values["finetune"], TrainingSettings.model_fields, where=where, group="finetune.")
    try:
        recipe = Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RecipeError(f"{where}: `{key}`: {first['msg'].lower()}, got {_shown(first['input'])}") from None
    return recipe


def _check_removed(values: Mapping[str, Any], *, where: str) -> None:
    """Refuse what only recipes of version 0.1 could set."""
    for key, value in values.items():
        for word in (key, f"{key}: {value}" if isinstance(value, str) else key):
            if word in REMOVED:
                raise RecipeError(f"{where}: `{word}` was removed: {REMOVED[word]}")


def _check_keys(values: Mapping[str, Any], known: Mapping[str, Any], *, where: str, group: str = "") -> None:
    for key in values:
        if key not in known:
            word = key if isinstance(key, str) else _shown(key)
            hint, listing = did_you_mean(nearest(word, known)), ", ".join(known)
            raise RecipeError(f"{where}: unknown key `{group}{_short(word)}`{hint}; known keys: {listing}")
