"""Train from the console: recipes, uploaded files, jobs in processes of their own, stop, resume."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from console_site import Browser, SignIn, Site
from trunkline.console import jobs, uploads, worker
from trunkline.console.jobs import JobState

STEPS = {"set.max_steps": "3", "set.evals_per_epoch": "1"}
FORM = "/train/recipes/toy/animals"
ROWS = "text,kind\n" + "".join(
    f"{size} {name},{kind}\n"
    for size in ("small", "big", "old", "young", "wild", "tame", "red", "blue")
    for name, kind in (("cat", "mammal"), ("dog", "mammal"), ("owl", "bird"), ("hen", "bird"))
)


@pytest.fixture
def promoter(sign_in: SignIn) -> Browser:
    return sign_in("promoter")


def started(site: Site, browser: Browser, path: str, fields: dict[str, str]) -> str:
    """Start a job; its id."""
    answer = browser.post(path, fields)
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"].rpartition("/")[2])


def ended(site: Site, id: str, seconds: float = 120) -> JobState:
    """The job when it has ended."""
    end = time.monotonic() + seconds
    while (state := jobs.get(site.platform, id)).alive and time.monotonic() < end:
        time.sleep(0.2)
    assert not state.alive, state
    return state


def uploaded(browser: Browser, content: str | bytes = ROWS, name: str = "Animals 1.csv") -> Any:
    data = content.encode() if isinstance(content, str) else content
    return browser.client.post(
        "/console/train/uploads",
        data={"form_token": browser.token()},
        files={"file": (name, data, "text/csv")},
    )


# ------------------------------------------------------------------------------------- settings


def test_form_has_every_setting_with_its_help_and_range(promoter: Browser) -> None:
    page = promoter.get(FORM, headers={"accept": "application/json"}).json()
    names = [one["name"] for one in page["settings"]]
    assert len(names) == len(set(names)) > 20
    rank = next(one for one in page["settings"] if one["name"] == "r")
    assert (rank["least"], rank["most"], rank["help"]) == (1, 1024, "LoRA rank")
    assert 'name="set.r"' in promoter.get(FORM).text


def test_wrong_setting_is_shown_beside_the_form(promoter: Browser) -> None:
    answer = promoter.post(FORM, {"action": "start", "set.r": "0"})
    assert answer.status_code == 400
    assert "The setting r can" in answer.text
    assert 'name="set.r" value="0"' in answer.text


def test_check_shows_what_the_command_line_says(site: Site, promoter: Browser) -> None:
    page = promoter.post(FORM, {"action": "check"}, headers={"accept": "application/json"}).json()
    assert page["check"]["rows"] == site.platform.dataset_report("toy/animals").prepared.report.read
    assert not jobs.newest(site.platform)


def test_command_repeats_the_form(promoter: Browser) -> None:
    page = promoter.post(FORM, {"action": "check", "set.max_steps": "7"}).text
    assert "trunkline train toy/animals --set max_steps=7" in page


# ----------------------------------------------------------------------------------------- jobs


def test_training_goes_on_by_itself_and_publishes(site: Site, promoter: Browser) -> None:
    id = started(site, promoter, FORM, {"action": "start", **STEPS})
    again = promoter.post(FORM, {"action": "start", **STEPS})
    assert again.status_code == 429
    assert "Another training" in again.text
    state = ended(site, id)
    assert state.error is None
    assert state.version is not None
    assert state.run is not None
    run = site.platform.registry.runs.get(state.run)
    assert (run.status, run.settings["max_steps"]) == ("finished", 3)
    version = site.platform.resolve(state.version).version
    [trainer] = site.platform.registry.versions.contributors(version)
    assert trainer.endswith(" promoter person")
    page = promoter.get(f"/train/jobs/{id}").text
    assert f"/console/runs/{state.run}" in page
    assert state.version in page
    metrics = site.platform.registry.runs.metrics(state.run, name="tokens")
    assert [one.step for one in metrics][-1] == 3
    assert metrics[-1].value == run.report["tokens_trained"]  # type: ignore[index]


def test_training_outlives_the_process_that_started_it(site: Site) -> None:
    import subprocess
    import sys

    code = (
        "import sys, trunkline\n"
        "from trunkline.console import jobs\n"
        "platform = trunkline.open(sys.argv[1], base=sys.argv[2])\n"
        "job = jobs.Job(kind='train', adapter='toy/animals', settings={'max_steps': '2'})\n"
        "print(jobs.start(platform, job))\n"
    )
    root, base = site.platform.workspace.root, site.platform.base_name
    starter = [sys.executable, "-c", code, str(root), str(base)]
    id = subprocess.run(starter, capture_output=True, text=True, check=True).stdout.strip()
    assert jobs.get(site.platform, id).alive
    state = ended(site, id)
    assert (state.error, state.done) == (None, 2)


def test_estimate_trains_nothing(site: Site, promoter: Browser) -> None:
    before = site.platform.registry.runs.list(limit=1)[0].number
    state = ended(site, started(site, promoter, FORM, {"action": "plan", **STEPS}))
    assert state.plan is not None
    assert state.plan["steps"] == 3
    assert site.platform.registry.runs.list(limit=1)[0].number == before
    page = promoter.get(f"/train/jobs/{state.id}").text
    assert "nothing was trained" in page
    assert "trunkline train toy/animals --set " in page
    assert "--set max_steps=3" in page
    assert " --dry-run<" in page


def test_run_is_stopped_and_resumed(site: Site, promoter: Browser) -> None:
    registry = site.platform.registry
    fields = {"action": "start", "set.max_steps": "500", "set.early_stopping_patience": "0"}
    id = started(site, promoter, FORM, fields)
    end = time.monotonic() + 60
    while (state := jobs.get(site.platform, id)).done < 2 and time.monotonic() < end:
        time.sleep(0.1)
    assert state.run is not None
    page = promoter.get(f"/runs/{state.run}").text
    assert f"/console/runs/{state.run}/stop" in page
    assert promoter.post(f"/runs/{state.run}/stop", {}).status_code == 303
    assert ended(site, id).error is not None
    run = registry.runs.get(state.run)
    assert run.status == "interrupted"
    kinds = {one.kind: one.actor for one in registry.events.list(limit=20)
             if one.subject == f"run/{run.number}"}  # fmt: skip
    assert kinds["run.stop_requested"].endswith(" promoter person")
    assert kinds["run.interrupted"].endswith(" promoter person")
    assert promoter.post(f"/runs/{state.run}/stop", {}).status_code == 409
    assert f"/console/runs/{state.run}/resume" in promoter.get(f"/runs/{state.run}").text
    answer = promoter.post(f"/runs/{state.run}/resume", {})
    resumed = answer.headers["location"].rpartition("/")[2]
    while registry.runs.get(state.run).status != "running" and time.monotonic() < end + 60:
        time.sleep(0.1)
    assert promoter.post(f"/train/jobs/{resumed}/stop", {}).status_code == 303
    assert ended(site, resumed).run == state.run
    page = promoter.get(f"/train/jobs/{resumed}").text
    assert f"trunkline train toy/animals --resume {state.run}" in page


def test_failure_is_shown(site: Site, promoter: Browser) -> None:
    fields = {"action": "start", "set.target_modules": "no_such_layer"}
    state = ended(site, started(site, promoter, FORM, fields))
    assert state.error is not None
    assert "no_such_layer" in state.error
    assert "no_such_layer" in promoter.get(f"/train/jobs/{state.id}").text


def test_unexpected_error_leaves_no_secret_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = {"kind": "plan", "adapter": "toy/animals", "platform": {"https://me:Pa55-w0rd@host": 1}}
    (tmp_path / jobs.JOB).write_text(json.dumps(job))
    assert worker.main(tmp_path) == 1
    log = capfd.readouterr().err
    assert "Traceback" in log
    assert "https://…@host" in log
    assert "Pa55" not in log + (tmp_path / jobs.STATE).read_text()


def test_killed_job_is_shown(site: Site, promoter: Browser, tmp_path: Path) -> None:
    import os
    import signal

    id = started(site, promoter, FORM, {"action": "plan", **STEPS})
    folder = site.platform.workspace.root / ".trunkline" / "jobs" / id
    os.kill(json.loads((folder / "process.json").read_bytes())["pid"], signal.SIGKILL)
    state = ended(site, id)
    assert "without reporting a result" in (state.error or "")
    assert promoter.get(f"/train/jobs/{id}").status_code == 200


@pytest.mark.parametrize("id", ["20260101-000000-abcdef", "x", "%2e%2e"])
def test_unknown_job_is_an_error(promoter: Browser, id: str) -> None:
    assert promoter.get(f"/train/jobs/{id}").status_code == 404


# --------------------------------------------------------------------------------------- uploads


def test_file_is_uploaded_checked_and_trained(site: Site, promoter: Browser) -> None:
    answer = uploaded(promoter)
    assert answer.status_code == 303, answer.text
    path = answer.headers["location"].removeprefix("/console")
    form = promoter.get(path).text
    assert "animals-1.csv" in form
    assert '<option value="kind">' in form
    fields = {"name": "own/animals", "text": "text", "learned": "label", "column": "kind", **STEPS}
    checked = promoter.post(
        path, fields | {"action": "check"}, headers={"accept": "application/json"}
    ).json()
    assert checked["check"]["rows"] == 32
    page = promoter.post(path, fields | {"action": "check"}).text
    assert "--text text --label kind" in page
    state = ended(site, started(site, promoter, path, fields | {"action": "start"}))
    assert (state.error, state.version) == (None, "own/animals@1")
    assert site.platform.predict("own/animals", ["big owl"])[0].label in ("bird", "mammal")


def test_same_file_is_stored_once(site: Site, promoter: Browser) -> None:
    first, second = (uploaded(promoter).headers["location"] for _ in range(2))
    assert first == second
    folder = site.platform.workspace.root / "uploads" / first.rpartition("/")[2]
    assert sorted(one.name for one in folder.iterdir()) == ["animals-1.csv", "upload.json"]


def test_upload_of_another_key_is_unknown(site: Site, promoter: Browser) -> None:
    path = uploaded(promoter).headers["location"]
    secret = site.platform.registry.keys.create("other", role="promoter")[1]
    headers = {"authorization": f"Bearer {secret}"}
    assert site.client().get(path, headers=headers).status_code == 404
    assert promoter.client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [
        ("rows.exe", b"MZ", 400),
        ("", b"", 400),
        ("rows.csv", b"", 400),
        ("rows.csv", b"a,b\n\xff\xfe,1\n", 422),
        ("../../../etc/cron.d/rows.csv", ROWS.encode(), 303),
        ("..\\..\\rows.csv", ROWS.encode(), 303),
    ],
)
def test_odd_files_stay_in_their_folder(
    site: Site, promoter: Browser, name: str, content: bytes, status: int
) -> None:
    answer = uploaded(promoter, content, name)
    assert answer.status_code in (status, 400)
    root = site.platform.workspace.root
    files = [one for one in (root / "uploads").rglob("*") if one.is_file()]
    assert all(one.parent.parent == root / "uploads" for one in files)
    assert not (root.parent / "etc").exists()


def test_column_and_separator_with_blanks_are_taken_as_they_are(
    site: Site, promoter: Browser
) -> None:
    rows = "text, kinds\n" + "".join(f"text {number},red green\n" for number in range(20))
    path = uploaded(promoter, rows, "blanks.csv").headers["location"].removeprefix("/console")
    assert '<option value=" kinds">' in promoter.get(path).text
    fields = {"name": "own/blanks", "text": "text", "learned": "labels", "column": " kinds",
              "separator": " ", "action": "check"}  # fmt: skip
    page = promoter.post(path, fields, headers={"accept": "application/json"}).json()
    assert page["error"] is None
    assert set(page["check"]["labels"]) == {"red", "green"}


@pytest.mark.parametrize("content", [b"text;kind\na;b\n", b"text,kind\n\xe9t\xe9,b\n" * 300])
def test_file_that_can_not_be_read_is_not_kept_and_has_a_way_out(
    site: Site, promoter: Browser, content: bytes
) -> None:
    """The options that the command line advises are none of the form."""
    folder = site.platform.workspace.root / "uploads"
    before = sorted(folder.iterdir()) if folder.is_dir() else []
    answer = uploaded(promoter, content, "odd.csv")
    assert answer.status_code == 422
    assert "in CSV with commas and in TSV with tabs, or train it in a terminal" in answer.text
    assert "Add --" not in answer.text
    assert (sorted(folder.iterdir()) if folder.is_dir() else []) == before


def test_job_uses_both_bases_of_the_server(
    site: Site, promoter: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = replace(site.platform, image_base_name="./vision")
    job = jobs.Job(kind="plan", adapter="toy/animals")
    monkeypatch.setattr(jobs.sys, "executable", "/bin/true")
    state = ended(site, jobs.start(platform, job))
    assert state.job.platform["image_base"] == "./vision"
    assert state.job.platform["base"] == site.platform.base_name


def test_large_file_is_accepted_up_to_the_limit(site: Site, promoter: Browser) -> None:
    row = b"a text of some length,label\n"
    content = b"text,kind\n" + row * ((uploads.MAX_BYTES - 100) // len(row))
    assert uploaded(promoter, content, "large.csv").status_code == 303
    too_large = content + row * 10
    answer = uploaded(promoter, too_large, "large.csv")
    assert answer.status_code in (400, 413)
    assert "larger" in answer.text
    huge = uploaded(promoter, content * 2, "large.csv")
    assert huge.status_code == 413


@pytest.mark.parametrize(
    "change",
    [
        {"name": "no-slash"},
        {"name": "../x"},
        {"learned": "messages"},
        {"learned": "file"},
        {"column": ""},
        {"column": "no such column"},
        {"text": "no such column"},
        {"group": "no such column"},
        {"name": "toy/animals"},
        {"action": "other"},
    ],
)
def test_form_that_describes_no_training_is_refused(
    site: Site, promoter: Browser, change: dict[str, str]
) -> None:
    path = uploaded(promoter).headers["location"].removeprefix("/console")
    fields = {"name": "own/animals", "text": "text", "learned": "label", "column": "kind",
              "action": "check"}  # fmt: skip
    answer = promoter.post(path, fields | change)
    assert answer.status_code in (400, 404, 200, 422)
    assert 'class="problem"' in answer.text or "can&#39;t be trained on" in answer.text
    assert "Traceback" not in answer.text


def test_key_for_some_adapters_trains_only_those(site: Site) -> None:
    registry = site.platform.registry
    secret = registry.keys.create("prices", ["toy/prices"], role="promoter")[1]
    headers = {"authorization": f"Bearer {secret}", "accept": "application/json"}
    client = site.client()
    page = client.get("/console/train", headers=headers).json()
    assert [one["name"] for one in page["recipes"]] == ["toy/prices"]
    assert (
        client.post(f"/console{FORM}", data={"action": "start"}, headers=headers).status_code == 404
    )
    answer = client.post(
        "/console/train/uploads", headers=headers, files={"file": ("a.csv", ROWS.encode())}
    )
    id = answer.json()["upload"]
    fields = {"name": "own/animals", "text": "text", "learned": "label", "column": "kind",
              "action": "start"}  # fmt: skip
    answer = client.post(f"/console/train/uploads/{id}", data=fields, headers=headers)
    assert answer.status_code == 404
