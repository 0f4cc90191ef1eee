"""Conversations as rows: read strictly, encoded as a server encodes them, learned where it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from made_rows import make_dataset, make_recipe, make_row, make_split
from tiny_base import make_tokenizer
from trunkline.contracts import Message, Row, Settings, Template
from trunkline.data.check import check_dataset
from trunkline.data.columns import DataFiles
from trunkline.data.croissant import croissant_of, row_lines
from trunkline.data.encode import encode_answer, encode_row, request_messages
from trunkline.data.lengths import count_lengths
from trunkline.data.prepare import fingerprint, prepare
from trunkline.data.preview import preview_rows
from trunkline.errors import DataError, UsageError
from trunkline.inference.prompts import encode_request
from trunkline.inference.request import Request
from trunkline.labels import is_blank
from trunkline.tasks import GenerationTask
from trunkline.tasks.generation import IGNORED
from trunkline.training.job import encode_rows

TASK = GenerationTask(16)
CHAT = Template(chat=True, clean=())
quick = settings(max_examples=50, deadline=None)

contents = st.text(max_size=12).filter(lambda text: not is_blank(text))


@cache
def tokenizer() -> Any:
    return make_tokenizer()


def turns(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


SHORT = turns("Hi", "Hello!")
LONG = turns("Hi", "Hello!", "My name is Ada.", "Noted.", "Who am I?", "Ada.", system="Be brief.")


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    texts = draw(st.lists(st.tuples(contents, contents), min_size=1, max_size=4))
    system = draw(st.none() | contents)
    return turns(*(text for pair in texts for text in pair), system=system)


def written(path: Path, rows: Sequence[Any], column: str = "messages") -> DataFiles:
    """A file of conversations, by its suffix."""
    values = [{column: row} for row in rows]
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(values), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(values))
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in values))
    return DataFiles(file=str(path), messages=column)


def row_of(folder: Path, messages: Any, **fields: Any) -> Row:
    files = written(folder / "chats.jsonl", [messages])
    (row,) = files.model_copy(update=fields).rows()
    return row


# ---------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.json", "chats.parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    short, long = written(tmp_path / name, [SHORT, LONG]).rows()
    assert (short.history, short.text, short.target) == ((), "Hi", "Hello!")
    assert (long.text, long.target) == ("Who am I?", "Ada.")
    assert [one.role for one in long.history] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert [(one.content, one.loss) for one in long.history][:3] == [
        ("Be brief.", False), ("Hi", False), ("Hello!", False),
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@quick
@given(rows=st.lists(conversations(), min_size=1, max_size=4))
def test_sharegpt_means_the_same_as_openai(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list[list[dict[str, str]]]
) -> None:
    folder = tmp_path_factory.mktemp("chats")
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    other = [[{"from": names[m["role"]], "value": m["content"]} for m in row] for row in rows]
    one = list(written(folder / f"one{suffix}", rows).rows())
    assert one == list(written(folder / f"two{suffix}", other).rows())
    for row, messages in zip(one, rows, strict=True):
        sent = request_messages(row) or ({"role": "user", "content": row.text},)
        assert [*sent, {"role": "assistant", "content": row.target}] == messages


def test_keys_that_are_null_are_ignored(tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "Hello!", "tool_calls": None, "name": None}
    assert row_of(tmp_path, [SHORT[0], message]).target == "Hello!"


BAD = {
    "a text": ("Hi", "not a list"),
    "an object": ({"role": "user"}, "an object"),
    "texts": (["Hi"], "message 1"),
    "a tool": ([*SHORT[:1], {"role": "tool", "content": "4"}], "'tool'"),
    "no role": ([{"content": "Hi"}], "nothing as its 'role'"),
    "a list as role": ([{"role": ["user"], "content": "Hi"}], "an array as its 'role'"),
    "tool calls": ([SHORT[0], {**SHORT[1], "tool_calls": [{}]}], "'tool_calls'"),
    "null content": ([SHORT[0], {"role": "assistant", "content": None}], "nothing as its"),
    "an image": ([{"role": "user", "content": [{"type": "image_url"}]}, SHORT[1]], "an array"),
    "mixed forms": ([{"from": "human", "content": "Hi"}, SHORT[1]], "'content'"),
    "two questions": ([SHORT[0], *SHORT], "messages of user, user, assistant"),
    "no answer": (SHORT[:1], "messages of user"),
    "no question": (SHORT[1:], "messages of assistant"),
    "a late system": ([*SHORT, {"role": "system", "content": "x"}], "user, assistant, system"),
    "a system alone": ([{"role": "system", "content": "x"}], "messages of system"),
    "a number": (7, "'messages'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_conversation_is_refused_with_its_place(tmp_path: Path, case: str) -> None:
    value, part = BAD[case]
    files = written(tmp_path / "chats.jsonl", [SHORT, value])
    with pytest.raises(DataError) as caught:
        list(files.rows())
    assert caught.value.message.startswith("Row 2 (line 2) of chats.jsonl has ")
    assert part in caught.value.message
    assert caught.value.message.endswith(".")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "empty text"),
        ([], "empty text"),
        (turns("", "Hello!"), "empty text"),
        (turns("Hi", " ", "Yes", "No"), "empty text"),
        (turns("Hi", " "), "no target"),
    ],
)
def test_row_with_an_empty_message_is_dropped_and_counted(
    tmp_path: Path, messages: Any, reason: str
) -> None:
    rows = [turns(f"question {n}", f"answer {n}") for n in range(9)]
    files = written(tmp_path / "chats.jsonl", [*rows, messages])
    report = prepare(files.dataset("own/chats"), make_recipe("generation", template=CHAT)).report
    assert (report.read, report.kept, report.dropped) == (10, 9, {reason: 1})


def test_csv_can_not_hold_conversations(tmp_path: Path) -> None:
    path = tmp_path / "chats.csv"
    path.write_text("messages\nHi\n")
    with pytest.raises(UsageError, match=r"chats\.csv can't hold lists") as caught:
        list(DataFiles(file=str(path), messages="messages").rows())
    assert "Parquet" in str(caught.value.hint)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": "m", "text": "t"},
        {"messages": "m", "completion": "c"},
        {"completion": "c", "loss_on": "all"},
        {"messages": "m", "loss_on": "first"},
    ],
    ids=str,
)
def test_contradictions_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DataFiles(file="a.jsonl", **fields)


# ------------------------------------------------------------------------------------ same tokens


@pytest.mark.parametrize("system", [None, "Answer in one word."])
@quick
@given(messages=conversations())
def test_prompt_is_the_one_that_the_server_builds(
    system: str | None, messages: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    row = row_of(tmp_path_factory.mktemp("chats"), messages)
    template = replace(CHAT, system=system)
    request = Request("own/chats", messages=tuple(messages[:-1]))
    served = encode_request(request, "own/chats", TASK, template, tokenizer())
    assert encode_row(row, template, tokenizer()).ids == served.ids
    sent = Request("own/chats", row.text, messages=request_messages(row))
    assert encode_request(sent, "own/chats", TASK, template, tokenizer()).ids == served.ids
    (example,) = encode_rows([row], template, TASK, tokenizer(), 4096).examples
    assert example["input_ids"] == served.ids + encode_answer(messages[-1]["content"], tokenizer())


@quick
@given(messages=conversations())
def test_each_learned_answer_follows_the_prompt_that_it_answers(
    messages: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    row = row_of(tmp_path_factory.mktemp("chats"), messages, loss_on="all")
    (example,) = encode_rows([row], CHAT, TASK, tokenizer(), 4096).examples
    batch = TASK.collate([example, {"input_ids": [5] * 400, "answer": 7}], 0)
    ids, targets = (batch[name][0].tolist() for name in ("input_ids", "targets"))
    targets = [IGNORED] * (len(ids) - len(targets)) + targets
    learned = [one for one in targets if one != IGNORED]
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    assert learned == [one for text in answers for one in encode_answer(text, tokenizer())]
    padding = len(ids) - len(example["input_ids"])
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        request = Request("own/chats", messages=tuple(messages[:index]))
        prompt = encode_request(request, "own/chats", TASK, CHAT, tokenizer()).ids
        end = padding + len(prompt)
        assert ids[padding:end] == prompt
        assert targets[end - 1] == IGNORED
        assert targets[end] == encode_answer(message["content"], tokenizer())[0]


def test_by_default_the_last_answer_alone_is_learned(tmp_path: Path) -> None:
    row = row_of(tmp_path, LONG)
    (example,) = encode_rows([row], CHAT, TASK, tokenizer(), 4096).examples
    targets = TASK.collate([example], 0)["targets"][0].tolist()
    assert targets == encode_answer("Ada.", tokenizer())


def test_answer_that_the_chat_template_rewrites_can_not_carry_loss(tmp_path: Path) -> None:
    other = make_tokenizer()
    other.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    spaced = turns("Hi", " Hello! ", "And?", "Fine.")
    row = row_of(tmp_path, spaced, loss_on="all")
    with pytest.raises(DataError, match="message 2 of row '1'") as caught:
        encode_row(row, CHAT, other)
    assert "--loss-on last" in str(caught.value.hint)
    assert encode_row(row_of(tmp_path, spaced), CHAT, other).ids
    assert encode_row(row_of(tmp_path, LONG, loss_on="all"), CHAT, other).learned


def test_conversation_needs_a_chat(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a chat"):
        encode_row(row_of(tmp_path, LONG), Template(), tokenizer())


# ------------------------------------------------------------------------------- as other rows


def chat_rows(count: int = 12) -> list[Row]:
    """Conversations that end with the same question."""
    return [
        make_row(
            number,
            text="And my name?",
            target=f"name {number}",
            history=(Message("user", f"I am {number}."), Message("assistant", "Hello.")),
        )
        for number in range(count)
    ]


def recipe(**fields: Any) -> Any:
    given: dict[str, Any] = {"template": CHAT, "max_new_tokens": 8}
    return make_recipe("generation", **(given | fields))


def test_rows_differ_by_their_history() -> None:
    rows = chat_rows()
    again = replace(rows[0], id="again", group="other")
    conflict = replace(rows[1], id="conflict", target="another")
    report = prepare(make_dataset([*rows, again, conflict], "generation"), recipe()).report
    assert (report.kept, report.duplicated, report.label_conflicts) == (13, 1, 2)
    findings = check_dataset(
        make_dataset([*rows, again, conflict], "generation"), recipe()
    ).findings
    rows_of = {one.kind: one.rows for one in findings}
    assert rows_of["duplicates"] == ("again",)
    assert rows_of["label conflicts"] == ("r1", "conflict")


def test_history_is_in_the_fingerprint_and_loss_is_not() -> None:
    row = chat_rows(1)[0]
    changed = replace(row, history=(Message("user", "I am 1."), row.history[1]))
    learned = replace(row, history=(row.history[0], replace(row.history[1], loss=True)))
    assert len({fingerprint([one]) for one in (row, changed, replace(row, history=()))}) == 3
    assert fingerprint([learned]) == fingerprint([row])


def test_check_reads_every_message() -> None:
    rows = chat_rows()
    secret = (Message("user", "Write to ada@example.com"), Message("assistant", "Ã© done"))
    rows[3] = replace(rows[3], history=secret)
    findings = check_dataset(make_dataset(rows, "generation"), recipe()).findings
    assert [one.rows for one in findings if one.kind == "personal data"] == [("r3",)]


def test_conversation_is_never_cut_but_refused_with_what_it_needs() -> None:
    rows = chat_rows()
    rows[4] = replace(rows[4], history=(Message("user", "word " * 60), rows[4].history[1]))
    dataset = make_dataset(rows, "generation")
    short = recipe(settings=Settings(max_length=64))
    length = len(encode_row(rows[4], CHAT, tokenizer()).ids)
    with pytest.raises(DataError, match=rf"1 of 12 .* up to {length}, .*: rows r4\.") as caught:
        count_lengths(rows, dataset, short, tokenizer(), 4096)
    assert f"--set max_length={length + 8}," in str(caught.value.hint)
    enough = recipe(settings=Settings(max_length=length + 8))
    assert count_lengths(rows, dataset, enough, tokenizer(), 4096).truncated == 0
    with pytest.raises(DataError) as caught:
        count_lengths(rows, dataset, enough, tokenizer(), length + 7)
    assert "context" in str(caught.value.hint)
    (error,) = [
        one
        for one in check_dataset(dataset, short, (), (tokenizer(), 4096)).findings
        if one.level == "error"
    ]
    assert "rows r4" in error.message


def test_one_message_alone_is_cut_like_a_text(tmp_path: Path) -> None:
    row = row_of(tmp_path, turns("word " * 60, "Yes."))
    request = Request("own/chats", messages=({"role": "user", "content": row.text},))
    served = encode_request(request, "own/chats", TASK, CHAT, tokenizer(), 48)
    prompt = encode_row(row, CHAT, tokenizer(), 48)
    assert prompt.ids == served.ids
    assert prompt.truncated


def test_preview_marks_every_answer_that_carries_loss() -> None:
    rows = [
        replace(row, history=(row.history[0], replace(row.history[1], loss=True)))
        for row in chat_rows()
    ]
    dataset = make_dataset(rows, "generation")
    (one,) = preview_rows(
        dataset, recipe(settings=Settings(max_length=128)), (), tokenizer(), 256, count=1
    )
    answers = [encode_answer(text, tokenizer()) for text in ("Hello.", f"name {one.id[1:]}")]
    marked = ["".join(f"[{tokenizer().decode([token])}]" for token in ids) for ids in answers]
    assert marked[0] in one.prompt
    assert one.learned == marked[1]
    assert one.learned_tokens == sum(map(len, answers))
    assert one.prompt.replace("[", "").replace("]", "") == tokenizer().decode(
        one.input_ids[: one.prompt_tokens]
    )


def test_croissant_describes_the_history() -> None:
    rows = [*chat_rows(2), make_row(7)]
    split = make_split(rows, [], [])
    lines = [json.loads(line) for line in row_lines(split)]
    assert json.loads(lines[0]["history"])[0] == {"role": "user", "content": "I am 0."}
    assert "history" not in lines[2]
    described = croissant_of(make_dataset(rows, "generation"), split, "0" * 64)
    assert "history" in {one["name"] for one in described["recordSet"][0]["field"]}
    plain = croissant_of(make_dataset(rows, "generation"), make_split(rows[2:], [], []), "0" * 64)
    assert "history" not in {one["name"] for one in plain["recordSet"][0]["field"]}


def test_few_shot_prompt_holds_complete_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    from trunkline.contracts import BaselineContext
    from trunkline.evaluation.baselines import prompted

    prompts: list[list[int]] = []

    def answer(_model: Any, _tokenizer: Any, given: list[list[int]], _limit: int) -> list[str]:
        prompts.extend(given)
        return ["two\nlines"] * len(given)

    monkeypatch.setattr("trunkline.inference.forward.generate_texts", answer)
    base = SimpleNamespace(model=None, tokenizer=tokenizer(), info=SimpleNamespace(context=2048))
    train = tuple(chat_rows(2))
    test = (replace(chat_rows(4)[3], history=(Message("system", "Be kind."), *train[0].history)),)
    context = BaselineContext(recipe=recipe(), train=train, validation=train, test=test, base=base)
    result = prompted(context, shots=1)
    text = tokenizer().decode(prompts[0])
    assert text.index("Be kind.") < text.index("I am 0.") < text.index("name 0")
    assert text.count("system") == 1
    assert text.count("And my name?") == 2
    assert result.values == ["two"]
    several = replace(context, train=(replace(train[0], target="a\nb"),))
    assert prompted(several, shots=0).values == ["two\nlines"]
