"""Compare the tokenizer files in an adapter's folder with those of the base.

An imported adapter is served with the base's tokenizer and chat template. The folder's own files
are only read to say where they differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.errors import IntegrityError
from trunkline.files import brief_repr, read_json_object

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER = "tokenizer.json"
ADDED_TOKENS = "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATE_JSON = "chat_template.json"
FILES = (TOKENIZER_CONFIG, TOKENIZER, ADDED_TOKENS, CHAT_TEMPLATE, CHAT_TEMPLATE_JSON)
"""The files that are read, where a folder has them."""

_MAX_BYTES = 64 << 20
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a folder's tokenizer files say.

    Attributes:
        chat_template: of a conversation; None if there is none.
        added: token → id of the tokens that are marked as added.
        vocabulary: token → id of all others, if the folder has them.
        end: the token that ends a text.
        unreadable: names of the files that could not be read.
    """

    chat_template: str | None
    added: Mapping[str, int]
    vocabulary: Mapping[str, int]
    end: str | None
    unreadable: tuple[str, ...]


def tokenizer_notes(folder: Path, base: Path, *, chat: bool) -> list[str]:
    """Sentences on what the folder has and what is not used.

    Args:
        folder: of the adapter.
        base: folder of the base.
        chat: whether the adapter is served with the base's chat template.
    """
    if not any((folder / name).is_file() for name in FILES):
        return []
    own, served = read_tokenizer_files(folder), read_tokenizer_files(base)
    notes = [f"{name} in the folder can't be read; it is not used." for name in own.unreadable]
    notes += _chat_notes(own.chat_template, served.chat_template, chat)
    notes += _token_notes(own, served)
    return notes


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read a folder's tokenizer files; a file that is not as expected counts as absent."""
    unreadable: list[str] = []
    config = _read(folder / TOKENIZER_CONFIG, unreadable)
    tokenizer = _read(folder / TOKENIZER, unreadable)
    return TokenizerFiles(
        chat_template=_chat_template(folder, config, unreadable),
        added=_added_tokens(config, tokenizer, _read(folder / ADDED_TOKENS, unreadable)),
        vocabulary=_vocabulary(tokenizer),
        end=_content(config.get("eos_token")),
        unreadable=tuple(unreadable),
    )


def _read(path: Path, unreadable: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_json_object(path, max_bytes=_MAX_BYTES, allow_nan=True)
    except (IntegrityError, OSError):
        unreadable.append(path.name)
        return {}


def _chat_template(folder: Path, config: Mapping[str, Any], unreadable: list[str]) -> str | None:
    """The template in the order in which transformers looks: its own file first."""
    path = folder / CHAT_TEMPLATE
    if path.is_file():
        try:
            if path.stat().st_size <= _MAX_BYTES:
                return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            pass
        unreadable.append(path.name)
    value = config.get("chat_template")
    if value is None:
        value = _read(folder / CHAT_TEMPLATE_JSON, unreadable).get("chat_template")
    if isinstance(value, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in value if isinstance(one, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _added_tokens(
    config: Mapping[str, Any], tokenizer: Mapping[str, Any], listed: Mapping[str, Any]
) -> dict[str, int]:
    added = {token: number for token, number in listed.items() if type(number) is int}
    decoder = config.get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        text = _content(token)
        if text is not None and number.isascii() and number.isdigit():
            added[text] = int(number[:18])
    entries = tokenizer.get("added_tokens")
    for entry in entries if isinstance(entries, list) else ():
        text = _content(entry)
        if text is not None and type(entry.get("id")) is int:
            added[text] = entry["id"]
    return added


def _content(token: Any) -> str | None:
    """A token's text, from either form in which transformers writes it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        return {token: number for token, number in vocabulary.items() if type(number) is int}
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score
        return {
            entry[0]: number
            for number, entry in enumerate(vocabulary)
            if isinstance(entry, list) and entry and isinstance(entry[0], str)
        }
    return {}


def _chat_notes(own: str | None, served: str | None, chat: bool) -> list[str]:
    if own is None:
        return []
    if served is None:
        return ["The folder's chat template is not used; the base has none."]
    if own.strip() == served.strip():
        if chat:
            return []
        return ["The folder has the base's chat template, which is used only with --chat."]
    line, mine, theirs = _first_difference(own, served)
    instead = "the base's is used" if chat else "no chat template is used without --chat"
    return [
        f"The folder's chat template is not used: {instead}. They differ in line {line}: "
        f"{brief_repr(mine)} in the folder, {brief_repr(theirs)} in the base."
    ]


def _first_difference(own: str, served: str) -> tuple[int, str, str]:
    mine, theirs = own.strip().splitlines(), served.strip().splitlines()
    count = max(len(mine), len(theirs))
    mine += [""] * (count - len(mine))
    theirs += [""] * (count - len(theirs))
    return next(
        (number, one, other)
        for number, (one, other) in enumerate(zip(mine, theirs, strict=True), 1)
        if one != other
    )


def _token_notes(own: TokenizerFiles, served: TokenizerFiles) -> list[str]:
    notes = []
    known = {**served.vocabulary, **served.added}
    if known:
        lacking = sorted(token for token in own.added if token not in known)
        moved = sorted(
            token for token, number in own.added.items() if known.get(token, number) != number
        )
        if lacking:
            notes.append(
                f"The folder's tokenizer adds {_counted(lacking)} that the base lacks: "
                f"{_listed(lacking)}. They are not used: the base's tokenizer splits such text."
            )
        if moved:
            notes.append(
                f"The folder's tokenizer gives {_counted(moved)} another id than the base: "
                f"{_listed(moved)}. The base's tokenizer is used."
            )
    if own.vocabulary and served.vocabulary and own.vocabulary != served.vocabulary:
        changed = len(dict(own.vocabulary.items() ^ served.vocabulary.items()))
        notes.append(
            f"The folder's vocabulary differs from the base's in {changed:,} tokens, so it may be "
            "of another base. The base's is used."
        )
    if own.end is not None and served.end is not None and own.end != served.end:
        notes.append(
            f"The folder's tokenizer ends texts with {brief_repr(own.end)}, the base's with "
            f"{brief_repr(served.end)}. The base's is used, so an answer may not end in time."
        )
    return notes


def _counted(tokens: list[str]) -> str:
    return "1 token" if len(tokens) == 1 else f"{len(tokens):,} tokens"


def _listed(tokens: list[str]) -> str:
    shown = ", ".join(brief_repr(token) for token in tokens[:_SHOWN])
    return shown if len(tokens) <= _SHOWN else f"{shown} and {len(tokens) - _SHOWN} more"
