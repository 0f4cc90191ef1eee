"""A server's entry in the registry follows it, whatever the registry is doing."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trunkline.registry.registry import Registry
from trunkline.serving.deployment import Batch, Change, Presence

A, B = (f"sha256:{letter * 64}" for letter in "ab")

BASE: Any = SimpleNamespace(
    digest="b" * 64, name="tiny", source="made", architecture="L", parameters=1, dtype="float32"
)


class Memory:
    """A adapter pool as far as it can be watched."""

    def __init__(self) -> None:
        self.observers: list[Callable[[str, str, bool], None]] = []
        self.held: dict[str, str] = {}

    def observe(self, observer: Callable[[str, str, bool], None]) -> None:
        for digest, name in self.held.items():
            observer(digest, name, True)
        self.observers.append(observer)

    def unobserve(self, observer: Callable[[str, str, bool], None]) -> None:
        self.observers.remove(observer)

    def load(self, digest: str, name: str = "a/b@1") -> None:
        self.held[digest] = name
        for observer in self.observers:
            observer(digest, name, True)

    def unload(self, digest: str) -> None:
        name = self.held.pop(digest)
        for observer in self.observers:
            observer(digest, name, False)


def until(wanted: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not wanted():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def presence(registry: Registry, memory: Any) -> Presence:
    made = Presence(registry, BASE, "http://127.0.0.1:8000", dtype="int8", beat=0.05)
    made.watch(memory)
    return made


@pytest.fixture
def running(registry: Registry, presence: Presence) -> Iterator[Presence]:
    presence.start()
    until(registry.servers.list)
    yield presence
    presence.stop()


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Another process's lock on the registry, until ROLLBACK."""
    with closing(sqlite3.connect(tmp_path / "registry.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def test_a_server_is_alive_while_it_runs(registry: Registry, running: Presence) -> None:
    assert registry.servers.list()[0].alive


def test_its_base_is_on_record(registry: Registry, running: Presence) -> None:
    assert registry.servers.list()[0].base_name == "tiny"


def test_it_has_stopped_once_it_says_so(registry: Registry, presence: Presence) -> None:
    presence.start()
    presence.stop()
    assert registry.servers.list()[0].stopped is not None


def test_the_arithmetic_of_its_base_is_told(registry: Registry, running: Presence) -> None:
    (started,) = [one for one in registry.events.list() if one.kind == "server.started"]
    assert started.detail["dtype"] == "int8"


def test_it_gives_signs_of_life(registry: Registry, running: Presence) -> None:
    with closing(sqlite3.connect(registry.sessions.engines.where, isolation_level=None)) as other:
        other.execute("UPDATE deployments SET seen = '2020-01-01 00:00:00.000000'")
    until(lambda: registry.servers.list()[0].seen.year > 2020)


def test_what_was_in_memory_before_is_told(
    registry: Registry, memory: Memory, presence: Presence
) -> None:
    memory.load(A)
    presence.start()
    until(lambda: A in registry.servers.holders())
    presence.stop()


def test_loads_and_unloads_are_told(registry: Registry, memory: Memory, running: Presence) -> None:
    memory.load(A)
    memory.load(B)
    memory.unload(A)
    until(lambda: list(registry.servers.holders()) == [B])


def test_loads_that_follow_each_other_fast_are_all_told(
    registry: Registry, memory: Memory, running: Presence
) -> None:
    for _ in range(3):
        memory.load(A)
        memory.unload(A)
    until(lambda: [one.unloaded is None for one in registry.servers.list_loads(A)] == [False] * 3)


def test_loading_does_not_wait_for_a_locked_registry(
    memory: Memory, running: Presence, locked: sqlite3.Connection
) -> None:
    """With the lock held throughout, each of these would wait for the busy time-out."""
    for _ in range(50):
        memory.load(A)
        memory.unload(A)
    assert locked.in_transaction


def test_what_could_not_be_told_is_told_later(
    registry: Registry,
    memory: Memory,
    running: Presence,
    locked: sqlite3.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory.load(A)
    until(lambda: caplog.records)
    locked.execute("ROLLBACK")
    until(lambda: A in registry.servers.holders())


def test_a_failing_registry_is_warned_of_once(
    memory: Memory,
    running: Presence,
    locked: sqlite3.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory.load(A)
    until(lambda: caplog.records)
    memory.load(B)
    time.sleep(0.5)
    locked.execute("ROLLBACK")
    assert len(caplog.records) == 1


def test_a_start_that_fails_is_tried_again(
    registry: Registry, presence: Presence, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(tmp_path / "registry.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        presence.start()
        until(lambda: caplog.records)
        other.execute("ROLLBACK")
    until(registry.servers.list)
    presence.stop()


def test_a_server_that_the_registry_forgot_begins_anew(
    registry: Registry, memory: Memory, running: Presence
) -> None:
    memory.load(A)
    until(lambda: A in registry.servers.holders())
    registry.servers.stop(registry.servers.list()[0].number)
    until(lambda: A in registry.servers.holders())
    assert len(registry.servers.list()) == 2


def test_an_ended_server_watches_no_more(memory: Memory, presence: Presence) -> None:
    presence.start()
    presence.stop()
    assert memory.observers == []


def test_a_batch_loads_nothing_that_it_unloaded() -> None:
    batch = Batch()
    batch.add(Change(A, "a/b@1", False))
    assert not batch.takes(Change(A, "a/b@1", True))


def test_a_batch_has_an_end() -> None:
    batch = Batch()
    for number in range(256):
        batch.add(Change(str(number), "a/b@1", True))
    assert not batch.takes(Change(A, "a/b@1", True))
