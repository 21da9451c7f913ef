"""The configuration: one model, shipped and users' recipes as YAML of it."""

from __future__ import annotations

import importlib.resources
import itertools
import reprlib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gbnn_compress.errors import RecipeError, did_you_mean, nearest

MOST_BYTES = 1 << 14
"""Of a recipe's file."""

MOST_QUOTED = 200
"""Characters of a file that a message quotes."""


TRAINED_NOISE, UNTRAINED_NOISE = 0.35, 0.1
"""The recipe's `noise` by default. Without labels nobody knows whether a network is too sure of itself or not sure
enough: its noise is to change predictions by much less than sharing weights did."""


class TrainingSettings(BaseModel):
    """Choices of training; they matter with `--epochs` above 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trained: Literal["all", "bank"] = Field(
        default="all",
        description="Weights and the bank, or (the paper) the bank; norms and biases always.",
    )
    learning_rate: float = Field(
        default=0.03,
        gt=0,
        le=1,
        description="Adam's for latent weights, in steps of the bank, when there are 1,000 steps of training;"
        " it goes with one over the root of their number, so that weights wander as far.",
    )
    bank_learning_rate: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="Of component means, in their median gap, and log deviations.",
    )
    plain_learning_rate: float = Field(default=0.001, gt=0, le=1, description="For norms and biases.")
    batch_size: int = Field(
        default=64, ge=2, le=65536, description="Images of a step, fewer where an epoch would have under 64 steps."
    )
    ramp: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Share of the steps over which the ratio rises to the target.",
    )
    size_power: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Steps over their tensor's root mean square, squared, go with this power of its size.",
    )
    distillation: float = Field(
        default=0.5, ge=0, le=1, description="Weight of the checkpoint's own probabilities; the labels have the rest."
    )
    beta: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="Weight of KL / dataset size: 1 is Bayes' rule.",
    )
    warm_up: float = Field(default=0.3, ge=0, le=1, description="Share of the steps over which beta rises from 0.")
    noise: bool = Field(default=True, description="Train under posterior draws, one a step; or at the posterior mean.")
    augmentation: Literal["auto", "none"] = Field(
        default="auto",
        description="Shift and flip images, where the checkpoint does not mind; or never.",
    )
    fold_temperature: bool = Field(
        default=False, description="Fit a temperature on the data for choices, and put it into the file."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Of the layers in training: bfloat16 where the machine has it."
    )


class Recipe(BaseModel):
    """Every choice that changes the artifact, besides the seed; target and epochs where options leave them open."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target_ratio: float | None = Field(
        default=None,
        ge=1,
        allow_inf_nan=False,
        description="The target where neither `--target-ratio` nor `--max-drop` says one.",
    )
    epochs: int = Field(default=0, ge=0, description="Passes over `--data` where `--epochs` does not say.")
    n_components: int = Field(1024, ge=1, le=4096, description="Most mixture components before merging.")
    em_iterations: int = Field(20, ge=1, le=1000, description="Most EM steps.")
    log_sigma_weight: float = Field(
        default=0.1, gt=0, le=100, description="c, the weight of log sigma as a coordinate beside mu."
    )
    noise: float | None = Field(
        default=None,
        ge=0,
        le=10,
        description="Posterior noise over quantisation error, both root mean square over the layers; 0: none. Default:"
        " 0.35 in training, where labels then choose how much of it there is; 0.1 without, where it changes little.",
    )
    refinements: int = Field(
        default=3, ge=1, le=100, description="Rounds of assignment at one lambda; components move between them."
    )
    merging: Literal["rate", "wasserstein"] = Field(
        default="rate",
        description="Merge what adds less distortion than lambda times the bits it saves, or (the paper) what is near.",
    )
    merge_distance: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="tau_d of `merging: wasserstein`, in steps of the uniform quantiser that is best at lambda.",
    )
    merge_variance: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="tau_v of `merging: wasserstein`: components whose log sigma differ by more never merge.",
    )
    outliers: Literal["rate", "magnitude"] = Field(
        default="rate", description="Keep a weight exactly where that is cheaper, or (the paper) where it is large."
    )
    outlier_threshold: float = Field(
        default=0.2, gt=0, description="tau_w of `outliers: magnitude`: abs(weight) from which it is kept exactly."
    )
    blending: Literal["none", "all"] = Field(
        default="none",
        description="Blends of two components for weights that fit neither: none, or (the paper) all.",
    )
    posterior: Literal["data_free", "variational"] = Field(
        default="data_free",
        description="Where a weight's sigma comes from: its filter's curvature in the checkpoint; or (the paper), with"
        " `--data`, variational inference with the data's labels.",
    )
    feedback: bool = Field(
        default=True, description="Feed errors back through a network that is known, or assign each weight by itself."
    )
    allocation: Literal["norms", "costs"] = Field(
        default="costs",
        description="How layers share the bits: by their norms; or, with calibration inputs, by what errors cost.",
    )
    finetune: TrainingSettings = Field(TrainingSettings(), description="Choices of training.")

    def recorded(self, *, epochs: int) -> dict[str, Any]:
        """What an artifact says of its recipe: the values of FAMILIAR, and whatever is not at its default.

        Without target and epochs, which it says apart, whether they come from the recipe or from options.

        Args:
            epochs: Of training, on which the default of `noise` depends.
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
"""Keys that the dictionary of an artifact's manifest knows, so that naming them costs nothing."""


def resolve(recipe: str | Path = "default", settings: Mapping[str, Any] | None = None) -> Recipe:
    """Defaults < recipe < settings.

    Args:
        recipe: Name of a shipped recipe, or a YAML file.
        settings: Further values by key; strings are read as YAML scalars.

    Raises:
        RecipeError: An unknown recipe or key (the nearest match is offered), or a value out of range.
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
    """The values that a recipe sets, checked for nothing but being a mapping.

    Raises:
        RecipeError: No such recipe, or not a YAML mapping.
    """
    values = _load_yaml(recipe_text(recipe), where=f"recipe `{recipe}`") or {}
    if not isinstance(values, dict):
        raise RecipeError(f"recipe `{recipe}`: expected `key: value` lines, got {type(values).__name__}")
    return values


def recipe_text(recipe: str | Path) -> str:
    """The YAML of a recipe.

    Raises:
        RecipeError: No such recipe.
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
    """The comment that a recipe begins with, as it stands there: what it is for, the command, what to expect."""
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
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two of dates and numbers, and of nesting
        raise RecipeError(f"{where} is not valid YAML: {_short(' '.join(str(error).split()))}") from None


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases, a few of which can stand for more than memory holds, and without repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read the next value."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases have no place in a recipe", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.MarkedYAMLError(problem="a key is there twice", problem_mark=node.start_mark)
        return mapping


def _short(text: str) -> str:
    return textwrap.shorten(text, MOST_QUOTED, placeholder=" ...") if len(text) > MOST_QUOTED else text


def _shown(value: Any) -> str:
    """A value as a message may hold it: of foreign length."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes out no integer of thousands of digits
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
