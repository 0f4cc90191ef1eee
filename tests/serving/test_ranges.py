"""Values at the edges that OpenAI and vLLM accept, and the errors beyond them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

CHAT, COMPLETIONS, CLASSIFY = "/v1/chat/completions", "/v1/completions", "/v1/classify"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "base", "messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"model": "base", "prompt": "hi"},
    CLASSIFY: {"model": "toy/animals", "input": "hi"},
    "/v1/regress": {"model": "toy/prices", "input": ["hi"]},
    "/admin/promote": {"ref": "toy/animals", "alias": "champion", "force": False, "reason": "x"},
    "/admin/pin": {"ref": "toy/animals", "pinned": True},
}

ACCEPTED: dict[str, list[Any]] = {
    "temperature": [0, 0.0, 1e-9, 1, 2, 2.0, 10],
    "top_p": [0, 1e-9, 0.5, 1, 1.0],
    "top_k": [-1, 0, 1, 20.0, 49_152, 10**6],
    "n": [1, 1.0, 16, 128],
    "seed": [-1, 0, 42.0, 2**31, 2**63 - 1, 2**64 - 1, -(2**63)],
    "max_tokens": [1, 256.0, 4096, 10**6],
    "stop": ["", "x", [], [""], ["", "x"], [str(number) for number in range(64)], "x" * 256],
    "timeout": [1, 0.5, 10**6],
    "stream": [True, False],
    "stream_options": [{}, {"include_usage": False}, None],
}

REFUSED: dict[str, list[Any]] = {
    "temperature": [-0.1, 10.5, "1", True, [], 10**39],
    "top_p": [-0.1, 1.1, "1", False],
    "top_k": [-2, 1.5, "5", True],
    "n": [0, -1, 129, 1.5, "1", True],
    "seed": [-(2**63) - 1, 2**64, 1.5, "1", True],
    "max_tokens": [0, -1, "100", 6000.5, True, [5], 1e300, 10**39],
    "stop": [3, True, {}, [str(number) for number in range(65)], "x" * 257],
    "timeout": [0, -1, "1", True],
    "stream": [1, "true", []],
    "stream_options": [True, [], "x"],
    "model": ["", 3, None, [], "x" * 257],
}

JSON = st.recursive(
    st.none() | st.booleans() | st.text(max_size=9) | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip


def post(validating: TestClient, path: str, fields: dict[str, Any]) -> Any:
    return validating.post(path, json=BODIES[path] | fields)


def pairs(values: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, listed in values.items() for value in listed]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_value_that_openai_or_vllm_accepts_is_accepted(validating: TestClient, path: str) -> None:
    for name, value in pairs(ACCEPTED):
        response = post(validating, path, {name: value})
        assert response.status_code == 503, (name, value, response.text)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_value_out_of_range_is_refused_by_name(validating: TestClient, path: str) -> None:
    for name, value in pairs(REFUSED):
        response = post(validating, path, {name: value})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, name), (name, value, error)
        assert error["message"].startswith(name)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"max_completion_tokens": 4096.0}),
        (CHAT, {"max_tokens": None, "max_completion_tokens": None}),
        (CHAT, {"logprobs": True, "top_logprobs": 20}),
        (CHAT, {"logprobs": True, "top_logprobs": 0.0}),
        (CHAT, {"logprobs": False, "top_logprobs": 0}),
        (COMPLETIONS, {"logprobs": 0}),
        (COMPLETIONS, {"logprobs": 20}),
        (COMPLETIONS, {"prompt": ["a", "b"]}),
        (COMPLETIONS, {"prompt": ""}),
    ],
)
def test_edge_of_one_route_is_accepted(
    validating: TestClient, path: str, fields: dict[str, Any]
) -> None:
    assert post(validating, path, fields).status_code == 503


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        (CHAT, {"top_logprobs": 3}, "top_logprobs"),
        (CHAT, {"logprobs": 5}, "logprobs"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hi"}, "messages"),
        (CHAT, {"messages": None}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": "x"}] * 2049}, "messages"),
        (CHAT, {"stop": ["a", 3]}, "stop[1]"),
        (COMPLETIONS, {"logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"logprobs": -1}, "logprobs"),
        (COMPLETIONS, {"prompt": None}, "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt"),
        (COMPLETIONS, {"prompt": {}}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", 3]}, "prompt[1]"),
        (CLASSIFY, {"input": []}, "input"),
        (CLASSIFY, {"input": ["a", None]}, "input[1]"),
        (CLASSIFY, {"input": {}}, "input.image_url"),
        (CLASSIFY, {"timeout": 0}, "timeout"),
        ("/admin/promote", {"alias": "Champion"}, "alias"),
        ("/admin/promote", {"alias": "latest"}, "alias"),
        ("/admin/promote", {"force": True, "reason": " "}, "reason"),
        ("/admin/promote", {"force": 1}, "force"),
        ("/admin/pin", {"pinned": "yes"}, "pinned"),
        ("/admin/pin", {"ref": ""}, "ref"),
    ],
)  # fmt: skip
def test_error_names_the_field_as_it_was_sent(
    validating: TestClient, path: str, fields: dict[str, Any], param: str
) -> None:
    response = post(validating, path, fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error


@pytest.mark.parametrize("path", BODIES)
def test_missing_field_is_named(validating: TestClient, path: str) -> None:
    response = validating.post(path, json={})
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] in BODIES[path]
    assert error["message"].startswith(f"{error['param']} is missing")


def test_error_names_the_limit_that_the_value_exceeds(validating: TestClient) -> None:
    error = post(validating, CHAT, {"n": 129}).json()["error"]
    assert error["message"] == "n can't be 129. Send at most 128."


def names(path: str) -> st.SearchStrategy[str]:
    return st.sampled_from([*BODIES[path], *ACCEPTED, "tools", "user", "messages"]) | st.text()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_body_is_valid_or_refused_by_name(validating: TestClient, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(BODIES)))
    changes = data.draw(st.dictionaries(names(path), JSON, max_size=3))
    body = data.draw(JSON | st.just(BODIES[path] | changes))
    content = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    response = validating.post(path, content=content, headers=headers)
    assert response.status_code in (400, 503), response.text
    if response.status_code == 400:
        error = response.json()["error"]
        assert error["param"] is not None
        assert "\n" not in error["message"]
