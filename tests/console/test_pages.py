"""Every page as HTML and as JSON, without JavaScript."""

from __future__ import annotations

import pytest

from console_places import PAGES
from console_site import Browser, SignIn, Site


@pytest.mark.parametrize("path", PAGES)
def test_page_is_answered_as_html_and_as_json(admin: Browser, path: str) -> None:
    page = admin.get(path)
    assert page.status_code == 200, page.text
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    data = admin.get(path, headers={"accept": "application/json"})
    assert data.headers["content-type"] == "application/json"
    assert isinstance(data.json(), dict)


@pytest.mark.parametrize("path", PAGES)
def test_page_has_nothing_inline(admin: Browser, path: str) -> None:
    text = admin.get(path).text
    for inline in (" style=", "<style", " onclick=", " onload=", "hx-on", "javascript:", "js:"):
        assert inline not in text
    assert text.count("<script") == text.count("<script src=")


@pytest.mark.parametrize("path", PAGES)
def test_page_is_in_chinese_too(admin: Browser, path: str) -> None:
    page = admin.get(path, headers={"accept-language": "zh-CN,zh;q=0.9,en;q=0.5"})
    assert '<html lang="zh-Hans">' in page.text
    assert "退出登录" in page.text


def test_search_shows_only_matching_versions(admin: Browser) -> None:
    data = admin.get("/adapters?q=task%3Dregression", headers={"accept": "application/json"}).json()
    assert [(one["name"], one["number"]) for one in data["versions"]] == [
        ("prices", 2), ("prices", 1),
    ]  # fmt: skip


def test_wrong_search_shows_its_position(admin: Browser) -> None:
    page = admin.get("/adapters?q=task%3D%3D")
    assert page.status_code == 400
    assert "Error in the search at character" in page.text
    assert 'value="task=="' in page.text


def test_each_page_shows_the_command_that_prints_the_same(admin: Browser) -> None:
    page = admin.get("/adapters?q=task%3Dregression")
    assert "trunkline adapters list --where task=regression" in page.text


def test_version_shows_its_evaluation(admin: Browser, site: Site) -> None:
    data = admin.get("/adapters/toy/animals/1", headers={"accept": "application/json"}).json()
    version = site.platform.resolve("toy/animals@1").version
    evaluated = site.platform.evaluation_report(version)
    assert evaluated is not None
    assert data["report"]["scores"]["accuracy"]["value"] == evaluated[0].score.value
    assert sum(map(sum, data["confusion"]["counts"])) == evaluated[0].rows
    assert sum(one["rows"] for one in data["reliability"]) == evaluated[0].rows


def test_language_is_chosen_for_good(admin: Browser) -> None:
    answer = admin.post("/language", {"language": "zh", "next": "/console/runs"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/runs")
    assert '<html lang="zh-Hans">' in admin.get("/runs").text


def test_unknown_page_is_a_404_with_the_navigation(admin: Browser) -> None:
    page = admin.get("/nowhere")
    assert page.status_code == 404
    assert admin.get("/adapters/toy/nothing").status_code == 404
    assert "/console/runs" in admin.get("/adapters/toy/nothing").text


def test_api_is_as_it_was(site: Site) -> None:
    models = site.client().get("/v1/models", headers=site.bearer("tester"))
    assert "toy/prices" in {one["id"] for one in models.json()["data"]}
    assert "content-security-policy" not in models.headers


def test_first_load_is_small(admin: Browser) -> None:
    page = admin.get("/runs/1")
    files = [part.split('"')[0] for part in page.text.split('="/console/static/')[1:]]
    size = sum(len(admin.get(f"/static/{name}").content) for name in files)
    assert len(files) == 7
    assert size + len(page.content) < 150_000


def test_stream_reports_a_finished_run_and_ends(admin: Browser) -> None:
    text = admin.get("/runs/1/stream").text
    assert "event: changed" in text
    assert text.endswith("event: ended\ndata: finished\n\n")


def test_roles_see_the_same_pages_but_other_actions(sign_in: SignIn) -> None:
    assert "Promote version 2" not in sign_in("tester").get("/adapters/toy/prices").text
    assert "Promote version 2" in sign_in("promoter").get("/adapters/toy/prices").text
