"""The report of ``datasets check``: findings about rows, and distributions of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from trunkline.data.lengths import LengthReport

Level = Literal["error", "warning", "note"]

NAMED_ROWS = 10
"""Rows that a finding names."""


@dataclass(frozen=True, slots=True)
class DataFinding:
    """One thing that is suspicious.

    Attributes:
        kind: a short name, such as ``duplicates``.
        level: ``error``: it can't be trained on; ``warning``; ``note``.
        message: what each of the rows has, or why none can be trained on; without a period.
        advice: what to do, as a sentence.
        count: rows.
        rows: ids of the first ones; for a user's own file the numbers of its rows.
    """

    kind: str
    level: Level
    message: str
    advice: str
    count: int = 0
    rows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PictureReport:
    """How the pictures of a dataset are distributed.

    Attributes:
        width, height: the least, the median and the largest, in pixels.
        sizes: ``width × height`` → rows; the most frequent first, further ones summed.
        modes: the color mode of the file, as Pillow names it → rows.
        brightness: a range of the mean gray value, from 0 (black) to 255 (white) → rows.
    """

    width: tuple[int, int, int]
    height: tuple[int, int, int]
    sizes: Mapping[str, int]
    modes: Mapping[str, int]
    brightness: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DatasetCheck:
    """The result of :func:`~trunkline.data.check.check_dataset`.

    Attributes:
        rows: rows of the dataset.
        labels: rows of each label of a classification, the most frequent first.
        parts: rows in each part of the split; empty if the rows can't be split.
        lengths: of the prompts, if the base is on this machine.
        findings: errors first.
        pictures: of a dataset of pictures, if one can be decoded.
        contact_sheet: a PNG with pictures of each label, if it was asked for.
    """

    name: str
    task: str
    rows: int
    labels: dict[str, int]
    parts: dict[str, int]
    lengths: LengthReport | None
    findings: tuple[DataFinding, ...]
    pictures: PictureReport | None = None
    contact_sheet: bytes | None = field(default=None, repr=False)

    @property
    def usable(self) -> bool:
        """Whether it can be trained on."""
        return all(finding.level != "error" for finding in self.findings)


def finding(
    kind: str, level: Level, rows: Iterable[str], message: str, advice: str
) -> Iterator[DataFinding]:
    """A finding about these rows, if there are any; the message says what each of them has."""
    ids = list(rows)
    if ids:
        yield DataFinding(kind, level, message, advice, len(ids), tuple(ids[:NAMED_ROWS]))
