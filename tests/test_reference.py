"""The generated pages say what the code says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trunkline import reference

DOCS = Path(__file__).parents[1] / "docs"
HOOKS = pytest.mark.parametrize("hook", reference.hook_functions(), ids=lambda hook: hook.__name__)


@pytest.mark.parametrize("name", reference.PAGES)
def test_page_is_up_to_date(name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == reference.PAGES[name](), "run `python -m trunkline.reference`"


@HOOKS
@pytest.mark.parametrize("part", ["Returns:", "Example::", "@hookimpl"])
def test_every_hook_documents(hook: Callable[..., Any], part: str) -> None:
    assert part in (hook.__doc__ or "")


@HOOKS
def test_page_has_every_hook_with_its_signature(hook: Callable[..., Any]) -> None:
    signature = f"{hook.__name__}() -> {hook.__annotations__['return']}"
    assert signature in reference.hooks_reference()


def test_every_field_of_every_spec_but_scored_has_a_meaning() -> None:
    page = reference.hooks_reference().partition("### `Scored`")
    assert "| |\n" not in page[0]


def test_pages_hold_no_markup_of_docstrings() -> None:
    assert ":class:" not in reference.hooks_reference()
    assert "``" not in reference.hooks_reference().replace("```", "")


def test_pages_are_written_into_the_folder(tmp_path: Path) -> None:
    reference.write_pages(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(reference.PAGES)
