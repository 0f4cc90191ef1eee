"""Requests through the middleware, with an application behind it that stands where vLLM stands."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from vllm_stand_in import StandIn, serving

from trunkline.api import Platform
from trunkline.refs import Ref
from trunkline_vllm import exchange

Complete = Callable[..., Any]
QUESTION = [{"role": "user", "content": "  cat "}]


def problem(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


def logged(platform: Platform) -> list[Any]:
    return list(reversed(platform.registry.requests.list()))


# ----------------------------------------------------------------------------------- names


def test_alias_is_resolved_for_each_request(
    platform: Platform, complete: Complete, stand_in: StandIn
) -> None:
    first = complete("toy/plurals")
    assert first.status_code == 200, first.text
    assert first.json()["model"] == first.headers["x-trunkline-version"] == "toy/plurals@1"
    platform.registry.aliases.set(Ref("toy", "plurals", "2"), "champion")
    for name in ("toy/plurals", "toy/plurals@champion", "toy/plurals@2"):
        assert complete(name).headers["x-trunkline-version"] == "toy/plurals@2"
    version = platform.resolve("toy/plurals@1").version
    by_digest = complete(f"toy/plurals@{version.digest}")
    assert by_digest.headers["x-trunkline-version"] == "toy/plurals@1"
    assert by_digest.headers["x-trunkline-digest"] == version.digest
    assert set(stand_in.adapters) == {"toy/plurals@1", "toy/plurals@2"}


def test_adapter_is_handed_over_from_the_cache(
    platform: Platform, complete: Complete, stand_in: StandIn, tmp_path: Path
) -> None:
    complete("toy/plurals")
    digest = platform.resolve("toy/plurals@1").digest.removeprefix("sha256:")
    adapter = stand_in.adapters["toy/plurals@1"]
    assert adapter["lora_path"] == str(tmp_path / "vllm" / digest)
    assert adapter["lora_name"] == "toy/plurals@1"
    assert adapter["lora_int_id"] == int(digest[:8], 16) % (2**31 - 1) + 1


@pytest.mark.parametrize("name", ["toy/nothing", "toy/plurals@9", "../../etc", "served", "a@b@c"])
def test_unknown_name_is_404(complete: Complete, stand_in: StandIn, name: str) -> None:
    status, message = problem(complete(name))
    assert (status, stand_in.bodies) == (404, [])
    assert "does not exist" in message
    assert "GET /v1/models" in message


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": ""}, {"model": 3}])
def test_request_without_a_model_is_not_the_bases(
    client: TestClient, stand_in: StandIn, body: dict[str, Any]
) -> None:
    assert problem(client.post("/v1/completions", json=body | {"prompt": "x"}))[0] == 400
    assert stand_in.bodies == []


@pytest.mark.parametrize("name", ["base", "served-base"])
def test_base_answers_under_its_names(
    complete: Complete, stand_in: StandIn, platform: Platform, name: str
) -> None:
    response = complete(name)
    assert response.headers["x-trunkline-version"] == "base"
    assert stand_in.bodies == [{"model": "served-base", "prompt": "cat"}]
    assert logged(platform)[0].digest == platform.base_digest


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("toy/animals", 400, "would ignore its head"),
        ("toy/magnitudes", 409, "DoRA"),
        ("toy/wide", 409, "rank 16"),
        ("toy/unproved", 409, "no stored probes"),
    ],
)
def test_what_vllm_can_not_serve_is_refused_with_the_reason(
    complete: Complete, stand_in: StandIn, name: str, status: int, reason: str
) -> None:
    response = complete(name)
    assert problem(response)[0] == status
    assert reason in problem(response)[1]
    assert (stand_in.bodies, stand_in.adapters) == ([], {})


def test_adapter_of_another_base_is_refused(platform: Platform, complete: Complete) -> None:
    platform.registry.sources.record_base(
        digest="c" * 64, name="other", source="made", architecture="L", parameters=1, dtype="f",
    )  # fmt: skip
    folder = platform.store.fetch(platform.resolve("toy/plurals@1").version).folder
    ref = Ref("toy", "strange")
    platform.store.publish(folder, ref, task="generation", run=None, base_digest="c" * 64)
    status, message = problem(complete("toy/strange"))
    assert (status, "trained on the base other" in message) == (409, True)


def test_adapter_that_answers_otherwise_takes_no_traffic(
    complete: Complete, stand_in: StandIn
) -> None:
    stand_in.wrong = True
    status, message = problem(complete("toy/plurals"))
    assert (status, "does not answer here as it was published" in message) == (422, True)
    assert stand_in.bodies == []
    stand_in.wrong = False
    assert complete("toy/plurals").status_code == 200
    proved = stand_in.probes
    assert complete("toy/plurals").status_code == 200
    assert stand_in.probes == proved


def test_operator_may_serve_what_is_unproved(
    complete: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_VLLM_PROBE", "optional")
    assert complete("toy/unproved").status_code == 200


def test_tampered_artifact_is_refused(
    platform: Platform, complete: Complete, tmp_path: Path
) -> None:
    path = platform.workspace.adapters / platform.resolve("toy/plurals@1").version.path
    weights = path / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    status, message = problem(complete("toy/plurals"))
    assert (status, "not what the registry recorded" in message) == (422, True)
    assert str(tmp_path) not in message


def test_unused_routes_and_those_that_load_adapters_are_closed(
    client: TestClient, stand_in: StandIn
) -> None:
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        assert client.post(path, json={"lora_name": "x", "lora_path": "/"}).status_code == 403
    assert client.post("/v1/embeddings", json={"model": "x"}).status_code == 404
    assert client.get("/health").status_code == 200
    assert client.get("/metrics").text == "vllm:loras 1"
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/realtime"):
        pass


@pytest.mark.parametrize("broken", ["flag", "names", "plugin", "lora"])
def test_vllm_that_was_started_otherwise_is_named(
    client: TestClient, complete: Complete, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    app: Any = client.app
    if broken == "flag":
        monkeypatch.delenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING")
    elif broken == "names":
        monkeypatch.setenv("VLLM_SKIP_MODEL_NAME_VALIDATION", "1")
    elif broken == "plugin":
        app.state.openai_serving_models.lora_resolvers.clear()
    else:
        app.state.vllm_config.lora_config = None
    status, message = problem(complete("toy/plurals"))
    assert status == 503
    assert "Start it with" in message or "Install trunkline-vllm" in message


# ------------------------------------------------------------------------------------------ keys


def test_keys_and_their_adapters(
    platform: Platform, client: TestClient, complete: Complete, stand_in: StandIn
) -> None:
    _, key = platform.registry.keys.create("grace", ["toy/plurals"])
    _, viewer = platform.registry.keys.create("ada", role="viewer")
    assert complete("toy/plurals").status_code == 401
    assert client.get("/metrics").status_code == 401
    assert complete("toy/plurals", key).status_code == 200
    for name in ("toy/plain", "toy/nothing", "base"):
        assert complete(name, key).status_code == 403
    assert complete("toy/plurals", viewer).status_code == 403
    listed = client.get("/v1/models", headers={"authorization": f"Bearer {key}"}).json()["data"]
    assert [one["id"] for one in listed] == [
        *("toy/plurals", "toy/plurals@champion", "toy/plurals@2", "toy/plurals@1"),
    ]
    assert len(stand_in.bodies) == 1


def test_server_that_others_can_reach_needs_a_key(stand_in: StandIn) -> None:
    with serving(stand_in, "192.0.2.1") as client:
        body = {"model": "toy/plurals", "prompt": "x"}
        assert client.post("/v1/completions", json=body).status_code == 401


def test_models_are_those_that_are_served(client: TestClient) -> None:
    names = [one["id"] for one in client.get("/v1/models").json()["data"]]
    assert names[0] == "base"
    assert "toy/plain" in names
    assert "toy/animals" not in names


# --------------------------------------------------------------------------------------- prompts


def test_messages_are_put_into_the_template(client: TestClient, stand_in: StandIn) -> None:
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    parts = {"role": "user", "content": [{"type": "text", "text": "cat"}]}
    body = {"model": "toy/plurals", "messages": QUESTION}
    client.post("/v1/chat/completions", json=body)
    client.post("/v1/chat/completions", json={**body, "messages": [*history, parts]})
    system = {"role": "system", "content": "Be brief."}
    filled = {"role": "user", "content": "Say cat!"}
    sent = [one["messages"] for one in stand_in.bodies]
    assert sent == [[system, filled], [system, *history, filled]]
    assert [one["max_completion_tokens"] for one in stand_in.bodies] == [8, 8]


def test_prompt_becomes_the_tokens_that_our_engine_reads(
    platform: Platform, complete: Complete, stand_in: StandIn
) -> None:
    from trunkline.data.encode import encode_prompt

    artifact = platform.resolve("toy/plain").artifact()
    assert artifact is not None
    template, tokenizer = artifact.manifest.make_template(), platform.engine.base.tokenizer
    long = "cat " * 40
    complete("toy/plain", prompt=["cat", long], max_tokens=3)
    complete("toy/plain", prompt=[5, 6, 7])
    expected = [encode_prompt(text, template, tokenizer, 32).ids for text in ("cat", long)]
    assert [one["prompt"] for one in stand_in.bodies] == [expected, [5, 6, 7]]
    assert [one["max_tokens"] for one in stand_in.bodies] == [3, 8]


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("toy/plain", QUESTION),
        ("toy/plurals", [{"role": "user", "content": " "}]),
        ("toy/plurals", [{"role": "assistant", "content": "x"}]),
        ("toy/plurals", [{"role": "user", "content": [{"type": "image_url"}]}]),
        ("toy/plurals", ["x"]),
        ("toy/plurals", []),
        ("toy/plurals", None),
    ],
)
def test_messages_that_do_not_fit_are_refused(
    client: TestClient, stand_in: StandIn, name: str, messages: Any
) -> None:
    body = {"model": name, "messages": messages}
    assert problem(client.post("/v1/chat/completions", json=body))[0] in (400, 422)
    assert stand_in.bodies == []


# ------------------------------------------------------------------------------- log and streams


def test_each_request_is_logged_before_it_ends(platform: Platform, complete: Complete) -> None:
    answered = complete("toy/plurals")
    complete("toy/nothing")
    first, second = logged(platform)
    assert first.id == answered.headers["x-request-id"]
    assert (first.model, first.version, first.status) == ("toy/plurals", "toy/plurals@1", 200)
    assert (first.prompt_tokens, first.new_tokens, first.text) == (5, 2, None)
    assert (second.model, second.version, second.status) == ("toy/nothing", None, 404)
    assert all(report.intact for report in platform.registry.audit.verify())


@pytest.mark.parametrize("wanted", [True, False])
def test_stream_is_logged_with_its_usage(
    platform: Platform, complete: Complete, wanted: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if wanted else {}
    response = complete("toy/plurals", stream=True, **options)
    events = response.text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    contents = [json.loads(one.removeprefix("data: ")) for one in events[:-1]]
    texts = [one["choices"][0]["text"] for one in contents if one["choices"]]
    assert texts == ["so", " it is"]
    assert len(contents) == 2 + wanted
    assert response.headers["x-trunkline-version"] == "toy/plurals@1"
    (line,) = logged(platform)
    assert (line.prompt_tokens, line.new_tokens, line.status) == (5, 2, 200)


def test_many_first_requests_prove_the_adapter_once(complete: Complete, stand_in: StandIn) -> None:
    with ThreadPoolExecutor(8) as threads:
        responses = list(threads.map(complete, ["toy/plurals"] * 8))
    assert {one.status_code for one in responses} == {200}
    count = stand_in.probes
    assert 1 <= count <= 4


# ------------------------------------------------------------------------- the registry is away


def test_cached_versions_go_on_without_the_registry(
    platform: Platform, complete: Complete, stand_in: StandIn
) -> None:
    _, key = platform.registry.keys.create("grace")
    _, other = platform.registry.keys.create("ada")
    assert complete("toy/plurals", key).status_code == 200
    file = platform.workspace.root / "registry.db"
    file.rename(file.with_suffix(".away"))
    answered = [complete("toy/plurals", key) for _ in range(3)]
    assert [one.headers.get("x-trunkline-version") for one in answered] == ["toy/plurals@1"] * 3
    for refused in (complete("toy/plain", key), complete("toy/plurals", other)):
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
    file.with_suffix(".away").rename(file)
    assert len(logged(platform)) == 1
    assert complete("toy/plurals", key).status_code == 200
    ids = [one.id for one in logged(platform)]
    assert set(ids) > {one.headers["x-request-id"] for one in answered}
    assert all(report.intact for report in platform.registry.audit.verify())


def test_grace_ends(
    platform: Platform, complete: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_VLLM_GRACE_SECONDS", "0")
    assert complete("toy/plurals").status_code == 200
    (platform.workspace.root / "registry.db").rename(platform.workspace.root / "away")
    assert problem(complete("toy/plurals"))[0] == 503


def test_lines_that_can_not_be_kept_are_reported(
    stand_in: StandIn, platform: Platform, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(exchange, "MAX_BACKLOG", 2)
    body = {"model": "toy/plurals", "prompt": "cat"}
    with caplog.at_level(logging.ERROR), serving(stand_in) as client:
        client.post("/v1/completions", json=body)
        (platform.workspace.root / "registry.db").rename(platform.workspace.root / "away")
        statuses = [client.post("/v1/completions", json=body).status_code for _ in range(3)]
        streamed = client.post("/v1/completions", json={**body, "stream": True})
    assert statuses == [200, 200, 503]
    assert '"error"' in streamed.text
    assert "[DONE]" not in streamed.text
    assert caplog.text.count("is not in the log") == 2
