"""``trunkline audit``: verify, export and list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import Result
from sqlalchemy import text

from cli_runner import invoke
from trunkline.errors import IntegrityError
from trunkline.registry.records import RequestEntry
from trunkline.registry.registry import Registry

Audit = Callable[..., Result]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """Three events and two requests."""
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}") as opened:
        for pid in (1, 2, 3):
            opened.servers.start("web-1", pid, "http://web-1:8000", None, "system:ada")
        now = datetime.now(UTC)
        opened.requests.log(
            [
                RequestEntry(
                    f"req-{n}", now, None, "/v1/classify", "a/b", None, None, 1, 0, 404, 0.1
                )
                for n in (1, 2)
            ]
        )
        yield opened


@pytest.fixture
def audit(registry: Registry, tmp_path: Path) -> Audit:
    return lambda *args: invoke("--workspace", str(tmp_path), "audit", *args)


def damage(registry: Registry, statement: str) -> None:
    with registry.sessions.engines.writing.begin() as connection:
        connection.execute(text(statement))


# ---------------------------------------------------------------------------------------- verify


def test_verify_prints_intact_chains_with_their_rows(audit: Audit) -> None:
    result = audit("verify")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [(one[0], one[1], one[3]) for one in lines[1:]] == [
        ("events", "3", "ok"),
        ("requests", "2", "ok"),
    ]


def test_verify_without_a_saved_head_names_what_it_cannot_detect(audit: Audit) -> None:
    assert "No saved head was given for the events and the requests" in audit("verify").stderr


def test_verify_compares_with_a_saved_head(audit: Audit, registry: Registry) -> None:
    result = audit("verify", "--head", str(registry.events.heads()["events"]))
    assert "ok, matches the saved head" in result.stdout


def test_a_changed_row_is_reported_with_exit_code_1(audit: Audit, registry: Registry) -> None:
    damage(registry, "UPDATE events SET actor = 'nobody' WHERE seq = 2")
    result = audit("verify")
    expected = "events: row 2 does not match its hash: changed or inserted"
    assert (expected in result.stdout, result.exit_code) == (True, 1)


def test_a_truncated_tail_is_detected_with_a_saved_head(audit: Audit, registry: Registry) -> None:
    head = str(registry.events.heads()["requests"])
    damage(registry, "DELETE FROM requests")
    damage(registry, f"UPDATE chain_heads SET seq = 0, hash = '{'0' * 64}' WHERE name = 'requests'")
    assert [audit("verify").exit_code, audit("verify", "--requests-head", head).exit_code] == [0, 1]


def test_findings_as_json(audit: Audit, registry: Registry) -> None:
    damage(registry, "DELETE FROM events WHERE seq = 2")
    events = json.loads(audit("verify", "--json").stdout)[0]
    expected = [{"seq": 3, "message": "row 2 is missing before row 3"}]
    assert (events["intact"], events["breaks"]) == (False, expected)


@pytest.mark.parametrize("head", ["12", "x:" + "0" * 64, "1:" + "0" * 63, "-1:" + "0" * 64])
def test_a_malformed_head_is_refused(audit: Audit, head: str) -> None:
    result = audit("verify", f"--head={head}")
    assert (result.exit_code, repr(head) in result.stderr) == (2, True)


# ---------------------------------------------------------------------------------------- export


def test_events_go_to_stdout_and_the_head_to_stderr(audit: Audit, registry: Registry) -> None:
    result = audit("export")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    expected = f"Head of the events: {registry.events.heads()['events']}\n"
    assert ([row["seq"] for row in rows], result.stderr) == ([1, 2, 3], expected)


def test_requests_go_to_a_file(audit: Audit, tmp_path: Path) -> None:
    audit("export", "--requests", str(tmp_path / "log.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["req-1", "req-2"]


def test_an_export_continues_after_a_row(audit: Audit) -> None:
    lines = audit("export", "--after", "2").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [3]


def test_an_existing_file_is_not_overwritten(audit: Audit, tmp_path: Path) -> None:
    remote = tmp_path / "there"
    remote.write_text("mine")
    result = audit("export", str(remote))
    assert (result.exit_code, remote.read_text()) == (2, "mine")


def test_an_unwritable_file_is_an_error(audit: Audit, tmp_path: Path) -> None:
    result = audit("export", str(tmp_path / "nowhere" / "file"))
    assert (result.exit_code, "can't be written: No such file" in result.stderr) == (1, True)


def test_a_failed_export_leaves_no_file(audit: Audit, registry: Registry, tmp_path: Path) -> None:
    damage(registry, "UPDATE events SET detail = '{' WHERE seq = 3")
    before = set(tmp_path.iterdir())
    result = audit("export", str(tmp_path / "file"))
    assert (result.exit_code, set(tmp_path.iterdir()) - before) == (1, set())


def test_a_chain_without_a_recorded_end_is_not_exported(audit: Audit, registry: Registry) -> None:
    damage(registry, "DELETE FROM chain_heads")
    result = audit("export")
    assert (result.exit_code, "was removed by hand" in result.stderr) == (1, True)


def test_nothing_is_appended_to_a_chain_without_a_recorded_end(registry: Registry) -> None:
    damage(registry, "DELETE FROM chain_heads")
    with pytest.raises(IntegrityError, match="was removed by hand"):
        registry.servers.start("web-1", 4, "", None)
    assert len(registry.events.list()) == 3


# ------------------------------------------------------------------------------------------ list


@pytest.mark.parametrize("value", ["at = 'yesterday'", "detail = '{'"])
def test_an_unreadable_row_is_an_error(audit: Audit, registry: Registry, value: str) -> None:
    damage(registry, f"UPDATE events SET {value} WHERE seq = 3")
    result = audit("list")
    assert (result.exit_code, "changed by hand and can't be read" in result.stderr) == (1, True)


def test_events_are_listed_newest_first(audit: Audit) -> None:
    lines = audit("list").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["3", "2", "1"]


def test_a_line_has_actor_kind_and_subject(audit: Audit) -> None:
    line = audit("list").stdout.splitlines()[1]
    assert line.split()[3:6] == ["system:ada", "server.started", "server/3"]


def test_the_next_page_can_be_pasted(audit: Audit) -> None:
    stderr = audit("list", "--limit", "2", "--kind", "server.started").stderr
    args = stderr.partition("trunkline audit ")[2].split()
    lines = audit(*args).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["1"]


def test_events_of_one_subject(audit: Audit) -> None:
    data = json.loads(audit("list", "--subject", "server/2", "--json").stdout)
    assert [one["detail"]["pid"] for one in data] == [2]


def test_an_empty_listing_prints_a_note(audit: Audit) -> None:
    assert audit("list", "--kind", "nothing").stderr == "No matching event.\n"
