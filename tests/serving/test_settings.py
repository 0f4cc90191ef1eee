"""Limits are checked when they are set, and only this machine counts as this machine."""

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
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        ServerSettings(**{name: value})


def test_seconds_may_be_whole_numbers() -> None:
    assert ServerSettings(drain_seconds=5).drain_seconds == 5


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_every_other_address_is_not(host: str) -> None:
    assert not is_loopback(host)


def test_a_host_without_an_address_is_an_error() -> None:
    with pytest.raises(UsageError, match="no address"):
        is_loopback("not a host")
