"""The vendored libraries and the catalogs are complete and up to date."""

from __future__ import annotations

import hashlib

import pytest

from trunkline.console.static import FOLDER
from trunkline.console.translations import (
    CATALOGS,
    LANGUAGES,
    SOURCE,
    choose,
    extract,
    read,
    untranslated,
)

VENDORED = FOLDER / "vendor"
TRANSLATED = [language for language in LANGUAGES if language != SOURCE]


def test_vendored_files_have_their_digests() -> None:
    lines = (VENDORED / "SHA256SUMS").read_text().splitlines()
    recorded = dict(reversed(line.split("  ")) for line in lines)
    present = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDORED.iterdir()
        if path.name != "SHA256SUMS"
    }
    assert recorded == present


def test_each_vendored_library_has_its_license() -> None:
    for library in ("htmx", "uPlot"):
        assert "ermission" in (VENDORED / f"LICENSE.{library}").read_text()


def test_vendored_files_are_about_100_kilobytes() -> None:
    size = sum(path.stat().st_size for path in VENDORED.iterdir() if path.suffix in (".js", ".css"))
    assert size < 105_000


@pytest.mark.parametrize("name", CATALOGS)
@pytest.mark.parametrize("language", TRANSLATED)
def test_every_text_is_translated(language: str, name: str) -> None:
    assert list(untranslated(read(language, name))) == []


@pytest.mark.parametrize("name", CATALOGS)
@pytest.mark.parametrize("language", TRANSLATED)
def test_catalog_has_the_texts_of_now(language: str, name: str) -> None:
    """``python -m trunkline.console.translations`` updates it."""
    stored = {message.id for message in read(language, name) if message.id}
    assert stored == {message.id for message in extract(name) if message.id}


@pytest.mark.parametrize("language", TRANSLATED)
def test_translation_has_the_placeholders_of_its_text(language: str) -> None:
    catalog = read(language, "console")
    for message in catalog:
        errors = list(message.check(catalog)) if message.id else []
        assert not errors, (message.id, errors)


@pytest.mark.parametrize(
    ("header", "language"),
    [("", "en"), ("zh", "zh"), ("zh-TW,en;q=0.5", "zh"), ("en,zh;q=0.5", "en"),
     ("de, zh;q=0.3", "zh"), ("en;q=0.1, zh;q=0.2", "zh"), ("*", "en"), ("xx;q=y, zz", "en")],
)  # fmt: skip
def test_language_is_what_the_browser_prefers(header: str, language: str) -> None:
    assert choose(header) == language
