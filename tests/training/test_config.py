"""Recipes in YAML: read strictly, written and read again without a difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trunkline.api import Platform
from trunkline.data.columns import DataFiles
from trunkline.errors import DataError, Interrupted, NotFoundError, TrunklineError, UsageError
from trunkline.training.config import RecipeConfig, config_of, make_config, read_config

OWN = """\
name: claims/category
data:
  file: claims.csv
  text: body
  label: kind
settings: {r: 4, learning_rate: 1.0e-3, target_modules: [q_proj, v_proj]}
gate: {metric: macro_f1, at_least: 0.5}
"""


def config(folder: Path, text: str) -> RecipeConfig:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return read_config(path)


def test_recipe_of_own_data(tmp_path: Path) -> None:
    recipe = config(tmp_path, OWN).recipe()
    assert (recipe.name, recipe.task, recipe.dataset) == (
        "claims/category", "classification", "claims/category",
    )  # fmt: skip
    assert (recipe.settings.r, recipe.settings.target_modules) == (4, "q_proj,v_proj")
    assert (recipe.gate.metric, recipe.gate.at_least) == ("macro_f1", 0.5)
    assert recipe.metrics == ("accuracy", "macro_f1")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    data = config(tmp_path, OWN).data
    assert data is not None
    assert data.file == str(tmp_path / "claims.csv")


def test_written_and_read_again_it_is_the_same(tmp_path: Path) -> None:
    one = config(tmp_path, OWN)
    assert config(tmp_path, one.to_yaml()) == one


@pytest.mark.parametrize(
    "text", ["1e5", "7E3", ".9E5", "1e-4", "010", "yes", "~", "a\x85b", "1:30"]
)
def test_text_that_looks_like_another_value_survives_yaml(text: str, tmp_path: Path) -> None:
    values = {"name": "a/b", "data": {"file": "f.csv", "label": text, "text": "t"}}
    one = make_config({**values, "loss_options": {"costs": {text: {"other": 5.0}}}}, "made")
    path = tmp_path / "recipe.yaml"
    path.write_text(one.to_yaml(tmp_path), encoding="utf-8")
    assert read_config(path).is_same(one)


def test_every_recipe_of_a_plugin_survives_yaml(platform: Platform, tmp_path: Path) -> None:
    for recipe in platform.catalog.recipes():
        again = config(tmp_path, config_of(recipe).to_yaml()).recipe()
        assert platform.catalog.resolved(again) == recipe


def test_yaml_of_a_plugins_recipe_is_trained_like_it(platform: Platform, tmp_path: Path) -> None:
    own = config(tmp_path, config_of(platform.catalog.recipe("toy/animals")).to_yaml())
    one = platform.training_job(own, {"max_steps": 1})
    other = platform.training_job("toy/animals", {"max_steps": 1})
    assert replace(one, config=None) == other


@pytest.mark.parametrize(
    ("text", "error", "part"),
    [
        (OWN.replace("name:", "nam:"), UsageError, "name is missing"),
        (OWN + "seed: 3\n", UsageError, "seed is not a field"),
        (OWN.replace("label: kind", "label: true"), UsageError, "data.label"),
        (OWN.replace("label: kind", "label: 7"), UsageError, "data.label"),
        (OWN.replace("  label: kind\n", ""), UsageError, "data"),
        (OWN + "dataset: toy/animals\n", UsageError, "either data"),
        (OWN + "task: regression\n", UsageError, "classification"),
        (OWN.replace("r: 4", "r: four"), UsageError, "r must be an integer"),
        (OWN.replace("r: 4", "rnk: 4"), UsageError, "rnk"),
        (OWN.replace("claims/category", "claims"), UsageError, "claims"),
        (OWN + "name: a/b\n", DataError, "occurs twice"),
        ("a: [1\n", DataError, "line"),
        ("just text\n", DataError, "recipe"),
        ("- a\n", DataError, "recipe"),
        ("", DataError, "recipe"),
        ("a: &x 1\nb: *x\n", DataError, "alias"),
        ("a: !!python/object/apply:os.system [id]\n", DataError, "YAML"),
        ("[" * 5000, DataError, "YAML"),
    ],
)  # fmt: skip
def test_what_can_not_be_meant_is_refused(
    tmp_path: Path, text: str, error: type[TrunklineError], part: str
) -> None:
    with pytest.raises(error) as caught:
        config(tmp_path, text).recipe()
    assert part in caught.value.message
    assert caught.value.hint


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_config(tmp_path / "none.yaml")


def test_loss_of_another_task_is_refused(platform: Platform) -> None:
    own = config_of(platform.catalog.recipe("toy/animals")).model_copy(update={"loss": "mse"})
    with pytest.raises(UsageError, match="mse is for regression"):
        platform.training_job(own, {})


def test_name_of_a_plugins_recipe_is_refused_for_own_data(
    platform: Platform, tmp_path: Path
) -> None:
    (tmp_path / "claims.csv").write_text("body,kind\na,b\n")
    own = config(tmp_path, OWN.replace("claims/category", "toy/animals"))
    with pytest.raises(UsageError, match="recipe of the plugin"):
        platform.training_job(own, {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", "010"), ("1:30", "1:30"), ("1_0", "1_0"), ("0o10", "0o10"), ("0x10", "0x10"),
        ("yes", "yes"), ("2026-11-29", "2026-11-29"), ("2026-13-45", "2026-13-45"), ("12", 12),
        ("-3", -3), ("1e-4", 1e-4), ("1.5", 1.5), (".5", 0.5), ("true", True), ("~", None),
    ],
)  # fmt: skip
def test_plain_values_are_those_of_yaml_1_2(text: str, value: object, tmp_path: Path) -> None:
    own = config(tmp_path, f"{OWN}loss_options: {{x: {text}}}\n")
    assert own.loss_options == {"x": value}
    assert type(own.loss_options["x"]) is type(value)


@pytest.mark.parametrize(
    "line",
    ["description: !!int abc", "description: !!timestamp x", "description: !!bool x", "? [a]\n: b"],
)
def test_what_yaml_cannot_construct_is_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(TrunklineError) as error:
        config(tmp_path, f"{OWN}{line}\n")
    assert "recipe.yaml" in error.value.message
    assert error.value.hint


def test_written_to_another_folder_it_names_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "out").mkdir()
    own = config(tmp_path, OWN).model_copy(
        update={"data": DataFiles(file="data/claims.csv", text="body", label="kind")}
    )
    (tmp_path / "out" / "own.yaml").write_text(own.to_yaml(tmp_path / "out"))
    again = read_config(tmp_path / "out" / "own.yaml")
    assert again.data is not None
    assert Path(again.data.file).resolve() == tmp_path / "data" / "claims.csv"
    assert again.is_same(own)
    assert not again.is_same(own.model_copy(update={"loss": "focal"}))


def test_a_run_is_not_resumed_with_another_recipe(platform: Platform, tmp_path: Path) -> None:
    rows = [f"text {number},{'ab'[number % 2]}" for number in range(40)]
    (tmp_path / "claims.csv").write_text("\n".join(["body,kind", *rows, ""]))
    text = OWN.replace("learning_rate: 1.0e-3", "max_steps: 3, evals_per_epoch: 1")
    own = config(tmp_path, text.replace("at_least: 0.5", "beats_baseline: false"))
    with pytest.raises(Interrupted):
        platform.train(own, should_stop=lambda: True)
    (run,) = platform.registry.runs.list(recipe=own.name)
    focal = own.model_copy(update={"loss": "focal"})
    with pytest.raises(UsageError, match="a resumed run keeps"):
        platform.train(focal, resume=run.number)
