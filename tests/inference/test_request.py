"""An invalid request is refused when it is constructed."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline import Request
from trunkline.errors import UsageError
from trunkline.inference.request import Answer

NAN = float("nan")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", None),
        ("text", 5),
        ("text", b"bytes"),
        ("adapter", 5),
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("temperature", -0.1),
        ("temperature", NAN),
        ("temperature", 11),
        ("temperature", "hot"),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_p", NAN),
        ("seed", -(2**63) - 1),
        ("seed", 2**64),
        ("seed", 0.5),
        ("seed", None),
    ],
)
def test_value_out_of_range_is_refused_with_a_hint(field: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        Request(**{"adapter": None, "text": "hello", field: value})
    assert repr(value) in caught.value.message
    assert caught.value.hint


def test_values_at_the_ends_are_fine() -> None:
    Request(None, "x", 1, 0, 1, 0)
    Request(None, "x", None, 10, 0.01, 2**63 - 1)


def test_request_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        Request(None, "x").text = "y"  # type: ignore[misc]


def answer(**fields: Any) -> Answer:
    return Answer(adapter="toy/animals@1", digest="d", task="t", prompt_tokens=1, **fields)


def test_output_is_the_label_the_number_or_the_text() -> None:
    assert answer(label="bird").output == "bird"
    assert answer(value=0.0).output == 0.0
    assert answer(text="").output == ""


def test_confidence_is_that_of_the_label() -> None:
    assert answer(label="a", probabilities={"a": 0.7, "b": 0.3}).confidence == 0.7
    assert answer(value=1.0).confidence is None


def test_json_holds_what_the_task_has() -> None:
    assert set(answer(value=1.0, unit="EUR").to_json()) == {
        "adapter", "digest", "task", "prompt_tokens", "new_tokens", "value", "unit",
    }  # fmt: skip
