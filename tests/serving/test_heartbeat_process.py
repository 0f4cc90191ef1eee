"""A server process is recorded in the registry, and its request log is chained."""

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

pytestmark = pytest.mark.merge


@contextmanager
def registry_of(workspace: Path) -> Iterator[Registry]:
    with Registry.open(f"sqlite:///{workspace / 'registry.db'}") as registry:
        yield registry


@pytest.fixture
def registry(running: ServerProcess) -> Iterator[Registry]:
    """The running server's registry, after ``toy/animals@1`` has answered once."""
    body = {"model": "toy/animals@1", "input": "a robin"}
    assert httpx2.post(running.url + "/v1/classify", json=body, timeout=60).status_code == 200
    with registry_of(running.workspace) as registry:
        wait_until(lambda: bool(registry.servers.list()), "the server is recorded")
        yield registry


def test_server_is_recorded_with_its_address(running: ServerProcess, registry: Registry) -> None:
    row = registry.servers.list()[0]
    assert (row.url, row.pid, row.alive) == (
        running.url,
        running.process.pid,
        True,
    )


def test_loaded_version_is_recorded(registry: Registry) -> None:
    digest = registry.versions.resolve(Ref.parse("toy/animals@1"))[0].digest
    wait_until(lambda: digest in registry.servers.holders(), "the load is recorded")


def test_request_log_is_a_valid_chain(registry: Registry) -> None:
    report = registry.audit.verify()[1]
    assert (report.chain, report.rows > 0, report.intact) == ("requests", True, True)


def test_changed_line_of_the_request_log_is_detected(registry: Registry) -> None:
    change = "UPDATE requests SET status = 599 - status WHERE seq = 1"
    for sound in (False, True):
        with registry.sessions.engines.writing.begin() as connection:
            connection.execute(text(change))
        assert registry.audit.verify()[1].intact is sound


def test_stopped_server_is_recorded_as_stopped_and_killed_server_as_gone(
    site: Path, tiny: Path
) -> None:
    for sig, stopped in ((signal.SIGTERM, True), (signal.SIGKILL, False)):
        with ServerProcess(site, tiny) as server, registry_of(site) as registry:
            wait_until(
                lambda: any(row.url == server.url for row in registry.servers.list()),
                "the server is recorded",
            )
            server.process.send_signal(sig)
            server.process.wait(60)
            row = registry.servers.list()[0]
            assert (row.stopped is not None, row.alive) == (stopped, False)
