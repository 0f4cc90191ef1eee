"""Errors in OpenAI's form."""

from __future__ import annotations

import pytest

from trunkline.errors import (
    AuthenticationError,
    BaseMismatchError,
    BusyError,
    DataError,
    RegistryError,
    TrunklineError,
    UnavailableError,
    UsageError,
)
from trunkline.promotion import GateRefusedError
from trunkline.serving.errors import ApiError, refusal, told, too_late, unknown_model


def test_the_hint_is_part_of_the_message() -> None:
    assert told(UsageError("No.", "Do that."))["error"]["message"] == "No. Do that."


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (UsageError("x"), "invalid_request_error", None),
        (AuthenticationError("x"), "authentication_error", "invalid_api_key"),
        (DataError("x"), "invalid_request_error", "unusable_input"),
        (BusyError("x"), "rate_limit_error", "busy"),
        (UnavailableError("x"), "server_error", "unavailable"),
        (RegistryError("x"), "server_error", "registry_unavailable"),
        (BaseMismatchError("x"), "invalid_request_error", "other_base"),
        (GateRefusedError("x", None, []), "invalid_request_error", "refused"),
        (TrunklineError("x"), "server_error", None),
        (ApiError("x"), "invalid_request_error", None),
        (ApiError("x", code="c"), "invalid_request_error", "c"),
    ],
)
def test_type_and_code_say_what_kind_of_error_it_is(
    error: TrunklineError, kind: str, code: str | None
) -> None:
    body = told(error)["error"]
    assert (body["type"], body["code"]) == (kind, code)


@pytest.mark.parametrize(
    ("timeout", "limit"),
    [
        (2, "the 2 seconds of its timeout"),
        (0.5, "the 0.5 seconds of its timeout"),
        (60, "the 60 seconds that this server gives"),
        (90, "the 60 seconds that this server gives"),
        (None, "the 60 seconds that this server gives"),
    ],
)
def test_a_request_that_is_too_late_names_the_limit_that_struck(
    timeout: float | None, limit: str
) -> None:
    assert limit in too_late(timeout, most=60).message


def test_what_is_to_be_tried_again_says_when() -> None:
    response = refusal(BusyError("x", retry_after=2.2), {})
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")


def test_a_missing_key_says_how_to_send_one() -> None:
    assert refusal(AuthenticationError("x"), {}).headers["www-authenticate"] == "Bearer"


def test_an_unknown_model_is_named_in_ascii() -> None:
    body = told(unknown_model("mеdical/x"))["error"]
    assert (body["code"], body["param"]) == ("model_not_found", "model")
    assert "m\\u0435dical" in body["message"]
