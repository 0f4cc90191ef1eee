"""Clean diagnosis texts: remove the coders' abbreviations NOS and NEC."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import replace

from trunkline.contracts import Row, TransformSpec

_ABBREVIATIONS = re.compile(r",?\s*\b(?:NOS|NEC)\b")


def without_nos(text: str) -> str:
    """The text without "NOS" (not otherwise specified) and "NEC" (not elsewhere classified).

    >>> without_nos("Scarlet fever, NOS")
    'Scarlet fever'
    """
    return " ".join(_ABBREVIATIONS.sub("", text).split())


def _apply(row: Row, rng: random.Random) -> Iterable[Row]:
    text = without_nos(row.text)
    return [replace(row, text=text)] if text else []


WITHOUT_NOS = TransformSpec(
    name="medical/without-nos",
    description="remove the coders' abbreviations NOS and NEC from a text",
    stage="clean",
    apply=_apply,
)
