"""Help texts and guides show what the commands print today; run by ``make examples-check``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from examples.recording import PAGES, record_help, record_page, recorded_help
from examples.session import comparable, key_ids

pytestmark = [pytest.mark.examples, pytest.mark.real]


def test_help_shows_what_commands_print(tmp_path: Path) -> None:
    shown = recorded_help()
    now = dict(record_help(tmp_path))
    assert list(now) == list(shown), "run `make examples`"
    before, after = normalized_outputs(shown), normalized_outputs(now)
    changed = {line: (before[line], after[line]) for line in now if before[line] != after[line]}
    assert changed == {}, "run `make examples`"


def normalized_outputs(outputs: Mapping[str, str]) -> dict[str, str]:
    """Line → what is compared of its output; the ids of API keys are random."""
    ids = key_ids("\n".join(outputs.values()))
    pattern = re.compile("|".join(map(re.escape, ids)) or r"(?!)")
    return {
        line: comparable(pattern.sub("KEYID", f"$ {line}\n{output}"))
        for line, output in outputs.items()
    }


@pytest.mark.parametrize("page", PAGES)
def test_page_shows_what_commands_print(page: str, tmp_path: Path) -> None:
    for old, new in record_page(page, tmp_path):
        assert comparable(old) == comparable(new), "run `make examples`"
