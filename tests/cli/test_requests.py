"""requests and lineage: from an answer to the version, the run and the rows behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trunkline.refs import Ref
from trunkline.registry.records import RequestEntry, VersionRecord
from trunkline.registry.registry import Registry
from trunkline.workspace import Workspace

if TYPE_CHECKING:
    from conftest import Run

Log = Callable[..., None]


@pytest.fixture
def registry(run_copy: Run, tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(Workspace.locate(tmp_path / "copy").registry_url) as opened:
        yield opened


@pytest.fixture
def version(registry: Registry) -> VersionRecord:
    return registry.versions.resolve(Ref.parse("toy/animals@1"))[0]


@pytest.fixture
def log(registry: Registry, version: VersionRecord) -> Log:
    """Write a line: an answer of toy/animals@1 unless said otherwise."""

    def write(id: str, **other: Any) -> None:
        line: dict[str, Any] = {
            "at": datetime(2026, 11, 21, 22, 10, 3, tzinfo=UTC),
            "key": None,
            "route": "/v1/classify",
            "model": "toy/animals",
            "version": "toy/animals@1",
            "digest": version.digest,
            "prompt_tokens": 14,
            "new_tokens": 0,
            "status": 200,
            "seconds": 0.082,
        }
        registry.requests.log([RequestEntry(id=id, **line | other)])

    return write


@pytest.mark.parametrize("args", [("--key", "nope"), ("--adapter", "nope/x")])
def test_filter_without_matches_prints_a_note(
    run_copy: Run, log: Log, args: tuple[str, ...]
) -> None:
    log("a" * 32)
    assert run_copy("requests", "list", *args).stderr == "No matching request.\n"


UNKNOWN = {"model": "toy/animal", "version": None, "digest": None, "status": 404}


def test_requests_are_listed_newest_first(run_copy: Run, log: Log) -> None:
    log("req-1")
    log("req-2")
    lines = run_copy("requests", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["id", "req-2", "req-1"]


def test_line_shows_version_status_and_tokens(run_copy: Run, log: Log) -> None:
    log("req-1")
    line = run_copy("requests", "list").stdout.splitlines()[1]
    assert line.split()[3:] == ["toy/animals@1", "200", "14+0", "82", "ms"]


def test_line_without_a_version_shows_the_requested_name(run_copy: Run, log: Log) -> None:
    log("req-1", **UNKNOWN)
    line = run_copy("requests", "list").stdout.splitlines()[1]
    assert line.split()[3:5] == ["(toy/animal)", "404"]


@pytest.mark.parametrize(
    "args", [("--adapter", "toy/prices"), ("--key", "4k2mw0qz")], ids=lambda args: args[0]
)
def test_requests_can_be_narrowed(run_copy: Run, log: Log, args: tuple[str, str]) -> None:
    log("req-1")
    log("req-2", version="toy/prices@1", key="4k2mw0qz")
    data = json.loads(run_copy("requests", "list", *args, "--json").stdout)
    assert [one["id"] for one in data] == ["req-2"]


def test_listing_that_is_cut_says_so(run_copy: Run, log: Log) -> None:
    log("req-1")
    log("req-2")
    result = run_copy("requests", "list", "--limit", "1")
    assert len(result.stdout.splitlines()) == 2
    assert "--before req-2" in result.stderr


def test_next_page_begins_behind_a_request(run_copy: Run, log: Log) -> None:
    for id in ("req-1", "req-2", "req-3"):
        log(id)
    data = json.loads(run_copy("requests", "list", "--before", "req-3", "--json").stdout)
    assert [one["id"] for one in data] == ["req-2", "req-1"]


def test_empty_log_says_who_writes_it(run_copy: Run) -> None:
    result = run_copy("requests", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "trunkline serve" in result.stderr


def test_lineage_leads_to_version_run_and_rows(
    run_copy: Run, log: Log, version: VersionRecord
) -> None:
    log("req-1")
    data = json.loads(run_copy("lineage", "--request", "req-1", "--json").stdout)
    assert data["request"]["version"] == "toy/animals@1"
    assert data["version"]["digest"] == version.digest
    assert data["version"]["base_digest"] == version.base_digest
    assert data["run"]["number"] == version.run
    assert data["run"]["dataset_fingerprint"] == version.dataset_fingerprint


def test_lineage_prints_what_an_audit_asks_for(
    run_copy: Run, log: Log, version: VersionRecord
) -> None:
    log("req-1")
    text = run_copy("lineage", "--request", "req-1").stdout
    for part in (
        "at: 2026-11-21T22:10:03+00:00",
        f"digest: {version.digest}",
        f"rows: {version.dataset_fingerprint}",
        f"split: {version.split_fingerprint}",
        "run 1 of toy/animals: finished",
        f"digest: {version.base_digest}",
    ):
        assert f"── {part}\n" in text


@pytest.mark.parametrize("id", ["req-1", "chatcmpl-req-1", "cmpl-req-1"])
def test_lineage_takes_the_id_of_an_answer(run_copy: Run, log: Log, id: str) -> None:
    log("req-1")
    assert "request req-1\n" in run_copy("lineage", "--request", id).stdout


def test_lineage_names_the_aliases_of_today(run_copy: Run, log: Log) -> None:
    log("req-1")
    args = ("adapters", "promote", "toy/animals@1", "--alias", "trial")
    assert run_copy(*args, "--force", "--reason", "a test").exit_code == 0
    assert "aliases: trial" in run_copy("lineage", "--request", "req-1").stdout


def test_lineage_shows_the_text_where_it_was_kept(run_copy: Run, log: Log) -> None:
    log("req-1", text="a carp", output="fish")
    fields = run_copy("lineage", "--request", "req-1").stdout
    assert "text: a carp" in fields
    assert "output: fish" in fields


def test_lineage_of_a_request_that_reached_no_version(run_copy: Run, log: Log) -> None:
    log("req-1", **UNKNOWN)
    result = run_copy("lineage", "--request", "req-1")
    assert result.exit_code == 0
    assert "model: toy/animal\n" in result.stdout
    assert "ended before it reached a version" in result.stderr


def test_lineage_of_an_answer_of_the_base(run_copy: Run, log: Log) -> None:
    log("req-1", model="base", version="base", digest="ab" * 32)
    result = run_copy("lineage", "--request", "req-1")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "version: base" in result.stdout
    assert "ab" * 32 in result.stdout


def test_lineage_never_shows_another_version_of_that_name(run_copy: Run, log: Log) -> None:
    log("req-1", digest="sha256:" + "0" * 64)
    result = run_copy("lineage", "--request", "req-1")
    assert "rows:" not in result.stdout
    assert "is not in this workspace's registry" in result.stderr


def test_lineage_of_a_version_that_is_gone(run_copy: Run, log: Log) -> None:
    log("req-1", version="toy/animals@9", digest="sha256:" + "0" * 64)
    data = json.loads(run_copy("lineage", "--request", "req-1", "--json").stdout)
    assert (data["version"], data["run"]) == (None, None)


def test_lineage_of_an_unknown_request_is_wrong_use(run_copy: Run) -> None:
    result = run_copy("lineage", "--request", "req-9")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "trunkline requests list" in result.stderr
