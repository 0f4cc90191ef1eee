"""A real server stands in the registry from its start to its end, and its log is chained."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import text

from server_process import ServerProcess, wait_until
from trunkline.refs import Ref
from trunkline.registry.registry import Registry


@contextmanager
def registry_of(workspace: Path) -> Iterator[Registry]:
    with Registry.open(f"sqlite:///{workspace / 'registry.db'}") as registry:
        yield registry


@pytest.fixture
def opened(running: ServerProcess) -> Iterator[Registry]:
    """The running server's registry, after it has answered once with ``toy/animals@1``."""
    body = {"model": "toy/animals@1", "input": "a robin"}
    assert httpx2.post(running.url + "/v1/classify", json=body, timeout=60).status_code == 200
    with registry_of(running.workspace) as registry:
        wait_until(lambda: bool(registry.servers.list()), "the server is on record")
        yield registry


def test_it_is_on_record_with_its_address(running: ServerProcess, opened: Registry) -> None:
    one = opened.servers.list()[0]
    assert (one.url, one.pid, one.alive) == (running.url, running.process.pid, True)


def test_it_holds_what_it_answered_with(opened: Registry) -> None:
    digest = opened.versions.resolve(Ref.parse("toy/animals@1"))[0].digest
    wait_until(lambda: digest in opened.servers.holders(), "the load is on record")


def test_its_log_is_a_chain_that_holds(opened: Registry) -> None:
    report = opened.audit.verify()[1]
    assert (report.chain, report.rows > 0, report.sound) == ("requests", True, True)


def test_a_line_of_its_log_that_was_changed_is_found(opened: Registry) -> None:
    change = "UPDATE requests SET status = 599 - status WHERE seq = 1"
    for sound in (False, True):
        with opened.sessions.engines.writing.begin() as connection:
            connection.execute(text(change))
        assert opened.audit.verify()[1].sound is sound


def test_a_server_that_ends_has_stopped_and_one_that_is_killed_is_gone(
    site: Path, tiny: Path
) -> None:
    for end, stopped in ((signal.SIGTERM, True), (signal.SIGKILL, False)):
        with ServerProcess(site, tiny) as server, registry_of(site) as registry:
            wait_until(
                lambda: any(one.url == server.url for one in registry.servers.list()), "on record"
            )
            server.process.send_signal(end)
            server.process.wait(60)
            one = registry.servers.list()[0]
            assert (one.stopped is not None, one.alive) == (stopped, False)
