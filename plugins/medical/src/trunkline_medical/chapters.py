"""The chapters of ICD-10-CM and their families: the hierarchy of labels, slices, loss and metric.

The families follow William Farr's scheme, which the World Health Organization's instruction
manual (ICD-10, volume 2) names as the origin of the order of the chapters: epidemic diseases,
constitutional or general diseases, local diseases arranged by site, developmental diseases, and
injuries. Farr's first two are one family here, because ICD-10 has a single chapter of epidemic
diseases and both describe illness of the entire body. The chapters that describe no disease, which
Farr's scheme does not have, form another family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trunkline.errors import NotFoundError

Family = Literal["general", "local", "developmental", "injury", "no disease"]

SAME_CHAPTER, SAME_FAMILY, OTHER_FAMILY = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Chapter:
    """A chapter: its number, a short name for tables, its family, and its title without range."""

    number: int
    short: str
    family: Family
    title: str

    @property
    def slice_name(self) -> str:
        """``09 circulatory``: sorts in the order of the chapters."""
        return f"{self.number:02d} {self.short}"


CHAPTERS: tuple[Chapter, ...] = (
    Chapter(1, "infectious", "general", "Certain infectious and parasitic diseases"),
    Chapter(2, "neoplasms", "general", "Neoplasms"),
    Chapter(
        3,
        "blood",
        "general",
        "Diseases of the blood and blood-forming organs and certain disorders involving the "
        "immune mechanism",
    ),
    Chapter(4, "endocrine", "general", "Endocrine, nutritional and metabolic diseases"),
    Chapter(5, "mental", "general", "Mental, Behavioral and Neurodevelopmental disorders"),
    Chapter(6, "nervous", "local", "Diseases of the nervous system"),
    Chapter(7, "eye", "local", "Diseases of the eye and adnexa"),
    Chapter(8, "ear", "local", "Diseases of the ear and mastoid process"),
    Chapter(9, "circulatory", "local", "Diseases of the circulatory system"),
    Chapter(10, "respiratory", "local", "Diseases of the respiratory system"),
    Chapter(11, "digestive", "local", "Diseases of the digestive system"),
    Chapter(12, "skin", "local", "Diseases of the skin and subcutaneous tissue"),
    Chapter(
        13,
        "musculoskeletal",
        "local",
        "Diseases of the musculoskeletal system and connective tissue",
    ),
    Chapter(14, "genitourinary", "local", "Diseases of the genitourinary system"),
    Chapter(15, "pregnancy", "developmental", "Pregnancy, childbirth and the puerperium"),
    Chapter(
        16,
        "perinatal",
        "developmental",
        "Certain conditions originating in the perinatal period",
    ),
    Chapter(
        17,
        "congenital",
        "developmental",
        "Congenital malformations, deformations and chromosomal abnormalities",
    ),
    Chapter(
        18,
        "symptoms",
        "no disease",
        "Symptoms, signs and abnormal clinical and laboratory findings, not elsewhere classified",
    ),
    Chapter(
        19,
        "injury",
        "injury",
        "Injury, poisoning and certain other consequences of external causes",
    ),
    Chapter(20, "external causes", "injury", "External causes of morbidity"),
    Chapter(
        21,
        "contacts",
        "no disease",
        "Factors influencing health status and contact with health services",
    ),
    Chapter(22, "special", "no disease", "Codes for special purposes"),
)

BY_NUMBER = {chapter.number: chapter for chapter in CHAPTERS}
BY_TITLE = {chapter.title: chapter for chapter in CHAPTERS}


def tree_distance(one: Chapter, other: Chapter) -> int:
    """Levels up to the common parent: 0 same chapter, 1 same family, 2 different families."""
    if one == other:
        return SAME_CHAPTER
    return SAME_FAMILY if one.family == other.family else OTHER_FAMILY


def distances(labels: Sequence[str]) -> list[list[int]]:
    """The ``[labels, labels]`` matrix of tree distances, in the order given.

    Raises:
        NotFoundError: a label is not the title of a chapter.
    """
    chapters = [chapter_titled(label) for label in labels]
    return [[tree_distance(one, other) for other in chapters] for one in chapters]


def chapter_titled(title: str) -> Chapter:
    """The chapter with this title.

    Raises:
        NotFoundError: there is none; the hint names the nearest title.
    """
    try:
        return BY_TITLE[title]
    except KeyError:
        raise NotFoundError.named(
            "ICD-10-CM chapter",
            title,
            BY_TITLE,
            hint="medical/hierarchical and medical/hierarchy_distance need chapter titles as "
            "labels. For other labels use the loss 'default' and the metric 'macro_f1'.",
        ) from None
