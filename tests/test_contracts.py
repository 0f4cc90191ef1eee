"""The specs of plugins are checked when they are created."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_rows import make_recipe, make_row
from trunkline.contracts import MOST_NEW_TOKENS, Gate, Row, Settings, Template
from trunkline.errors import UsageError

quick = settings(max_examples=40, deadline=None)


# ----------------------------------------------------------------------------------- template


@pytest.mark.parametrize("prompt", ["", "no placeholder", "{text} and {text}", 5, None])
def test_template_without_exactly_one_placeholder_is_refused(prompt: Any) -> None:
    with pytest.raises(UsageError, match=r"exactly once") as caught:
        Template(prompt=prompt)

    assert caught.value.hint


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ("{text} {title}", "{title}"),
        ("{TEXT}", "{TEXT}"),
        ("{text} {}", "{}"),
        ("{0} {text}", "{0}"),
        ("{ text }", "{ text }"),
        ("{text!r}", "{text!r}"),
        ("{text:>10}", "{text:>10}"),
        ("{text.title}", "{text.title}"),
        ("{text[0]}", "{text[0]}"),
    ],
)
def test_template_names_a_field_that_it_does_not_know(prompt: str, field: str) -> None:
    with pytest.raises(UsageError, match=f"unknown field {re.escape(field)}\\.") as caught:
        Template(prompt=prompt)

    assert "{{ and }}" in (caught.value.hint or "")


def test_template_with_half_a_character_is_refused() -> None:
    with pytest.raises(UsageError, match=r"holds '.ud800', which is not a character"):
        Template(prompt="\ud800 {text}")


@pytest.mark.parametrize(
    "prompt", ["{text} {", "} {text}", "{text", '{"label": "{text}"}', "{{text}"]
)
def test_template_with_a_single_brace_says_how_to_write_one(prompt: str) -> None:
    with pytest.raises(UsageError) as caught:
        Template(prompt=prompt)

    assert "{{ and }}" in (caught.value.hint or "")


@quick
@given(before=st.text(), after=st.text(), text=st.text())
def test_doubled_braces_are_literal(before: str, after: str, text: str) -> None:
    def doubled(literal: str) -> str:
        return literal.replace("{", "{{").replace("}", "}}")

    template = Template(
        prompt=f"{doubled(before)}{{text}}{doubled(after)}",
        clean=(),
        chat=True,
        system=doubled(after),
    )

    assert (template.prefix, template.suffix) == (before, after)
    assert template.filled(text) == f"{before}{text}{after}"
    assert template.system_message == after


@pytest.mark.parametrize("system", ["About {text}.", "You know {title}.", 'As JSON: {"a": 1}', "{"])
def test_field_in_a_system_message_is_refused(system: str) -> None:
    with pytest.raises(UsageError) as caught:
        Template(chat=True, system=system)

    assert "{{ and }}" in (caught.value.hint or "")


def test_template_refuses_an_unknown_cleaning_step() -> None:
    with pytest.raises(UsageError, match="'uppercase'"):
        Template(clean=("uppercase",))  # type: ignore[arg-type]


def test_template_refuses_a_system_message_without_chat() -> None:
    with pytest.raises(UsageError, match="chat is off"):
        Template(system="You sort things.")


@pytest.mark.parametrize("wrong", [{"chat": "yes"}, {"chat": True, "system": 7}])
def test_template_refuses_other_types(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="chat must be true or false"):
        Template(**wrong)


@quick
@given(text=st.text())
def test_text_is_inserted_unchanged(text: str) -> None:
    template = Template(prompt="Say {text}!", clean=())

    assert template.filled(text) == f"Say {text}!"


def test_placeholder_in_the_users_text_is_not_expanded() -> None:
    assert Template(prompt="A {text} B").filled("{text}{0}%s\\1") == "A {text}{0}%s\\1 B"


@quick
@given(text=st.text())
def test_cleaning_is_idempotent(text: str) -> None:
    template = Template(clean=("strip", "squeeze", "lowercase"))
    once = template.cleaned(text)

    assert template.cleaned(once) == once


def test_each_cleaning_step() -> None:
    text = "  WHOLE \t Milk\n"

    assert Template(clean=("strip",)).cleaned(text) == "WHOLE \t Milk"
    assert Template(clean=("squeeze",)).cleaned(text) == "WHOLE Milk"
    assert Template(clean=("lowercase",)).cleaned(text) == "  whole \t milk\n"
    assert Template(clean=()).cleaned(text) == text


# ----------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("spec", fields(Settings), ids=lambda spec: spec.name)
def test_setting_has_a_help_text(spec: dataclasses.Field[Any]) -> None:
    assert spec.metadata["help"]


@pytest.mark.parametrize("spec", fields(Settings), ids=lambda spec: spec.name)
@pytest.mark.parametrize("wrong", [b"1", [1.5], object()])
def test_setting_refuses_another_type(spec: dataclasses.Field[Any], wrong: Any) -> None:
    with pytest.raises(UsageError, match=spec.name) as caught:
        Settings(**{spec.name: wrong})

    assert caught.value.hint


@pytest.mark.parametrize("spec", fields(Settings), ids=lambda spec: spec.name)
def test_setting_refuses_a_value_out_of_its_range(spec: dataclasses.Field[Any]) -> None:
    least, most = spec.metadata["least"], spec.metadata["most"]
    outside = [] if least is None else [least - 1]
    outside += [] if most is None else [most + 1]
    for value in outside:
        with pytest.raises(UsageError, match=f"{spec.name} can't be"):
            Settings(**{spec.name: value})


@pytest.mark.parametrize("name", ["num_train_epochs", "learning_rate", "lora_alpha"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, 10**400])
def test_number_setting_refuses_other_than_finite_numbers(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} must be a number"):
        Settings(**{name: value})


@pytest.mark.parametrize("value", [True, 2.0, "2"])
def test_integer_setting_refuses_other_types(value: Any) -> None:
    with pytest.raises(UsageError, match="r must be an integer"):
        Settings(r=value)


def test_unknown_choice_lists_the_supported_ones() -> None:
    with pytest.raises(UsageError, match="'step'") as caught:
        Settings(lr_scheduler_type="step")

    assert "linear, cosine, cosine_with_restarts" in str(caught.value.hint)


def test_range_of_a_seed_is_in_the_hint() -> None:
    with pytest.raises(UsageError) as caught:
        Settings(seed=-1)

    assert "between 0 and 2147483647" in str(caught.value.hint)


# ---------------------------------------------------------------------------- gate and recipe


@pytest.mark.parametrize("value", [math.nan, math.inf, "0.8", True])
def test_gate_refuses_a_bound_that_is_not_finite(value: Any) -> None:
    with pytest.raises(UsageError, match="at_least"):
        Gate(metric="accuracy", at_least=value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"champion_margin": -0.01},
        {"champion_margin": math.nan},
        {"slices_at_least": "0.5"},
        {"two_persons": 1},
        {"beats_champion": "yes"},
    ],
    ids=str,
)
def test_gate_refuses_invalid_conditions(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Gate(metric="accuracy", **wrong)


@pytest.mark.parametrize("count", [0, -3, MOST_NEW_TOKENS + 1, 2.5, True, "8"])
def test_recipe_refuses_an_answer_length_out_of_range(count: Any) -> None:
    with pytest.raises(UsageError, match="max_new_tokens"):
        make_recipe("generation", max_new_tokens=count)


def test_values_are_frozen() -> None:
    for value in (make_row(1), make_recipe(), Settings(), Template(), Gate(metric="accuracy")):
        name = fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, "other")


def test_a_frozen_value_is_replaced_with_its_checks() -> None:
    with pytest.raises(UsageError):
        replace(Settings(), r=0)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("bf16", "precision"),
        ("epochs", "num_train_epochs"),
        ("learning_rates", "learning_rate"),
        ("lora_rank", "r"),
        ("Lora_Alpha", "lora_alpha"),
    ],
)
def test_an_unknown_setting_is_named_with_the_nearest_valid_one(name: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        Settings(**{name: 1})
    assert caught.value.message == f"Settings has no field {name!r}. Did you mean {nearest!r}?"
    assert "num_train_epochs, max_steps" in (caught.value.hint or "")


def test_a_misspelt_field_of_a_spec_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="Row has no field 'labels'"):
        make_row(1, labels="a")
    with pytest.raises(
        UsageError, match=r"no field 'beat_baseline'\. Did you mean 'beats_baseline'"
    ):
        Gate(metric="accuracy", beat_baseline=True)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (numpy.float32(0.5), 0.5),
        (numpy.float64(2), 2.0),
        (numpy.int64(3), 3),
        (Fraction(1, 4), 0.25),
    ],
)
def test_number_of_another_library_becomes_one_of_python(target: Any, expected: float) -> None:
    row = Row(id="r", text="t", target=target, group="g")
    assert row.target == expected
    assert type(row.target) is type(expected)


@pytest.mark.parametrize("target", [True, "7", None])
def test_other_targets_stay_as_they_are(target: Any) -> None:
    assert Row(id="r", text="t", target=target, group="g").target is target


def test_slices_of_a_row_are_a_copy_that_can_not_be_changed() -> None:
    slices = {"country": "DE"}
    row = Row(id="r", text="t", target="a", group="g", slices=slices)
    slices["country"] = "FR"
    assert row.slices == {"country": "DE"}
    with pytest.raises(TypeError):
        row.slices["country"] = "FR"  # type: ignore[index]
