"""The texts of the console in other languages: gettext catalogs that Babel reads and updates.

A language has two catalogs: ``console.po`` with the texts of the templates and of this package's
code, and ``core.po`` with the sentences of the core that pages show.
``python -m trunkline.console.translations`` extracts both, and lists texts without a translation.
"""

from __future__ import annotations

import gettext
import sys
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from trunkline.console.core_texts import CoreTranslator, core_texts

if TYPE_CHECKING:
    from babel.messages.catalog import Catalog

PACKAGE = Path(__file__).parent
LANGUAGES = {"en": "English", "zh": "中文"}
"""Code → name in the language itself; the first is the language of the code."""

SOURCE = "en"
CATALOGS = ("console", "core")

_METHODS = [("templates/**.html", "jinja2"), ("**.py", "python")]
_OPTIONS = {"templates/**.html": {"trimmed": "true", "silent": "false"}}
_KEYWORDS = {"_": None, "gettext": None, "ngettext": (1, 2), "N_": None}


def choose(accept_language: str) -> str:
    """The first language of the header that there is a catalog for."""
    from babel.core import negotiate_locale

    wanted: list[tuple[float, str]] = []
    for part in accept_language[:200].split(","):
        name, _, parameter = part.strip().partition(";")
        try:
            weight = float(parameter.strip().removeprefix("q=") or 1)
        except ValueError:
            weight = 0.0
        if name and weight > 0:
            wanted.append((weight, name.strip().replace("-", "_")))
    wanted.sort(key=lambda one: -one[0])
    names = [name for _, name in wanted]
    names = [alike for name in names for alike in (name, name.partition("_")[0])]
    return negotiate_locale(names, list(LANGUAGES)) or SOURCE


@cache
def load(language: str) -> gettext.NullTranslations:
    """The translations of the console's own texts into a language."""
    if language == SOURCE:
        return gettext.NullTranslations()
    from babel.messages.mofile import write_mo

    compiled = BytesIO()
    write_mo(compiled, read(language, "console"))
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)


@cache
def load_core(language: str) -> Callable[[str], str]:
    """A function that translates whatever text a page shows, of the console or of the core."""
    if language == SOURCE:
        return str
    own = load(language).gettext
    core = CoreTranslator(
        {str(one.id): str(one.string) for one in read(language, "core") if one.id}
    )

    def translate(text: str) -> str:
        translated = own(text)
        return core.translate(text) if translated == text else translated

    return translate


def read(language: str, name: str) -> Catalog:
    """A catalog of a language, as it is stored."""
    from babel.messages.pofile import read_po

    with catalog_path(language, name).open("rb") as file:
        return read_po(file, locale=language)


def catalog_path(language: str, name: str) -> Path:
    """The file of a catalog."""
    return PACKAGE / "locale" / language / f"{name}.po"


def extract(name: str) -> Catalog:
    """The texts of a catalog as they are in the code now, without translations."""
    from babel.messages.catalog import Catalog
    from babel.messages.extract import extract_from_dir

    catalog = Catalog(project="Trunkline", charset="utf-8", fuzzy=False)
    if name == "core":
        for sentence in core_texts():
            catalog.add(sentence)
        return catalog
    texts = extract_from_dir(
        PACKAGE, _METHODS, _OPTIONS, keywords=_KEYWORDS, strip_comment_tags=True
    )
    for filename, _line, message, comments, context in texts:
        catalog.add(message, None, [(filename, 0)], auto_comments=comments, context=context)
    return catalog


def untranslated(catalog: Catalog) -> Iterator[str]:
    """The texts of a catalog that have no translation, or a doubtful one."""
    for message in catalog:
        if not message.id:
            continue
        texts = message.string if isinstance(message.string, tuple | list) else (message.string,)
        if message.fuzzy or not all(texts):
            yield message.id[0] if isinstance(message.id, tuple | list) else message.id


def update(language: str, name: str) -> Catalog:
    """Write the texts of now into a language's catalog; translations of other texts are removed."""
    from babel.messages.catalog import Catalog
    from babel.messages.pofile import write_po

    path = catalog_path(language, name)
    catalog = read(language, name) if path.exists() else Catalog(locale=language, charset="utf-8")
    catalog.update(extract(name), no_fuzzy_matching=True)
    catalog.obsolete.clear()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write_po(
            file, catalog, width=100, no_location=True, omit_header=True, sort_output=True,
            ignore_obsolete=True,
        )  # fmt: skip
    return catalog


if __name__ == "__main__":
    for one in LANGUAGES:
        if one != SOURCE:
            for name in CATALOGS:
                for text in untranslated(update(one, name)):
                    print(f"{one}: {text}", file=sys.stderr)
