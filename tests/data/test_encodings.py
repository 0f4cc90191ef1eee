"""Encodings of text files: marks, options, and what the refusal of another encoding says."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

import pytest

from row_files import read, refusal
from trunkline.data.readers import decode_text, read_entries
from trunkline.errors import DataError, UsageError

LANGUAGES = {
    "cp1252": "Tiefkühlpizza für 5 €, gekühlt – Größe „L“",
    "cp1250": "mrożona pizza, łosoś i żółty ser; příliš žluťoučký kůň",
    "cp1251": "Замороженная пицца и горячий чай",
    "koi8-r": "Замороженная пицца и горячий чай",
    "cp1253": "κατεψυγμένη πίτσα με τυρί",
    "cp1254": "dondurulmuş pizza, çay ve ışık",
    "gb18030": "冷冻披萨，意大利风味，四百克。",
    "big5": "冷凍披薩，義大利風味，四百公克。",
    "cp932": "冷凍ピザ、イタリア風味、四百グラム。",
    "euc_jp": "冷凍ピザ、イタリア風味、四百グラム。",
    "cp949": "냉동 피자와 이탈리아 풍미 사백 그램",
}


def csv_of(text: str) -> str:
    return f'id,text\n1,plain\n2,"{text}"\n'


@pytest.mark.parametrize("encoding", LANGUAGES)
def test_another_encoding_is_refused_with_its_name_and_read_with_the_option(
    tmp_path: Path, encoding: str
) -> None:
    text = LANGUAGES[encoding]
    content = csv_of(text).encode(encoding)
    error = refusal(tmp_path, "rows.csv", content)

    assert "Line 3 of rows.csv is not UTF-8" in error.message
    assert f"--encoding {encoding}," in (error.hint or "")
    assert text[:8] in (error.hint or "")
    assert read(tmp_path, "rows.csv", content, encoding=encoding) == ["plain", text]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.json"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_byte_order_mark_decides_and_is_taken_off(tmp_path: Path, name: str, encoding: str) -> None:
    text = "Größe 冷 🍕"
    content = csv_of(text) if name == "rows.csv" else f'{{"text": "plain"}}\n{{"text": "{text}"}}\n'
    data = f"\ufeff{content}".encode(encoding)

    assert read(tmp_path, name, data) == ["plain", text]
    assert read(tmp_path, name, data, encoding=encoding) == ["plain", text]
    family = encoding.removesuffix("-le").removesuffix("-be")
    assert read(tmp_path, name, data, encoding=family) == ["plain", text]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_refused_with_the_option(tmp_path: Path, encoding: str) -> None:
    data = csv_of("冷冻披萨").encode(encoding)

    error = refusal(tmp_path, "rows.csv", data)
    assert "UTF-16 without a byte order mark" in error.message
    assert f"--encoding {encoding}" in (error.hint or "")
    assert read(tmp_path, "rows.csv", data, encoding=encoding) == ["plain", "冷冻披萨"]
    error = refusal(tmp_path, "rows.csv", data, encoding="utf-16")
    assert "can be read in two ways" in error.message


@pytest.mark.parametrize("encoding", ["utf-32-le", "utf-32-be"])
def test_utf32_without_a_mark_is_refused_with_the_option(tmp_path: Path, encoding: str) -> None:
    data = csv_of("冷冻披萨").encode(encoding)

    error = refusal(tmp_path, "rows.csv", data)
    assert "UTF-32 without a byte order mark" in error.message
    assert f"--encoding {encoding}" in (error.hint or "")
    assert read(tmp_path, "rows.csv", data, encoding=encoding) == ["plain", "冷冻披萨"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.json"])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_every_mark_at_the_start_is_taken_off(tmp_path: Path, name: str, encoding: str) -> None:
    content = "text,id\none,1\n" if name == "rows.csv" else '{"text": "one"}'
    data = f"\ufeff\ufeff{content}".encode(encoding)
    assert read(tmp_path, name, data, encoding=encoding) == ["one"]


def test_mark_of_another_encoding_than_the_option_is_refused(tmp_path: Path) -> None:
    data = codecs.BOM_UTF8 + b"text\none\n"
    assert (
        "byte order mark of utf-8" in refusal(tmp_path, "rows.csv", data, encoding="cp1252").message
    )
    assert read(tmp_path, "rows.csv", data, encoding="utf-8-sig") == ["one"]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("rows", [0, 1, 70_000])
def test_damage_in_the_middle_is_refused_with_its_line(
    tmp_path: Path, rows: int, ending: bytes
) -> None:
    lines = [b"id,text", *[b"1,Gr\xc3\xb6\xc3\x9fe"] * rows, b"2,Gr\xf6\xc3\x9fe", b"3,\xc3\xbc"]
    error = refusal(tmp_path, "rows.csv", ending.join([*lines, b"4,\xc3\xa4\xc3\xa4\xc3\xa4"]))

    assert f"Line {rows + 2} of rows.csv is not UTF-8: byte 0xF6" in error.message
    assert error.hint == "What is around it is UTF-8: correct this line."


def test_file_that_ends_within_a_character_is_refused(tmp_path: Path) -> None:
    assert "Line 2 of rows.csv is not UTF-8" in refusal(tmp_path, "rows.csv", b"text\n\xe5").message


def test_surrogates_in_utf8_are_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, "rows.csv", b"text\nok\n\xed\xa0\x80\n")
    assert "Line 3 of rows.csv is not UTF-8: byte 0xED" in error.message


def test_wrong_option_is_refused_with_the_line(tmp_path: Path) -> None:
    error = refusal(tmp_path, "rows.csv", b"text\n\x81\x20\n", encoding="cp1252")
    assert "Line 2 of rows.csv is not CP1252: byte 0x81" in error.message


def test_escape_sequences_of_japanese_mail_are_refused(tmp_path: Path) -> None:
    data = "text\n冷凍ピザ\n".encode("iso2022_jp")
    assert "--encoding iso2022_jp" in (refusal(tmp_path, "rows.csv", data).hint or "")
    assert read(tmp_path, "rows.csv", data, encoding="iso2022_jp") == ["冷凍ピザ"]


# ------------------------------------------------------------------------- entries and stdin


def entries(folder: Path, data: bytes) -> tuple[str, ...]:
    path = folder / "labels.txt"
    path.write_bytes(data)
    return read_entries(path)


@pytest.mark.parametrize(
    "data",
    [
        "\ufeffcase report\r\nr\u00e9view\u2028of\x0cbooks\r\n".encode(),
        "\ufeffcase report\nr\u00e9view\u2028of\x0cbooks\n\n".encode("utf-16-le"),
        "case report\rr\u00e9view\u2028of\x0cbooks".encode(),
    ],
    ids=["mark", "utf-16", "cr"],
)
def test_entries_are_lines_without_a_mark(tmp_path: Path, data: bytes) -> None:
    assert entries(tmp_path, data) == ("case report", "r\u00e9view\u2028of\x0cbooks")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "labels.txt is empty"),
        (b" \n\n", "labels.txt is empty"),
        (b"one\n\ntwo\n", "Line 2 of labels.txt is empty"),
        (b"one\nt\xfcr\n", "Line 2 of labels.txt is not UTF-8"),
        (b"one\0\n", "Line 1 of labels.txt has a NUL character"),
    ],
)
def test_entries_that_are_not_clear_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        entries(tmp_path, data)


def test_likely_encoding_is_named_where_there_is_no_option() -> None:
    with pytest.raises(DataError) as caught:
        decode_text("Tiefk\u00fchlpizza".encode("cp1252"), "stdin")
    assert "iconv -f cp1252 -t utf-8" in (caught.value.hint or "")
    assert decode_text("\ufeffa\r\nb".encode(), "stdin") == "a\nb"


def test_entries_are_read_from_a_pipe(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"\xef\xbb\xbfcat\ndog\n")
    os.close(writer)
    try:
        assert read_entries(Path(f"/dev/fd/{reader}")) == ("cat", "dog")
    finally:
        os.close(reader)


def test_encoding_that_decodes_nothing_is_refused(tmp_path: Path) -> None:
    for encoding in ("undefined", "idna", "punycode"):
        with pytest.raises(UsageError, match="no text encoding"):
            read(tmp_path, "rows.csv", "text\none\n", encoding=encoding)


def test_unknown_encoding_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no text encoding"):
        read(tmp_path, "rows.csv", "text\none\n", encoding="klingon")
