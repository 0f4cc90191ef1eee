"""The request log: rows are added, paged through, and never changed."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

import trunkline.registry
from forks import Child, together
from trunkline.errors import NotFoundError, RegistryError, UsageError
from trunkline.registry.records import RequestEntry
from trunkline.registry.registry import Registry
from trunkline.registry.requests import Requests
from trunkline.registry.tables import LoggedRequest

NAMES = (ast.Name, ast.Attribute)

LINE = RequestEntry(
    id="req-1",
    at=datetime(2030, 1, 1, 9, 30, tzinfo=timezone(timedelta(hours=9))),
    key="0aaaaaaa",
    route="/v1/chat/completions",
    model="medical/icd10@champion",
    version="medical/icd10@3",
    digest="sha256:" + "a" * 64,
    prompt_tokens=12,
    new_tokens=34,
    status=200,
    seconds=0.25,
)


def lines(count: int, start: int = 0, **more: Any) -> list[RequestEntry]:
    return [replace(LINE, id=f"r{number}", **more) for number in range(start, start + count)]


@pytest.mark.dialect
def test_get_returns_the_logged_request(registry: Registry) -> None:
    registry.requests.log([LINE])
    request = registry.requests.get("req-1")
    assert {field.name: getattr(request, field.name) for field in fields(LINE)} == {
        field.name: getattr(LINE, field.name) for field in fields(LINE)
    }
    assert request.at.tzinfo is UTC


def test_text_and_output_are_stored_if_given(registry: Registry) -> None:
    registry.requests.log([replace(LINE, text="What is it?", output="Appendicitis.")])
    request = registry.requests.get("req-1")
    assert (request.text, request.output) == ("What is it?", "Appendicitis.")


def test_a_request_without_a_version_is_logged(registry: Registry) -> None:
    registry.requests.log([replace(LINE, key=None, version=None, digest=None, status=404)])
    request = registry.requests.get("req-1")
    assert (request.key, request.version, request.digest, request.status) == (None, None, None, 404)


def test_logging_nothing_starts_no_transaction(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.sessions, "write", None)
    registry.requests.log([])


@pytest.mark.dialect
def test_entries_are_logged_atomically(registry: Registry) -> None:
    with pytest.raises(RegistryError, match=r"(?i)unique"):
        registry.requests.log([*lines(3), LINE, LINE])
    assert registry.requests.list() == []


def test_an_id_is_used_once(registry: Registry) -> None:
    registry.requests.log([LINE])
    with pytest.raises(RegistryError):
        registry.requests.log([replace(LINE, status=500)])
    assert registry.requests.get("req-1").status == 200


@pytest.mark.parametrize("id", ["", "a" * 81, "a b", "a/b", "a\n", "é", "\ud800", "\0"])
def test_a_malformed_id_is_not_logged(registry: Registry, id: str) -> None:
    with pytest.raises(UsageError, match="not the id of a request") as caught:
        registry.requests.log([replace(LINE, id=id)])
    assert caught.value.hint


def test_a_malformed_key_is_not_logged(registry: Registry) -> None:
    with pytest.raises(UsageError, match="not the id of a key"):
        registry.requests.log([replace(LINE, key="a b")])


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=())))
def test_every_text_can_be_logged(registry: Registry, text: str) -> None:
    id = uuid4().hex
    registry.requests.log([replace(LINE, id=id, model=text, text=text, output=text)])
    assert len(registry.requests.get(id).text or "") == len(text)


@pytest.mark.dialect
def test_unstorable_characters_are_replaced(registry: Registry) -> None:
    registry.requests.log([replace(LINE, model="a\0b", text="\ud800ä😀")])
    request = registry.requests.get("req-1")
    assert (request.model, request.text) == ("a\ufffdb", "\ufffdä😀")


def test_a_long_model_name_is_cut(registry: Registry) -> None:
    registry.requests.log([replace(LINE, model="x" * 1_000_000)])
    assert registry.requests.get("req-1").model == "x" * 200


@pytest.mark.parametrize("id", ["req-2", "", "x" * 1000, "\ud800", "\0"])
def test_an_unknown_request_is_refused(registry: Registry, id: str) -> None:
    with pytest.raises(NotFoundError, match="no request") as caught:
        registry.requests.get(id)
    assert "trunkline requests list" in (caught.value.hint or "")


# -------------------------------------------------------------------------------- listing


def test_requests_are_listed_newest_first_whatever_their_times(registry: Registry) -> None:
    registry.requests.log([LINE, replace(LINE, id="req-2", at=LINE.at - timedelta(days=1))])
    assert [row.id for row in registry.requests.list()] == ["req-2", "req-1"]


def test_pages_are_stable_while_entries_are_added(registry: Registry) -> None:
    registry.requests.log(lines(5))
    first = registry.requests.list(2)
    registry.requests.log(lines(5, start=5))
    second = registry.requests.list(2, before=first[-1].seq)
    assert [row.id for row in first + second] == ["r4", "r3", "r2", "r1"]


@pytest.mark.parametrize(("before", "count"), [(-(10**30), 0), (0, 0), (10**30, 3)])
def test_a_page_can_start_at_any_number(registry: Registry, before: int, count: int) -> None:
    registry.requests.log(lines(3))
    assert len(registry.requests.list(before=before)) == count


def test_requests_are_filtered_by_adapter(registry: Registry) -> None:
    versions = ["medical/icd10@3", "medical/icd10@4", "medical/icd10-chapter@3", "base", None]
    registry.requests.log(
        [replace(LINE, id=f"r{n}", version=version) for n, version in enumerate(versions)]
    )
    assert [row.id for row in registry.requests.list(adapter="medical/icd10")] == ["r1", "r0"]
    assert [row.id for row in registry.requests.list(adapter="base")] == ["r3"]


def test_requests_are_filtered_by_key(registry: Registry) -> None:
    registry.requests.log([LINE, *lines(2, key="1bbbbbbb"), *lines(1, start=2, key=None)])
    assert [row.id for row in registry.requests.list(key="1bbbbbbb")] == ["r1", "r0"]
    assert registry.requests.list(key="9unknown") == []


@pytest.mark.parametrize("adapter", ["medical", "medical/icd10@3", "", "\ud800/x"])
def test_a_malformed_adapter_is_refused(registry: Registry, adapter: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.requests.list(adapter=adapter)
    assert caught.value.hint


def test_a_malformed_key_is_refused(registry: Registry) -> None:
    with pytest.raises(UsageError, match="not the id of a key"):
        registry.requests.list(key="\ud800")


@pytest.mark.dialect
@pytest.mark.parametrize(
    ("column", "index"),
    [
        (LoggedRequest.adapter, "ix_requests_adapter_seq"),
        (LoggedRequest.key_id, "ix_requests_key_id_seq"),
        (None, "(INTEGER PRIMARY KEY|pk_requests)"),
    ],
)
def test_a_page_is_read_from_an_index_without_sorting(
    registry: Registry, explain: Callable[..., str], column: Any, index: str
) -> None:
    query = select(LoggedRequest).where(LoggedRequest.seq < 9).order_by(LoggedRequest.seq.desc())
    if column is not None:
        query = query.where(column == "x")
    engine = registry.sessions.engines.reading
    plan = explain(str(query.compile(engine, compile_kwargs={"literal_binds": True})))
    assert re.search(rf"(SEARCH .*|Index Scan Backward using ){index}", plan)
    assert not re.search(r"SCAN |B-TREE|Seq Scan|Sort", plan)


def test_requests_are_indexed_by_digest(registry: Registry, explain: Callable[..., str]) -> None:
    assert "ix_requests_digest" in explain("SELECT id FROM requests WHERE digest = 'x'")


# --------------------------------------------------------------------------- never changed


def test_the_log_can_only_be_added_to_and_read() -> None:
    methods = {name for name in vars(Requests) if not name.startswith("_")}
    assert methods == {"log", "get", "list", "search"}


def test_no_module_changes_or_deletes_a_row_of_the_log() -> None:
    users = {}
    for path in Path(trunkline.registry.__file__ or "").parent.glob("*.py"):
        names = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, NAMES)]
        if any(isinstance(node, ast.Name) and node.id == "LoggedRequest" for node in names):
            users[path.name] = names
    for name, names in users.items():
        called = {node.id for node in names if isinstance(node, ast.Name)}
        assert not called & {"update", "delete"}, name
    attributes = [node for node in users["requests.py"] if isinstance(node, ast.Attribute)]
    assert not {node.attr for node in attributes} & {"delete", "merge", "exec_driver_sql"}
    assert not [node.attr for node in attributes if isinstance(node.ctx, ast.Store)]


LOGGING = """
import sys
from datetime import UTC, datetime
from trunkline.registry.records import RequestEntry
from trunkline.registry.registry import Registry
registry = Registry.open(sys.argv[1], busy_seconds=60)
for number in range(20):
    registry.requests.log([
        RequestEntry(f"{sys.argv[2]}-{number}-{part}", datetime.now(UTC), None, "/v1",
                    "base", "base", None, 1, 1, 200, 0.1)
        for part in range(5)
    ])
"""


@pytest.mark.dialect
def test_two_processes_log_at_once_and_lose_nothing(registry: Registry, url: str) -> None:
    done = together(LOGGING, [Child((url, me)) for me in "ab"])
    assert [(one.code, one.error) for one in done] == [(0, ""), (0, "")]
    rows = registry.requests.list(1000)
    assert {row.id for row in rows} == {
        f"{me}-{number}-{part}" for me in "ab" for number in range(20) for part in range(5)
    }
    assert [row.seq for row in rows] == list(range(200, 0, -1))
