"""Who comes in: with keys, without, and through a browser of this machine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from trunkline.errors import AuthenticationError, ForbiddenError
from trunkline.registry.registry import Registry
from trunkline.serving.auth import Authenticator, check_admin

LOCAL = "127.0.0.1:8000"


def local(registry: Registry) -> Authenticator:
    return Authenticator(registry, loopback=True, host="127.0.0.1")


@pytest.mark.parametrize("shown", [None, "Bearer anything", "Basic eDp5"])
def test_without_keys_this_machine_comes_in(registry: Registry, shown: str | None) -> None:
    assert local(registry).key_of(shown, LOCAL) is None


@pytest.mark.parametrize("shown", [None, "Bearer anything", "Bearer ", "Basic eDp5"])
def test_with_a_key_everybody_needs_one(registry: Registry, shown: str | None) -> None:
    registry.keys.create("me")
    with pytest.raises(AuthenticationError):
        local(registry).key_of(shown, LOCAL)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_a_key_comes_in(registry: Registry, scheme: str) -> None:
    record, plain = registry.keys.create("me")
    assert local(registry).key_of(f"{scheme} {plain}", None) == record


def test_a_key_that_is_made_meanwhile_closes_the_door(registry: Registry) -> None:
    door = local(registry)
    door.key_of(None, LOCAL)
    registry.keys.create("me")
    with pytest.raises(AuthenticationError):
        door.key_of(None, LOCAL)


def test_removing_the_last_key_does_not_open_it(registry: Registry) -> None:
    door = local(registry)
    record, plain = registry.keys.create("me")
    with pytest.raises(AuthenticationError):
        door.key_of(None, LOCAL)
    registry.keys.remove(record.id)
    with pytest.raises(AuthenticationError):
        door.key_of(f"Bearer {plain}", LOCAL)


def test_an_expired_key_stays_out(registry: Registry) -> None:
    soon = datetime.now(UTC) + timedelta(milliseconds=50)
    _, plain = registry.keys.create("me", expires=soon)
    while datetime.now(UTC) < soon:
        pass
    with pytest.raises(AuthenticationError):
        local(registry).key_of(f"Bearer {plain}", LOCAL)


def test_a_server_that_others_reach_is_never_open(registry: Registry) -> None:
    with pytest.raises(AuthenticationError):
        Authenticator(registry, loopback=False, host="0.0.0.0").key_of(None, LOCAL)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", None, "", "[::2]:1"])
def test_a_page_of_another_host_stays_out(registry: Registry, host: str | None) -> None:
    with pytest.raises(ForbiddenError):
        local(registry).key_of(None, host)


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_this_machine_has_several_names(registry: Registry, host: str) -> None:
    assert local(registry).key_of(None, host) is None


def test_only_an_admins_key_administers(registry: Registry) -> None:
    check_admin(None)
    check_admin(registry.keys.create("me", admin=True)[0])
    with pytest.raises(ForbiddenError):
        check_admin(registry.keys.create("me")[0])
