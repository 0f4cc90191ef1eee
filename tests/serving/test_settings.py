"""Ranges of the server's settings, and detection of loopback addresses."""

from __future__ import annotations

from typing import Any

import pytest

from trunkline.errors import UsageError
from trunkline.serving.settings import ServerSettings, is_loopback


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("port", "8000"),
        ("port", True),
        ("host", ""),
        ("max_body_bytes", 0),
        ("max_new_tokens", 0),
        ("request_timeout", float("nan")),
        ("write_timeout", 0),
        ("drain_seconds", -1.0),
        ("workers", 0),
    ],
)
def test_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        ServerSettings(**{name: value})


def test_seconds_may_be_an_integer() -> None:
    assert ServerSettings(drain_seconds=5).drain_seconds == 5


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_host(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_reachable_host(host: str) -> None:
    assert not is_loopback(host)


def test_host_without_an_address_is_refused() -> None:
    with pytest.raises(UsageError, match="no address"):
        is_loopback("not a host")
