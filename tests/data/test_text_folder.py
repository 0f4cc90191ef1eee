"""A folder of text files as rows: labels and splits from its folders, or a refusal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_images import encoded, picture
from trunkline.cli.file_options import make_own_recipe
from trunkline.data.columns import DataFiles
from trunkline.data.readers import FileOptions, digest_of, read_columns, read_rows
from trunkline.errors import DataError, NotFoundError, TrunklineError, UsageError

names = st.text("abcdé -1", min_size=1, max_size=6).filter(lambda name: name.strip(" .") == name)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return folder


REVIEWS = {"good/1.txt": "Fine.\n", "good/2.txt": "Lovely", "bad/1.txt": "No, thanks"}


def test_folders_are_labels(tmp_path: Path) -> None:
    folder = write(tmp_path / "reviews", {**REVIEWS, ".DS_Store": "x", "good/.hidden": "y"})
    assert read_columns(folder) == ("text", "file", "label")
    rows = list(read_rows(folder))
    assert [(row["label"], row["text"]) for row in rows] == [
        ("bad", "No, thanks"),
        ("good", "Fine.\n"),
        ("good", "Lovely"),
    ]
    assert rows[0].place == "Row 1 of reviews (bad/1.txt)"


def test_folders_of_folders_are_splits(tmp_path: Path) -> None:
    parts = {
        f"{split}/{name}": text for split in ("train", "test") for name, text in REVIEWS.items()
    }
    folder = write(tmp_path / "reviews", parts)
    data = DataFiles(file=str(folder), label="label", split="split", id="file")
    rows = list(data.rows())
    assert {row.split for row in rows} == {"train", "test"}
    assert {row.target for row in rows} == {"good", "bad"}
    assert len({row.id for row in rows}) == 6
    assert "sha256" in data.dataset("own/reviews").source


@settings(max_examples=25, deadline=None)
@given(files=st.dictionaries(st.tuples(names, names), st.text(max_size=20), min_size=1, max_size=6))
def test_random_folders_give_their_texts_back(
    files: dict[tuple[str, str], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    written = {f"{label}/{name}.txt": text for (label, name), text in files.items()}
    encodable = {}
    for name, text in written.items():
        try:
            text.encode()
        except UnicodeEncodeError:
            continue
        encodable[name] = text
    if not encodable:
        return
    folder = write(tmp_path_factory.mktemp("texts"), encodable)
    try:
        rows = {row["file"]: row["text"] for row in read_rows(folder)}
    except DataError:
        assert any("\0" in text or text.startswith("\ufeff") for text in encodable.values())
        return
    expected = {
        name: text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        for name, text in encodable.items()
    }
    assert rows == expected


def test_the_digest_covers_names_and_texts(tmp_path: Path) -> None:
    folder = write(tmp_path / "reviews", REVIEWS)
    before = digest_of(folder)
    assert digest_of(write(tmp_path / "copy", REVIEWS)) == before
    (folder / "good" / "1.txt").write_text("Finer.\n")
    changed = digest_of(folder)
    (folder / "good" / "1.txt").rename(folder / "bad" / "2.txt")
    assert len({before, changed, digest_of(folder)}) == 3


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({}, "no text file"),
        ({"good/1.txt": "a", "good/1.pdf": "b"}, "good/1.pdf"),
        ({"good/1.txt": "a", "1.txt": "b"}, "different depths"),
        ({"a/b/c/1.txt": "a"}, "too deep"),
        ({"train/1.txt": "a", "Test/1.txt": "b"}, "the labels would be Test and train"),
        ({"good/train/1.txt": "a", "bad/dev/1.txt": "b"}, "the labels would be dev and train"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(
    files: dict[str, str], part: str, tmp_path: Path
) -> None:
    (tmp_path / "reviews").mkdir()
    folder = write(tmp_path / "reviews", files)
    with pytest.raises(DataError) as error:
        list(read_rows(folder))
    assert part in error.value.message
    assert error.value.hint


def test_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    """Its texts would be missing without a word."""
    folder = write(tmp_path / "reviews", REVIEWS)
    (folder / "ugly").symlink_to(write(tmp_path / "elsewhere", {"1.txt": "a"}))
    for read in (read_columns, digest_of, lambda path: list(read_rows(path))):
        with pytest.raises(DataError, match="'ugly', a link to a folder"):
            read(folder)


def test_split_of_the_folders_is_used_unless_another_is_named(tmp_path: Path) -> None:
    parts = {
        f"{split}/{name}": text for split in ("train", "test") for name, text in REVIEWS.items()
    }
    folder = write(tmp_path / "reviews", parts)
    made = make_own_recipe("own/reviews", folder, {"label": "label"})
    assert made.data is not None
    assert made.data.split == "split"
    folder = write(tmp_path / "kinds", {f"books/{name}": text for name, text in REVIEWS.items()})
    made = make_own_recipe("own/reviews", folder, {"label": "label"})
    assert made.data is not None
    assert made.data.split is None


def test_links_wrong_options_and_columns_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "reviews", REVIEWS)
    with pytest.raises(NotFoundError, match="labels"):
        list(read_rows(folder, ["labels"]))
    with pytest.raises(UsageError, match="CSV"):
        read_columns(folder, FileOptions(delimiter=";"))
    (folder / "bad" / "2.txt").write_bytes(b"caf\xe9")
    with pytest.raises(TrunklineError, match=r"bad/2\.txt"):
        list(read_rows(folder))
    latin = list(read_rows(folder, ["text"], FileOptions(encoding="cp1252")))
    assert latin[1]["text"] == "café"
    os.symlink("/etc/hostname", folder / "bad" / "3.txt")
    with pytest.raises(DataError, match=r"bad/3\.txt"):
        list(read_rows(folder))


def nested(folder: Path, tops: tuple[str, ...], suffix: str) -> Path:
    """A folder of texts or pictures below folders, two labels in each."""
    for top in tops:
        for label in ("good", "bad"):
            for number in range(3):
                file = folder / top / label / f"{number}{suffix}"
                file.parent.mkdir(parents=True, exist_ok=True)
                seed = len(top) + 10 * len(label) + number
                file.write_bytes(encoded(picture(seed)) if suffix == ".png" else b"A text.")
    return folder


@pytest.mark.parametrize("suffix", [".txt", ".png"])
def test_folders_that_are_no_parts_of_a_split_are_no_split(tmp_path: Path, suffix: str) -> None:
    folder = nested(tmp_path / "cells", ("line1", "line2"), suffix)
    columns = {} if suffix == ".png" else {"label": "label"}
    config = make_own_recipe("own/cells", folder, columns)
    assert config.data is not None
    rows = list(config.data.rows())
    assert {row.target for row in rows} == {"good", "bad"}
    assert {row.split for row in rows} == {None}


@pytest.mark.parametrize("suffix", [".txt", ".png"])
def test_folders_of_which_some_are_parts_of_a_split_are_refused(
    tmp_path: Path, suffix: str
) -> None:
    folder = nested(tmp_path / "cells", ("train", "tets"), suffix)
    columns = {} if suffix == ".png" else {"label": "label"}
    with pytest.raises(DataError, match="'tets' is no part of a split, and 'train' is"):
        make_own_recipe("own/cells", folder, columns)


@pytest.mark.parametrize("suffix", [".txt", ".png"])
def test_folders_that_are_parts_of_a_split_are_one(tmp_path: Path, suffix: str) -> None:
    folder = nested(tmp_path / "cells", ("train", "Test"), suffix)
    columns = {} if suffix == ".png" else {"label": "label"}
    config = make_own_recipe("own/cells", folder, columns)
    assert config.data is not None
    assert {row.split for row in config.data.rows()} == {"train", "test"}
