"""A fusion is served by both bases at once, and answers as ``trunkline predict`` does."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from fastapi.testclient import TestClient

from cli_runner import invoke
from fusion_workbench import (
    GOODS,
    draw_goods,
    fused_platform,
    fused_workspace,
    goods,
    tiny_resnet,
)
from image_workbench import opened_images
from server_process import ready_client
from trunkline.api import Platform
from trunkline.images import data_url
from trunkline.serving.settings import ServerSettings

__all__ = ["fused_platform", "fused_workspace", "goods", "tiny_resnet"]


@pytest.fixture
def client(fused_platform: Platform) -> Iterator[TestClient]:
    with ready_client(fused_platform, ServerSettings(log_text=True)) as client:
        yield client


@pytest.fixture
def run(fused_platform: Platform, tiny: Path, tiny_resnet: Path) -> Callable[..., Result]:
    """Run a command in the workspace with fusions."""
    bases = ("--base", str(tiny), "--image-base", str(tiny_resnet), "--no-plugins")
    return lambda *args: invoke("--workspace", str(fused_platform.workspace.root), *bases, *args)


def classify(client: TestClient, input: Any, model: str = GOODS, **fields: Any) -> Any:
    return client.post("/v1/classify", json={"model": model, "input": input, **fields})


def test_served_answer_is_that_of_predict(
    client: TestClient, fused_platform: Platform, run: Callable[..., Result], goods: Path
) -> None:
    for number in (1, 2):
        picture, name = goods / f"{number}.png", f"{GOODS}@{number}"
        pair = {"text": "lamp number 1", "image_url": data_url(picture.read_bytes())}
        response = classify(client, [pair, pair], name)
        assert response.status_code == 200, response.text
        printed = run("predict", name, "lamp number 1", str(picture), "--json", "--top", "0")
        assert printed.exit_code == 0, printed.output
        (expected,) = json.loads(printed.stdout)
        for one in response.json()["data"]:
            assert one["label"] == expected["label"]
            assert one["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
        assert expected["digest"] == fused_platform.resolve(name).digest
        assert response.headers["x-trunkline-digest"] == expected["digest"]


def test_log_has_the_fused_version(
    client: TestClient, fused_platform: Platform, goods: Path
) -> None:
    data = (goods / "5.png").read_bytes()
    response = classify(client, {"text": "a shirt", "image_url": data_url(data)})
    entry = fused_platform.registry.requests.get(response.headers["x-request-id"])
    model = fused_platform.resolve(GOODS)
    assert (entry.version, entry.digest) == (model.name, model.digest)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert json.loads(entry.text or "") == [{"text": "a shirt", "image": digest}]
    lineage = fused_platform.registry.lineage.of_request(entry.id)
    assert lineage.version is not None
    assert lineage.version.ref == model.ref


@pytest.mark.parametrize(
    ("input", "param", "lacks"),
    [
        ("a bowl", "input.image_url", "the picture is missing"),
        ({"image_url": "data:image/png;base64,YQ=="}, "input.text", "the text is missing"),
        ({"text": " ", "image_url": "data:image/png;base64,YQ=="}, "input.text", "the text is"),
        ("data:image/png;base64,YQ==", "input.text", "the text is missing"),
        ({"text": "a bowl"}, "input.image_url", "missing"),
    ],
)
def test_missing_half_is_named(client: TestClient, input: Any, param: str, lacks: str) -> None:
    response = classify(client, input)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert lacks in error["message"]


def test_models_state_what_they_read(client: TestClient) -> None:
    listed = {one["id"]: one["modality"] for one in client.get("/v1/models").json()["data"]}
    assert listed[GOODS] == listed[f"{GOODS}@1"] == "text+image"
    assert listed[f"{GOODS}-text"] == "text"


def test_other_routes_refuse_a_fusion(client: TestClient, goods: Path) -> None:
    url = data_url((goods / "0.png").read_bytes())
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    body = {"model": GOODS, "messages": [{"role": "user", "content": parts}]}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert "a text and a picture together" in response.json()["error"]["message"]
    response = client.post("/v1/embeddings", json={"model": GOODS, "input": "a bowl"})
    assert response.status_code == 400, response.text
    assert "no weights of its own" in response.json()["error"]["message"]


def test_server_without_the_text_base_refuses(
    fused_workspace: Path, tmp_path: Path, tiny_resnet: Path, goods: Path
) -> None:
    workspace = shutil.copytree(fused_workspace, tmp_path / "images")
    for platform in opened_images(workspace, tiny_resnet):
        with ready_client(platform, ServerSettings()) as client:
            pair = {"text": "a bowl", "image_url": data_url((goods / "0.png").read_bytes())}
            response = classify(client, pair)
            assert response.status_code == 409, response.text
            assert "was trained on" in response.json()["error"]["message"]
            assert GOODS not in {one["id"] for one in client.get("/v1/models").json()["data"]}


# ---------------------------------------------------------------------------------- command line


def test_predict_names_what_is_missing(run: Callable[..., Result], goods: Path) -> None:
    for arguments, message in (
        (("a bowl",), "the picture is missing"),
        ((str(goods / "0.png"),), "the text is missing"),
        (("a", "b", "c"), "there are 3 arguments"),
        ((str(goods / "0.png"), "a bowl"), "The text comes first"),
        (("a bowl", str(goods / "none.png")), "There is no file"),
    ):
        result = run("predict", GOODS, *arguments)
        assert result.exit_code != 0
        assert message in result.stderr
    assert "reads one text and one picture" in run("predict", GOODS, "--folder", str(goods)).stderr


def test_versions_are_listed_and_shown(run: Callable[..., Result], tmp_path: Path) -> None:
    assert "text and pictures" in run("adapters", "list").stdout
    shown = run("adapters", "show", GOODS)
    assert "text and pictures" in shown.stdout
    assert "verified" in shown.stdout
    lineage = run("lineage", f"{GOODS}@1")
    assert f"{GOODS}-text@1: weight" in lineage.stdout
    assert "weight" not in run("lineage", f"{GOODS}@2").stdout
    merged = run("adapters", "export", GOODS, str(tmp_path / "model"), "--format", "merged")
    assert "no weights of its own" in merged.stderr
    assert run("gc", "--dry-run").exit_code == 0


def test_train_fuse_from_a_folder(run: Callable[..., Result], tmp_path: Path) -> None:
    folder = draw_goods(tmp_path / "folder", 96)
    small = ("--set", "max_steps=3", "--set", "text.r=2", "--set", "image.r=3")
    trained = run(
        "train", "--data", str(folder), "--name", "shop/own", "--fuse", "text+image", *small
    )
    assert trained.exit_code == 0, trained.output
    assert "better parent shop/own-" in trained.stdout
    assert "shop/own@1" in trained.stdout
    fused = run(
        "adapters", "merge", "shop/own-text", "shop/own-image", "--name", "shop/own",
        "--fuse", "text+image", "--method", "stacked", "--json",
    )  # fmt: skip
    assert fused.exit_code == 0, fused.output
    assert json.loads(fused.stdout)["fusion"]["method"] == "stacked"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", "1,1"), "can't be combined"),
        (("--method", "svd"), "merges weights"),
        (("--name", "shop/goods-text@1"), "names a version"),
    ],
)
def test_impossible_options_are_refused(
    run: Callable[..., Result], options: tuple[str, ...], message: str
) -> None:
    name = () if "--name" in options else ("--name", "shop/new")
    result = run(
        "adapters", "merge", f"{GOODS}-text", f"{GOODS}-image", *name, "--fuse", "text+image",
        *options,
    )  # fmt: skip
    assert result.exit_code != 0
    assert message in result.stderr
