"""Authentication: keys, open servers, and browsers on the server's machine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from trunkline.errors import AuthenticationError, ForbiddenError
from trunkline.registry.registry import Registry
from trunkline.serving.middleware import Authenticator

LOCAL = "127.0.0.1:8000"


@pytest.fixture
def authenticator(registry: Registry) -> Authenticator:
    """Of a server that only this machine can reach."""
    return Authenticator(registry, loopback=True, host="127.0.0.1")


@pytest.mark.parametrize("header", [None, "Bearer anything", "Basic eDp5"])
def test_open_server_needs_no_key(authenticator: Authenticator, header: str | None) -> None:
    assert authenticator.authenticate(header, LOCAL) is None


@pytest.mark.parametrize("header", [None, "Bearer anything", "Bearer ", "Basic eDp5"])
def test_missing_or_invalid_key_is_refused_once_a_key_exists(
    registry: Registry, authenticator: Authenticator, header: str | None
) -> None:
    registry.keys.create("me")
    with pytest.raises(AuthenticationError):
        authenticator.authenticate(header, LOCAL)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_valid_key_is_accepted(
    registry: Registry, authenticator: Authenticator, scheme: str
) -> None:
    record, secret = registry.keys.create("me")
    assert authenticator.authenticate(f"{scheme} {secret}", None) == record


def test_first_key_closes_a_running_server(
    registry: Registry, authenticator: Authenticator
) -> None:
    authenticator.authenticate(None, LOCAL)
    registry.keys.create("me")
    with pytest.raises(AuthenticationError):
        authenticator.authenticate(None, LOCAL)


def test_removing_the_last_key_does_not_open_a_running_server(
    registry: Registry, authenticator: Authenticator
) -> None:
    record, secret = registry.keys.create("me")
    with pytest.raises(AuthenticationError):
        authenticator.authenticate(None, LOCAL)
    registry.keys.remove(record.id)
    with pytest.raises(AuthenticationError):
        authenticator.authenticate(f"Bearer {secret}", LOCAL)


def test_expired_key_is_refused(registry: Registry, authenticator: Authenticator) -> None:
    soon = datetime.now(UTC) + timedelta(milliseconds=50)
    _, secret = registry.keys.create("me", expires=soon)
    while datetime.now(UTC) < soon:
        pass
    with pytest.raises(AuthenticationError):
        authenticator.authenticate(f"Bearer {secret}", LOCAL)


def test_server_that_other_machines_reach_is_never_open(registry: Registry) -> None:
    with pytest.raises(AuthenticationError):
        Authenticator(registry, loopback=False, host="0.0.0.0").authenticate(None, LOCAL)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", None, "", "[::2]:1"])
def test_open_server_refuses_other_host_names(
    authenticator: Authenticator, host: str | None
) -> None:
    with pytest.raises(ForbiddenError):
        authenticator.authenticate(None, host)


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_open_server_accepts_local_host_names(authenticator: Authenticator, host: str) -> None:
    assert authenticator.authenticate(None, host) is None
