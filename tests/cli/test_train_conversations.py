"""Train on conversations: from JSON lines to a version that is evaluated, exported and repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Run

RECIPE = """\
name: chats/names
data: {file: chats.jsonl, messages: messages, loss_on: all}
template: {system: Be brief.}
settings: {max_steps: 2, r: 2, max_length: 200}
max_new_tokens: 24
"""


@pytest.fixture
def chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty conversations in the current folder, half of them with two turns."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(40):
        messages = [{"role": "user", "content": f"I am number {number}."}]
        if number % 2:
            messages += [
                {"role": "assistant", "content": f"Hello {number}."},
                {"role": "user", "content": "Say it again."},
            ]
        rows.append([*messages, {"role": "assistant", "content": f"You are {number}."}])
    file = Path("chats.jsonl")
    file.write_text("".join(f"{json.dumps({'messages': row})}\n" for row in rows))
    Path("recipe.yaml").write_text(RECIPE)
    return file


def ran(run: Run, *args: str) -> Any:
    """The JSON that a command prints."""
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_conversations_become_a_version_that_is_evaluated_again(
    run_copy: Run, chats: Path, tmp_path: Path
) -> None:
    trained = ran(run_copy, "train", "--config", "recipe.yaml")
    assert trained["report"]["data"]["kept"] == 40
    scores = trained["evaluation_report"]["scores"]
    assert "base" in trained["evaluation_report"]["baselines"]
    assert ran(run_copy, "eval", "chats/names")["evaluation_report"]["scores"] == scores
    exported = ran(run_copy, "adapters", "export", "chats/names", "model", "--format", "merged")
    assert exported["rows"] == trained["report"]["data"]["parts"]["test"]
    again = run_copy("recipes", "export", str(trained["run"])).stdout
    assert "loss_on: all" in again
    Path("again.yaml").write_text(again)
    second = ran(run_copy, "train", "--config", "again.yaml")
    assert second["evaluation_report"]["scores"] == scores
    assert second["report"]["tokens_trained"] == trained["report"]["tokens_trained"]


def test_options_describe_the_same_rows(run: Run, chats: Path) -> None:
    result = run("datasets", "check", str(chats), "--messages", "messages", "--json")
    checked = json.loads(result.stdout)
    assert (checked["rows"], checked["task"]) == (40, "generation")
    assert sum(checked["parts"].values()) == 40
    result = run(
        "datasets", "preview", str(chats), "--messages", "messages", "--template", "{text}"
    )
    assert result.exit_code == 2
    assert "system message only" in result.stderr
    result = run("datasets", "preview", str(chats), "--messages", "messages", "--loss-on", "frist")
    assert result.exit_code == 2
    assert "loss_on" in result.stderr
    result = run("datasets", "preview", "toy/plurals", "--loss-on", "all")
    assert "--loss-on needs a file" in result.stderr
    result = run("train", "--messages", "messages")
    assert "--messages needs --data" in result.stderr


def test_a_conversation_can_not_be_a_plain_prompt(run: Run, chats: Path) -> None:
    for template in ("{chat: false}", "{prompt: 'Q: {text}'}", "{clean: [strip]}"):
        Path("other.yaml").write_text(RECIPE.replace("{system: Be brief.}", template))
        result = run("train", "--config", "other.yaml")
        assert result.exit_code == 2
        assert "system message only" in result.stderr


def test_conversations_are_cross_validated(run_copy: Run, chats: Path) -> None:
    folds = ran(run_copy, "eval", "--config", "recipe.yaml", "--folds", "2")
    assert folds["evaluation_report"]["rows"] == 40
