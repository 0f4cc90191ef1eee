"""Pieces of text are exactly the text, and nothing is said too early."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiny_base import make_tokenizer
from trunkline.inference.detokenizer import IncrementalDetokenizer

BROKEN = "\ufffd"
END = 2
ALPHABET = "ab ß€😀\n" + BROKEN
TEXTS = st.one_of(st.text(ALPHABET, max_size=40), st.text(max_size=20))
THOROUGH = settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def make_fallback(decoder: str) -> Any:
    """A tokenizer in sentencepiece's manner: a token's leading space is lost when it is first.

    ``chain`` is as Llama 2 decodes, bytes that make no character included; ``metaspace`` as T5
    does, without bytes.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    if decoder == "metaspace":
        names = names[:3]
    names += ["▁", "a", "b", "ß", "▁a", "▁b", "▁▁", "ab", BROKEN, ".", "▁.", "'s", "\n", ""]
    vocabulary = {name: place for place, name in enumerate(names)}
    raw = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = (
        decoders.Metaspace()
        if decoder == "metaspace"
        else decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


MAKERS: dict[str, Callable[[], Any]] = {
    "byte-level": make_tokenizer,
    "chain": lambda: make_fallback("chain"),
    "metaspace": lambda: make_fallback("metaspace"),
}


@pytest.fixture(scope="module", params=list(MAKERS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """One of each kind."""
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """That of the tiny base."""
    return make_tokenizer()


def whole(tokenizer: Any, ids: Sequence[int], end_ids: frozenset[int] = frozenset({END})) -> str:
    """The reference: all tokens at once."""
    return tokenizer.decode([one for one in ids if one not in end_ids], skip_special_tokens=True)


def cut(text: str, stops: Sequence[str]) -> str:
    """Before the stop that begins first."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def pieces(tokenizer: Any, ids: Sequence[int], stops: Sequence[str] = ()) -> list[str]:
    """What each token makes certain, and the rest."""
    wording = IncrementalDetokenizer(tokenizer, stops, frozenset({END}))
    told = [wording.add(one) for one in ids]
    told.append(wording.finish())
    assert wording.text == "".join(told)
    return told


def encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def draw_ids(data: st.DataObject, tokenizer: Any) -> list[int]:
    """Texts, single bytes, control tokens, ids that no token has, in any mixture."""
    count = len(tokenizer)
    parts = data.draw(
        st.lists(
            st.one_of(
                TEXTS.map(lambda text: encode(tokenizer, text)),
                st.lists(st.integers(0, count + 2), max_size=20),
                st.lists(st.integers(0, 3), max_size=20),
                st.integers(0, count - 1).map(lambda one: [one] * 20),
            ),
            max_size=5,
        )
    )
    return [one for part in parts for one in part]


def draw_stops(data: st.DataObject, text: str) -> list[str]:
    """Texts that stand in the text, or nearly."""
    spans = st.tuples(st.integers(0, max(0, len(text) - 1)), st.integers(1, 12))
    taken = spans.map(lambda span: text[span[0] : sum(span)])
    stop = st.one_of(
        taken,
        st.tuples(taken, st.text(ALPHABET, max_size=2)).map("".join),
        st.text(ALPHABET, max_size=3),
    ).filter(bool)
    return data.draw(st.lists(stop, min_size=1, max_size=4))


# ------------------------------------------------------------------------------- without stops


@THOROUGH
@given(st.data())
def test_pieces_are_the_text(tokenizer: Any, data: st.DataObject) -> None:
    ids = draw_ids(data, tokenizer)
    assert "".join(pieces(tokenizer, ids)) == whole(tokenizer, ids)


@THOROUGH
@given(st.binary(max_size=60))
def test_pieces_of_any_bytes_are_the_text(byte_level: Any, data: bytes) -> None:
    alphabet = bytes_of(byte_level)
    ids = [alphabet[byte] for byte in data]
    assert "".join(pieces(byte_level, ids)) == data.decode("utf-8", "replace")


@THOROUGH
@given(st.data())
def test_a_piece_with_a_replacement_character_stands_in_the_text(
    tokenizer: Any, data: st.DataObject
) -> None:
    ids = draw_ids(data, tokenizer)
    told = pieces(tokenizer, ids)
    said = [place for place, character in enumerate("".join(told)) if character == BROKEN]
    meant = whole(tokenizer, ids)
    assert all(meant[place] == BROKEN for place in said)


@THOROUGH
@given(st.data())
def test_only_a_begun_character_is_held_back(byte_level: Any, data: st.DataObject) -> None:
    wording = IncrementalDetokenizer(byte_level, (), frozenset({END}))
    ids = draw_ids(data, byte_level)
    for count, one in enumerate(ids, 1):
        wording.add(one)
        text = whole(byte_level, ids[:count])
        assert wording.text == (text[:-1] if text.endswith(BROKEN) else text)


def test_a_character_is_said_with_its_last_byte(byte_level: Any) -> None:
    alphabet = bytes_of(byte_level)
    ids = [alphabet[byte] for byte in "a😀b".encode()]
    assert pieces(byte_level, ids) == ["a", "", "", "", "😀", "b", ""]


def test_a_character_that_is_never_completed_is_a_replacement_at_the_end(byte_level: Any) -> None:
    alphabet = bytes_of(byte_level)
    ids = [alphabet[byte] for byte in "a😀".encode()[:-1]]
    assert pieces(byte_level, ids) == ["a", "", "", "", BROKEN]


def test_a_wrong_byte_among_good_ones_is_worded_as_the_tokenizer_does() -> None:
    tokenizer = make_fallback("chain")
    ids = tokenizer.convert_tokens_to_ids(["a", "<0xC3>", "<0xA9>", "<0xFF>", "▁b"])
    assert pieces(tokenizer, ids) == ["a", "", "", "", BROKEN * 3 + " b", ""]


@pytest.mark.parametrize("kind", ["chain", "metaspace"])
def test_spaces_between_words_survive(kind: str) -> None:
    tokenizer = make_fallback(kind)
    ids = tokenizer.convert_tokens_to_ids(["▁a", "▁b", "▁", "▁a", "▁."] * 5)
    assert pieces(tokenizer, ids)[:5] == ["a", " b", " ", " a", " ."]
    assert "".join(pieces(tokenizer, ids)) == whole(tokenizer, ids)


@pytest.mark.parametrize("kind", ["chain", "metaspace"])
def test_tokens_without_text_do_not_cost_the_next_word_its_space(kind: str) -> None:
    tokenizer = make_fallback(kind)
    ids = tokenizer.convert_tokens_to_ids(["a", *[""] * 20, "▁b"])
    assert "".join(pieces(tokenizer, ids)) == "a b"


def test_end_tokens_and_control_tokens_are_no_text(byte_level: Any) -> None:
    wording = IncrementalDetokenizer(byte_level, (), frozenset({END, *encode(byte_level, "b")}))
    ids = [1, *encode(byte_level, "a"), 0, *encode(byte_level, "b"), END, 99_999]
    assert [wording.add(one) for one in ids] == ["", "a", "", "", "", ""]


def test_white_space_at_both_ends_stays(byte_level: Any) -> None:
    assert "".join(pieces(byte_level, encode(byte_level, " \n a \n "))) == " \n a \n "


def test_finishing_twice_says_nothing_twice(byte_level: Any) -> None:
    wording = IncrementalDetokenizer(byte_level, ["ab"], frozenset())
    wording.add(encode(byte_level, "a")[0])
    assert [wording.finish(), wording.finish()] == ["a", ""]


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
    assert "".join(pieces(counting, stream)) == whole(tokenizer, stream)
    assert counting.decoded < 20 * len(stream)


# ---------------------------------------------------------------------------------- with stops


@THOROUGH
@given(st.data())
def test_the_text_ends_before_the_first_stop(tokenizer: Any, data: st.DataObject) -> None:
    ids = draw_ids(data, tokenizer)
    text = whole(tokenizer, ids)
    stops = draw_stops(data, text)
    wording = IncrementalDetokenizer(tokenizer, stops, frozenset({END}))
    told = [wording.add(one) for one in ids] + [wording.finish()]
    assert "".join(told) == cut(text, stops)
    assert wording.stopped == any(stop in text for stop in stops)


@THOROUGH
@given(st.data())
def test_only_what_may_become_a_stop_is_held_back(byte_level: Any, data: st.DataObject) -> None:
    ids = encode(byte_level, data.draw(TEXTS))
    stops = draw_stops(data, whole(byte_level, ids))
    wording = IncrementalDetokenizer(byte_level, stops, frozenset({END}))
    for count, one in enumerate(ids, 1):
        wording.add(one)
        text = whole(byte_level, ids[:count])
        text = text[:-1] if text.endswith(BROKEN) else text
        assert text.startswith(wording.text)
        if wording.stopped:
            break
        held = text[len(wording.text) :]
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
    wording = IncrementalDetokenizer(byte_level, stops, frozenset({END}))
    for one in encode(byte_level, text):
        wording.add(one)
    wording.finish()
    assert wording.text == expected
    assert wording.stopped == (expected != text)


def test_a_stop_may_end_inside_a_token(byte_level: Any) -> None:
    (word,) = encode(byte_level, " the")
    wording = IncrementalDetokenizer(byte_level, ["t"], frozenset())
    assert wording.add(word) == " "
    assert wording.stopped


def test_nothing_is_said_after_a_stop(byte_level: Any) -> None:
    ids = encode(byte_level, "a.b")
    assert pieces(byte_level, ids, ["."]) == ["a", "", "", ""]


def test_the_beginning_of_a_stop_waits_until_it_is_known(byte_level: Any) -> None:
    ids = encode(byte_level, "aXYbXYZ")
    assert pieces(byte_level, ids, ["XYZ"]) == ["a", "", "", "XYb", "", "", "", ""]


def test_a_shorter_stop_waits_for_one_that_began_before_it(byte_level: Any) -> None:
    wording = IncrementalDetokenizer(byte_level, ["Y", "XYZ"], frozenset())
    assert [wording.add(one) for one in encode(byte_level, "XYZ")] == ["", "", ""]
    assert wording.stopped
    assert wording.text == ""


def test_a_held_stop_counts_when_no_more_tokens_come(byte_level: Any) -> None:
    wording = IncrementalDetokenizer(byte_level, ["Y", "XYZ"], frozenset())
    for one in encode(byte_level, "XY"):
        wording.add(one)
    assert not wording.stopped
    assert wording.finish() == "X"
    assert wording.stopped


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
def test_pieces_of_the_real_tokenizer_are_the_text(real: Any, data: st.DataObject) -> None:
    ids = draw_ids(data, real)
    text = whole(real, ids)
    assert "".join(pieces(real, ids)) == text
    stops = draw_stops(data, text)
    assert "".join(pieces(real, ids, stops)) == cut(text, stops)


def bytes_of(tokenizer: Any) -> dict[int, int]:
    """Byte → the token that is this byte, of a byte-level vocabulary."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {
        byte: tokenizer.convert_tokens_to_ids(sign) for byte, sign in bytes_to_unicode().items()
    }
