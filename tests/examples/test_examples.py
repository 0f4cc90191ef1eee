"""Help texts and guides show what the commands print today; run by ``make examples-check``."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.recording import PAGES, record_help, record_page, recorded_help
from examples.session import comparable

pytestmark = [pytest.mark.examples, pytest.mark.real]


def test_help_shows_what_commands_print(tmp_path: Path) -> None:
    shown = recorded_help()
    now = dict(record_help(tmp_path))
    assert list(now) == list(shown), "run `make examples`"
    for line, text in now.items():
        was, new = f"$ {line}\n{shown[line]}", f"$ {line}\n{text}"
        assert comparable(was) == comparable(new), "run `make examples`"


@pytest.mark.parametrize("page", PAGES)
def test_page_shows_what_commands_print(page: str, tmp_path: Path) -> None:
    for old, new in record_page(page, tmp_path):
        assert comparable(old) == comparable(new), "run `make examples`"
