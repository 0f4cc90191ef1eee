"""Servers hold loaded versions; one that is dead or stopped holds nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import update

from trunkline.registry.actors import process_is_alive
from trunkline.registry.mapping import ALIVE_SECONDS
from trunkline.registry.registry import Registry
from trunkline.registry.tables import Server, utc_now

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
REF = "medical/icd10@3"
HOST = socket.gethostname()


def started(registry: Registry, *, host: str = "elsewhere", pid: int = 7) -> int:
    return registry.servers.start(host, pid, "http://10.0.0.1:8000", None)


def last_seen(registry: Registry, number: int, seconds: float) -> None:
    """Set the age of a server's last heartbeat."""
    then = utc_now() - timedelta(seconds=seconds)
    with registry.sessions.write() as session:
        session.execute(update(Server).where(Server.id == number).values(last_seen=then))


@pytest.fixture
def dead() -> Iterator[int]:
    """The pid of a killed process that its parent has not waited for."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield child.pid
    child.communicate()


# ----------------------------------------------------------------------------- start and stop


@pytest.mark.dialect
def test_start_and_stop_are_events_of_the_server(registry: Registry) -> None:
    number = started(registry)
    registry.servers.stop(number)
    events = registry.events.list(subject=f"server/{number}")
    assert [one.kind for one in events] == ["server.stopped", "server.started"]


def test_the_start_event_has_host_url_and_base(registry: Registry, dataset: int) -> None:
    base = "sha256:" + "b" * 64
    number = registry.servers.start("web-1", 812, "http://web-1:8000", base, "system:ada")
    event = registry.events.list(subject=f"server/{number}")[0]
    assert (event.actor, event.detail) == (
        "system:ada",
        {"host": "web-1", "pid": 812, "url": "http://web-1:8000", "base": base},
    )


def test_the_start_event_has_the_dtype(registry: Registry) -> None:
    number = registry.servers.start("web-1", 812, "", None, dtype="int8")
    assert registry.events.list(subject=f"server/{number}")[0].detail["dtype"] == "int8"


def test_the_dtype_comes_before_the_digest(
    registry: Registry,
) -> None:
    number = registry.servers.start("web-1", 812, "", "sha256:" + "b" * 64, dtype="int8")
    assert list(registry.events.list(subject=f"server/{number}")[0].detail)[-2:] == [
        "dtype",
        "base",
    ]


def test_a_server_shows_its_base(registry: Registry, dataset: int) -> None:
    registry.servers.start("web-1", 812, "", "sha256:" + "b" * 64)
    assert registry.servers.list()[0].base_name == "tiny"


def test_an_unrecorded_base_is_none(registry: Registry) -> None:
    registry.servers.start("web-1", 812, "", "sha256:" + "f" * 64)
    assert registry.servers.list()[0].base_digest is None


def test_a_second_stop_appends_no_event(registry: Registry) -> None:
    number = started(registry)
    registry.servers.stop(number)
    registry.servers.stop(number)
    assert len(registry.events.list(subject=f"server/{number}")) == 2


def test_servers_are_paged_newest_first(registry: Registry) -> None:
    numbers = [started(registry) for _ in range(4)]
    first = registry.servers.list(limit=2)
    second = registry.servers.list(limit=2, before=first[-1].number)
    assert [one.number for one in [*first, *second]] == numbers[::-1]


# -------------------------------------------------------------------------------- who is alive


def test_a_server_with_a_recent_heartbeat_is_alive(registry: Registry) -> None:
    started(registry)
    assert registry.servers.list()[0].alive


def test_a_stopped_server_is_not_alive(registry: Registry) -> None:
    registry.servers.stop(started(registry))
    assert not registry.servers.list()[0].alive


def test_a_server_without_heartbeats_is_not_alive(registry: Registry) -> None:
    last_seen(registry, started(registry), ALIVE_SECONDS + 5)
    assert not registry.servers.list()[0].alive


def test_a_heartbeat_makes_a_server_alive_again(registry: Registry) -> None:
    number = started(registry)
    last_seen(registry, number, ALIVE_SECONDS + 5)
    registry.servers.heartbeat(number)
    assert registry.servers.list()[0].alive


@pytest.mark.dialect
def test_a_clock_set_back_leaves_servers_alive(registry: Registry) -> None:
    last_seen(registry, started(registry), -3600)
    assert registry.servers.list()[0].alive


def test_a_killed_process_of_this_host_is_not_alive(registry: Registry, dead: int) -> None:
    started(registry, host=HOST, pid=dead)
    assert not registry.servers.list()[0].alive


def test_a_process_of_this_host_is_alive(registry: Registry) -> None:
    started(registry, host=HOST, pid=os.getpid())
    assert registry.servers.list()[0].alive


@pytest.mark.parametrize("pid", [0, -1])
def test_a_process_group_is_not_a_process(pid: int) -> None:
    assert not process_is_alive(pid)


def test_a_heartbeat_of_a_stopped_or_unknown_server_is_false(registry: Registry) -> None:
    number = started(registry)
    registry.servers.stop(number)
    assert (registry.servers.heartbeat(number), registry.servers.heartbeat(99)) == (False, False)


# -------------------------------------------------------------------------------- what they hold


@pytest.mark.dialect
def test_a_loaded_version_is_held(registry: Registry) -> None:
    number = started(registry)
    registry.servers.record_loads(number, [(REF, A)])
    held = f"server/{number} (http://10.0.0.1:8000, process 7 on elsewhere)"
    assert registry.servers.holders() == {A: [held]}


@pytest.mark.dialect
def test_an_unloaded_version_is_not_held(registry: Registry) -> None:
    number = started(registry)
    registry.servers.record_loads(number, [(REF, A), ("medical/b@1", B)])
    registry.servers.record_loads(number, [], [A])
    assert list(registry.servers.holders()) == [B]


def test_loaded_and_unloaded_at_once_is_not_held(registry: Registry) -> None:
    number = started(registry)
    registry.servers.record_loads(number, [(REF, A)], [A])
    assert registry.servers.holders() == {}


def test_every_holder_is_named(registry: Registry) -> None:
    for number in (started(registry), started(registry)):
        registry.servers.record_loads(number, [(REF, A)])
    assert [len(servers) for servers in registry.servers.holders().values()] == [2]


def test_holders_are_limited_to_the_given_digests(registry: Registry) -> None:
    registry.servers.record_loads(started(registry), [(REF, A), ("medical/b@1", B)])
    assert list(registry.servers.holders([B, C])) == [B]


def test_holders_of_no_digests_are_none(registry: Registry) -> None:
    registry.servers.record_loads(started(registry), [(REF, A)])
    assert registry.servers.holders([]) == {}


def test_holders_of_many_digests_take_several_queries(registry: Registry) -> None:
    registry.servers.record_loads(started(registry), [(REF, A)])
    assert list(registry.servers.holders([A, *(f"sha256:{n:064x}" for n in range(1200))])) == [A]


def test_a_stopped_server_holds_nothing(registry: Registry) -> None:
    number = started(registry)
    registry.servers.record_loads(number, [(REF, A)])
    registry.servers.stop(number)
    assert registry.servers.holders() == {}


def test_a_server_without_heartbeats_holds_nothing(registry: Registry) -> None:
    number = started(registry)
    registry.servers.record_loads(number, [(REF, A)])
    last_seen(registry, number, ALIVE_SECONDS + 5)
    assert registry.servers.holders() == {}


def test_a_killed_process_holds_nothing(registry: Registry, dead: int) -> None:
    registry.servers.record_loads(started(registry, host=HOST, pid=dead), [(REF, A)])
    assert registry.servers.holders() == {}


def test_recording_loads_is_a_heartbeat(registry: Registry) -> None:
    number = started(registry)
    last_seen(registry, number, ALIVE_SECONDS + 5)
    registry.servers.record_loads(number, [(REF, A)])
    assert list(registry.servers.holders()) == [A]


def test_a_stopped_server_loads_nothing(registry: Registry) -> None:
    number = started(registry)
    registry.servers.stop(number)
    recorded = registry.servers.record_loads(number, [(REF, A)])
    assert (recorded, registry.servers.list_loads(A)) == (False, [])


# ------------------------------------------------------------------------------- what they held


def test_a_load_is_recorded_once(registry: Registry) -> None:
    number = started(registry)
    for _ in range(2):
        registry.servers.record_loads(number, [(REF, A)])
    assert len(registry.servers.list_loads(A)) == 1


def test_every_load_is_a_row(registry: Registry) -> None:
    number = started(registry)
    for _ in range(2):
        registry.servers.record_loads(number, [(REF, A)], [A])
    assert len(registry.servers.list_loads(A)) == 2


def test_a_load_ends_with_its_server(registry: Registry) -> None:
    number = started(registry)
    registry.servers.record_loads(number, [(REF, A)])
    registry.servers.stop(number)
    assert registry.servers.list_loads(A)[0].unloaded is not None


def test_a_load_has_its_version_and_server(registry: Registry) -> None:
    number = started(registry)
    registry.servers.record_loads(number, [(REF, A)])
    load = registry.servers.list_loads(A)[0]
    assert (load.version, load.server.number, load.unloaded) == (REF, number, None)


def test_another_servers_unload_ends_no_load(registry: Registry) -> None:
    one, two = started(registry), started(registry)
    registry.servers.record_loads(one, [(REF, A)])
    registry.servers.record_loads(two, [], [A])
    assert list(registry.servers.holders()) == [A]


def test_loads_are_paged_newest_first(registry: Registry) -> None:
    number = started(registry)
    for _ in range(3):
        registry.servers.record_loads(number, [(REF, A)], [A])
    first = registry.servers.list_loads(A, limit=2)
    second = registry.servers.list_loads(A, limit=2, before=first[-1].id)
    assert [one.id for one in [*first, *second]] == [3, 2, 1]
