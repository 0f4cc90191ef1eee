"""Rows that have both a text and a picture, of which an adapter reads one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from trunkline.contracts import Modality, Row
from trunkline.data.split import Split
from trunkline.labels import is_blank


def with_texts(rows: Iterable[Row], dropped: Counter[str]) -> list[Row]:
    """The rows whose text is not empty; ``dropped`` counts the others."""
    kept = []
    for row in rows:
        if is_blank(row.text):
            dropped["empty text"] += 1
        else:
            kept.append(row)
    return kept


def halves_of(split: Split, modality: Modality) -> Split:
    """The split with the texts or the pictures alone; its fingerprint stays the same."""
    rest = {"image": None} if modality == "text" else {"text": ""}
    train, validation, test = (
        tuple(replace(row, **rest) for row in part)
        for part in (split.train, split.validation, split.test)
    )
    return replace(split, train=train, validation=validation, test=test)


def join_groups(rows: Sequence[Row]) -> list[Row]:
    """Rows with one group where they share a text, apart from case and white space, or a picture.

    Args:
        rows: of which the group is that of the text, and the picture has its digest; those of
            different parts of an official split are never joined.
    """
    first: dict[Hashable, int] = {}
    parents = list(range(len(rows)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    for index, row in enumerate(rows):
        for key in (row.group, (row.split, row.picture.sha256 or row.id)):
            one, other = sorted((root(index), root(first.setdefault(key, index))))
            parents[other] = one
    return [replace(row, group=rows[root(index)].group) for index, row in enumerate(rows)]
