"""Probing a registry reads its schema and clock and tries to write, without a change."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from trunkline.errors import RegistryError
from trunkline.registry.session import head_revision, probe_database


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """``read_only(url)`` makes a database read-only for this process and gives its URL."""

    def make(url: str) -> str:
        if not url.startswith("sqlite"):
            return url + "&options=-c%20default_transaction_read_only%3Don"
        real = os.access
        monkeypatch.setattr(
            "trunkline.registry.engine.os.access",
            lambda path, mode: mode != os.W_OK and real(path, mode),
        )
        return url

    return make


@pytest.mark.dialect
def test_registry_can_be_written(url: str) -> None:
    probe = probe_database(url)
    assert (probe.revision, probe.usable, probe.write_error) == (head_revision(), True, None)
    assert abs(probe.ahead_seconds) < 3


@pytest.mark.dialect
def test_read_only_registry_is_reported(url: str, read_only: Callable[[str], str]) -> None:
    probe = probe_database(read_only(url))
    assert probe.revision == head_revision()
    assert probe.write_error is not None
    assert "read-only" in probe.write_error.message


def test_missing_file_is_an_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("none") / "registry.db"
    with pytest.raises(RegistryError, match="There is no registry"):
        probe_database(f"sqlite:///{path}")
    assert not path.exists()
