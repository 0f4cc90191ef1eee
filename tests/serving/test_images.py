"""One server answers texts and pictures; pictures come as data URLs, and nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from image_workbench import NAME, image_workspace, opened_images, shapes, tiny_resnet
from server_process import chat_body, openai_client, ready_client, wait_until
from tiny_images import encoded, picture
from trunkline.api import Platform, open
from trunkline.bases import load_image, release_image
from trunkline.errors import BaseModelError
from trunkline.images import MAX_BASE64, data_url
from trunkline.serving.settings import ServerSettings
from workbench import make_artifact

__all__ = ["image_workspace", "shapes", "tiny_resnet"]

TEXT = "toy/animals"


@pytest.fixture
def both(
    tmp_path: Path, image_workspace: Path, tiny_resnet: Path, tiny: Path
) -> Iterator[Platform]:
    """A platform with an adapter for pictures and one for text."""
    try:
        load_image(str(tiny_resnet))
    except BaseModelError:
        release_image()
    workspace = shutil.copytree(image_workspace, tmp_path / "both")
    platform = open(workspace, base=str(tiny), image_base=str(tiny_resnet), no_plugins=True)
    make_artifact(tmp_path / "text", tiny)
    platform.files.import_adapter(tmp_path / "text", TEXT)
    yield platform
    for engine in platform.engines.loaded():
        engine.close()
    platform.registry.close()


@pytest.fixture
def client(both: Platform) -> Iterator[TestClient]:
    with ready_client(both, ServerSettings(log_text=True)) as client:
        yield client


def classify(client: TestClient, input: Any, model: str = NAME) -> Any:
    return client.post("/v1/classify", json={"model": model, "input": input})


def test_picture_is_classified_as_on_the_command_line(
    client: TestClient, both: Platform, shapes: Path
) -> None:
    files = [shapes / "circle" / "0.png", shapes / "square" / "1.png"]
    response = classify(client, [data_url(file.read_bytes()) for file in files])
    assert response.status_code == 200, response.text
    expected = both.predict_images(NAME, files)
    data = response.json()["data"]
    assert [one["label"] for one in data] == [one.label for one in expected]
    assert data[0]["probabilities"] == pytest.approx(expected[0].probabilities, abs=1e-5)
    assert response.headers["x-trunkline-version"] == f"{NAME}@1"


def test_texts_are_answered_by_the_same_server(client: TestClient) -> None:
    assert classify(client, "a trout", TEXT).status_code == 200
    assert classify(client, data_url(encoded(picture()))).status_code == 200
    assert client.post("/v1/chat/completions", json=chat_body()).status_code == 200


def test_models_state_what_they_read(client: TestClient) -> None:
    listed = {one["id"]: one["modality"] for one in client.get("/v1/models").json()["data"]}
    assert (listed[NAME], listed[TEXT], listed["base"]) == ("image", "text", "text")
    assert client.get(f"/v1/models/{NAME}").json()["parent"].endswith("resnet")


@pytest.mark.parametrize(
    ("input", "problem"),
    [
        ("a red circle", "input is not a picture in a data URL"),
        ("file:///etc/passwd", "input is not a picture in a data URL"),
        ("data:text/plain;base64,YQ==", "input is not a picture in a data URL"),
        ("data:image/png;base64,!!", "input has invalid base64"),
        ("data:image/png;base64,YQ==", "input is not a picture that can be decoded"),
    ],
)
def test_what_is_no_picture_is_refused(client: TestClient, input: str, problem: str) -> None:
    response = classify(client, input)
    assert response.status_code == 422
    assert problem in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "input"


def test_damaged_picture_is_named_by_its_index(client: TestClient) -> None:
    good = encoded(picture())
    response = classify(client, [data_url(good), data_url(good[: len(good) // 2])])
    assert response.status_code == 422
    assert "input[1] is damaged or truncated" in response.json()["error"]["message"]


def test_picture_for_an_adapter_of_text_is_refused(client: TestClient) -> None:
    response = classify(client, data_url(encoded(picture())), TEXT)
    assert response.status_code == 422
    assert "reads text, and input is a picture" in response.json()["error"]["message"]


def test_embedding_of_a_text_by_an_adapter_of_pictures_is_refused(client: TestClient) -> None:
    response = client.post("/v1/embeddings", json={"model": NAME, "input": "a red circle"})
    assert response.status_code == 400
    assert "reads pictures" in response.json()["error"]["message"]


def test_log_has_the_digest_and_not_the_picture(
    client: TestClient, both: Platform, shapes: Path
) -> None:
    data = (shapes / "circle" / "0.png").read_bytes()
    response = classify(client, data_url(data))
    entry = both.registry.requests.get(response.headers["x-request-id"])
    assert entry.text == f'["sha256:{hashlib.sha256(data).hexdigest()}"]'
    assert entry.output in ("circle", "square")


@pytest.mark.parametrize(
    ("model", "input"),
    [
        ("toy/nothing", data_url(encoded(picture(5)))),
        ("toy/nothing", data_url(encoded(picture(5))).partition(",")[2]),
        (TEXT, data_url(encoded(picture(5)))),
        (NAME, [data_url(encoded(picture(5))), "!"]),
    ],
)
def test_log_of_a_refused_request_has_no_picture(
    client: TestClient, both: Platform, model: str, input: Any
) -> None:
    response = classify(client, input, model)
    assert response.status_code in (404, 422)
    entry = both.registry.requests.get(response.headers["x-request-id"])
    assert entry.text is not None
    assert "iVBORw0KGgo" not in entry.text


# ----------------------------------------------------------------------------- forms of a picture


@pytest.mark.parametrize(
    "form",
    [
        lambda url: {"image_url": url},
        lambda url: {"image_url": {"url": url}},
        lambda url: {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
        lambda url: url.partition(",")[2],
    ],
)
def test_every_form_of_a_picture_gives_the_same_answer(client: TestClient, form: Any) -> None:
    url = data_url(encoded(picture(3)))
    expected = classify(client, url).json()["data"]
    for input in (form(url), [form(url)]):
        response = classify(client, input)
        assert response.status_code == 200, response.text
        assert response.json()["data"] == expected


@pytest.mark.parametrize(
    ("input", "param"),
    [
        ("http://example.org/a.png", "input"),
        (["HTTPS://example.org/a.png", "x"], "input[0]"),
        ({"image_url": "https://example.org/a.png"}, "input.image_url"),
        ([{"image_url": {"url": "https://example.org/a.png"}}], "input[0].image_url.url"),
    ],
)
def test_address_is_refused_by_its_name(client: TestClient, input: Any, param: str) -> None:
    response = classify(client, input)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert "is an address, and this server fetches none" in error["message"]


@pytest.mark.parametrize(
    ("input", "param"),
    [
        ({"image_url": {"url": "data:image/png;base64,YQ==", "size": 3}}, "input.image_url.size"),
        ({"image_url": "data:image/png;base64,YQ==", "text": "x"}, "input.text"),
        ({"image_url": "data:text/plain;base64,YQ=="}, "input.image_url"),
        ({"image_url": 3}, "input.image_url"),
        ({}, "input.image_url"),
        ([], "input"),
        (3, "input"),
    ],
)
def test_unknown_field_of_a_picture_is_refused_by_its_name(
    client: TestClient, input: Any, param: str
) -> None:
    response = classify(client, input)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_object_for_an_adapter_of_text_is_refused(client: TestClient) -> None:
    response = classify(client, ["a cow", {"image_url": data_url(b"x")}], TEXT)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "input[1]"
    assert "reads text" in response.json()["error"]["message"]


def test_large_picture_is_refused_before_it_is_decoded(both: Platform) -> None:
    with ready_client(both, ServerSettings(max_body_bytes=64 << 20)) as client:
        response = classify(client, "!" * (MAX_BASE64 + 1))
    assert response.status_code == 413
    assert "more than 32 MiB" in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "input"


def test_too_many_pictures_are_refused_before_they_are_decoded(both: Platform) -> None:
    with ready_client(both, ServerSettings(max_inputs=2)) as client:
        response = classify(client, ["no base64!"] * 3)
    assert response.status_code == 413
    assert "at most 2" in response.json()["error"]["message"]


# ------------------------------------------------------------------------------ chat completions


def chat(client: TestClient, *parts: Any, model: str = NAME, **fields: Any) -> Any:
    message = {"role": "user", "content": list(parts)}
    body = {"model": model, "messages": [message], **fields}
    return client.post("/v1/chat/completions", json=body)


def part(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data), "detail": "auto"}}


QUESTION = {"type": "text", "text": "What is it?"}


def test_chat_answers_with_the_label(client: TestClient, both: Platform, shapes: Path) -> None:
    data = (shapes / "circle" / "0.png").read_bytes()
    response = chat(client, QUESTION, part(data), max_tokens=5, temperature=0)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    label = both.predict_images(NAME, [data])[0].label
    assert choice["message"] == {"role": "assistant", "content": label, "refusal": None}
    assert (choice["finish_reason"], response.json()["model"]) == ("stop", f"{NAME}@1")
    entry = both.registry.requests.get(response.headers["x-request-id"])
    assert hashlib.sha256(data).hexdigest() in (entry.text or "")
    assert base64.b64encode(data).decode() not in (entry.text or "")
    assert entry.output == label


def test_clients_of_openai_send_pictures(both: Platform) -> None:
    with ready_client(both, ServerSettings()) as transport:
        client = openai_client(transport)
        messages: Any = [{"role": "user", "content": [QUESTION, part(encoded(picture()))]}]
        complete = client.chat.completions.create(model=NAME, messages=messages)
        options: Any = {"stream": True, "stream_options": {"include_usage": True}}
        stream = client.chat.completions.create(model=NAME, messages=messages, **options)
        chunks = list(stream)
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == complete.choices[0].message.content
    assert text in ("circle", "square")
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "stop"
    assert chunks[-1].usage is not None


def test_picture_of_the_last_message_counts(client: TestClient, shapes: Path) -> None:
    first, second = ((shapes / name / "2.png").read_bytes() for name in ("circle", "square"))
    messages = [
        {"role": "user", "content": [part(first)]},
        {"role": "assistant", "content": "circle"},
        {"role": "user", "content": [part(second)]},
    ]
    response = client.post("/v1/chat/completions", json={"model": NAME, "messages": messages})
    answer = response.json()["choices"][0]["message"]["content"]
    assert answer == classify(client, data_url(second)).json()["data"][0]["label"]


@pytest.mark.parametrize(
    ("content", "fields", "param"),
    [
        ([part(encoded(picture()))] * 2, {}, "messages[0].content"),
        ([part(encoded(picture()))], {"n": 2}, "n"),
        ([part(encoded(picture()))], {"logprobs": True}, "logprobs"),
        ([part(encoded(picture()))], {"model": TEXT}, "messages[0].content[0].type"),
        ([QUESTION, part(encoded(picture()))], {"model": "base"}, "messages[0].content[1].type"),
        ([QUESTION], {}, "model"),
    ],
)
def test_chat_that_can_not_be_answered_names_the_field(
    client: TestClient, content: list[Any], fields: dict[str, Any], param: str
) -> None:
    response = chat(client, *content, **{"model": NAME, **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_last_message_needs_the_picture(client: TestClient) -> None:
    messages = [
        {"role": "user", "content": [part(encoded(picture()))]},
        {"role": "user", "content": "And this?"},
    ]
    response = client.post("/v1/chat/completions", json={"model": NAME, "messages": messages})
    assert response.json()["error"]["param"] == "messages[1].content"
    assert "has no picture" in response.json()["error"]["message"]


def test_damaged_picture_in_a_chat_names_the_part(client: TestClient) -> None:
    good = encoded(picture())
    response = chat(client, QUESTION, part(good[: len(good) // 2]))
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "messages[0].content[1]"
    assert "is damaged or truncated" in response.json()["error"]["message"]


# -------------------------------------------------------------------------------- administration


def test_adapter_for_pictures_is_loaded_pinned_and_unloaded(
    client: TestClient, both: Platform
) -> None:
    ref = {"ref": f"{NAME}@1"}
    digest = both.resolve(NAME).digest

    def residents() -> dict[str, Any]:
        return {row["digest"]: row for row in client.get("/admin/residents").json()["data"]}

    client.post("/admin/unload", json=ref)
    assert digest not in residents()
    assert client.post("/admin/pin", json=ref).status_code == 404
    assert client.post("/admin/load", json=ref).json()["digest"] == digest
    assert client.post("/admin/pin", json=ref).json()["pinned"] is True
    assert client.post("/admin/load", json={"ref": TEXT}).status_code == 200
    listed = residents()
    assert (listed[digest]["name"], listed[digest]["pinned"]) == (f"{NAME}@1", True)
    assert both.resolve(TEXT).digest in listed
    client.post("/admin/pin", json={**ref, "pinned": False})
    assert client.post("/admin/unload", json=ref).status_code == 200
    assert digest not in residents()


def test_version_that_a_server_holds_is_recorded(client: TestClient, both: Platform) -> None:
    assert client.post("/admin/load", json={"ref": NAME}).status_code == 200
    wait_until(
        lambda: bool(both.registry.servers.holders([both.resolve(NAME).digest])),
        "the load is recorded",
    )


# ---------------------------------------------------------------------- state of both bases


def test_metrics_and_state_have_both_bases(client: TestClient, shapes: Path) -> None:
    assert [one["modality"] for one in client.get("/admin/state").json()["engines"]] == ["text"]
    chat = client.post("/v1/chat/completions", json=chat_body())
    assert chat.status_code == 200
    assert classify(client, data_url((shapes / "circle" / "0.png").read_bytes())).status_code == 200
    state = client.get("/admin/state").json()
    assert [one["modality"] for one in state["engines"]] == ["text", "image"]
    assert (state["kv_tokens"] > 0, state["base"]) == (True, state["engines"][0]["base"])
    text = client.get("/metrics").text
    for line in (
        'trunkline_batch_running{modality="text"} 0.0',
        'trunkline_batch_running{modality="image"} 0.0',
        'trunkline_engine_steps_total{modality="image"} 1.0',
        f'trunkline_adapter_pool_loads_total{{version="{NAME}@1"}} 1.0',
        f'trunkline_adapter_pool_resident_bytes{{tier="device",version="{NAME}@1"}}',
    ):
        assert line in text
    assert text.count("# TYPE trunkline_queue_length") == 1


def test_base_that_was_loaded_before_the_server_is_in_the_metrics(both: Platform) -> None:
    assert both.engines.image
    with ready_client(both, ServerSettings()) as client:
        wait_until(
            lambda: 'trunkline_batch_rows{modality="image"}' in client.get("/metrics").text,
            "the metrics have the base for pictures",
        )


@pytest.fixture
def pictures_only(
    tmp_path: Path, image_workspace: Path, tiny_resnet: Path
) -> Iterator[tuple[Platform, TestClient]]:
    """A server whose only base is for pictures."""
    workspace = shutil.copytree(image_workspace, tmp_path / "pictures")
    for platform in opened_images(workspace, tiny_resnet):
        with ready_client(platform, ServerSettings()) as client:
            yield platform, client


def test_server_with_a_base_for_pictures_alone(
    pictures_only: tuple[Platform, TestClient], shapes: Path
) -> None:
    platform, client = pictures_only
    assert [one.modality for one in platform.engines.loaded()] == ["image"]
    picture = data_url((shapes / "circle" / "0.png").read_bytes())
    assert classify(client, picture).status_code == 200
    state = client.get("/admin/state").json()
    assert (state["base"], len(state["engines"])) == (platform.engines.names["image"], 1)
    assert client.get("/ready").json()["base"] == state["base"]
    assert [one["id"] for one in client.get("/v1/models").json()["data"]][:1] == [NAME]
    residents = client.get("/admin/residents").json()
    assert [one["name"] for one in residents["data"]] == [f"{NAME}@1"]
    text = client.get("/metrics").text
    assert 'trunkline_batch_running{modality="image"} 0.0' in text
    assert "trunkline_kv_cache" not in text


def test_server_with_a_base_for_pictures_alone_refuses_texts(
    pictures_only: tuple[Platform, TestClient],
) -> None:
    platform, client = pictures_only
    reply = client.post("/v1/chat/completions", json=chat_body())
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "model_not_found"
    assert [one.modality for one in platform.engines.loaded()] == ["image"]


def test_server_of_pictures_records_its_adapters(
    pictures_only: tuple[Platform, TestClient], shapes: Path
) -> None:
    platform, client = pictures_only
    classify(client, data_url((shapes / "circle" / "0.png").read_bytes()))
    digest = platform.resolve(NAME).version.digest

    def recorded() -> bool:
        return bool(platform.registry.servers.holders([digest]))

    wait_until(recorded, "the registry knows who holds the adapter")
    (server,) = platform.registry.servers.list(5)
    assert server.base_name
