"""Tokenizers of several kinds, made in memory, and random token ids for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tiny_base import make_tokenizer

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
    """Substrings of the text, or nearly."""
    spans = st.tuples(st.integers(0, max(0, len(text) - 1)), st.integers(1, 12))
    taken = spans.map(lambda span: text[span[0] : sum(span)])
    stop = st.one_of(
        taken,
        st.tuples(taken, st.text(ALPHABET, max_size=2)).map("".join),
        st.text(ALPHABET, max_size=3),
    ).filter(bool)
    return data.draw(st.lists(stop, min_size=1, max_size=4))
