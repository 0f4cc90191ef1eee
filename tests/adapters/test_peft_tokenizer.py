"""Tokenizer files in an imported folder: not used, and the note that says where they differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from peft_folders import ImportFolder
from tiny_base import CHATML
from trunkline.adapters.peft_folder import tokenizer_notes
from trunkline.contracts import Template

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def with_tokenizer(folder: Path, tiny: Path) -> Path:
    """An adapter's folder with the base's own tokenizer files, as trainers save them."""
    for name in FILES:
        if (tiny / name).exists():
            shutil.copyfile(tiny / name, folder / name)
    return folder


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def notes(folder: Path, tiny: Path, chat: bool = False) -> str:
    return "\n".join(tokenizer_notes(folder, tiny, chat=chat))


def test_base_s_own_tokenizer_gives_no_note_with_chat(with_tokenizer: Path, tiny: Path) -> None:
    assert notes(with_tokenizer, tiny, chat=True) == ""


def test_base_s_own_chat_template_is_noted_without_chat(with_tokenizer: Path, tiny: Path) -> None:
    assert notes(with_tokenizer, tiny) == (
        "The folder has the base's chat template, which is used only with --chat."
    )


@pytest.mark.parametrize("place", ["jinja", "config", "json", "list", "others", "map", "folder"])
def test_other_chat_template_is_noted_with_the_first_difference(
    folder: Path, tiny: Path, place: str
) -> None:
    other = CHATML.replace("<|im_end|>", "</s>")
    if place == "jinja":
        (folder / "chat_template.jinja").write_text(other)
    elif place == "json":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": other}))
    elif place == "folder":
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(other)
    else:
        value: Any = other
        if place == "list":
            value = [{"name": "default", "template": other}, {"name": "tool_use", "template": ""}]
        elif place == "others":
            value = [{"name": "tool_use", "template": other}]
        elif place == "map":
            value = {"tool_use": "", "default": other}
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    text = notes(folder, tiny, chat=True)
    assert "chat template is not used: the base's is used. They differ in line 2: " in text
    assert "</s>" in text
    assert "without --chat" in notes(folder, tiny)


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_added_token_that_the_base_lacks_is_named(
    with_tokenizer: Path, tiny: Path, place: str
) -> None:
    path = with_tokenizer / place
    if place == "added_tokens.json":
        path.write_text('{"<|tool|>": 384}')
    elif place == "tokenizer.json":
        entries = json.loads(path.read_text())["added_tokens"]
        change_json(path, added_tokens=[*entries, {"id": 384, "content": "<|tool|>"}])
    else:
        change_json(path, added_tokens_decoder={"384": {"content": "<|tool|>", "special": True}})
    assert "adds 1 token that the base lacks: '<|tool|>'" in notes(with_tokenizer, tiny)


def test_token_with_another_id_is_named(with_tokenizer: Path, tiny: Path) -> None:
    path = with_tokenizer / "tokenizer.json"
    entries = json.loads(path.read_text())["added_tokens"]
    entries[1]["id"] += 100
    change_json(path, added_tokens=entries)
    assert f"another id than the base: {entries[1]['content']!r}" in notes(with_tokenizer, tiny)


def test_other_vocabulary_is_counted(with_tokenizer: Path, tiny: Path) -> None:
    path = with_tokenizer / "tokenizer.json"
    model = json.loads(path.read_text())["model"]
    model["vocab"]["something else"] = 9999
    change_json(path, model=model)
    assert "vocabulary differs from the base's in 1 tokens" in notes(with_tokenizer, tiny)


def test_other_end_of_a_text_is_named(with_tokenizer: Path, tiny: Path) -> None:
    change_json(with_tokenizer / "tokenizer_config.json", eos_token={"content": "<|eot|>"})
    expected = "ends texts with '<|eot|>', the base's with '<|im_end|>'"
    assert expected in notes(with_tokenizer, tiny)
    (with_tokenizer / "tokenizer_config.json").unlink()
    (with_tokenizer / "special_tokens_map.json").write_text('{"eos_token": "<|eot|>"}')
    assert expected in notes(with_tokenizer, tiny)


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b'{"a": 1, "a": 2}', b"{" * 99999])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_damaged_tokenizer_file_is_noted_and_does_not_stop_the_import(
    import_folder: ImportFolder, folder: Path, name: str, data: bytes
) -> None:
    (folder / name).write_bytes(data)
    assert f"{name} in the folder can't be read; it is not used." in import_folder(folder).notes


@pytest.mark.parametrize(
    "content",
    [
        {"added_tokens_decoder": [1], "chat_template": {"a": 1}, "eos_token": 3},
        {"chat_template": [{"name": ["x"], "template": 1}, {}, 5]},
        {"added_tokens_decoder": {"x": 1, "7": {"content": 3}, "\u0665": "a"}},
        {"chat_template": [1, {"name": "default"}]},
    ],
    ids=["types", "names", "decoder", "templates"],
)
def test_unexpected_values_are_no_tokens(folder: Path, tiny: Path, content: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    (folder / "tokenizer.json").write_text(
        '{"added_tokens": [1, {"id": "a"}], "model": {"vocab": 1}}'
    )
    assert notes(folder, tiny) == ""


def test_notes_of_the_tokenizer_are_recorded(
    import_folder: ImportFolder, with_tokenizer: Path
) -> None:
    template = Template(prompt="{text}", clean=(), chat=True)
    (with_tokenizer / "added_tokens.json").write_text('{"<|tool|>": 384}')
    imported = import_folder(with_tokenizer, template=template)
    assert any("<|tool|>" in sentence for sentence in imported.notes)
