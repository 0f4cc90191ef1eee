"""The parts of a text are exactly the text, and no part is sent too early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from made_tokenizers import (
    BROKEN,
    END,
    MAKERS,
    TEXTS,
    THOROUGH,
    draw_ids,
    draw_stops,
    encode,
    make_fallback,
)
from tiny_base import make_tokenizer
from trunkline.inference.detokenizer import IncrementalDetokenizer


@pytest.fixture(scope="module", params=list(MAKERS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """A tokenizer of each kind."""
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """The tokenizer of the tiny base."""
    return make_tokenizer()


def decode_all(
    tokenizer: Any, ids: Sequence[int], end_ids: frozenset[int] = frozenset({END})
) -> str:
    """The reference: all tokens at once."""
    return tokenizer.decode([one for one in ids if one not in end_ids], skip_special_tokens=True)


def cut(text: str, stops: Sequence[str]) -> str:
    """Before the stop that begins first."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def decode_parts(tokenizer: Any, ids: Sequence[int], stops: Sequence[str] = ()) -> list[str]:
    """The text that each token makes certain, and the rest."""
    detokenizer = IncrementalDetokenizer(tokenizer, stops, frozenset({END}))
    parts = [detokenizer.add(one) for one in ids]
    parts.append(detokenizer.finish())
    assert detokenizer.text == "".join(parts)
    return parts


# ------------------------------------------------------------------------------- without stops


@THOROUGH
@given(st.data())
def test_parts_are_the_text(tokenizer: Any, data: st.DataObject) -> None:
    ids = draw_ids(data, tokenizer)
    assert "".join(decode_parts(tokenizer, ids)) == decode_all(tokenizer, ids)


@THOROUGH
@given(st.binary(max_size=60))
def test_parts_of_any_bytes_are_the_text(byte_level: Any, data: bytes) -> None:
    alphabet = bytes_of(byte_level)
    ids = [alphabet[byte] for byte in data]
    assert "".join(decode_parts(byte_level, ids)) == data.decode("utf-8", "replace")


@THOROUGH
@given(st.data())
def test_replacement_characters_occur_in_the_text(tokenizer: Any, data: st.DataObject) -> None:
    ids = draw_ids(data, tokenizer)
    parts = decode_parts(tokenizer, ids)
    expected = decode_all(tokenizer, ids)
    for index, character in enumerate("".join(parts)):
        assert character != BROKEN or expected[index] == BROKEN


@THOROUGH
@given(st.data())
def test_only_a_begun_character_is_held_back(byte_level: Any, data: st.DataObject) -> None:
    detokenizer = IncrementalDetokenizer(byte_level, (), frozenset({END}))
    ids = draw_ids(data, byte_level)
    for count, one in enumerate(ids, 1):
        detokenizer.add(one)
        text = decode_all(byte_level, ids[:count])
        assert detokenizer.text == (text[:-1] if text.endswith(BROKEN) else text)


def test_a_character_is_sent_with_its_last_byte(byte_level: Any) -> None:
    alphabet = bytes_of(byte_level)
    ids = [alphabet[byte] for byte in "a😀b".encode()]
    assert decode_parts(byte_level, ids) == ["a", "", "", "", "😀", "b", ""]


def test_a_character_that_is_never_completed_is_a_replacement_at_the_end(byte_level: Any) -> None:
    alphabet = bytes_of(byte_level)
    ids = [alphabet[byte] for byte in "a😀".encode()[:-1]]
    assert decode_parts(byte_level, ids) == ["a", "", "", "", BROKEN]


def test_an_invalid_byte_among_valid_ones_is_decoded_as_the_tokenizer_does() -> None:
    tokenizer = make_fallback("chain")
    ids = tokenizer.convert_tokens_to_ids(["a", "<0xC3>", "<0xA9>", "<0xFF>", "▁b"])
    assert decode_parts(tokenizer, ids) == ["a", "", "", "", BROKEN * 3 + " b", ""]


def test_an_invalid_run_of_bytes_is_not_cut() -> None:
    tokenizer = make_fallback("chain")
    names = [*["<0x00>"] * 7, "<0x80>", "<0x30>", "<0x30>", *[""] * 20]
    ids = tokenizer.convert_tokens_to_ids(names)
    assert "".join(decode_parts(tokenizer, ids)) == BROKEN * 10


@pytest.mark.parametrize("kind", ["chain", "metaspace"])
def test_spaces_between_tokens_survive(kind: str) -> None:
    tokenizer = make_fallback(kind)
    ids = tokenizer.convert_tokens_to_ids(["▁a", "▁b", "▁", "▁a", "▁."] * 5)
    assert decode_parts(tokenizer, ids)[:5] == ["a", " b", " ", " a", " ."]
    assert "".join(decode_parts(tokenizer, ids)) == decode_all(tokenizer, ids)


@pytest.mark.parametrize("kind", ["chain", "metaspace"])
def test_tokens_without_text_keep_the_space_of_the_next_token(kind: str) -> None:
    tokenizer = make_fallback(kind)
    ids = tokenizer.convert_tokens_to_ids(["a", *[""] * 20, "▁b"])
    assert "".join(decode_parts(tokenizer, ids)) == "a b"


def test_end_tokens_and_control_tokens_are_not_text(byte_level: Any) -> None:
    detokenizer = IncrementalDetokenizer(byte_level, (), frozenset({END, *encode(byte_level, "b")}))
    ids = [1, *encode(byte_level, "a"), 0, *encode(byte_level, "b"), END, 99_999]
    assert [detokenizer.add(one) for one in ids] == ["", "a", "", "", "", ""]


def test_white_space_at_both_ends_stays(byte_level: Any) -> None:
    assert "".join(decode_parts(byte_level, encode(byte_level, " \n a \n "))) == " \n a \n "


def test_finishing_twice_repeats_nothing(byte_level: Any) -> None:
    detokenizer = IncrementalDetokenizer(byte_level, ["ab"], frozenset())
    detokenizer.add(encode(byte_level, "a")[0])
    assert [detokenizer.finish(), detokenizer.finish()] == ["a", ""]


@pytest.mark.parametrize(
    "repeated",
    ["a", BROKEN, "\x80", "<|im_start|>", "<0xE2>", None],
    ids=["text", "replacement", "lone byte", "control", "fallback byte", "no token"],
)
def test_the_cost_of_a_token_does_not_grow(repeated: str | None) -> None:
    tokenizer = make_fallback("chain") if repeated == "<0xE2>" else make_tokenizer()
    ids = {
        None: [99_999],
        "\x80": [bytes_of(make_tokenizer())[0x80]],
        "<0xE2>": [tokenizer.convert_tokens_to_ids("<0xE2>")],
    }.get(repeated) or encode(tokenizer, str(repeated))

    class Counting:
        decoded = 0
        convert_ids_to_tokens = tokenizer.convert_ids_to_tokens

        def decode(self, ids: list[int], **how: Any) -> str:
            self.decoded += len(ids)
            return tokenizer.decode(ids, **how)

    counting = Counting()
    stream = ids * 1000
    assert "".join(decode_parts(counting, stream)) == decode_all(tokenizer, stream)
    assert counting.decoded < 20 * len(stream)


# ---------------------------------------------------------------------------------- with stops


@THOROUGH
@given(st.data())
def test_the_text_ends_before_the_first_stop(tokenizer: Any, data: st.DataObject) -> None:
    ids = draw_ids(data, tokenizer)
    text = decode_all(tokenizer, ids)
    stops = draw_stops(data, text)
    detokenizer = IncrementalDetokenizer(tokenizer, stops, frozenset({END}))
    parts = [detokenizer.add(one) for one in ids] + [detokenizer.finish()]
    assert "".join(parts) == cut(text, stops)
    assert detokenizer.stopped == any(stop in text for stop in stops)


@THOROUGH
@given(st.data())
def test_only_what_may_become_a_stop_is_held_back(byte_level: Any, data: st.DataObject) -> None:
    ids = encode(byte_level, data.draw(TEXTS))
    stops = draw_stops(data, decode_all(byte_level, ids))
    detokenizer = IncrementalDetokenizer(byte_level, stops, frozenset({END}))
    for count, one in enumerate(ids, 1):
        detokenizer.add(one)
        text = decode_all(byte_level, ids[:count])
        text = text[:-1] if text.endswith(BROKEN) else text
        assert text.startswith(detokenizer.text)
        if detokenizer.stopped:
            break
        held = text[len(detokenizer.text) :]
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("STOP", ["STOP"], ""),
        ("one STO", ["STOP"], "one STO"),
        ("xaaab", ["aab"], "xa"),
        ("xaabaaab", ["aaab"], "xaab"),
        ("xababac", ["abac"], "xab"),
        ("one two three", ["three", "two"], "one "),
        ("xabcdef", ["cd", "abcdef"], "x"),
        ("xabcdeX", ["cd", "abcdef"], "xab"),
        ("xabcde", ["cd", "abcdef"], "xab"),
        ("xabc", ["ab", "abc"], "x"),
        ("line\n\nnext", ["\n\n"], "line"),
        ("to 5 € and", ["€"], "to 5 "),
        ("a😀b", ["😀"], "a"),
        ("no stop", ["zebra"], "no stop"),
    ],
)
def test_stops(byte_level: Any, text: str, stops: list[str], expected: str) -> None:
    detokenizer = IncrementalDetokenizer(byte_level, stops, frozenset({END}))
    for one in encode(byte_level, text):
        detokenizer.add(one)
    detokenizer.finish()
    assert detokenizer.text == expected
    assert detokenizer.stopped == (expected != text)


def test_a_stop_may_end_inside_a_token(byte_level: Any) -> None:
    (token,) = encode(byte_level, " the")
    detokenizer = IncrementalDetokenizer(byte_level, ["t"], frozenset())
    assert detokenizer.add(token) == " "
    assert detokenizer.stopped


def test_nothing_is_sent_after_a_stop(byte_level: Any) -> None:
    ids = encode(byte_level, "a.b")
    assert decode_parts(byte_level, ids, ["."]) == ["a", "", "", ""]


def test_the_beginning_of_a_stop_is_held_back(byte_level: Any) -> None:
    ids = encode(byte_level, "aXYbXYZ")
    assert decode_parts(byte_level, ids, ["XYZ"]) == ["a", "", "", "XYb", "", "", "", ""]


def test_a_shorter_stop_waits_for_one_that_began_before_it(byte_level: Any) -> None:
    detokenizer = IncrementalDetokenizer(byte_level, ["Y", "XYZ"], frozenset())
    assert [detokenizer.add(one) for one in encode(byte_level, "XYZ")] == ["", "", ""]
    assert detokenizer.stopped
    assert detokenizer.text == ""


def test_a_held_stop_counts_when_no_more_tokens_come(byte_level: Any) -> None:
    detokenizer = IncrementalDetokenizer(byte_level, ["Y", "XYZ"], frozenset())
    for one in encode(byte_level, "XY"):
        detokenizer.add(one)
    assert not detokenizer.stopped
    assert detokenizer.finish() == "X"
    assert detokenizer.stopped


# ------------------------------------------------------------------------------- the real base


@pytest.fixture(scope="module")
def real() -> Any:
    """The tokenizer of the default base."""
    from transformers import AutoTokenizer

    from trunkline.bases import DEFAULT_BASE, describe, pull

    pull(DEFAULT_BASE)
    return AutoTokenizer.from_pretrained(describe(DEFAULT_BASE).folder)


@pytest.mark.real
@THOROUGH
@given(st.data())
def test_parts_of_the_real_tokenizer_are_the_text(real: Any, data: st.DataObject) -> None:
    ids = draw_ids(data, real)
    text = decode_all(real, ids)
    assert "".join(decode_parts(real, ids)) == text
    stops = draw_stops(data, text)
    assert "".join(decode_parts(real, ids, stops)) == cut(text, stops)


def bytes_of(tokenizer: Any) -> dict[int, int]:
    """Byte → the token that is this byte, of a byte-level vocabulary."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {
        byte: tokenizer.convert_tokens_to_ids(sign) for byte, sign in bytes_to_unicode().items()
    }
