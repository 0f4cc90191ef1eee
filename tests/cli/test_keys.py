"""``trunkline keys``: create, list, remove."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli_runner import invoke
from trunkline.registry.registry import Registry
from trunkline.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    monkeypatch.setenv("TRUNKLINE_WORKSPACE", str(folder))
    return folder


@pytest.fixture
def registry(workspace: Path) -> Iterator[Registry]:
    with Registry.open(Workspace.locate(workspace).registry_url) as opened:
        yield opened


def test_create_prints_the_key_alone_on_stdout(registry: Registry) -> None:
    plain = invoke("keys", "create", "ada").stdout.strip()
    value = registry.keys.authenticate(plain)
    assert value is not None
    assert value.owner == "ada"


def test_create_prints_the_details_on_stderr(workspace: Path) -> None:
    text = invoke("keys", "create", "ada", "--adapter", "toy/*", "--adapter", "base").stderr
    assert "adapters  toy/*, base" in text
    assert "role      tester" in text
    assert "expires   never" in text


def test_create_json_holds_the_key(registry: Registry) -> None:
    data = json.loads(invoke("keys", "create", "ada", "--admin", "--json").stdout)
    value = registry.keys.authenticate(data["key"])
    assert value is not None
    assert value.admin
    assert data["id"] == value.id


@pytest.mark.parametrize(
    ("span", "length"),
    [("12h", timedelta(hours=12)), ("30d", timedelta(days=30)), ("4w", timedelta(weeks=4))],
)
def test_expires_counts_from_now(registry: Registry, span: str, length: timedelta) -> None:
    plain = invoke("keys", "create", "ada", "--expires", span).stdout.strip()
    value = registry.keys.authenticate(plain)
    assert value is not None
    assert value.expires is not None
    assert abs(value.expires - datetime.now(UTC) - length) < timedelta(minutes=5)


@pytest.mark.parametrize("span", ["30", "0d", "d", "-1d", "1y", "999999w", "3 d", "٣d"])
def test_span_that_is_none_is_wrong_usage(workspace: Path, span: str) -> None:
    result = invoke("keys", "create", "ada", f"--expires={span}")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"--expires {'can' if span != '999999w' else repr(span)}" in result.stderr
    assert "Hint: " in result.stderr


def test_pattern_with_a_version_is_wrong_usage(workspace: Path) -> None:
    result = invoke("keys", "create", "ada", "--adapter", "toy/animals@1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'toy/animals@1' is not a pattern" in result.stderr


def test_list_shows_no_secret(workspace: Path) -> None:
    plain = invoke("keys", "create", "ada").stdout.strip()
    secret = plain.rpartition("-")[2]
    assert secret not in invoke("keys", "list").output
    assert secret not in invoke("keys", "list", "--json").output


@pytest.mark.parametrize(("args", "state"), [((), "active"), (("--expires", "30d"), "until ")])
def test_list_says_how_long_a_key_opens(workspace: Path, args: tuple[str, ...], state: str) -> None:
    invoke("keys", "create", "ada", *args)
    assert state in invoke("keys", "list").stdout.splitlines()[1]


def test_list_without_keys_says_what_that_means(workspace: Path) -> None:
    result = invoke("keys", "list")
    assert result.stdout == ""
    assert "only answers this machine" in result.stderr


def test_removed_key_opens_nothing(registry: Registry) -> None:
    data = json.loads(invoke("keys", "create", "ada", "--json").stdout)
    assert invoke("keys", "rm", data["id"]).stdout == f"Removed the key {data['id']} of ada.\n"
    assert registry.keys.authenticate(data["key"]) is None


def test_removed_key_stays_in_the_list(workspace: Path) -> None:
    data = json.loads(invoke("keys", "create", "ada", "--json").stdout)
    invoke("keys", "rm", data["id"])
    assert "removed 20" in invoke("keys", "list").stdout


def test_rm_of_an_unknown_key_names_the_listing(workspace: Path) -> None:
    result = invoke("keys", "rm", "0aaaaaaa")
    assert result.exit_code == 2
    assert "trunkline keys list" in result.stderr
