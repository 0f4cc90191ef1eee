"""Guess the encoding of bytes that are not UTF-8, for a hint. No text is read by a guess."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

_THRESHOLD = 0.5
_EXCERPT = 40
_LATIN = "À-ÏÑ-ÖØ-Üß-ïñ-öø-üÿŒœŠšŽž"
_CENTRAL = "ĄąĆćĘęŁłŃńÓóŚśŹźŻżČčĎďĚěÉéŇňŘřŠšŤťŮůÚúÝýŽžÁáÍíŐőŰűÖöÜüÄäËëÔôĹĺĽľŔŕ"
_SIGNS = "£€§©®°·•´–—‘’“”„…«»"


def _letters(letters: str) -> re.Pattern[str]:
    """Letters beside an ASCII letter or alone between blanks, and typographic signs."""
    return re.compile(
        f"(?<=[A-Za-z])[{letters}]|[{letters}](?=[A-Za-z])|(?<=\\s)[{letters}](?=\\s)|[{_SIGNS}]"
    )


def _script(lower: str, upper: str) -> re.Pattern[str]:
    """Letters of a script beside no ASCII letter, capitals at the start of words, and signs."""
    start = f"(?<![A-Za-z{lower}])[{upper}](?=[{lower}\\s])"
    return re.compile(f"(?<![A-Za-z])[{lower}](?![A-Za-z])|{start}|[{_SIGNS}]")


_SINGLE_BYTE = {
    "cp1252": _letters(_LATIN),
    "cp1250": _letters(_CENTRAL),
    "cp1254": _letters(f"{_LATIN}ĞğİıŞş"),
    "cp1251": _script("а-яё", "А-ЯЁ"),
    "koi8-r": _script("а-яё", "А-ЯЁ"),
    "cp1253": _script("α-ωάέήίόύώ", "Α-ΩΆΈΉΊΌΎΏ"),
}
"""Encoding → what its non-ASCII characters look like in an ordinary text."""


@dataclass(frozen=True, slots=True)
class _DoubleByte:
    """An encoding of two bytes a character, by its frequent characters.

    Attributes:
        leads: their first bytes.
        trail: the least second byte.
        least: how many characters a guess takes; Korean looks like a few Chinese characters.
    """

    name: str
    leads: frozenset[int]
    trail: int = 0
    least: int = 1

    def frequent(self, character: str) -> bool:
        data = character.encode(self.name)
        return len(data) == 2 and data[0] in self.leads and data[1] >= self.trail


_DOUBLE_BYTE = (
    _DoubleByte("cp949", frozenset({0xA1, *range(0xB0, 0xC9)}), trail=0xA1, least=8),
    _DoubleByte("gb18030", frozenset({0xA1, 0xA3, *range(0xB0, 0xD8)}), trail=0xA1),
    _DoubleByte("big5", frozenset(range(0xA1, 0xC7))),
    _DoubleByte("cp932", frozenset({0x81, 0x82, 0x83, *range(0x88, 0x98)})),
    _DoubleByte("euc_jp", frozenset({0xA1, 0xA4, 0xA5, *range(0xB0, 0xD0)})),
)


@dataclass(frozen=True, slots=True)
class EncodingGuess:
    """A likely encoding, and how the first line with a character beyond ASCII reads in it."""

    encoding: str
    excerpt: str


def guess_encoding(sample: bytes) -> EncodingGuess | None:
    """The likely encoding of a part of a file that begins at the start of a line.

    Returns:
        None if the sample is damaged UTF-8, or nothing fits.
    """
    if (wide := guess_utf16(sample)) is not None:
        return EncodingGuess(wide, _excerpt(sample.decode(wide, "replace")))
    if is_mostly_utf8(sample):
        return None
    best, best_score = None, _THRESHOLD
    for name in (*_SINGLE_BYTE, *(encoding.name for encoding in _DOUBLE_BYTE)):
        try:
            text = codecs.getincrementaldecoder(name)().decode(sample)
        except UnicodeDecodeError:
            continue
        score = _score(name, text)
        if score > best_score:
            best, best_score = EncodingGuess(name, _excerpt(text)), score
    return best


def guess_utf16(sample: bytes) -> str | None:
    """``utf-16-le`` or ``utf-16-be`` if many bytes at odd or even places are zero, else None."""
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if max(even, odd) < max(2, len(sample) // 20) or min(even, odd) * 8 > max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def is_mostly_utf8(sample: bytes) -> bool:
    """Whether most of the characters beyond ASCII are UTF-8, so that the rest is damage."""
    text = sample.decode("utf-8", "replace")
    damaged = text.count("\N{REPLACEMENT CHARACTER}")
    valid = sum(character > "\x7f" for character in text) - damaged
    return valid > 2 * damaged


def _score(name: str, text: str) -> float:
    """The share of the characters beyond ASCII that an ordinary text has."""
    foreign = [character for character in text if character > "\x7f"]
    if not foreign:
        return 0.0
    if name in _SINGLE_BYTE:
        return len(_SINGLE_BYTE[name].findall(text)) / len(foreign)
    encoding = next(encoding for encoding in _DOUBLE_BYTE if encoding.name == name)
    if len(foreign) < encoding.least:
        return 0.0
    return sum(encoding.frequent(character) for character in foreign) / len(foreign)


def _excerpt(text: str) -> str:
    """Up to 40 characters around the first one beyond ASCII."""
    place = next((index for index, character in enumerate(text) if character > "\x7f"), 0)
    start = max(text.rfind("\n", 0, place) + 1, place - _EXCERPT // 2)
    return text[start : start + _EXCERPT].splitlines()[0].strip() if text else ""
