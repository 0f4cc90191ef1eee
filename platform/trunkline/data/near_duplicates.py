"""Near-duplicates across the parts of a split: rows that are nearly those of another part.

Up to :data:`EXACT_ROWS` rows every text is compared with every other one, by the cosine of their
character 2-5 gram TF-IDF vectors. That takes time in proportion to the product of the parts, so
larger datasets are compared by MinHash and locality-sensitive hashing (Broder 1997; Leskovec,
Rajaraman & Ullman 2020, chapter 3), whose candidates are then compared by their Jaccard similarity.

Pictures are compared by the Hamming distance of their perceptual hashes (Zauner 2010, pHash).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

from trunkline.contracts import Row, Template
from trunkline.data.split import Split

Method = Literal["tfidf", "minhash", "phash"]

EXACT_ROWS = 20_000
"""The largest dataset whose texts are all compared with one another, in rows."""

COSINE = 0.95
"""Two texts are near-duplicates from this cosine of their character 2-5 gram TF-IDF vectors."""

JACCARD = 0.9
"""Two texts of a larger dataset are near-duplicates from this Jaccard similarity of the sets of
their character 5-grams, without case."""

PERMUTATIONS, BANDS = 128, 16
"""Of MinHash: a pair with the similarity :data:`JACCARD` is missed with a probability below 0.0002,
(1 - 0.9⁸)¹⁶."""

HASH_BITS = 20
"""Two pictures are near-duplicates if at most so many of the 256 bits of their hashes differ."""

_SEED = 1
_GRAM = 5
_BATCH = 256
_PAIRS = 1 << 20
"""Pairs of hashes that are compared at once; bounds the memory."""


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """A row of one part and a row of another whose text or picture is nearly the same."""

    row: Row
    other: Row


def method_for(split: Split) -> Method:
    """How the rows of a split are compared; decided by their modality and their number."""
    if split.train and split.train[0].image is not None:
        return "phash"
    return "tfidf" if len(split) <= EXACT_ROWS else "minhash"


def near_duplicates(
    rows: Sequence[Row], others: Sequence[Row], template: Template, method: Method
) -> list[NearDuplicate]:
    """The rows that have a near-duplicate among others, each with one of them.

    Args:
        template: its cleaning steps are applied first.
        method: ``tfidf`` and ``phash`` give the nearest other row, ``minhash`` the first in their
            order.

    Raises:
        DataError: a picture can't be decoded; names its row.
    """
    if method == "phash":
        return [NearDuplicate(rows[one], others[other]) for one, other in _by_hash(rows, others)]
    texts, against = ([template.cleaned(row.full_text) for row in part] for part in (rows, others))
    pairs = (_by_cosine if method == "tfidf" else _by_jaccard)(texts, against)
    return [NearDuplicate(rows[one], others[other]) for one, other in pairs]


def _by_cosine(texts: Sequence[str], others: Sequence[str]) -> Iterator[tuple[int, int]]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(2, 5), sublinear_tf=True)
    try:
        known = vectorizer.fit_transform(others).T
    except ValueError:  # every text is shorter than two characters
        return
    if not texts:
        return
    vectors = vectorizer.transform(texts)
    for start in range(0, len(texts), _BATCH):
        cosines = vectors[start : start + _BATCH] @ known
        closest = cosines.max(axis=1).toarray().ravel()
        for index in (closest >= COSINE).nonzero()[0].tolist():
            yield start + index, int(cosines[[index]].argmax())


def _by_jaccard(texts: Sequence[str], others: Sequence[str]) -> Iterator[tuple[int, int]]:
    from datasketch import MinHash, MinHashLSH

    first = MinHash(num_perm=PERMUTATIONS, seed=_SEED, hashfunc=crc32)

    def sketches(values: Sequence[str]) -> Iterator[MinHash]:
        return MinHash.generator(
            map(_grams, values), num_perm=PERMUTATIONS, seed=_SEED, hashfunc=crc32,
            permutations=first.permutations, scheme=first.scheme,
        )  # fmt: skip

    index = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, PERMUTATIONS // BANDS))
    with index.insertion_session() as session:
        for number, sketch in enumerate(sketches(others)):
            session.insert(number, sketch, check_duplication=False)
    for number, sketch in enumerate(sketches(texts)):
        grams = _grams(texts[number])
        for other in sorted(index.query(sketch)):
            candidate = _grams(others[other])
            if len(grams & candidate) >= JACCARD * len(grams | candidate):
                yield number, other
                break


def _grams(text: str) -> set[bytes]:
    """The character 5-grams of a text without case; of a shorter text, the text."""
    folded = text.casefold()
    count = max(1, len(folded) - _GRAM + 1)
    return {folded[start : start + _GRAM].encode() for start in range(count)}


def _by_hash(rows: Sequence[Row], others: Sequence[Row]) -> Iterator[tuple[int, int]]:
    import numpy as np

    from trunkline.data.picture_facts import facts_of

    def hashes(part: Sequence[Row]) -> np.ndarray:
        """``[rows, 4]`` uint64."""
        joined = b"".join(facts_of(row).hash for row in part)
        return np.frombuffer(joined, dtype=np.uint64).reshape(len(part), -1)

    known, searched = hashes(others), hashes(rows)
    if not len(known):
        return
    step = max(1, _PAIRS // len(known))
    for start in range(0, len(searched), step):
        different = searched[start : start + step, None] ^ known[None]
        distances = np.bitwise_count(different).sum(axis=-1, dtype=np.uint16)
        closest = distances.argmin(axis=1)
        least = distances.min(axis=1)
        for index in (least <= HASH_BITS).nonzero()[0].tolist():
            yield start + index, int(closest[index])
