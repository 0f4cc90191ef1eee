"""A server's row in the registry is kept up to date, whatever state the registry is in."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server_process import wait_until
from trunkline.registry.registry import Registry
from trunkline.serving.heartbeat import LoadBatch, LoadEvent, ServerHeartbeat

A, B = (f"sha256:{letter * 64}" for letter in "ab")

BASE: Any = SimpleNamespace(
    digest="b" * 64, name="tiny", source="made", architecture="L", parameters=1, dtype="float32"
)


class FakePool:
    """An adapter pool that reports loads and evictions to its observers."""

    def __init__(self) -> None:
        self.observers: list[Callable[[str, str, bool], None]] = []
        self.resident: dict[str, str] = {}

    def observe(self, observer: Callable[[str, str, bool], None]) -> None:
        for digest, name in self.resident.items():
            observer(digest, name, True)
        self.observers.append(observer)

    def unobserve(self, observer: Callable[[str, str, bool], None]) -> None:
        self.observers.remove(observer)

    def load(self, digest: str, name: str = "a/b@1") -> None:
        self.resident[digest] = name
        for observer in self.observers:
            observer(digest, name, True)

    def evict(self, digest: str) -> None:
        name = self.resident.pop(digest)
        for observer in self.observers:
            observer(digest, name, False)


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def heartbeat(registry: Registry, pool: Any) -> ServerHeartbeat:
    """Not started."""
    heartbeat = ServerHeartbeat(
        registry, BASE, "http://127.0.0.1:8000", dtype="int8", interval=0.05
    )
    heartbeat.watch(pool)
    return heartbeat


@pytest.fixture
def running(registry: Registry, heartbeat: ServerHeartbeat) -> Iterator[ServerHeartbeat]:
    heartbeat.start()
    wait_until(lambda: bool(registry.servers.list()), "the server is registered")
    yield heartbeat
    heartbeat.stop()


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Another process's lock on the registry, until ROLLBACK."""
    with closing(sqlite3.connect(tmp_path / "registry.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def wait_for_holder(registry: Registry, digest: str) -> None:
    wait_until(lambda: digest in registry.servers.holders(), "the load is recorded")


@pytest.mark.usefixtures("running")
def test_running_server_is_alive(registry: Registry) -> None:
    assert registry.servers.list()[0].alive


@pytest.mark.usefixtures("running")
def test_base_is_recorded(registry: Registry) -> None:
    assert registry.servers.list()[0].base_name == "tiny"


def test_stop_is_recorded(registry: Registry, heartbeat: ServerHeartbeat) -> None:
    heartbeat.start()
    heartbeat.stop()
    assert registry.servers.list()[0].stopped is not None


@pytest.mark.usefixtures("running")
def test_dtype_of_the_base_is_recorded(registry: Registry) -> None:
    (started,) = [event for event in registry.events.list() if event.kind == "server.started"]
    assert started.detail["dtype"] == "int8"


@pytest.mark.usefixtures("running")
def test_heartbeats_are_recorded(registry: Registry) -> None:
    with closing(sqlite3.connect(registry.sessions.engines.where, isolation_level=None)) as other:
        other.execute("UPDATE servers SET last_seen = '2020-01-01 00:00:00.000000'")
    wait_until(lambda: registry.servers.list()[0].last_seen.year > 2020, "a heartbeat is recorded")


def test_heartbeat_knows_the_state_of_the_registry(running: ServerHeartbeat) -> None:
    wait_until(lambda: running.health is not None, "a heartbeat is recorded")
    health = running.health
    assert health is not None
    assert health.schema_usable
    assert health.chains == {"events": True, "requests": True}
    wait_until(
        lambda: running.health is not None and running.health.recorded_at > health.recorded_at,
        "a later heartbeat is recorded",
    )


def test_adapters_loaded_before_the_start_are_recorded(
    registry: Registry, pool: FakePool, heartbeat: ServerHeartbeat
) -> None:
    pool.load(A)
    heartbeat.start()
    wait_for_holder(registry, A)
    heartbeat.stop()


@pytest.mark.usefixtures("running")
def test_loads_and_evictions_are_recorded(registry: Registry, pool: FakePool) -> None:
    pool.load(A)
    pool.load(B)
    pool.evict(A)
    wait_until(lambda: list(registry.servers.holders()) == [B], "only B is recorded")


@pytest.mark.usefixtures("running")
def test_loads_in_quick_succession_are_all_recorded(registry: Registry, pool: FakePool) -> None:
    for _ in range(3):
        pool.load(A)
        pool.evict(A)
    wait_until(
        lambda: [load.unloaded is None for load in registry.servers.list_loads(A)] == [False] * 3,
        "three loads are recorded",
    )


@pytest.mark.usefixtures("running")
def test_loading_does_not_wait_for_a_locked_registry(
    pool: FakePool, locked: sqlite3.Connection
) -> None:
    """With the lock held throughout, each of these would wait for the busy time-out."""
    for _ in range(50):
        pool.load(A)
        pool.evict(A)
    assert locked.in_transaction


@pytest.mark.usefixtures("running")
def test_failed_record_is_retried(
    registry: Registry,
    pool: FakePool,
    locked: sqlite3.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool.load(A)
    wait_until(lambda: bool(caplog.records), "a warning is logged")
    locked.execute("ROLLBACK")
    wait_for_holder(registry, A)


@pytest.mark.usefixtures("running")
def test_consecutive_failures_are_logged_once(
    pool: FakePool, locked: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    pool.load(A)
    wait_until(lambda: bool(caplog.records), "a warning is logged")
    pool.load(B)
    time.sleep(0.5)
    locked.execute("ROLLBACK")
    assert len(caplog.records) == 1


def test_failed_registration_is_retried(
    registry: Registry,
    heartbeat: ServerHeartbeat,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with closing(sqlite3.connect(tmp_path / "registry.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        heartbeat.start()
        wait_until(lambda: bool(caplog.records), "a warning is logged")
        other.execute("ROLLBACK")
    wait_until(lambda: bool(registry.servers.list()), "the server is registered")
    heartbeat.stop()


@pytest.mark.usefixtures("running")
def test_server_that_the_registry_lost_is_registered_again(
    registry: Registry, pool: FakePool
) -> None:
    pool.load(A)
    wait_for_holder(registry, A)
    registry.servers.stop(registry.servers.list()[0].number)
    wait_for_holder(registry, A)
    assert len(registry.servers.list()) == 2


def test_stopped_heartbeat_does_not_watch_the_pool(
    pool: FakePool, heartbeat: ServerHeartbeat
) -> None:
    heartbeat.start()
    heartbeat.stop()
    assert pool.observers == []


def test_batch_does_not_load_what_it_unloaded() -> None:
    batch = LoadBatch()
    batch.add(LoadEvent(A, "a/b@1", False))
    assert not batch.accepts(LoadEvent(A, "a/b@1", True))


def test_batch_has_a_maximum_size() -> None:
    batch = LoadBatch()
    for number in range(256):
        batch.add(LoadEvent(str(number), "a/b@1", True))
    assert not batch.accepts(LoadEvent(A, "a/b@1", True))
