"""Recipes: the shipped ones, users' own, and every way to get one wrong."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from gbnn_compress import compress
from gbnn_compress.errors import GbnnError, RecipeError
from gbnn_compress.recipe import Recipe, TrainingSettings, heading, read_recipe, resolve, shipped_recipes


def refusal(*arguments: Any) -> str:
    """The one line with which a recipe is refused."""
    with pytest.raises(RecipeError) as caught:
        resolve(*arguments)
    line = str(caught.value)
    assert "\n" not in line
    return line


def own(folder: Path, text: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid(name: str) -> None:
    assert isinstance(resolve(name), Recipe)


def test_the_default_recipe_names_every_key() -> None:
    values = yaml.safe_load(shipped_recipes()["default"])
    assert list(values) == list(Recipe.model_fields)
    assert list(values["finetune"]) == list(TrainingSettings.model_fields)


def test_every_yaml_file_of_the_package_is_shipped() -> None:
    folder = importlib.resources.files("gbnn_compress.recipes")
    assert {item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")} == set(
        shipped_recipes()
    )
    assert "default" in shipped_recipes()


def test_the_default_recipe_sets_the_defaults() -> None:
    assert resolve() == resolve("default") == Recipe()


def test_settings_go_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path: Path) -> None:
    path = own(tmp_path, "noise: 0.5\nem_iterations: 7\n")
    recipe = resolve(path, {"noise": 0.25})
    assert (recipe.noise, recipe.em_iterations, recipe.n_components) == (0.25, 7, Recipe().n_components)
    assert resolve(str(path)) == resolve(path)


def test_settings_and_recipes_are_left_as_they_are(tmp_path: Path) -> None:
    settings = {"noise": "0.25"}
    resolve("default", settings)
    assert settings == {"noise": "0.25"}
    assert resolve().noise == Recipe().noise


@pytest.mark.parametrize(("text", "value"), [("300", 300), ("300.0", 300), ("0x12c", 300)])
def test_settings_may_be_the_words_of_a_command_line(text: str, value: int) -> None:
    assert resolve("default", {"n_components": text}).n_components == value


def test_an_empty_recipe_is_the_defaults(tmp_path: Path) -> None:
    assert resolve(own(tmp_path, "# nothing\n")) == Recipe()


def test_descriptions_are_there_for_every_key() -> None:
    assert all(field.description for field in Recipe.model_fields.values())


def test_an_unknown_key_offers_the_nearest(tmp_path: Path) -> None:
    for line in (refusal("default", {"nosie": 1}), refusal(own(tmp_path, "nosie: 1"))):
        assert "unknown key `nosie` (did you mean `noise`?)" in line
        assert ", ".join(Recipe.model_fields) in line
    assert "did you mean" not in refusal("default", {"zzzzzz": 1})


def test_keys_that_are_no_words_are_unknown_too(tmp_path: Path) -> None:
    assert "unknown key `1`" in refusal(own(tmp_path, "1: 2"))


def test_an_unknown_recipe_offers_the_nearest() -> None:
    line = refusal("defualt")
    assert "unknown recipe `defualt`: expected a YAML file or one of default, demo, " in line
    assert "(did you mean `default`?)" in line


@pytest.mark.parametrize("text", ["noise: [", "a: b: c", "\tnoise: 1", "noise: !!python/object:os.system 1"])
def test_bad_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    assert "is not valid YAML" in refusal(own(tmp_path, text))


@pytest.mark.parametrize(("text", "kind"), [("- noise", "list"), ("noise", "str"), ("3", "int")])
def test_yaml_that_is_no_mapping(tmp_path: Path, text: str, kind: str) -> None:
    assert f"expected `key: value` lines, got {kind}" in refusal(own(tmp_path, text))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target_ratio", 0.5),
        ("target_ratio", float("inf")),
        ("target_ratio", "50x"),
        ("epochs", -1),
        ("epochs", 1.5),
        ("n_components", 0),
        ("n_components", 4097),
        ("n_components", 2.5),
        ("n_components", "many"),
        ("em_iterations", 0),
        ("log_sigma_weight", 0),
        ("log_sigma_weight", float("nan")),
        ("noise", -0.1),
        ("noise", "much"),
        ("noise", [0.1]),
        ("noise", float("inf")),
        ("refinements", 0),
        ("merging", "ward"),
        ("merge_distance", 0),
        ("merge_variance", -1),
        ("outliers", "gradient"),
        ("outlier_threshold", 0),
        ("blending", True),
        ("feedback", "often"),
        ("posterior", "laplace"),
        ("allocation", None),
    ],
)
def test_a_bad_value_names_its_key_and_itself(key: str, value: Any) -> None:
    line = refusal("default", {key: value})
    assert f"`{key}`" in line
    assert repr(value) in line


@pytest.mark.parametrize("text", ["[", "a: b: c", "!!python/object:os.system 1"])
def test_a_setting_that_is_no_yaml_is_one_line(text: str) -> None:
    assert f"`-s noise={text}` is not valid YAML" in refusal("default", {"noise": text})


def test_reading_a_recipe_does_not_judge_it(tmp_path: Path) -> None:
    assert read_recipe(own(tmp_path, "nosie: 1")) == {"nosie": 1}


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("bank: grid", "`bank` was removed: the bank always comes from a mixture"),
        ("bank: mixture", "leave `bank` out"),
        ("contexts: false", "`contexts` was removed: ids are always coded by context where that is shorter"),
        ("sigma: magnitude", "`sigma` was removed: sigma comes from the curvature, or from data with `posterior:"),
        ("posterior: fisher", "`posterior: fisher` was removed: set `posterior: data_free`"),
        ("blending: rate", "`blending: rate` was removed: set `blending: none`"),
    ],
)
def test_what_was_removed_says_what_replaces_it(tmp_path: Path, line: str, instead: str) -> None:
    key, value = line.split(": ")
    path = own(tmp_path, f"noise: 0.5\n{line}\n")
    assert refusal(path).startswith(f"recipe `{path}`: ")
    assert instead in refusal(path)
    assert instead in refusal("default", {key: value})


@pytest.mark.parametrize("line", ["posterior: 1", "blending: [rate]", "finetune: {bank: grid}"])
def test_only_removed_values_are_said_to_be_removed(tmp_path: Path, line: str) -> None:
    assert "was removed" not in refusal(own(tmp_path, line))


def test_an_artifact_records_the_familiar_and_the_unusual() -> None:
    plain = resolve().recorded(epochs=0)
    assert list(plain) == ["n_components", "em_iterations", "log_sigma_weight", "noise"]
    assert resolve("default", {"merging": "wasserstein"}).recorded(epochs=0)["merging"] == "wasserstein"
    assert Recipe(**resolve("paper").recorded(epochs=0)) == resolve("paper")
    assert resolve("default", {"target_ratio": 8, "epochs": 3}).recorded(epochs=0) == plain


def test_noise_is_small_unless_labels_choose_it_or_somebody_asks_for_it() -> None:
    assert [resolve().recorded(epochs=epochs)["noise"] for epochs in (0, 3)] == [0.1, 0.35]
    asked = resolve("default", {"noise": 0.2})
    assert [asked.recorded(epochs=epochs)["noise"] for epochs in (0, 3)] == [0.2, 0.2]


@pytest.mark.parametrize(
    ("text", "comment"),
    [
        ("# One.\n# Two.\nnoise: 1\n# Three.\n", "# One.\n# Two.\n"),
        ("noise: 1\n# One.\n", ""),
        ("# One.\n\n# Two.\n", "# One.\n"),
        ("# One.", "# One."),
        ("", ""),
    ],
)
def test_a_heading_is_the_comment_at_the_top(text: str, comment: str) -> None:
    assert heading(text) == comment


def test_options_go_over_the_target_and_epochs_of_a_recipe(tmp_path: Path) -> None:
    weights = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    save_file({"weight": weights}, checkpoint := tmp_path / "net.safetensors")
    recipe = own(tmp_path, "target_ratio: 6\nepochs: 2\nn_components: 64\n")

    def compressed(**options: Any) -> dict[str, Any]:
        return compress(checkpoint, output=tmp_path / "out.gbnn.safetensors", recipe=recipe, **options)

    with pytest.raises(GbnnError, match=r"the recipe.s `epochs: 2`: training needs data"):
        compressed()
    by_recipe, by_option = compressed(epochs=0), compressed(epochs=0, target_ratio=4)
    assert (by_recipe["target_ratio"], by_option["target_ratio"]) == (6, 4)
    assert compressed(epochs=0, max_drop=5.0, task="classifier")["target_ratio"] is None
    same = compressed(epochs=0, target_ratio=6.0)
    assert same["artifact"]["sha256"] == by_recipe["artifact"]["sha256"] != by_option["artifact"]["sha256"]


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().noise = 1.0
