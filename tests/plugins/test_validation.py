"""The rules that a plugin's specs must keep; each violation names the offending value."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from trunkline.contracts import (
    BaselinePredictions,
    BaselineSpec,
    DatasetSpec,
    Gate,
    LossSpec,
    MetricSpec,
    RecipeSpec,
    Settings,
    TaskSpec,
    Template,
    TransformSpec,
)
from trunkline.errors import UsageError
from trunkline.plugins import Contribution
from trunkline.plugins.catalog import SPECS, resolve_recipes
from trunkline.plugins.host import load_core
from trunkline.plugins.validation import (
    domain_violation,
    type_problem,
    violations,
    with_tuples,
)


def dataset(name: str = "farm/crops", **other: Any) -> DatasetSpec:
    given: dict[str, Any] = {
        "name": name,
        "description": "d",
        "task": "classification",
        "load": list,
        "license": "CC0-1.0",
        "source": "s",
        "grouping": "g",
    }
    return DatasetSpec(**(given | other))


def recipe(**other: Any) -> RecipeSpec:
    given: dict[str, Any] = {
        "name": "farm/crops",
        "description": "d",
        "dataset": "farm/crops",
        "task": "classification",
        "gate": Gate(metric="accuracy"),
    }
    return RecipeSpec(**(given | other))


LOSS = LossSpec(name="farm/l_1", description="d", task="regression", build=lambda context: max)
METRIC = MetricSpec(
    name="farm/yield_error", description="d", task="classification", compute=lambda scored: 0.0
)
TRANSFORM = TransformSpec(
    name="farm/no-dirt", description="d", stage="clean", apply=lambda row, rng: [row]
)


BASELINE = BaselineSpec(
    name="farm/almanac",
    description="d",
    tasks=("classification",),
    predict=lambda context: BaselinePredictions(values=()),
)
TASK = TaskSpec(
    name="farm/ordinal",
    description="d",
    kind="classification",
    loss="core/cross_entropy",
    baselines=("farm/almanac",),
)


def violations_of(**parts: Any) -> str:
    given: dict[str, Any] = {
        "datasets": (dataset(),),
        "losses": (LOSS,),
        "metrics": (METRIC,),
        "transforms": (TRANSFORM,),
        "baselines": (BASELINE,),
        "tasks": (TASK,),
    }
    _, core = load_core()
    return "; ".join(violations("farm", Contribution(**(given | parts)), core))


def test_sound_plugin_breaks_no_rule() -> None:
    sound = recipe(metrics=("accuracy", "farm/yield_error"), transforms=("farm/no-dirt",))
    assert violations_of(recipes=(sound,)) == ""


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"dataset": "farm/crop"}, "dataset 'farm/crop', which doesn't exist; did you mean"),
        ({"dataset": "medical/other"}, "dataset 'medical/other', which doesn't exist"),
        ({"loss": "hinge"}, "the loss 'hinge', which doesn't exist"),
        ({"loss": "farm/l_1"}, "loss 'farm/l_1' is for regression"),
        (
            {"metrics": ("acuracy",)},
            "metric 'acuracy', which doesn't exist; did you mean 'accuracy'",
        ),
        ({"gate": Gate(metric="farm/none")}, "metric 'farm/none', which doesn't exist"),
        ({"metrics": ("core/acuracy",)}, "did you mean 'accuracy'"),
        ({"loss": "cros_entropy"}, "which doesn't exist; did you mean 'cross_entropy'"),
        ({"loss": "mse"}, "loss 'mse' is for regression"),
        ({"transforms": ("farm/dirt",)}, "transform 'farm/dirt', which doesn't exist"),
        ({"transforms": ("lowercasecopy",)}, "did you mean 'lowercase-copy'"),
        ({"baselines": ("nearst",)}, "which doesn't exist; did you mean 'nearest'"),
        ({"baselines": ("few-shot",)}, "baseline 'few-shot' is for generation"),
        ({"task": "regression"}, "is a regression task but its dataset 'farm/crops' is for"),
        ({"task": "clasification"}, "which doesn't exist; did you mean 'classification'"),
        ({"scale": "root"}, "scale of 'farm/crops' is 'root'"),
    ],
)
def test_recipe_that_breaks_a_rule(other: dict[str, Any], sentence: str) -> None:
    assert sentence in violations_of(recipes=(recipe(**other),))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"kind": "guessing"}, "kind of 'farm/ordinal' is 'guessing', not one of"),
        ({"loss": "farm/l_1"}, "the task 'farm/ordinal' is a classification task but its loss"),
        ({"baselines": ("majorty",)}, "did you mean 'majority'"),
    ],
)
def test_task_that_breaks_a_rule(other: dict[str, Any], sentence: str) -> None:
    assert sentence in violations_of(tasks=(replace(TASK, **other),))


def test_baseline_for_an_unknown_task_breaks_a_rule() -> None:
    baseline = replace(BASELINE, tasks=("guessing",))
    assert "'guessing', not one of" in violations_of(baselines=(baseline,))


def test_recipe_may_name_builtins_with_or_without_their_domain() -> None:
    for prefix in ("", "core/"):
        named = recipe(
            task=f"{prefix}classification",
            loss=f"{prefix}cross_entropy",
            metrics=(f"{prefix}macro_f1",),
            transforms=(f"{prefix}random-deletion",),
            baselines=(f"{prefix}nearest",),
            gate=Gate(metric=f"{prefix}accuracy"),
        )
        assert violations_of(recipes=(named,)) == ""
        (resolved,) = resolve_recipes(Contribution(recipes=(named,))).recipes
        assert (resolved.task, resolved.loss) == ("classification", "cross_entropy")
        assert (resolved.metrics, resolved.gate.metric) == (("macro_f1",), "accuracy")
        assert (resolved.transforms, resolved.baselines) == (("random-deletion",), ("nearest",))


def test_recipe_of_a_plugins_task_gets_its_kind_loss_and_baselines() -> None:
    contribution = Contribution(recipes=(recipe(task="farm/ordinal"),), tasks=(TASK,))
    (resolved,) = resolve_recipes(contribution).recipes
    assert resolved.task == "classification"
    assert (resolved.loss, resolved.baselines) == ("cross_entropy", ("farm/almanac",))


@pytest.mark.parametrize(
    "name",
    [
        "farm",
        "farm/",
        "farm/Crops",
        "farm/1st",
        "farm/a_b",
        "farm/a/b",
        "farm/../x",
        "farm/crops\n",
        "farm/" + "a" * 65,
        7,
    ],
)
def test_name_outside_the_grammar(name: Any) -> None:
    assert repr(name) in violations_of(datasets=(dataset(name),))


def test_longest_name_is_allowed() -> None:
    assert violations_of(datasets=(dataset("farm/" + "a" * 64),)) == ""


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"load": None}, "load of 'farm/crops' can't be called"),
        ({"test_share": 1.5}, "test_share of 'farm/crops' is 1.5"),
        ({"test_share": 0.5, "validation_share": 0.5}, "leave nothing to train on"),
    ],
)
def test_dataset_with_an_impossible_value(other: dict[str, Any], sentence: str) -> None:
    assert sentence in violations_of(datasets=(dataset(**other),))


@pytest.mark.parametrize(
    "domain", ["base", "core", "Farm", "1farm", "farm_x", "", "a" * 41, "farm\n"]
)
def test_refused_domain(domain: str) -> None:
    assert domain_violation(domain)


@pytest.mark.parametrize("domain", ["farm", "a", "a-1", "a" * 40])
def test_accepted_domain(domain: str) -> None:
    assert domain_violation(domain) is None


# ---------------------------------------------------------------------------------------- types

SPECIMENS: dict[str, Any] = {
    "datasets": dataset(),
    "recipes": recipe(),
    "losses": LOSS,
    "metrics": METRIC,
    "transforms": TRANSFORM,
    "baselines": BASELINE,
    "tasks": TASK,
}
FIELDS = [
    (kind, field.name, str(field.type))
    for kind, spec in SPECIMENS.items()
    for field in fields(spec)
    if field.name not in ("name", "max_new_tokens")  # have rules of their own
]


def violations_with(kind: str, /, **values: Any) -> str:
    """The violations of a plugin whose spec of one kind has other values, set past its checks."""
    spec = replace(SPECIMENS[kind])
    for name, value in values.items():
        object.__setattr__(spec, name, value)
    return violations_of(**{kind: (spec,)})


@pytest.mark.parametrize(("kind", "name", "annotation"), FIELDS, ids=lambda value: str(value)[:30])
def test_value_of_another_type_is_named_with_its_field(
    kind: str, name: str, annotation: str
) -> None:
    value = object()
    sentence = violations_with(kind, **{name: value})
    assert f"{name} of {SPECIMENS[kind].name!r}" in sentence
    assert f"{value!r}"[:40] in sentence


TUPLES = [(kind, name) for kind, name, annotation in FIELDS if annotation.startswith("tuple[")]


@pytest.mark.parametrize(("kind", "name"), TUPLES)
def test_text_where_a_tuple_is_wanted_is_shown_as_a_tuple(kind: str, name: str) -> None:
    sentence = violations_with(kind, **{name: "accuracy"})
    assert sentence == (
        f"{name} of {SPECIMENS[kind].name!r} is 'accuracy', a string; a tuple is wanted: "
        "('accuracy',)"
    )


@pytest.mark.parametrize(("kind", "name"), TUPLES)
@pytest.mark.parametrize("value", [{"a"}, {"a": 1}, iter(["a"]), None, 3])
def test_other_collections_are_no_tuple(kind: str, name: str, value: Any) -> None:
    assert "a tuple is wanted" in violations_with(kind, **{name: value})


def test_every_tuple_field_of_the_specs_is_tried() -> None:
    assert set(SPECIMENS) == set(SPECS)
    assert {name for _, name in TUPLES} >= {
        "slices", "labels", "metrics", "transforms", "baselines", "tasks",
    }  # fmt: skip


def test_list_is_taken_as_a_tuple() -> None:
    listed = recipe(metrics=["accuracy"], transforms=["farm/no-dirt"])  # type: ignore[arg-type]
    assert violations_of(recipes=(listed,)) == ""
    (taken,) = with_tuples(Contribution(recipes=(listed,))).recipes
    assert (taken.metrics, taken.transforms) == (("accuracy",), ("farm/no-dirt",))


def test_item_of_another_type_in_a_tuple_is_named() -> None:
    assert "metrics of 'farm/crops' is ('accuracy', 3), which contains 3, not a string" in (
        violations_of(recipes=(recipe(metrics=("accuracy", 3)),))
    )


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"template": "{text}"}, "template of 'farm/crops' is '{text}', a string; write Template("),
        ({"settings": {"r": 8}}, "settings of 'farm/crops' is {'r': 8}, a dict; write Settings("),
        ({"gate": "accuracy"}, "gate of 'farm/crops' is 'accuracy', a string; write Gate("),
        ({"gate": Gate(metric=3)}, "gate.metric of 'farm/crops' is 3, not a string"),  # type: ignore[arg-type]
        ({"scale": None}, "scale of 'farm/crops' is None, not one of linear, log"),
    ],
)  # fmt: skip
def test_value_of_another_type_in_a_recipe(other: dict[str, Any], sentence: str) -> None:
    assert sentence in violations_of(recipes=(recipe(**other),))


def test_direction_of_a_metric_is_no_text() -> None:
    metric = replace(METRIC, higher_is_better="False")  # type: ignore[arg-type]
    assert "higher_is_better of 'farm/yield_error' is 'False', not True or False" in (
        violations_of(metrics=(metric,))
    )


def test_truth_value_is_no_share() -> None:
    assert "test_share of 'farm/crops' is True" in violations_of(
        datasets=(dataset(test_share=True),)
    )


def test_long_value_is_cut() -> None:
    assert len(violations_of(datasets=(dataset(labels="x" * 10_000),))) < 400


@pytest.mark.parametrize("clean", ["strip", None, {"strip"}])
def test_cleaning_steps_of_a_template_are_a_tuple(clean: Any) -> None:
    with pytest.raises(UsageError, match="a tuple is wanted"):
        Template(clean=clean)


@pytest.mark.parametrize("spec", [*SPECS.values(), Template, Gate], ids=lambda spec: spec.__name__)
def test_every_field_of_the_specs_has_a_rule(spec: type) -> None:
    for field in fields(spec):
        assert type_problem(str(field.type), object()) is not None, field.name


def test_settings_check_themselves() -> None:
    with pytest.raises(UsageError, match="The setting r must be an integer"):
        Settings(r="16")  # type: ignore[arg-type]
