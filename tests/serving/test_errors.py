"""Errors in OpenAI's format."""

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
from trunkline.serving.errors import (
    ApiError,
    deadline_error,
    error_body,
    error_response,
    unknown_model,
)


def test_message_includes_the_hint() -> None:
    error = UsageError("n can't be 0.", "Give at least 1.")
    assert error_body(error)["error"]["message"] == "n can't be 0. Give at least 1."


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
def test_type_and_code_identify_the_error(
    error: TrunklineError, kind: str, code: str | None
) -> None:
    body = error_body(error)["error"]
    assert (body["type"], body["code"]) == (kind, code)


@pytest.mark.parametrize(
    ("timeout", "limit"),
    [
        (2, "its timeout of 2 seconds"),
        (0.5, "its timeout of 0.5 seconds"),
        (60, "the server's limit of 60 seconds"),
        (90, "the server's limit of 60 seconds"),
        (None, "the server's limit of 60 seconds"),
    ],
)
def test_deadline_error_names_the_limit_that_applied(timeout: float | None, limit: str) -> None:
    assert limit in deadline_error(timeout, maximum=60).message


def test_busy_response_has_retry_after() -> None:
    response = error_response(BusyError("x", retry_after=2.2), {})
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")


def test_unauthorized_response_names_the_scheme() -> None:
    response = error_response(AuthenticationError("x"), {})
    assert response.headers["www-authenticate"] == "Bearer"


def test_unknown_model_is_escaped_to_ascii() -> None:
    body = error_body(unknown_model("mеdical/x"))["error"]
    assert (body["code"], body["param"]) == ("model_not_found", "model")
    assert "m\\u0435dical" in body["message"]
