"""Metrics with partial credit: distance in the tree of chapters, and overlap of titles.

The families come from :mod:`trunkline_medical.chapters`.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from typing import TYPE_CHECKING

from trunkline.contracts import MetricSpec, Scored
from trunkline_medical.chapters import BY_TITLE, chapter_titled, distances

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TOKEN = re.compile(r"\w+")


def hierarchy_distance(scored: Scored) -> float:
    """Mean tree distance of predicted and true chapter: 0 right, 1 same family, 2 other family.

    Raises:
        NotFoundError: a target or a prediction is not the title of a chapter.
    """
    tree, index = _tree()
    try:
        targets = [index[title] for title in scored.targets]
        predictions = [index[title] for title in scored.predictions]
    except KeyError as unknown:
        chapter_titled(str(unknown.args[0]))
        raise
    return float(tree[targets, predictions].mean())


@functools.cache
def _tree() -> tuple[NDArray[np.float64], dict[str, int]]:
    import numpy as np

    tree = np.array(distances(tuple(BY_TITLE)), dtype=np.float64)
    return tree, {title: place for place, title in enumerate(BY_TITLE)}


def title_overlap(scored: Scored) -> float:
    """Mean F1 of the words shared by answer and title, ignoring case and punctuation.

    The overlap measure of Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension
    of Text" (2016), section 6.1, except that articles count as words.
    """
    pairs = zip(scored.targets, scored.predictions, strict=True)
    return sum(word_f1(title, answer) for title, answer in pairs) / len(scored.targets)


@functools.lru_cache(maxsize=65_536)
def word_f1(title: str, answer: str) -> float:
    """F1 of two bags of words: 1 for the same words, 0 if they share none.

    Cached, because the bootstrap scores the same pairs a thousand times.
    """
    wanted, given = (Counter(_TOKEN.findall(text.lower())) for text in (title, answer))
    shared = (wanted & given).total()
    return 2 * shared / (wanted.total() + given.total()) if shared else 0.0


HIERARCHY_DISTANCE = MetricSpec(
    name="medical/hierarchy_distance",
    description="mean distance in the tree of chapters: 0 right, 1 same family, 2 other family",
    task="classification",
    compute=hierarchy_distance,
    higher_is_better=False,
)

TITLE_OVERLAP = MetricSpec(
    name="medical/title_overlap",
    description="mean F1 of shared words (Rajpurkar et al. 2016, section 6.1)",
    task="generation",
    compute=title_overlap,
)
