"""What keeps a server from starting is told in one sentence; and what it may open."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import trunkline
from trunkline.api import Platform
from trunkline.errors import BaseModelError, UsageError
from trunkline.serving import run
from trunkline.serving.run import serve
from trunkline.serving.settings import ServerSettings


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    (tmp_path / "empty").mkdir()
    made = trunkline.open(tmp_path, base=str(tmp_path / "empty"), no_plugins=True)
    yield made
    made.registry.close()


def test_a_port_that_is_taken_is_named(platform: Platform) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=str(port)):
            serve(platform, ServerSettings(port=port))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_without_a_key_it_listens_on_this_machine_only(platform: Platform, host: str) -> None:
    with pytest.raises(UsageError) as caught:
        serve(platform, ServerSettings(host=host, port=0))
    assert "trunkline keys create" in (caught.value.hint or "")


def test_an_address_of_another_machine_is_refused(platform: Platform) -> None:
    platform.registry.keys.create("me")
    with pytest.raises(UsageError, match=r"192\.0\.2\.1"):
        serve(platform, ServerSettings(host="192.0.2.1", port=0))


def test_a_base_that_cannot_be_loaded_ends_the_server(platform: Platform) -> None:
    told: list[str] = []
    with pytest.raises(BaseModelError):
        serve(platform, ServerSettings(port=0), told.append)
    assert told == []


@pytest.mark.parametrize("files", [16, 150, 1024, 65_536])
def test_connections_and_those_that_wait_leave_room_for_files(files: int) -> None:
    waiting, opened = run._shares(files)
    assert waiting >= 1
    assert opened >= 1
    assert files < 150 or opened + waiting + run._OWN_FILES <= files


def test_as_many_files_are_asked_for_as_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    assert run._descriptors() == 4096
    assert asked == [(4096, 4096)]


def test_a_limit_that_the_system_does_not_give_stays_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: int, limits: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert run._descriptors() == 256
