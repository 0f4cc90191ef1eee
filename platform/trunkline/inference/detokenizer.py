"""One sequence's tokens become text, piece by piece.

Owns: which text is certain, and stop strings. Must not know: models, requests, log probabilities.

Tokens are not texts: a character may be spread over several, and a tokenizer may word a token
otherwise when it stands first. So a short window of recent tokens is decoded with each new one,
and what the window says beyond what was said before is new.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_KEPT = 8
"""Tokens that stay in the window as context. More than the longest character has bytes, twice: a
window that begins inside one is back in step before its unsaid end begins."""

_LONGEST = 16
"""Tokens at which the window is cut."""

REPLACEMENT_CHARACTER = "\ufffd"
"""What a part of a character is decoded as."""

_BYTE = re.compile("<0x[0-9A-F]{2}>")


class IncrementalDetokenizer:
    """The text of one sequence of tokens.

    All pieces together are ``tokenizer.decode(ids, skip_special_tokens=True)`` of the tokens
    without end tokens, cut before the stop string that begins first. Stops that begin at one place
    cut the same text, so the shortest of them is enough. White space is kept as it is.

    Args:
        tokenizer: of transformers.
        stop: texts that end the sequence, none of them empty.
        end_ids: tokens that are not part of the text.
    """

    __slots__ = (
        "_end_ids",
        "_held",
        "_pieces",
        "_said",
        "_stop",
        "_tokenizer",
        "_window",
        "stopped",
    )

    def __init__(self, tokenizer: Any, stop: Sequence[str], end_ids: frozenset[int]) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._end_ids = end_ids
        self._window: list[int] = []
        self._said = 0
        self._held = ""
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All text that is certain so far."""
        return "".join(self._pieces)

    @property
    def characters(self) -> int:
        """Of the text so far, with what may yet become a stop string."""
        return sum(map(len, self._pieces)) + len(self._held)

    def add(self, token_id: int) -> str:
        """The text that this token makes certain.

        Never a part of a character, nor what may become the beginning of a stop string; nothing
        after a stop string, whose completion sets ``stopped``.
        """
        name = self._tokenizer.convert_ids_to_tokens(token_id)
        if self.stopped or token_id in self._end_ids or name is None or self._is_silent(token_id):
            return ""
        self._window.append(token_id)
        if _BYTE.fullmatch(name):
            # Such bytes are worded together: one that is wrong changes all that stand with it.
            return ""
        return self._pass_on(self._read(last=False), last=False)

    def finish(self) -> str:
        """What was held back, when no more tokens come; may complete a stop string."""
        if self.stopped:
            return ""
        return self._pass_on(self._read(last=True), last=True)

    def _is_silent(self, token_id: int) -> bool:
        """Whether it is a special token; a lone space may be worded as nothing too."""
        return not self._decode([token_id]) and bool(
            self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        )

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _read(self, *, last: bool) -> str:
        """What the window says and was not said yet; a character may still be on its way."""
        text = self._decode(self._window)
        begun = text.endswith(REPLACEMENT_CHARACTER) and not last
        certain = max(self._said, len(text) - begun)
        fresh, self._said = text[self._said : certain], certain
        if len(self._window) >= _LONGEST:
            unsaid = len(text) - certain
            kept = self._window[-_KEPT:]
            said = len(self._decode(kept)) - unsaid
            if said > 0:
                self._window, self._said = kept, said
        return fresh

    def _pass_on(self, fresh: str, *, last: bool) -> str:
        if not fresh and not last:
            return ""
        piece, self._held, self.stopped = _split(self._held + fresh, self._stop, last=last)
        if piece:
            self._pieces.append(piece)
        return piece


def _split(text: str, stops: Sequence[str], *, last: bool) -> tuple[str, str, bool]:
    """Divide into what is certain and what may be the beginning of a stop; whether one was met."""
    found = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
    end = len(text) if found is None else found
    if not last:
        longest = max(map(len, stops), default=0)
        for at in range(max(0, len(text) - longest + 1), end):
            if any(stop.startswith(text[at:]) for stop in stops):
                return text[:at], text[at:], False
    return text[:end], "", found is not None
