"""The incremental detokenizer: the text of a growing sequence of tokens, and stop strings.

A character may be spread over several tokens, and a tokenizer may decode the first token of a text
differently from the same token later. So a short window of recent tokens is decoded with each new
token, and the text beyond what the window gave before is new.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_CONTEXT = 8
"""Tokens that stay in the window as context. More than twice the bytes of the longest character: a
window that begins inside a character is in step again before its unsent end."""

_MAX_WINDOW = 16
"""Tokens at which the window is cut."""

REPLACEMENT_CHARACTER = "\ufffd"
"""What part of a character is decoded as."""

_BYTE = re.compile("<0x[0-9A-F]{2}>")


class IncrementalDetokenizer:
    """The text of one sequence of tokens.

    All parts together are ``tokenizer.decode(ids, skip_special_tokens=True)`` of the tokens
    without end tokens, cut before the stop string that begins first. Stop strings that begin at
    the same position cut the same text, so the shortest of them is enough. White space is kept.

    Args:
        tokenizer: of transformers.
        stop: texts that end the sequence, none of them empty.
        end_ids: tokens that are not part of the text.
        skip_special_tokens: whether special tokens are not part of it either.

    Attributes:
        stopped: whether a stop string is complete.
        complete: whether the last token is in the text with all its bytes.
    """

    __slots__ = (
        "_end_ids",
        "_held",
        "_parts",
        "_sent",
        "_skip",
        "_stop",
        "_tokenizer",
        "_window",
        "complete",
        "stopped",
    )

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str],
        end_ids: frozenset[int],
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self.stopped = False
        self.complete = True
        self._skip = skip_special_tokens
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._end_ids = end_ids
        self._window: list[int] = []
        self._sent = 0
        self._held = ""
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        """The text that is certain so far."""
        return "".join(self._parts)

    @property
    def visible(self) -> str:
        """The text so far, including a possible beginning of a stop string."""
        return self.text + self._held

    @property
    def characters(self) -> int:
        """Length of :attr:`visible`."""
        return sum(map(len, self._parts)) + len(self._held)

    def add(self, token_id: int) -> str:
        """Add a token and return the text that it makes certain.

        The text never ends inside a character or inside what may become a stop string. There is
        none after a stop string, whose completion sets ``stopped``.
        """
        name = self._tokenizer.convert_ids_to_tokens(token_id)
        if self.stopped or token_id in self._end_ids or name is None or self._is_silent(token_id):
            return ""
        self._window.append(token_id)
        if _BYTE.fullmatch(name):
            # A run of bytes is decoded together: one invalid byte changes all of them.
            self.complete = False
            return ""
        return self._emit(self._read(last=False), last=False)

    def finish(self) -> str:
        """Return the text held back, once no more tokens come; it may complete a stop string."""
        if self.stopped:
            return ""
        return self._emit(self._read(last=True), last=True)

    def _is_silent(self, token_id: int) -> bool:
        """Whether it is a special token; some tokenizers also decode a lone space as nothing."""
        return not self._decode([token_id]) and bool(
            self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        )

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=self._skip, clean_up_tokenization_spaces=False
        )

    def _read(self, *, last: bool) -> str:
        """Decode the window; return what is new, without an incomplete character at the end."""
        text = self._decode(self._window)
        incomplete = text.endswith(REPLACEMENT_CHARACTER) and not last
        self.complete = not incomplete
        certain = max(self._sent, len(text) - incomplete)
        fresh, self._sent = text[self._sent : certain], certain
        if len(self._window) >= _MAX_WINDOW and not self._is_byte(self._window[-_CONTEXT]):
            unsent = len(text) - certain
            context = self._window[-_CONTEXT:]
            sent = len(self._decode(context)) - unsent
            if sent > 0:
                self._window, self._sent = context, sent
        return fresh

    def _is_byte(self, token_id: int) -> bool:
        """Whether the token is a byte of a run, which must not be cut."""
        return bool(_BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(token_id)))

    def _emit(self, fresh: str, *, last: bool) -> str:
        if not fresh and not last:
            return ""
        part, self._held, self.stopped = _split(self._held + fresh, self._stop, last=last)
        if part:
            self._parts.append(part)
        return part


def _split(text: str, stops: Sequence[str], *, last: bool) -> tuple[str, str, bool]:
    """Split off a possible beginning of a stop; also whether a stop is complete."""
    match = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
    end = len(text) if match is None else match
    if not last:
        longest = max(map(len, stops), default=0)
        for at in range(max(0, len(text) - longest + 1), end):
            if any(stop.startswith(text[at:]) for stop in stops):
                return text[:at], text[at:], False
    return text[:end], "", match is not None
