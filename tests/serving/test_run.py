"""Errors that keep a server from starting, and its limits of connections and open files."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import trunkline
from trunkline.api import Platform
from trunkline.errors import BaseModelError, UsageError
from trunkline.serving.run import RESERVED_FILES, ConnectionLimits, raise_file_limit, serve
from trunkline.serving.settings import ServerSettings


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    """A platform whose base can't be loaded."""
    (tmp_path / "empty").mkdir()
    platform = trunkline.open(tmp_path, base=str(tmp_path / "empty"), no_plugins=True)
    yield platform
    platform.registry.close()


def test_port_in_use_is_named(platform: Platform) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=str(port)):
            serve(platform, ServerSettings(port=port))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_reachable_host_without_a_key_is_refused(platform: Platform, host: str) -> None:
    with pytest.raises(UsageError) as caught:
        serve(platform, ServerSettings(host=host, port=0))
    assert "trunkline keys create" in (caught.value.hint or "")


def test_address_of_another_machine_is_refused(platform: Platform) -> None:
    platform.registry.keys.create("me")
    with pytest.raises(UsageError, match=r"192\.0\.2\.1"):
        serve(platform, ServerSettings(host="192.0.2.1", port=0))


def test_unloadable_base_stops_the_server(platform: Platform) -> None:
    urls: list[str] = []
    with pytest.raises(BaseModelError):
        serve(platform, ServerSettings(port=0), urls.append)
    assert urls == []


@pytest.mark.parametrize("files", [16, 150, 1024, 65_536])
def test_connections_and_backlog_leave_files_free(files: int) -> None:
    limits = ConnectionLimits.for_files(files)
    assert limits.backlog >= 1
    assert limits.connections >= 1
    assert files < 150 or limits.connections + limits.backlog + RESERVED_FILES <= files


def test_file_limit_is_raised_to_the_hard_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: calls.append(limits))
    assert raise_file_limit() == 4096
    assert calls == [(4096, 4096)]


def test_file_limit_stays_if_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, limits: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_file_limit() == 256
