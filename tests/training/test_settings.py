"""Overrides of settings: from text or values, checked, with suggestions for unknown names."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_rows import make_recipe
from trunkline.contracts import Settings
from trunkline.errors import NotFoundError, UsageError
from trunkline.training.job import parse_assignment, with_settings

quick = settings(max_examples=40, deadline=None)
RECIPE = make_recipe(settings=Settings(num_train_epochs=7.0, r=4))
OTHERS: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "precision": "fp32",
    "target_modules": "q_proj,v_proj",
    "use_dora": True,
    "use_rslora": True,
    "calibrate": False,
    "max_length": 9,
    "layers_to_transform": "0,2",
    "init_lora_weights": "pissa_niter_4",
}


def other_value(name: str) -> Any:
    """A valid value that is not the default."""
    if name in OTHERS:
        return OTHERS[name]
    default = getattr(Settings(), name)
    return default / 2 or 0.5 if isinstance(default, float) else default + 1


@pytest.mark.parametrize("name", [spec.name for spec in fields(Settings)])
def test_every_setting_accepts_text_and_a_value(name: str) -> None:
    value = other_value(name)
    for given_as in (value, str(value)):
        changed = with_settings(RECIPE, {name: given_as}).settings
        assert getattr(changed, name) == value
        assert type(getattr(changed, name)) is type(getattr(Settings(), name))


def test_other_settings_keep_the_recipes_values() -> None:
    changed = with_settings(RECIPE, {"r": "8"})

    assert (changed.settings.num_train_epochs, changed.settings.r) == (7.0, 8)
    assert changed.template == RECIPE.template
    assert RECIPE.settings.r == 4


def test_no_overrides_change_nothing() -> None:
    assert with_settings(RECIPE, {}) == RECIPE


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("learning-rate", "learning_rate"),
        ("learn_rate", "learning_rate"),
        ("MAX_STEPS", "max_steps"),
        ("lora_alpa", "lora_alpha"),
        ("num_epochs", "num_train_epochs"),
        ("bf16", "precision"),
        ("dtype", "precision"),
        ("img_size", "image_size"),
        ("LR", "learning_rate"),
        ("lora_rank", "r"),
        ("warmup_steps", "warmup_ratio"),
    ],
)
def test_unknown_setting_suggests_the_closest_and_lists_all(wrong: str, right: str) -> None:
    with pytest.raises(NotFoundError, match=wrong) as caught:
        with_settings(RECIPE, {wrong: "1"})

    assert str(caught.value.hint).startswith(f"Did you mean {right!r}? ")
    assert "trunkline recipes show toy/things" in str(caught.value.hint)
    assert all(spec.name in str(caught.value.hint) for spec in fields(Settings))


@pytest.mark.parametrize("text", ["true", "Yes", "ON", "1"])
def test_texts_for_true(text: str) -> None:
    assert with_settings(RECIPE, {"use_rslora": text}).settings.use_rslora is True


@pytest.mark.parametrize("text", ["false", "No", "OFF", "0"])
def test_texts_for_false(text: str) -> None:
    recipe = make_recipe(settings=Settings(use_rslora=True))

    assert with_settings(recipe, {"use_rslora": text}).settings.use_rslora is False


@pytest.mark.parametrize(
    ("name", "value", "noun"),
    [
        ("use_rslora", "perhaps", "true or false"),
        ("use_rslora", 1, "true or false"),
        ("r", "many", "an integer"),
        ("r", "2.5", "an integer"),
        ("r", "", "an integer"),
        ("r", 2.0, "an integer"),
        ("r", True, "an integer"),
        ("r", None, "an integer"),
        ("r", "9" * 5000, "an integer"),
        ("num_train_epochs", "few", "a number"),
        ("num_train_epochs", True, "a number"),
        ("num_train_epochs", "nan", "a number"),
        ("learning_rate", "inf", "a number"),
        ("learning_rate", 10**400, "a number"),
        ("lr_scheduler_type", 3, "text"),
    ],
)
def test_value_of_another_type_is_refused(name: str, value: Any, noun: str) -> None:
    with pytest.raises(UsageError, match=f"The setting {name} must be {noun}, not") as caught:
        with_settings(RECIPE, {name: value})

    assert type(caught.value) is UsageError
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", "0"),
        ("r", -1),
        ("learning_rate", "1.5"),
        ("lora_dropout", "1"),
        ("warmup_ratio", "-0.1"),
        ("per_device_train_batch_size", "0"),
        ("max_steps", "-5"),
        ("seed", 2**31),
        ("lr_scheduler_type", "step"),
        ("precision", "fp8"),
        ("target_modules", ""),
        ("layers_to_transform", "top-0"),
        ("layers_to_transform", "first"),
        ("layers_to_transform", "0;1"),
    ],
)
def test_value_out_of_range_is_refused_with_the_value(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"The setting {name} can't be '?{value}'?") as caught:
        with_settings(RECIPE, {name: value})

    assert caught.value.hint


@quick
@given(value=st.floats(0, 1000))
def test_number_as_text_gives_the_same_number(value: float) -> None:
    assert (
        with_settings(RECIPE, {"num_train_epochs": repr(value)}).settings.num_train_epochs == value
    )


# ------------------------------------------------- values from LoraConfig and TrainingArguments


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("target_modules", ["q_proj", "v_proj"], "q_proj,v_proj"),
        pytest.param("target_modules", {"v_proj", "q_proj"}, "q_proj,v_proj", id="set"),
        ("target_modules", "q_proj, v_proj", "q_proj,v_proj"),
        ("layers_to_transform", [0, 2], "0,2"),
        ("layers_to_transform", 3, "3"),
        ("layers_to_transform", None, ""),
        ("layers_to_transform", "0, 1", "0,1"),
        ("layers_to_transform", "top-10", "top-10"),
        ("max_steps", -1, -1),
        ("max_steps", 0, 0),
        ("lora_alpha", 32, 32.0),
        ("lr_scheduler_type", "constant_with_warmup", "constant_with_warmup"),
    ],
    ids=str,
)
def test_pasted_value_is_accepted(name: str, value: Any, stored: Any) -> None:
    assert getattr(Settings(**{name: value}), name) == stored
    assert getattr(with_settings(RECIPE, {name: value}).settings, name) == stored


@pytest.mark.parametrize("value", [[], ["q_proj", 3], [1.5], True])
@pytest.mark.parametrize("name", ["target_modules", "layers_to_transform"])
def test_list_of_other_values_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"The setting {name} must be text"):
        Settings(**{name: value})


# --------------------------------------------------------------------------------- assignments


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("r=8", ("r", "8")),
        (" r = 8 ", ("r", "8")),
        ("target_modules=", ("target_modules", "")),
        ("a=b=c", ("a", "b=c")),
    ],
)
def test_assignment_is_split_at_the_first_equals_sign(text: str, parsed: tuple[str, str]) -> None:
    assert parse_assignment(text) == parsed


@pytest.mark.parametrize("text", ["r", "", "=8", " =8"])
def test_text_without_an_assignment_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not key=value") as caught:
        parse_assignment(text)

    assert caught.value.hint


@quick
@given(name=st.text(min_size=1).filter(lambda name: "=" not in name and name.strip()),
       value=st.text())  # fmt: skip
def test_any_assignment_is_split_into_name_and_value(name: str, value: str) -> None:
    assert parse_assignment(f"{name}={value}") == (name.strip(), value.strip())
