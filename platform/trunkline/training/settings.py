"""Overrides of a recipe's settings, from words or values. Must not know: torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from trunkline.contracts import RecipeSpec, Settings, check_setting
from trunkline.errors import NotFoundError, UsageError

_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def with_settings(recipe: RecipeSpec, overrides: Mapping[str, Any]) -> RecipeSpec:
    """The recipe with some settings replaced; texts are read as the setting's type.

    Raises:
        NotFoundError: there is no such setting; names the nearest.
        UsageError: a value is of the wrong type or out of range.
    """
    known = {spec.name: spec for spec in fields(Settings)}
    values: dict[str, Any] = {}
    for name, value in overrides.items():
        if name not in known:
            raise NotFoundError.named(
                "setting", name, known, f"`trunkline recipes show {recipe.name}` lists them."
            )
        kind = type(known[name].default)
        value = _read(name, value, kind) if isinstance(value, str) else value
        check_setting(name, value)
        values[name] = float(value) if kind is float else value
    return replace(recipe, settings=replace(recipe.settings, **values))


def parse_assignment(text: str) -> tuple[str, str]:
    """``key=value`` → both.

    Raises:
        UsageError: there is no ``=`` or nothing before it.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"{text!r} is not key=value.", "Write for example --set max_steps=200.")
    return name.strip(), value.strip()


def _read(name: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            if text.lower() not in (*_YES, *_NO):
                raise ValueError
            return text.lower() in _YES
        return kind(text)
    except ValueError:
        words = {int: "a whole number", float: "a number", bool: "true or false"}
        raise UsageError(
            f"The setting {name} wants {words[kind]}, not {text!r}.",
            f"Write for example --set {name}={getattr(Settings(), name)}.",
        ) from None
