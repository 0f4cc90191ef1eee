"""predict, generate and chat: answers on stdout, the version that gave them on stderr."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Run


def test_predict_prints_labels_with_probabilities(run: Run) -> None:
    result = run("predict", "toy/animals", "a carp in the wild")
    lines = [line.rsplit(maxsplit=1) for line in result.stdout.splitlines()]
    assert {label for label, _ in lines} == {"bird", "fish", "mammal"}
    assert sum(float(chance) for _, chance in lines) == pytest.approx(1, abs=0.01)


def test_predict_says_which_version_answers(run: Run) -> None:
    assert run("predict", "toy/animals", "x").stderr == "toy/animals@1 (newest)\n"


def test_predict_of_a_regression_prints_the_unit(run: Run) -> None:
    assert run("predict", "toy/prices", "3 kg of good number 4").stdout.endswith(" EUR\n")


def test_predict_top_limits_the_labels(run: Run) -> None:
    assert len(run("predict", "toy/animals", "x", "--top", "1").stdout.splitlines()) == 1


def test_predict_of_several_texts_names_each(run: Run) -> None:
    lines = run("predict", "toy/animals", "one", "two", "--top", "1").stdout.splitlines()
    assert [lines[0], lines[2]] == ["one", "two"]


def test_predict_json_gives_one_object_a_text(run: Run) -> None:
    data = json.loads(run("predict", "toy/animals", "one", "two", "--json").stdout)
    assert [answer["text"] for answer in data] == ["one", "two"]
    assert data[0]["adapter"] == "toy/animals@1"


def test_predict_reads_lines_from_stdin(run: Run) -> None:
    result = run("predict", "toy/animals", "-", "--json", input="one\n\ntwo\n")
    assert [answer["text"] for answer in json.loads(result.stdout)] == ["one", "two"]


def test_long_text_that_ends_like_the_name_of_a_picture_is_a_text(run: Run) -> None:
    result = run("predict", "toy/animals", f"{'a carp ' * 60}as in carp.png", "--top", "1")
    assert result.exit_code == 0, result.stderr


def test_predict_of_nothing_from_stdin_is_wrong_usage(run: Run) -> None:
    result = run("predict", "toy/animals", "-", input="\n")
    assert result.exit_code == 2
    assert "No text arrived on stdin" in result.stderr


@pytest.mark.parametrize("texts", [("one", "-"), ("-", "one"), ("-", "-")])
def test_stdin_and_other_texts_can_not_be_combined(run: Run, texts: tuple[str, str]) -> None:
    result = run("predict", "toy/animals", *texts, input="two\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "can't be combined with other texts" in result.stderr


def test_predict_never_writes_over_the_file_it_reads(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\na carp\n")
    result = run("predict", "toy/animals", "--file", str(path), "--out", str(path))
    assert result.exit_code == 2
    assert path.read_text() == "text\na carp\n"


def test_predict_into_a_folder_is_wrong_usage(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\na carp\n")
    result = run("predict", "toy/animals", "--file", str(path), "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "is a folder" in result.stderr


def test_predict_of_an_empty_text_is_refused(run: Run) -> None:
    result = run("predict", "toy/animals", " ")
    assert result.exit_code == 1
    assert "Error: The text is empty." in result.stderr


def test_predict_of_a_text_longer_than_training_read_says_that_it_was_cut(run: Run) -> None:
    result = run("predict", "toy/animals", "word " * 300, "a carp", "--json")
    assert result.exit_code == 0
    assert "1 text was longer than max_length" in result.stderr
    answers = json.loads(result.stdout)
    assert [answer.get("truncated", False) for answer in answers] == [True, False]
    assert answers[0]["prompt_tokens"] <= 96


def test_generate_from_a_text_longer_than_training_read_says_that_it_was_cut(run: Run) -> None:
    result = run("generate", "toy/plurals", "two carp " * 60)
    assert result.exit_code == 0
    assert "max_length" in result.stderr
    assert "max_length" not in run("generate", "toy/plurals", "two carp").stderr


def test_rows_of_a_file_that_were_cut_are_marked_and_counted(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + "a carp\n" + "word " * 300 + "\n" + "word " * 200 + "\n")
    result = run("predict", "toy/animals", "--file", str(path))
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer.get("truncated", False) for answer in answers] == [False, True, True]
    assert "2 texts were longer than max_length" in result.stderr


def test_predict_prints_the_rows_of_a_file_as_one_json_document(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,id\na carp,1\n,2\nan owl,3\n")
    args = ("predict", "toy/animals", "--file", str(path), "--skip-empty", "--json")
    rows = json.loads(run(*args).stdout)
    assert [(row["row"], row["text"]) for row in rows] == [(1, "a carp"), (3, "an owl")]

    out = tmp_path / "out.jsonl"
    assert json.loads(run(*args, "--out", str(out)).stdout) == {
        "out": str(out), "rows": 2, "skipped": 1, "truncated": 0,
    }  # fmt: skip
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows


FILES = {
    "rows.csv": 'id,text\n1,"a carp, swimming"\n2,NA\n3,007\n',
    "rows.tsv": "id\ttext\n1\ta carp, swimming\n2\tNA\n3\t007\n",
    "rows.jsonl": '{"text": "a carp, swimming"}\n{"text": "NA"}\n{"text": "007"}\n',
    "rows.json": '[{"text": "a carp, swimming"}, {"text": "NA"}, {"text": "007"}]',
}


@pytest.mark.parametrize("name", [*FILES, "rows.parquet"])
def test_predict_reads_texts_as_they_are_written(run: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name in FILES:
        path.write_text(FILES[name])
    else:
        import pyarrow
        import pyarrow.parquet

        rows = {"text": ["a carp, swimming", "NA", "007"]}
        pyarrow.parquet.write_table(pyarrow.table(rows), path)
    result = run("predict", "toy/animals", "--file", str(path))
    data = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["text"] for answer in data] == ["a carp, swimming", "NA", "007"]
    assert [answer["row"] for answer in data] == [1, 2, 3]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("id,text\n1,one\n2,\n3,three\n")
    return path


def test_predict_out_holds_a_line_a_row(run: Run, tmp_path: Path) -> None:
    path, out = tmp_path / "rows.csv", tmp_path / "labels.jsonl"
    path.write_text("text\n" + "".join(f"row {number}\n" for number in range(300)))
    result = run("predict", "toy/prices", "--file", str(path), "--out", str(out))
    assert result.exit_code == 0
    assert result.stdout == ""
    data = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["row"] for answer in data] == list(range(1, 301))
    assert data[0].keys() == {"row", "text", "adapter", "task", "value", "unit"}


def test_predict_out_is_a_table_by_its_suffix(run: Run, tmp_path: Path) -> None:
    path, out = tmp_path / "rows.csv", tmp_path / "labels.csv"
    path.write_text('text\n"a carp, swimming"\nan owl\n')
    assert run("predict", "toy/animals", "--file", str(path), "--out", str(out)).exit_code == 0
    with out.open(newline="") as lines:
        first, second = csv.DictReader(lines)
    assert list(first) == ["row", "text", "label", "probability"]
    assert (first["row"], first["text"], second["row"]) == ("1", "a carp, swimming", "2")
    assert 0 < float(first["probability"]) <= 1


def test_predict_refuses_an_empty_row_before_anything_is_written(
    run: Run, rows: Path, tmp_path: Path
) -> None:
    result = run("predict", "toy/animals", "--file", str(rows), "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "Row 2 (line 3) of rows.csv has no text in 'text'" in result.stderr
    assert "--skip-empty" in result.stderr
    assert list(tmp_path.iterdir()) == [rows]


def test_predict_skips_empty_rows_with_the_option(run: Run, rows: Path) -> None:
    result = run("predict", "toy/animals", "--file", str(rows), "--skip-empty")
    assert [json.loads(line)["row"] for line in result.stdout.splitlines()] == [1, 3]
    assert "Skipped 1 row" in result.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"text,label\nfrozen pizza,GROCERY,\n", "Row 1 (line 2) of rows.csv has 3"),
        ("rows.csv", b"id;text\n1;one\n", "add --delimiter ';'"),
        ("rows.csv", b"text\nTiefk\xfchlpizza\n", "Add --encoding cp1252"),
        ("rows.jsonl", b'{"text": "one"}\n{"text": "two}\n', "Line 2 of rows.jsonl is not JSON"),
        ("rows.jsonl", b'{"text": "one", "text": "two"}\n', "the key 'text' occurs twice"),
        ("rows.jsonl", b'{"text": {"a": 1}}\n', "Row 1 (line 1) of rows.jsonl has an object"),
    ],
)
def test_predict_refuses_a_file_with_two_readings_in_one_sentence(
    run: Run, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = run("predict", "toy/animals", "--file", str(path), "--skip-empty")
    assert (result.exit_code, result.stdout) == (1, "")
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["Error", "Hint"]
    assert message in result.stderr


def test_predict_reads_another_encoding_and_delimiter_with_the_options(
    run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('id;text\n1;Tiefkühlpizza\n2;"12 Zoll\n'.encode("cp1252"))
    options = ("--encoding", "cp1252", "--delimiter", ";", "--no-quoting")
    result = run("predict", "toy/animals", "--file", str(path), *options)
    texts = [json.loads(line)["text"] for line in result.stdout.splitlines()]
    assert texts == ["Tiefkühlpizza", '"12 Zoll']


def test_predict_reads_numbers_of_json_as_they_are_written(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": 7}\n{"text": 1.50}\n{"text": true}\n')
    result = run("predict", "toy/animals", "--file", str(path))
    texts = [json.loads(line)["text"] for line in result.stdout.splitlines()]
    assert texts == ["7", "1.50", "true"]


@pytest.mark.parametrize(
    "option",
    [("--encoding", "cp1252"), ("--no-quoting",), ("--column", "note"), ("--skip-empty",)],
    ids=str,
)
def test_options_of_files_need_a_file(run: Run, option: tuple[str, ...]) -> None:
    result = run("predict", "toy/animals", "a text", *option)
    assert result.exit_code == 2
    assert "needs --file" in result.stderr


def test_byte_order_mark_on_stdin_is_taken_off(run: Run) -> None:
    result = run("predict", "toy/animals", "-", "--json", input="\ufeffone\r\ntwo\r\n")
    assert [answer["text"] for answer in json.loads(result.stdout)] == ["one", "two"]


def test_generate_prints_the_text_alone(run: Run) -> None:
    result = run("generate", "toy/plurals", "two carp", "--max-new-tokens", "3")
    assert result.exit_code == 0
    assert "toy/plurals@1 (newest)" in result.stderr
    assert "toy/plurals" not in result.stdout


def test_generate_by_the_bare_base(run: Run) -> None:
    args = ("generate", "base", "hello", "--max-new-tokens", "2", "--json")
    data = json.loads(run(*args).stdout)
    assert (data["adapter"], data["prompt"], data["new_tokens"]) == ("base", "hello", 2)


def test_generate_with_a_seed_is_repeatable(run: Run) -> None:
    args = ("generate", "base", "hello", "--temperature", "1", "--max-new-tokens", "5")
    assert run(*args, "--seed", "1").stdout == run(*args, "--seed", "1").stdout
    assert run(*args, "--seed", "1").stdout != run(*args, "--seed", "2").stdout


def test_generate_reads_the_prompt_from_stdin(run: Run) -> None:
    args = ("--max-new-tokens", "2", "--json")
    data = json.loads(run("generate", "base", "-", *args, input="hello").stdout)
    assert data["prompt"] == "hello"


SHORT = ("--max-new-tokens", "3")


def test_chat_streams_the_answer(run: Run) -> None:
    lines = run("chat", *SHORT, input="hello\n")
    alone = run("generate", "base", "hello", *SHORT)
    assert lines.exit_code == 0
    assert lines.stdout.strip() == alone.stdout.strip()


def test_chat_swaps_adapters_in_the_middle(run: Run) -> None:
    lines = run("chat", *SHORT, input="hello\n/use toy/animals\na carp\n/base\nhello\n")
    label = json.loads(run("predict", "toy/animals", "a carp", "--json").stdout)[0]["label"]
    assert f"{label}  0." in lines.stdout
    assert lines.stderr.splitlines()[0] == "base"
    assert "toy/animals@1 (newest)" in lines.stderr


def test_chat_keeps_the_conversation_when_adapters_switch(run: Run) -> None:
    swapped = run("chat", *SHORT, input="one\n/use toy/animals\na carp\n/base\ntwo\n").stdout
    straight = run("chat", *SHORT, input="one\ntwo\n").stdout
    assert swapped.splitlines()[-1] == straight.splitlines()[-1]


def test_chat_reset_clears_the_conversation(run: Run) -> None:
    reset = run("chat", *SHORT, input="one\n/reset\ntwo\n").stdout.splitlines()
    alone = run("chat", *SHORT, input="two\n").stdout.splitlines()
    assert reset[-1] == alone[-1]


def test_chat_puts_a_line_into_the_adapters_own_template(run: Run) -> None:
    lines = run("chat", "toy/plurals", *SHORT, input="two carp\n")
    alone = run("generate", "toy/plurals", "two carp", *SHORT)
    assert lines.stdout.strip() == alone.stdout.strip()


def test_chat_begins_with_the_adapter_that_is_named(run: Run) -> None:
    assert run("chat", "toy/prices", input="3 kg\n").stdout.endswith(" EUR\n")


def test_chat_goes_on_after_a_mistake(run: Run) -> None:
    lines = run("chat", *SHORT, input="/use toy/animal\n/ues\n/adapters\n/quit\nnever\n")
    assert lines.exit_code == 0
    assert "Did you mean 'toy/animals'?" in lines.stderr
    assert "Did you mean '/use'?" in lines.stderr
    assert "toy/prices" in lines.stdout
    assert len(lines.stdout.splitlines()) == 3


def test_chat_help_lists_its_commands(run: Run) -> None:
    text = run("chat", input="/help\n").stderr
    for arg in ("/use", "/adapters", "/base", "/reset", "/quit"):
        assert arg in text


def test_chat_reports_a_conversation_that_is_too_long(run: Run) -> None:
    lines = run("chat", *SHORT, input="word " * 300 + "\nhello\n")
    assert "too long" in lines.stderr
    assert lines.exit_code == 0
