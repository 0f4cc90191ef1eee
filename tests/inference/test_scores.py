"""The bytes of all tokens together are the UTF-8 of the text, and no score is sent too early."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from made_tokenizers import (
    END,
    MAKERS,
    TEXTS,
    THOROUGH,
    draw_ids,
    draw_stops,
    encode,
    make_fallback,
)
from trunkline.inference.request import Request, StreamChunk, TokenScore
from trunkline.inference.request_state import RequestState
from trunkline.inference.request_state import Sequence as AnswerSequence
from trunkline.inference.scores import TokenTable
from trunkline.tasks import GenerationTask

MANY = settings(THOROUGH, max_examples=60)


@pytest.fixture(scope="module", params=list(MAKERS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """A tokenizer of each kind."""
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """The tokenizer of the tiny base."""
    return MAKERS["byte-level"]()


def answer(tokenizer: Any, ids: Sequence[int], stops: Sequence[str] = ()) -> AnswerSequence:
    """An answer that is about to be made of these tokens."""
    request = Request(None, "x", raw=True, logprobs=0)
    object.__setattr__(request, "stop", tuple(stops))
    state = RequestState(request, None, "base", "d", GenerationTask(1), [0], len(ids))
    table = TokenTable(tokenizer)
    return AnswerSequence(state, 0, tokenizer, frozenset({END}), byte_level=table.byte_level)


def append_all(
    sequence: AnswerSequence, tokenizer: Any, ids: Sequence[int]
) -> Iterator[StreamChunk]:
    """Append tokens until the answer ends; yields the chunks of its stream."""
    table = TokenTable(tokenizer)
    for one in ids:
        chunk = sequence.append(one, table.score(one, -1.0, ()))
        if chunk is not None:
            yield chunk
        if sequence.finish_reason is not None:
            return


def joined(scores: Sequence[TokenScore]) -> bytes:
    return b"".join(score.raw_bytes for score in scores)


@MANY
@given(TEXTS.filter(bool))
def test_bytes_of_the_tokens_of_a_text_are_its_utf8(tokenizer: Any, text: str) -> None:
    ids = encode(tokenizer, text)
    sequence = answer(tokenizer, ids)
    list(append_all(sequence, tokenizer, ids))
    if sequence.finish_reason is None:  # the text has no token
        return
    choice = sequence.build_choice()
    assert joined(choice.scores) == choice.text.encode()
    if sequence.scores.byte_level:
        assert choice.text == text


@MANY
@given(st.data())
def test_bytes_of_any_tokens_are_those_of_the_answer(byte_level: Any, data: st.DataObject) -> None:
    ids = draw_ids(data, byte_level) or [5]
    sequence = answer(byte_level, ids)
    list(append_all(sequence, byte_level, ids))
    choice = sequence.build_choice()
    assert len(choice.scores) == choice.new_tokens
    assert joined(choice.scores).decode(errors="replace") == choice.text


@MANY
@given(st.data())
def test_bytes_end_where_a_stop_string_begins(byte_level: Any, data: st.DataObject) -> None:
    ids = draw_ids(data, byte_level) or [5]
    kept = ids[: ids.index(END)] if END in ids else ids
    stops = draw_stops(data, byte_level.decode(kept, skip_special_tokens=True))
    sequence = answer(byte_level, ids, stops)
    chunks = list(append_all(sequence, byte_level, ids))
    choice = sequence.build_choice()
    assert joined(choice.scores).decode(errors="replace") == choice.text
    assert sum((chunk.scores for chunk in chunks), ()) == choice.scores


@MANY
@given(st.data())
def test_scores_are_never_ahead_of_the_streamed_text(tokenizer: Any, data: st.DataObject) -> None:
    ids = encode(tokenizer, data.draw(TEXTS)) or [5]
    stops = draw_stops(data, tokenizer.decode(ids, skip_special_tokens=True))
    sequence = answer(tokenizer, ids, stops)
    text, sent = "", b""
    for chunk in append_all(sequence, tokenizer, ids):
        text, sent = text + chunk.text, sent + joined(chunk.scores)
        assert text.encode().startswith(sent)
    assert sent == text.encode()


def test_single_bytes_have_their_bytes(byte_level: Any) -> None:
    table = TokenTable(byte_level)
    for byte, sign in bytes_to_unicode().items():
        assert table.bytes_of(byte_level.convert_tokens_to_ids(sign)) == bytes([byte])


def test_fallback_bytes_have_their_bytes() -> None:
    tokenizer = make_fallback("chain")
    table = TokenTable(tokenizer)
    for byte in range(256):
        token = tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>")
        assert table.bytes_of(token) == bytes([byte])


@pytest.mark.parametrize("kind", ["chain", "metaspace"])
def test_token_inside_a_text_keeps_its_space(kind: str) -> None:
    tokenizer = make_fallback(kind)
    token = tokenizer.convert_tokens_to_ids("▁b")
    assert TokenTable(tokenizer).text_of(token) == " b"
    assert TokenTable(tokenizer).bytes_of(token) == b" b"


def test_special_tokens_add_no_bytes_but_are_spelled_out(byte_level: Any) -> None:
    table = TokenTable(byte_level)
    assert (table.text_of(END), table.bytes_of(END)) == ("<|im_end|>", b"")
    assert (table.text_of(99_999), table.bytes_of(99_999)) == ("", b"")


def test_added_token_that_is_not_special_is_spelled_as_it_is() -> None:
    tokenizer = MAKERS["byte-level"]()
    tokenizer.add_tokens(["<tool_call>", "né"])
    ids = encode(tokenizer, "a<tool_call>né")
    table = TokenTable(tokenizer)
    joined_bytes = b"".join(map(table.bytes_of, ids))
    assert joined_bytes.decode(errors="replace") == tokenizer.decode(ids)


def test_token_that_ends_inside_a_stop_string_keeps_the_bytes_before_it(byte_level: Any) -> None:
    (token,) = encode(byte_level, " the")
    sequence = answer(byte_level, [token, token], ["h"])
    list(append_all(sequence, byte_level, [token, token]))
    choice = sequence.build_choice()
    assert (choice.text, [score.raw_bytes for score in choice.scores]) == (" t", [b" t"])
