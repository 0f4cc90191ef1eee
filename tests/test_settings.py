"""The validator that all settings share: of recipes, of the engine and of the server."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trunkline.errors import UsageError
from trunkline.inference.settings import EngineSettings
from trunkline.serving.settings import ServerSettings
from trunkline.settings import check_value


@pytest.mark.parametrize(
    ("value", "kind"), [(1, int), (1, float), (0.5, float), (True, bool), ("a", str)]
)
def test_value_of_the_type_is_accepted(value: Any, kind: type) -> None:
    check_value("n", value, kind)


@pytest.mark.parametrize(
    ("value", "kind", "noun"),
    [
        (True, int, "an integer"),
        (1.0, int, "an integer"),
        ("1", int, "an integer"),
        (True, float, "a number"),
        (math.nan, float, "a number"),
        (math.inf, float, "a number"),
        (10**400, float, "a number"),
        (1, bool, "true or false"),
        (None, str, "text"),
    ],
)
def test_value_of_another_type_is_refused(value: Any, kind: type, noun: str) -> None:
    with pytest.raises(UsageError, match=f"n must be {noun}, not"):
        check_value("n", value, kind)


@pytest.mark.parametrize("value", [0, 9])
def test_value_out_of_range_is_refused_with_the_range(value: int) -> None:
    with pytest.raises(UsageError, match=f"n can't be {value}") as caught:
        check_value("n", value, int, least=1, most=8, help="rows")

    assert caught.value.hint == "It must be between 1 and 8: rows."


def test_unknown_choice_is_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match="n can't be 'c'") as caught:
        check_value("n", "c", str, choices=("a", "b"))

    assert caught.value.hint == "Use one of: a, b."


@pytest.mark.parametrize(
    "values", [{"rows": 0}, {"queue": "1"}, {"kv_tokens": -1}, {"prefix_cache": 1}], ids=str
)
def test_engine_settings_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"The engine's {next(iter(values))}") as caught:
        EngineSettings(**values)

    assert caught.value.hint


@pytest.mark.parametrize(
    "values", [{"port": 65536}, {"workers": True}, {"read_timeout": math.nan}], ids=str
)
def test_server_settings_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))) as caught:
        ServerSettings(**values)

    assert caught.value.hint
