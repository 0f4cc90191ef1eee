"""The tabular list: size, titles, and errors of a missing or damaged wheel."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

import pytest

from trunkline.errors import DataError
from trunkline_medical import icd10
from trunkline_medical.chapters import CHAPTERS


def test_the_list_has_its_published_size() -> None:
    categories = icd10.tabular_list().categories
    assert (len(categories), sum(len(category.codes) for category in categories)) == (1918, 46881)


def test_the_table_of_chapters_uses_the_titles_of_the_list() -> None:
    table = {chapter.number: chapter.title for chapter in CHAPTERS}
    assert icd10.tabular_list().chapter_titles == table


def test_a_category_holds_itself_then_its_codes_in_order() -> None:
    cholera = icd10.tabular_list().categories[0]
    assert [code.code for code in cholera.codes] == ["A00", "A00.0", "A00.1", "A00.9"]


def test_leaves_have_no_codes_below_them() -> None:
    cholera = icd10.tabular_list().categories[0]
    assert [code.code for code in cholera.leaves] == ["A00.0", "A00.1", "A00.9"]


def test_a_category_without_codes_is_its_own_leaf() -> None:
    tetanus = next(c for c in icd10.tabular_list().categories if c.code == "A35")
    assert [code.title for code in tetanus.leaves] == ["Other tetanus"]


def test_inclusion_terms_are_read() -> None:
    classical = icd10.tabular_list().categories[0].codes[1]
    assert classical.inclusion_terms == ("Classical cholera",)


def test_reading_never_executes_the_wheels_own_module() -> None:
    icd10.tabular_list()
    assert icd10.PACKAGE not in sys.modules


def package_with(folder: Path, content: str | None) -> ModuleSpec:
    """A package in ``folder`` that holds ``content`` as the data file; None: no file."""
    (folder / "data").mkdir()
    (folder / "__init__.py").touch()
    if content is not None:
        (folder / "data" / icd10.FILE).write_text(content)
    spec = spec_from_file_location(
        icd10.PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    return spec


def fresh_read(monkeypatch: pytest.MonkeyPatch, spec: ModuleSpec | None) -> DataError:
    monkeypatch.setattr(icd10, "find_spec", lambda name: spec)
    with pytest.raises(DataError) as caught:
        icd10.tabular_list.__wrapped__()
    return caught.value


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = fresh_read(monkeypatch, None)
    assert "not installed" in error.message
    assert "pip install simple-icd-10-cm==1.5.0" in (error.hint or "")


def test_another_version_of_the_wheel_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    error = fresh_read(monkeypatch, package_with(tmp_path, None))
    assert "another version" in error.message


def test_a_damaged_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = fresh_read(monkeypatch, package_with(tmp_path, "<ICD10CM.tabular><chapter>"))
    assert "can't be read" in error.message
