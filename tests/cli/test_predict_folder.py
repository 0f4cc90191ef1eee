"""`trunkline predict --folder`: a line for each picture, in a table or as JSON."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from image_workbench import NAME, image_run, image_workspace, shapes, tiny_resnet
from workbench import tiny

__all__ = ["image_run", "image_workspace", "shapes", "tiny", "tiny_resnet"]

Run = Callable[..., Result]
COUNT = 40
"""More than a batch of pictures."""


@pytest.fixture
def folder(tmp_path: Path, shapes: Path) -> Path:
    """Pictures in folders of two depths, and a file that is none."""
    files = sorted(shapes.rglob("*.png"))[:COUNT]
    (tmp_path / "cells" / "line 2" / "left").mkdir(parents=True)
    for number, file in enumerate(files):
        place = "line 2/left" if number % 2 else "."
        shutil.copyfile(file, tmp_path / "cells" / place / f"{number}.PNG")
    (tmp_path / "cells" / "notes.txt").write_text("no picture")
    return tmp_path / "cells"


def read(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def damage(folder: Path) -> None:
    (folder / "line 2" / "left" / "7.PNG").write_bytes(b"\x89PNG and nothing")


def test_table_has_a_row_for_each_picture(image_run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    result = image_run("predict", NAME, "--folder", str(folder), "--out", str(out))
    assert result.exit_code == 0, result.stderr
    rows = read(out)
    assert list(rows[0]) == ["path", "label", "probability"]
    paths = [row["path"] for row in rows]
    assert paths == sorted(paths, key=Path)
    assert len(rows) == COUNT
    assert "line 2/left/1.PNG" in paths
    alone = json.loads(image_run("predict", NAME, str(folder / "0.PNG"), "--json").stdout)[0]
    (row,) = (row for row in rows if row["path"] == "0.PNG")
    assert row["label"] == alone["label"]
    assert float(row["probability"]) == pytest.approx(alone["probabilities"][row["label"]], 1e-3)
    assert f"{COUNT} of {COUNT}" in result.stderr
    assert "1 other file left out" in result.stderr
    assert f"{COUNT} answers in {out}" in " ".join(result.stderr.split())


def test_other_suffix_and_stdout_are_json_lines(
    image_run: Run, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels.jsonl"
    assert image_run("predict", NAME, "--folder", str(folder), "--out", str(out)).exit_code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    printed = image_run("predict", NAME, "--folder", str(folder)).stdout.splitlines()
    assert [json.loads(line)["path"] for line in printed] == [one["path"] for one in lines]
    assert set(lines[0]) == {"path", "adapter", "task", "label", "probabilities"}
    array = json.loads(image_run("predict", NAME, "--folder", str(folder), "--json").stdout)
    assert [one["path"] for one in array] == [one["path"] for one in lines]


def test_picture_that_can_not_be_read_ends_the_run(
    image_run: Run, folder: Path, tmp_path: Path
) -> None:
    damage(folder)
    out = tmp_path / "labels.csv"
    result = image_run("predict", NAME, "--folder", str(folder), "--out", str(out))
    assert result.exit_code == 1
    assert "cells/line 2/left/7.PNG: 7.PNG is not a picture that can be decoded" in result.stderr
    assert "--skip-unreadable" in result.stderr
    assert not out.exists()


def test_picture_that_can_not_be_read_gets_its_error(
    image_run: Run, folder: Path, tmp_path: Path
) -> None:
    damage(folder)
    out = tmp_path / "labels.csv"
    args = ("predict", NAME, "--folder", str(folder), "--skip-unreadable", "--out", str(out))
    result = image_run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    rows = {row["path"]: row for row in read(out)}
    bad = rows.pop("line 2/left/7.PNG")
    assert (bad["label"], bad["probability"]) == ("", "")
    assert bad["error"].startswith("7.PNG is not a picture that can be decoded")
    assert all(row["label"] and not row["error"] for row in rows.values())
    counts = json.loads(result.stdout)
    assert (counts["pictures"], counts["unreadable"], counts["others"]) == (COUNT, 1, 1)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (("--folder", "{empty}"), "holds no picture"),
        (("--folder", "{empty}/none"), "There is no folder"),
        (("--folder", "{empty}", "a.png"), "either as arguments"),
        (("a.png", "--skip-unreadable"), "--skip-unreadable needs --folder"),
        (("{empty}",), "--folder"),
        (("--folder", "{empty}", "--column", "x"), "--column needs --file"),
    ],
)
def test_wrong_use_is_one_sentence(
    image_run: Run, tmp_path: Path, args: tuple[str, ...], problem: str
) -> None:
    (tmp_path / "empty").mkdir()
    result = image_run("predict", NAME, *(one.format(empty=tmp_path / "empty") for one in args))
    assert result.exit_code in (1, 2)
    assert problem in result.stderr
    assert "Traceback" not in result.stderr


def test_out_that_is_a_file_of_the_folder_is_refused(image_run: Run, folder: Path) -> None:
    one = folder / "0.PNG"
    before = one.read_bytes()
    (folder / "labels.csv").write_text("path,label\n")
    for out in (one, folder / "labels.csv", folder / "line 2" / ".." / "0.PNG"):
        result = image_run("predict", NAME, "--folder", str(folder), "--out", str(out))
        assert result.exit_code == 2
        assert "would replace a file of the folder" in result.stderr
    assert one.read_bytes() == before
    result = image_run("predict", NAME, "--folder", str(folder), "--out", str(folder / "out.jsonl"))
    assert result.exit_code == 0, result.stderr


def test_out_in_a_missing_folder_is_refused_by_each_command(image_run: Run, folder: Path) -> None:
    place = str(folder / "nowhere" / "x.png")
    one = str(folder / "0.PNG")
    for command in (
        ("predict", NAME, "--folder", str(folder), "--out", place),
        ("explain", NAME, one, "--out", place),
        ("runs", "plot", "1", "--out", place),
        ("datasets", "check", str(folder), "--contact-sheet", place),
    ):
        result = image_run(*command)
        assert result.exit_code == 2
        assert "does not exist" in result.stderr


def test_picture_is_not_replaced_by_its_map_or_a_contact_sheet(
    image_run: Run, folder: Path
) -> None:
    one = folder / "0.png"
    (folder / "0.PNG").rename(one)
    before = one.read_bytes()
    (folder / "notes.txt").unlink()
    for command, reason in (
        (("explain", NAME, str(one), "--out", str(one)), "is the file that the command reads"),
        (("datasets", "check", str(folder), "--contact-sheet", str(one)), "would replace a file"),
    ):
        result = image_run(*command)
        assert result.exit_code == 2
        assert reason in result.stderr
    assert one.read_bytes() == before
