"""One server answers texts and pictures; pictures come as data URLs, and nothing is fetched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from image_workbench import NAME, image_workspace, shapes, tiny_resnet
from server_process import chat_body, ready_client
from tiny_images import encoded, picture
from trunkline.api import Platform, open
from trunkline.bases import load_image, release_image
from trunkline.errors import BaseModelError
from trunkline.images import data_url
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
        ("https://example.org/a.png", "input is not a picture in a data URL"),
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
    import hashlib

    data = (shapes / "circle" / "0.png").read_bytes()
    response = classify(client, data_url(data))
    entry = both.registry.requests.get(response.headers["x-request-id"])
    assert entry.text == f'["sha256:{hashlib.sha256(data).hexdigest()}"]'
    assert entry.output in ("circle", "square")
