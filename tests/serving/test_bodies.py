"""Bodies that are not one JSON object with one meaning are refused in one sentence."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from json_values import JSON
from trunkline.serving.bodies import parse_body
from trunkline.serving.errors import ApiError, error_body

TYPE = Headers({"content-type": "application/json"})

ALPHABET = '{}[]":,\\ud8 NaInfty019.eE-+'


def refusal(data: bytes, headers: Headers = TYPE) -> dict[str, Any]:
    """The error for a body, as it is sent to the client."""
    with pytest.raises(ApiError) as caught:
        parse_body(data, headers)
    assert caught.value.http_status == 400
    error: dict[str, Any] = error_body(caught.value)["error"]
    json.dumps(error, ensure_ascii=False).encode()
    return error


@settings(max_examples=50)
@given(st.dictionaries(st.text(), JSON, max_size=3), st.booleans())
def test_json_is_read_as_it_was_written(body: dict[str, Any], escaped: bool) -> None:
    data = json.dumps(body, ensure_ascii=escaped).encode()
    assert parse_body(data, TYPE) == body
    assert parse_body(b"\xef\xbb\xbf" + data, TYPE) == body


@settings(max_examples=200)
@given(st.binary(max_size=40) | st.text(ALPHABET, max_size=40).map(str.encode))
def test_any_bytes_are_an_object_or_a_clear_error(data: bytes) -> None:
    try:
        assert isinstance(parse_body(data, TYPE), dict)
        return
    except ApiError as caught:
        error = caught
    assert (error.http_status, bool(error.param)) == (400, True)
    assert "\n" not in error.message


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "not JSON"),
        (b'{"a": 1} {"b": 2}', "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b"[]", "must be a JSON object, not a list"),
        (b"3", "must be a JSON object, not a number"),
        (b'"x"', "must be a JSON object, not a text"),
        (b"null", "must be a JSON object, not null"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"a": "ä"}'.encode("latin-1"), "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    ],
)
def test_error_for_an_unreadable_body_names_the_problem(data: bytes, problem: str) -> None:
    error = refusal(data)
    assert problem in error["message"]
    assert error["param"] == "body"


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (b"NaN", "temperature can't be NaN, which is not JSON."),
        (b"-Infinity", "temperature can't be -Infinity, which is not JSON."),
        (b"1e400", "temperature can't be 1e400."),
        (b"1" * 5000, "temperature can't be an integer of 5,000 digits."),
        (b"-" + b"1" * 5000, "digits"),
    ],
)
def test_number_without_a_value_is_refused_by_name(number: bytes, problem: str) -> None:
    error = refusal(b'{"text": "NaN", "temperature": ' + number + b"}")
    assert problem in error["message"]
    assert error["param"] == "temperature"
    nested = refusal(b'{"a": [1, {"b": ' + number + b"}]}")
    assert nested["param"] == "a[1].b"


def test_text_like_a_number_is_text() -> None:
    body = {"a": "NaN", "b": ["Infinity", "1e999", "9" * 99]}
    assert parse_body(json.dumps(body).encode(), TYPE) == body


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (b'{"a": 1, "a": 1}', "a"),
        (b'{"b": [{"a": 1, "c": 2, "a": null}]}', "b[0].a"),
        (b'{"b": [{}, {"c": {"a": 1, "a": 2}}]}', "b[1].c.a"),
    ],
)
def test_key_that_occurs_twice_is_refused_with_its_path(data: bytes, param: str) -> None:
    error = refusal(data)
    assert (error["param"], "'a' occurs twice" in error["message"]) == (param, True)


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (rb'{"input": "\ud800"}', "input"),
        (rb'{"messages": [{"content": "a"}, {"content": "\udc00 b"}]}', "messages[1].content"),
        (rb'{"a": {"\ud800": 1}}', "a"),
        (rb'{"\ud800": 1}', "body"),
        (rb'{"\ud800": 1, "\ud800": 2}', "body"),
    ],
)
def test_half_a_character_is_refused_with_the_path_of_the_text(data: bytes, param: str) -> None:
    assert refusal(data)["param"] == param


def test_escaped_backslash_before_a_surrogate_is_text() -> None:
    assert parse_body(rb'{"a": "\\ud800 \ud83d\ude00"}', TYPE) == {"a": "\\ud800 \U0001f600"}


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "json"])
def test_other_content_type_is_refused_and_the_right_one_named(kind: str) -> None:
    error = refusal(b"{}", Headers({"content-type": kind} if kind else {}))
    assert error["param"] == "Content-Type"
    assert "Content-Type: application/json" in error["message"]


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"]
)
def test_json_under_another_name_is_read(kind: str) -> None:
    assert parse_body(b'{"a": 1}', Headers({"content-type": kind})) == {"a": 1}


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "identity, gzip"])
@pytest.mark.parametrize("data", [gzip.compress(b"{}", mtime=0), b"{}"])
def test_compressed_body_is_refused_by_its_header(encoding: str, data: bytes) -> None:
    error = refusal(data, Headers({**TYPE, "content-encoding": encoding}))
    assert error["param"] == "Content-Encoding"
    assert "uncompressed" in error["message"]


@pytest.mark.parametrize("encoding", ["identity", "UTF-8", ""])
def test_content_encoding_without_an_effect_is_accepted(encoding: str) -> None:
    assert parse_body(b'{"a": 1}', Headers({**TYPE, "content-encoding": encoding})) == {"a": 1}


@pytest.mark.parametrize("charset", ["iso-8859-1", '"GBK"', "utf-16"])
def test_text_in_another_character_encoding_is_refused(charset: str) -> None:
    headers = Headers({"content-type": f"application/json; charset={charset}"})
    error = refusal('{"a": "Ã©"}'.encode("latin-1"), headers)
    assert error["param"] == "Content-Type"
    assert "UTF-8" in error["message"]
    assert parse_body(b'{"a": 1}', headers) == {"a": 1}


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", '"utf-8"', "us-ascii"])
def test_charset_of_utf8_is_accepted(charset: str) -> None:
    headers = Headers({"content-type": f"application/json;charset={charset}"})
    assert parse_body('{"a": "é"}'.encode(), headers) == {"a": "é"}
