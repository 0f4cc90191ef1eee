"""The playground: answers side by side, as a page and as a stream, and test cases."""

from __future__ import annotations

import json
from typing import Any

import pytest

from console_site import Browser, SignIn, Site
from trunkline.data.cases import cases_path, read_cases
from trunkline.data.readers import read_rows

ASK = {"prompt": "a small cat", "model1": "toy/animals", "model2": "toy/prices@1",
       "model3": "toy/plurals", "base": "yes"}  # fmt: skip
JSON = {"accept": "application/json"}
STREAM = {"accept": "text/html, text/event-stream", "hx-request": "true"}


@pytest.fixture
def tester(sign_in: SignIn) -> Browser:
    return sign_in("tester")


def answers(browser: Browser, fields: dict[str, str]) -> list[dict[str, Any]]:
    response = browser.post("/playground", fields, headers=JSON)
    assert response.status_code == 200, response.text
    columns: list[dict[str, Any]] = response.json()["answers"]
    return columns


def test_each_model_answers_as_over_the_api(site: Site, tester: Browser) -> None:
    animals, prices, plurals, base = answers(tester, ASK | {"max_new_tokens": "5"})
    direct = site.platform.predict("toy/animals", ["a small cat"])[0]
    assert animals["version"] == "toy/animals@1"
    assert animals["output"] == direct.label
    assert animals["probability"] == pytest.approx(direct.confidence, abs=1e-5)
    assert sum(share for _, share in animals["probabilities"]) == pytest.approx(1, abs=1e-5)
    value = site.platform.predict("toy/prices@1", ["a small cat"])[0].value
    assert float(prices["output"]) == pytest.approx(value, rel=1e-4)
    assert prices["unit"] == "EUR"
    text = site.platform.generate([("toy/plurals", "a small cat")], max_new_tokens=5)[0].text
    assert plurals["output"] == text
    assert 0 < plurals["probability"] <= 1
    assert base["version"] == "base"
    assert all(one["state"] == "done" and one["seconds"] > 0 for one in (animals, prices, base))


def test_each_answer_is_a_request_with_its_lineage(site: Site, tester: Browser) -> None:
    column = answers(tester, {"prompt": "a small cat", "model1": "toy/animals"})[0]
    entry = site.platform.registry.requests.get(column["request"])
    assert (entry.version, entry.status, entry.route) == (
        "toy/animals@1", 200, "/console/playground",
    )  # fmt: skip
    assert entry.key is not None
    assert tester.get(f"/lineage?request={column['request']}").status_code == 200


def test_stream_ends_with_what_the_page_shows(tester: Browser) -> None:
    fields = ASK | {"max_new_tokens": "5"}
    stream = tester.post("/playground", fields, headers=STREAM)
    assert stream.headers["content-type"].startswith("text/event-stream")
    events = [one for one in stream.text.split("\n\n") if one]
    assert all(line.startswith("data: ") for one in events for line in one.split("\n"))
    last = "\n".join(line.removeprefix("data: ") for line in events[-1].split("\n"))
    assert last.count("<article") == 4
    assert 'aria-busy="false"' in last
    for column in answers(tester, fields):
        assert column["version"] in last
    assert 'aria-busy="true"' in events[0]


def test_unknown_adapter_fails_alone(tester: Browser) -> None:
    known, unknown = answers(tester, {"prompt": "cat", "model1": "toy/animals", "model2": "toy/x"})
    assert known["state"] == "done"
    assert unknown["state"] == "failed"
    assert "toy/x" in unknown["error"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "cat"}, "No model is chosen"),
        ({"prompt": " \u200b", "base": "yes"}, "The prompt is empty"),
        ({"prompt": "cat", "base": "yes", "temperature": "hot"}, "temperature"),
        ({"prompt": "cat", "base": "yes", "max_new_tokens": "0"}, "max_new_tokens"),
        ({"prompt": "cat", "base": "yes", "max_new_tokens": "1e3"}, "max_new_tokens"),
    ],
)
def test_form_that_no_model_could_answer_is_refused(
    tester: Browser, fields: dict[str, str], message: str
) -> None:
    page = tester.post("/playground", fields)
    assert page.status_code == 400
    assert message in page.text
    stream = tester.post("/playground", fields, headers=STREAM)
    assert stream.status_code == 200
    assert message in stream.text


def test_key_gets_no_answer_of_an_adapter_that_it_may_not_use(site: Site) -> None:
    registry = site.platform.registry
    secret = registry.keys.create("prices tester", ["toy/prices"], role="tester")[1]
    headers = {"authorization": f"Bearer {secret}", **JSON}
    fields = {"prompt": "cat", "model1": "toy/prices", "model2": "toy/animals", "base": "yes"}
    response = site.client().post("/console/playground", data=fields, headers=headers)
    allowed, refused, base = response.json()["answers"]
    assert allowed["state"] == "done"
    for column in (refused, base):
        assert column["state"] == "failed"
        assert column["version"] is None


def test_viewer_can_not_ask(viewer: Browser) -> None:
    assert viewer.get("/playground").status_code == 403
    assert viewer.post("/playground", ASK).status_code == 403


def test_link_fills_in_the_form_and_asks_nothing(site: Site, tester: Browser) -> None:
    page = tester.post("/playground", ASK).text
    start = page.index("/console/playground?prompt=")
    link = page[start : page.index('"', start)].replace("&amp;", "&")
    before = len(site.platform.registry.requests.list(limit=1000))
    filled = tester.client.get(link).text
    assert "a small cat</textarea>" in filled
    assert 'value="toy/prices@1"' in filled
    assert len(site.platform.registry.requests.list(limit=1000)) == before


def test_script_in_a_prompt_is_only_text(tester: Browser) -> None:
    script = "</textarea><script>alert(1)</script>"
    fields = {"prompt": script, "model1": script, "base": "yes", "max_new_tokens": "2"}
    for headers in ({}, STREAM):
        assert "<script>alert" not in tester.post("/playground", fields, headers=headers).text


def test_test_case_is_kept_with_its_dataset(site: Site, tester: Browser, viewer: Browser) -> None:
    workspace = site.platform.workspace
    fields = {"dataset": "toy/animals", "prompt": "a \u2028 tiny\ncat <b>", "target": "mammal",
              "version": "toy/animals@1", "output": "bird"}  # fmt: skip
    answer = tester.post("/playground/cases", fields)
    assert answer.headers["location"] == "/console/datasets/toy/animals?done=case-saved"
    case = read_cases(workspace, "toy/animals")[-1]
    assert (case["text"], case["target"]) == (fields["prompt"], "mammal")
    assert case["actor"].endswith(" tester person")
    row = list(read_rows(cases_path(workspace, "toy/animals"), ["text", "target"]))[-1]
    assert row["text"] == fields["prompt"]
    page = viewer.get("/datasets/toy/animals").text
    assert "tiny" in page
    assert "cat <b>" not in page
    assert tester.post("/playground/cases", fields).status_code == 409
    assert len(read_cases(workspace, "toy/animals")) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "../../etc/passwd"},
        {"dataset": "toy/unknown"},
        {"prompt": " "},
        {"target": ""},
        {"version": "x"},
    ],
)
def test_test_case_without_a_dataset_or_an_answer_is_refused(
    site: Site, tester: Browser, change: dict[str, str]
) -> None:
    fields = {"dataset": "toy/prices", "prompt": "a cat", "target": "5", "version": "toy/prices@1"}
    assert tester.post("/playground/cases", fields | change).status_code in (400, 404)
    assert not cases_path(site.platform.workspace, "toy/prices").exists()


def test_page_says_so_without_an_engine(site: Site) -> None:
    from trunkline.console.app import create_console_app
    from trunkline.serving.settings import ServerSettings

    app = create_console_app(site.platform, ServerSettings(port=0))
    from fastapi.testclient import TestClient

    with TestClient(app, base_url="http://127.0.0.1") as client:
        headers = site.bearer("tester")
        response = client.post("/console/playground", data=ASK, headers=headers)
        assert {one["state"] for one in response.json()["answers"]} == {"failed"}
        assert "without an engine" in json.dumps(response.json())
