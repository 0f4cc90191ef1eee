"""The log probabilities of tokens as clients see them: each with its text, bytes and offset.

A byte-level tokenizer cuts between bytes, not characters, so the text of a single token may be only
replacement characters. Its bytes are exact: those of all tokens together are the text's UTF-8.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from trunkline.inference.detokenizer import REPLACEMENT_CHARACTER, IncrementalDetokenizer
from trunkline.inference.request import TokenScore, TopToken
from trunkline.inference.sampling import RawScore

_FALLBACK_BYTE = re.compile("<0x([0-9A-F]{2})>")


class TokenTable:
    """Text and bytes of single tokens, each computed once.

    Args:
        tokenizer: of transformers.

    Attributes:
        byte_level: whether every token is a sequence of bytes.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._alphabet = byte_alphabet() if _is_byte_level(tokenizer) else None
        self._anchor = self._find_anchor()
        self._known: dict[int, tuple[str, bytes]] = {}

    @property
    def byte_level(self) -> bool:
        return self._alphabet is not None

    def text_of(self, token: int) -> str:
        """The token's text in the middle of a text; special tokens are spelled out."""
        return self._look_up(token)[0]

    def bytes_of(self, token: int) -> bytes:
        """The bytes that the token adds to a text; none if it is a special token."""
        return self._look_up(token)[1]

    def score(
        self, token: int, logprob: float | None, top: Sequence[tuple[int, float]]
    ) -> TokenScore:
        """The score of a token, without an offset."""
        tops: list[TopToken] = []
        for one, value in top:
            text, raw_bytes = self._look_up(one)
            tops.append(TopToken(one, text, value, raw_bytes))
        text, raw_bytes = self._look_up(token)
        return TokenScore(token, text, logprob, tuple(tops), raw_bytes=raw_bytes)

    def spell(self, tokens: Sequence[int]) -> str:
        """The text of tokens, with special tokens spelled out."""
        return self._decode(list(tokens))

    def _look_up(self, token: int) -> tuple[str, bytes]:
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = self._read(token)
        return known

    def _read(self, token: int) -> tuple[str, bytes]:
        name = self._tokenizer.convert_ids_to_tokens(token)
        if name is None:  # beyond the tokenizer's vocabulary
            return "", b""
        text = self._decode([token])
        if text and not self._decode([token], skip_special_tokens=True):
            return text, b""
        if self._alphabet is not None and REPLACEMENT_CHARACTER in text:
            try:
                return text, bytes(self._alphabet[character] for character in name)
            except KeyError:  # an added token, which is spelled as it is
                return text, name.encode()
        if self._alphabet is None and (match := _FALLBACK_BYTE.fullmatch(name)):
            return text, bytes.fromhex(match[1])
        if self._alphabet is None and self._anchor is not None:
            # Place, a token may lose its leading space.
            anchor, anchor_text = self._anchor
            both = self._decode([anchor, token])
            if both.startswith(anchor_text):
                text = both[len(anchor_text) :]
        return text, text.encode()

    def _find_anchor(self) -> tuple[int, str] | None:
        """A token that other tokens can follow, and its text."""
        ids = self._tokenizer.encode("a", add_special_tokens=False)
        text = self._decode(ids[-1:])
        return (ids[-1], text) if text and REPLACEMENT_CHARACTER not in text else None

    def _decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )


class ScoreLog:
    """The scores of one answer, in step with its text.

    Args:
        byte_level: whether the tokenizer is; see :class:`TokenTable`.

    Attributes:
        scores: of all tokens so far.
    """

    __slots__ = ("_ends", "_sent", "byte_level", "scores")

    def __init__(self, *, byte_level: bool) -> None:
        self.scores: list[TokenScore] = []
        self.byte_level = byte_level
        self._ends: list[float] = []
        self._sent = 0

    def add(self, score: TokenScore, detokenizer: IncrementalDetokenizer, before: int) -> None:
        """Add the score of the token that the detokenizer was given last.

        Args:
            score: without an offset.
            before: the detokenizer's characters before the token.
        """
        after = detokenizer.characters
        own = score.raw_bytes
        first = before == 0 and detokenizer.complete and bool(own)
        if first and not self.byte_level and not any(one.raw_bytes for one in self.scores):
            own = detokenizer.visible.encode()  # the first token loses its leading space
        complete = REPLACEMENT_CHARACTER not in score.token
        begins = after - len(score.token) if complete else before
        self.scores.append(replace(score, offset=max(before, begins), raw_bytes=own))
        self._ends.append(math.inf)
        if detokenizer.complete:  # until then, where a token of the run ends is not certain
            place = len(self._ends)
            while place and self._ends[place - 1] == math.inf:
                place -= 1
                self._ends[place] = after

    def cut(self, text: str) -> None:
        """Drop the tokens of a stop string; ``text`` is the answer before it.

        A token that begins before the stop string and ends inside it keeps the bytes before it.
        """
        tail = self.scores[self._sent :]
        if not tail:
            return
        data = b"".join(score.raw_bytes for score in tail)
        size = _size_of(text[tail[0].offset :], data)
        kept: list[TokenScore] = []
        for score in tail:
            if size is None:  # a run of invalid bytes
                if score.offset < len(text):
                    kept.append(score)
            elif size > 0:
                own = score.raw_bytes[:size]
                kept.append(replace(score, raw_bytes=own))
                size -= len(own)
        self.scores[self._sent :] = kept

    def take(self, characters: int | None) -> tuple[TokenScore, ...]:
        """The scores not taken before of tokens that end within the first ``characters``.

        Args:
            characters: of the text that is certain; None: the answer has ended.
        """
        start = self._sent
        while self._sent < len(self.scores) and (
            characters is None or self._ends[self._sent] <= characters
        ):
            self._sent += 1
        return tuple(self.scores[start : self._sent])


class PromptScores:
    """The scores of one prompt, added step by step; the first token has none.

    Args:
        spell_special: whether special tokens are part of the prompt's text.

    Attributes:
        scores: of the tokens so far.
    """

    def __init__(
        self, prompt: Sequence[int], table: TokenTable, tokenizer: Any, *, spell_special: bool
    ) -> None:
        self._table = table
        self._detokenizer = IncrementalDetokenizer(
            tokenizer, (), frozenset(), skip_special_tokens=not spell_special
        )
        self._log = ScoreLog(byte_level=table.byte_level)
        self._add(prompt[0], None, ())

    @property
    def scores(self) -> tuple[TokenScore, ...]:
        return tuple(self._log.scores)

    def extend(self, scores: Sequence[RawScore]) -> None:
        """Add the scores of the tokens that follow."""
        for token, logprob, top in scores:
            self._add(token, logprob, top)

    def _add(self, token: int, logprob: float | None, top: Sequence[tuple[int, float]]) -> None:
        before = self._detokenizer.characters
        self._detokenizer.add(token)
        self._log.add(self._table.score(token, logprob, top), self._detokenizer, before)


def byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level tokenizers write bytes (Radford et al. 2019, GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(others)}


def _is_byte_level(tokenizer: Any) -> bool:
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return hasattr(tokenizer, "byte_decoder")
    return "ByteLevel" in _types(json.loads(decoder.__getstate__()))


def _types(decoder: Any) -> Iterator[str]:
    yield decoder["type"]
    for part in decoder.get("decoders", ()):
        yield from _types(part)


def _size_of(text: str, data: bytes) -> int | None:
    """How many bytes at the start of ``data`` are ``text``; None if it does not begin so."""
    sizes = range(len(data), -1, -1)
    return next((size for size in sizes if data[:size].decode(errors="replace") == text), None)
