"""Decode a text file strictly: lines with their numbers, and errors that name line and encoding.

Bytes that are not UTF-8 are refused with a guess of their encoding; no text is read by a guess.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

from trunkline.errors import DataError

MAX_CHARACTERS = 1 << 24
"""The longest line, field or JSON object. A file with a longer one is damaged or of another
format, and reading on would fill the memory."""

_MAX_ENTRY_BYTES = 1 << 26
_HEAD_BYTES = 1 << 12
_CHUNK_BYTES = 1 << 16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_UNPACK = "Unpack it first, and name the file that was in it."
_EXPORT = "Export the rows as CSV in UTF-8."
_DOWNLOAD = "Download the file itself: a sign-in page or an error may have come instead."
_OTHER_CONTENTS = (
    (b"\x1f\x8b", "gzip data", _UNPACK),
    (b"BZh9", "bzip2 data", _UNPACK),
    (b"\xfd7zXZ", "xz data", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "Zstandard data", _UNPACK),
    (b"7z\xbc\xaf", "7-Zip data", _UNPACK),
    (b"PK\x03\x04", "zip or Excel data", "Unpack it, or save the sheet as CSV UTF-8."),
    (b"\xd0\xcf\x11\xe0", "old Excel or Office data", "Save the sheet as CSV UTF-8."),
    (b"PAR1\x15", "Parquet data", "Rename it to end in .parquet."),
    (b"ARROW1\0\0", "Arrow data", "Write the rows as Parquet or JSON lines."),
    (b"SQLite format 3", "SQLite data", _EXPORT),
    (b"%PDF-", "PDF data", _EXPORT),
    (b"version https://git-lfs", "a Git LFS pointer", "Fetch the file itself: git lfs pull."),
    (b"<!DOCTYPE html", "a web page", _DOWNLOAD),
    (b"<!doctype html", "a web page", _DOWNLOAD),
    (b"<html", "a web page", _DOWNLOAD),
)


class TextReader:
    """The decoded text of a file, by lines or in chunks.

    A byte order mark decides the encoding and is taken off. Without one, it is the encoding that
    was given, or UTF-8; nothing is guessed.

    Args:
        name: names the file in errors.
        open_bytes: opens the file; called again after an error, to locate it.
        encoding: canonical name of an encoding, or None.
        newline: as in :func:`open`; lines end in LF, CRLF or CR in either case.
        has_option: whether the caller's user can choose the encoding; errors advise it.

    Attributes:
        line: the number of the last line read, counted from 1.
    """

    def __init__(
        self,
        name: str,
        open_bytes: Callable[[], BinaryIO],
        *,
        encoding: str | None = None,
        newline: Literal[""] | None = None,
        has_option: bool = True,
    ) -> None:
        self.name = name
        self.line = 0
        self._has_begun = False
        self._open_bytes = open_bytes
        self._has_option = has_option
        stream = open_bytes()
        try:
            head = stream.read(_HEAD_BYTES)
            self._mark, self._encoding = self._resolve_encoding(head, encoding)
            stream.seek(self._mark)
            self._stream = io.TextIOWrapper(stream, encoding=self._encoding, newline=newline)
        except BaseException:
            stream.close()
            raise

    @classmethod
    def of_file(
        cls, path: Path, encoding: str | None = None, *, newline: Literal[""] | None = None
    ) -> Self:
        """Read a file whose encoding a user can choose."""
        return cls(path.name, lambda: path.open("rb"), encoding=encoding, newline=newline)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.close()

    def __iter__(self) -> Iterator[str]:
        while line := self.readline():
            yield line

    def readline(self) -> str:
        """The next line with its ending; empty at the end of the file.

        Raises:
            DataError: it is not in the encoding, too long, or has a NUL character.
        """
        try:
            line = self._stream.readline(MAX_CHARACTERS)
        except UnicodeError as error:
            raise self._undecodable(error) from error
        if not line:
            return line
        self.line += 1
        if self.line == 1:
            line = line.lstrip("\ufeff")  # of an encoding without a mark of its own
        if len(line) >= MAX_CHARACTERS:
            raise DataError(
                f"Line {self.line} of {self.name} has more than {MAX_CHARACTERS:,} characters.",
                "Check that the file is of the format that its suffix names.",
            )
        self._check_characters(line)
        return line

    def read(self, size: int) -> str:
        """The next characters, at most ``size``; empty at the end of the file.

        Raises:
            DataError: they are not in the encoding.
        """
        try:
            text = self._stream.read(size)
        except UnicodeError as error:
            raise self._undecodable(error) from error
        if not self._has_begun:
            self._has_begun = True
            text = text.lstrip("\ufeff")
        return text

    def _resolve_encoding(self, head: bytes, encoding: str | None) -> tuple[int, str]:
        """The length of the byte order mark, and the encoding of what follows."""
        if (other := other_contents(head)) is not None:
            raise DataError(f"{self.name} holds {other[0]}, not text.", other[1])
        for mark, marked in _MARKS:
            if head.startswith(mark):
                if encoding is None or marked.startswith(encoding):
                    return len(mark), marked
                raise DataError(
                    f"{self.name} begins with the byte order mark of {marked}, not of {encoding}.",
                    "Leave out --encoding.",
                )
        if encoding in ("utf-16", "utf-32"):
            raise DataError(
                f"{self.name} has no byte order mark, so {encoding} can be read in two ways.",
                f"Name {encoding}-le or {encoding}-be; Windows writes {encoding}-le.",
            )
        if encoding is None and (wide := guess_wide(head)) is not None:
            family = wide[:6].upper()
            raise DataError(
                f"{self.name} is {family} without a byte order mark.", self._advice(wide)
            )
        return 0, encoding or "utf-8"

    def _check_characters(self, line: str) -> None:
        if "\0" in line:
            raise DataError(
                f"Line {self.line} of {self.name} has a NUL character.",
                "Check that it is a text file, and its encoding.",
            )
        if self.line > 1 and line.startswith("\ufeff"):
            raise DataError(
                f"Line {self.line} of {self.name} begins with a byte order mark: two files were "
                "joined.",
                "Remove the mark, and a second header.",
            )
        if self._encoding == "utf-8" and "\x1b$" in line:
            raise DataError(
                f"Line {self.line} of {self.name} has the escape sequences of iso2022_jp.",
                self._advice("iso2022_jp"),
            )

    def _advice(self, encoding: str) -> str:
        if self._has_option:
            return f"Add --encoding {encoding}, or FileOptions(encoding={encoding!r}) in Python."
        return f"Convert it: iconv -f {encoding} -t utf-8."

    def _undecodable(self, error: UnicodeError) -> DataError:
        """The error for bytes that are not in the encoding, with line and likely encoding."""
        place = _locate(self._open_bytes, self._mark, self._encoding)
        if place is None:
            return DataError(f"{self.name} can't be decoded: {error}.", "Name the file's encoding.")
        line, byte, sample = place
        message = f"Line {line} of {self.name} is not {self._encoding.upper()}: byte 0x{byte:02X}."
        if self._encoding == "utf-8":
            if is_mostly_utf8(sample):
                return DataError(message, "What is around it is UTF-8: correct this line.")
            if (guess := guess_encoding(sample)) is not None:
                advice = self._advice(guess.encoding)
                return DataError(message, f"If {guess.excerpt!r} reads well: {advice}")
        if self._has_option:
            return DataError(message, "Name its encoding with --encoding, or save it as UTF-8.")
        return DataError(message, "Save it as UTF-8.")


def other_contents(head: bytes) -> tuple[str, str] | None:
    """What a file holds that begins with these bytes and is no text, and what to do about it."""
    for magic, kind, cure in _OTHER_CONTENTS:
        if head.startswith(magic):
            return kind, cure
    return None


def decode_text(data: bytes, name: str) -> str:
    """Decode bytes that are UTF-8, or have a byte order mark.

    Args:
        name: names them in errors.

    Raises:
        DataError: they are in another encoding; names the likely one.
    """
    reader = TextReader(name, lambda: io.BytesIO(data), has_option=False)
    with reader:
        return "".join(reader)


def read_entries(path: Path) -> tuple[str, ...]:
    """The lines of a file, such as labels, without blanks around them.

    Raises:
        DataError: the file is not UTF-8 text, has no entries, or an empty line between two.
    """
    entries: list[str] = []
    blank = 0
    with path.open("rb") as stream:  # a pipe can be read only once
        data = stream.read(_MAX_ENTRY_BYTES)
    with TextReader(path.name, lambda: io.BytesIO(data), has_option=False) as reader:
        for line in reader:
            if not (entry := line.strip()):
                blank = blank or reader.line
                continue
            if blank:
                raise DataError(
                    f"Line {blank} of {path.name} is empty.", "Remove the line, or fill it."
                )
            entries.append(entry)
    if not entries:
        raise DataError(f"{path.name} is empty.", "Write one entry per line.")
    return tuple(entries)


def _locate(
    open_bytes: Callable[[], BinaryIO], mark: int, encoding: str
) -> tuple[int, int, bytes] | None:
    """The line and the first byte of what is not in the encoding, and the bytes around it."""
    decoder = codecs.getincrementaldecoder(encoding)()
    counter = _LineCounter()
    with open_bytes() as stream:
        position = stream.seek(mark)
        while True:
            chunk = stream.read(_CHUNK_BYTES)
            try:
                counter.add(decoder.decode(chunk, final=not chunk))
            except UnicodeDecodeError as error:
                pending = len(error.object) - len(chunk)
                counter.add(bytes(error.object[: error.start]).decode(encoding, "replace"))
                start = position - pending + error.start
                sample = _lines_around(stream, start, mark)
                return counter.line, error.object[error.start], sample
            except UnicodeError:
                return None
            position += len(chunk)
            if not chunk:
                return None


class _LineCounter:
    """Count lines that end in LF, CRLF or CR, over chunks."""

    def __init__(self) -> None:
        self.line = 1
        self._after_cr = False

    def add(self, text: str) -> None:
        self.line += text.count("\n") + text.count("\r") - text.count("\r\n")
        self.line -= self._after_cr and text.startswith("\n")
        if text:
            self._after_cr = text.endswith("\r")


def _lines_around(stream: BinaryIO, position: int, mark: int) -> bytes:
    """About 64 KiB around a position, from the start of a line."""
    start = max(mark, position - _CHUNK_BYTES // 2)
    stream.seek(start)
    sample = stream.read(_CHUNK_BYTES)
    if start > mark:
        line_start = sample.find(b"\n", 0, position - start) + 1
        sample = sample[line_start:]
    return sample


# ---------------------------------------------------------------------------- guessing an encoding

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
    if (wide := guess_wide(sample)) is not None:
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


def guess_wide(sample: bytes) -> str | None:
    """The form of UTF-16 or UTF-32 whose zero bytes a sample has, else None."""
    zeros = [2 * sample[place::4].count(0) > len(sample) // 4 for place in range(4)]
    if zeros[2] and zeros[3] and not zeros[0]:
        return "utf-32-le"
    if zeros[0] and zeros[1] and not zeros[3]:
        return "utf-32-be"
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
