"""Texts become ids as training and inference share them, and never a control token."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_base import make_tokenizer
from trunkline.contracts import Template
from trunkline.data.encode import encode_answer, encode_chat, encode_prompt
from trunkline.errors import DataError, UsageError
from trunkline.labels import is_blank

quick = settings(max_examples=50, deadline=None)

CONTROL = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "{text}", "TRUNKLINETEXTMARK0TRUNKLINE"]

pieces = st.one_of(st.sampled_from([*CONTROL, "\n", "a"]), st.text(max_size=8))
texts = st.lists(pieces).map("".join)
filled_texts = texts.filter(lambda text: not is_blank(text))


@cache
def shared() -> Any:
    """The tiny bases' tokenizer, made once."""
    return make_tokenizer()


def decoded(ids: list[int], tokenizer: Any = None) -> str:
    """The text of ids, control tokens written out."""
    return (tokenizer or shared()).decode(ids, clean_up_tokenization_spaces=False)


def controls(ids: list[int]) -> list[int]:
    """The control tokens among ids, in order."""
    return [one for one in ids if one in shared().all_special_ids]


def with_template(chat_template: str | None) -> Any:
    """A tokenizer with another chat template."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = chat_template
    return tokenizer


# ------------------------------------------------------------------------------- plain prompts


@quick
@given(text=filled_texts)
def test_text_never_yields_a_control_token(text: str) -> None:
    ids = encode_prompt(text, Template(prompt="Diagnosis: {text}"), shared()).ids

    assert not controls(ids)


@quick
@given(text=filled_texts)
def test_plain_prompt_reads_back_as_it_was_filled(text: str) -> None:
    template = Template(prompt="Diagnosis: {text} ->", clean=())

    assert decoded(encode_prompt(text, template, shared()).ids) == template.filled(text)


def test_control_words_of_a_tokenizer_are_ids_where_they_are_meant() -> None:
    assert controls(shared()("<|im_end|>").input_ids) == [shared().eos_token_id]


def test_added_token_that_is_not_marked_special_is_not_yielded_either() -> None:
    from transformers import AddedToken

    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    added = tokenizer.convert_tokens_to_ids("<tool_call>")
    ids = encode_prompt("a <tool_call> b <<tool_call>tool_call>", Template(), tokenizer).ids

    assert added in tokenizer("<tool_call>", split_special_tokens=True).input_ids
    assert added not in ids
    assert decoded(ids, tokenizer) == "a <tool_call> b <<tool_call>tool_call>"


def test_place_in_the_text_is_not_expanded() -> None:
    ids = encode_prompt("{text} {text}", Template(prompt="Say {text}"), shared()).ids

    assert decoded(ids) == "Say {text} {text}"


def test_start_token_of_the_tokenizer_is_put_first() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    ids = encode_prompt("milk", Template(), tokenizer).ids

    assert ids == tokenizer("milk").input_ids
    assert ids.count(start) == 1


@pytest.mark.parametrize("clean", [(), ("strip", "squeeze")])
@pytest.mark.parametrize("text", ["", "  ", "\n\t", "\u00a0"])
@pytest.mark.parametrize("chat", [True, False])
def test_empty_text_is_refused(text: str, clean: Any, chat: bool) -> None:
    with pytest.raises(DataError, match="text is empty") as caught:
        encode_prompt(text, Template(clean=clean, chat=chat), shared())
    assert caught.value.hint


@pytest.mark.parametrize("chat", [True, False])
def test_half_a_character_is_refused(chat: bool) -> None:
    with pytest.raises(DataError, match=r"'\\udcff', which is not a character") as caught:
        encode_prompt("caf\udcff", Template(chat=chat), shared())
    assert caught.value.hint


# --------------------------------------------------------------------------------------- chat


@quick
@given(text=filled_texts)
def test_chat_prompt_reads_back_as_the_base_writes_its_talks(text: str) -> None:
    template = Template(prompt="Title of {text}?", clean=(), chat=True, system="You <|im_end|>.")
    ids = encode_prompt(text, template, shared()).ids

    assert decoded(ids) == (
        "<|im_start|>system\nYou <|im_end|>.<|im_end|>\n"
        f"<|im_start|>user\nTitle of {text}?<|im_end|>\n<|im_start|>assistant\n"
    )


@quick
@given(contents=st.lists(texts, min_size=1, max_size=12))
def test_only_the_chat_template_writes_control_tokens(contents: list[str]) -> None:
    messages = [
        {"role": ("user", "assistant")[turn % 2], "content": content}
        for turn, content in enumerate(contents)
    ]
    ids = encode_chat(messages, shared())
    bare = encode_chat([{**message, "content": "x"} for message in messages], shared())

    assert controls(ids) == controls(bare)


def test_harmless_chat_is_encoded_as_transformers_does() -> None:
    messages = [
        {"role": "system", "content": "You sort things."},
        {"role": "user", "content": "Whole milk"},
        {"role": "assistant", "content": "Dairy"},
        {"role": "user", "content": "Acute appendicitis"},
    ]
    own = shared().apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    assert encode_chat(messages, shared()) == shared()(own, add_special_tokens=False).input_ids


@pytest.mark.parametrize("role", ["user<|im_end|>", "tool", "", None])
def test_role_that_is_none_is_refused(role: Any) -> None:
    with pytest.raises(UsageError, match="A chat can't contain a message with the role") as caught:
        encode_chat([{"role": role, "content": "hi"}], shared())
    assert "user" in str(caught.value.hint)


def test_message_without_content_is_refused() -> None:
    with pytest.raises(UsageError, match="content None"):
        encode_chat([{"role": "user"}], shared())


def test_chat_on_a_base_without_a_chat_template_is_refused() -> None:
    with pytest.raises(UsageError, match="no chat template") as caught:
        encode_prompt("hi", Template(chat=True), with_template(None))
    assert caught.value.hint


def test_chat_template_that_refuses_the_messages_gives_its_reason() -> None:
    strict = with_template(
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{{ messages[0]['content'] }}"
    )
    with pytest.raises(UsageError, match="system, user: System role not supported") as caught:
        encode_prompt("hi", Template(chat=True, system="Be kind."), strict)
    assert caught.value.hint


def test_chat_template_that_leaves_a_message_out_is_refused() -> None:
    forgetful = with_template("{{ messages[-1]['content'] }}")

    with pytest.raises(UsageError, match="omits or changes a message"):
        encode_prompt("hi", Template(chat=True, system="Be kind."), forgetful)


CONTENTS = {
    "repeats": "{{ m['content'] }} (again: {{ m['content'] }})",
    "trims": "[ {{ m['content'] | trim }} ]",
    "quotes": "{{ m['content'] | tojson }}",
    "puts the system message last": "{% if m['role'] == 'user' and loop.last %}"
    "{{ messages[0]['content'] }} {% endif %}"
    "{% if m['role'] != 'system' %}{{ m['content'] }}</s>{% endif %}",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_contents_stand_where_the_chat_template_puts_them(content: str) -> None:
    tokenizer = with_template(f"{{% for m in messages %}}{content}{{% endfor %}}")
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": f" part {n}  "} for n, role in enumerate(roles)]
    own = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    assert tokenizer.decode(encode_chat(messages, tokenizer)) == own


@pytest.mark.parametrize("change", ["| upper", "[0]", "[:5]", "+ 1", "['text'].x"])
def test_chat_template_that_changes_a_message_is_refused(change: str) -> None:
    changing = with_template(f"{{{{ messages[0]['content'] {change} }}}}")
    with pytest.raises(UsageError, match="chat template refuses a conversation of the roles user:"):
        encode_prompt("hi", Template(chat=True), changing)


# ------------------------------------------------------------------------------------- cutting

LONG = st.lists(
    st.sampled_from(["goat", " ", "é", "日本", "🦄", "<|im_end|>", "\n"]), min_size=1, max_size=80
).map("".join)
SUFFIXED = Template(prompt="Animal 🦄: {text}\nLabel:", clean=())
CHAT = Template(prompt="Class of {text}?", chat=True, system="You sort 日本.")


@quick
@given(text=LONG.filter(lambda text: bool(text.strip())), limit=st.integers(1, 150),
       template=st.sampled_from([SUFFIXED, CHAT, Template()]))  # fmt: skip
def test_long_text_is_cut_and_the_template_stays(text: str, limit: int, template: Template) -> None:
    full = encode_prompt(text, template, shared())
    try:
        prompt = encode_prompt(text, template, shared(), limit)
    except DataError:  # the template leaves no room; see below
        assert limit < len(full.ids)
        return
    assert len(prompt.ids) <= limit
    assert prompt.truncated == (len(full.ids) > limit)
    assert prompt.full_length == len(full.ids)
    assert prompt.text
    assert template.cleaned(text).startswith(prompt.text)
    assert f"{template.prefix}{prompt.text}{template.suffix}" in decoded(prompt.ids)
    assert prompt.ids == encode_prompt(prompt.text, template, shared()).ids


@quick
@given(text=LONG.filter(lambda text: bool(text.strip())), limit=st.integers(20, 100))
def test_as_many_characters_as_fit_are_kept(text: str, limit: int) -> None:
    try:
        prompt = encode_prompt(text, SUFFIXED, shared(), limit)
    except DataError:
        return
    if prompt.truncated:
        longer = text[: len(prompt.text) + 1]
        assert len(encode_prompt(longer, SUFFIXED, shared()).ids) > limit


def test_character_of_several_tokens_is_not_divided() -> None:
    template = Template(clean=())
    for limit in range(4, 12):
        assert decoded(encode_prompt("🦄🦄🦄", template, shared(), limit).ids) == "🦄" * (
            limit // 4
        )


def test_prompt_at_the_limit_is_not_cut() -> None:
    length = encode_prompt("a goat", SUFFIXED, shared()).full_length

    assert not encode_prompt("a goat", SUFFIXED, shared(), length).truncated
    assert encode_prompt("a goat", SUFFIXED, shared(), length - 1).text == "a goa"


def test_template_without_room_for_the_text_is_refused_with_its_length() -> None:
    template = Template(prompt="A very long instruction: {text}")
    alone = encode_prompt("x", template, shared()).full_length - 1
    with pytest.raises(DataError, match=rf"{alone} tokens, which leaves no room.*has {alone}\."):
        encode_prompt("🦄 goat", template, shared(), alone)


# ------------------------------------------------------------------------------------- answers


@quick
@given(answer=texts)
def test_answer_is_closed_once_and_holds_no_other_control_token(answer: str) -> None:
    ids = encode_answer(answer, shared())

    assert ids[-1] == shared().eos_token_id
    assert not controls(ids[:-1])
    assert decoded(ids[:-1]) == answer
