"""The page of ``datasets check``: complete, escaped, and without anything from outside."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cli_runner import invoke
from trunkline.data.check_page import LABELS, render_page
from trunkline.data.check_report import DataFinding, DatasetCheck
from trunkline.data.lengths import LengthReport

SCRIPT = "<script>alert('x')</script>"


class Tags(HTMLParser):
    """The tags and the visible text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("src", "href"), value
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check(**changes: object) -> DatasetCheck:
    finding = DataFinding(
        "duplicates", "warning", f"the text {SCRIPT}", "Leave it.", 12, ("3", "4")
    )
    values = {
        "name": f"own/{SCRIPT}", "task": "classification", "rows": 1234,
        "labels": {SCRIPT: 900, "b": 334}, "parts": {"train": 1000, "test": 234},
        "lengths": LengthReport.of([3, 4, 200], 128), "findings": (finding,),
    }  # fmt: skip
    return DatasetCheck(**{**values, **changes})  # type: ignore[arg-type]


def test_everything_is_shown_and_escaped() -> None:
    tags = Tags(render_page(check()))
    assert "script" not in tags.names
    assert tags.open == []
    for part in (SCRIPT, "1,234 rows", "900", "3, 4, …", "1 of 3", "warning", "Leave it."):
        assert part in " ".join(tags.text.split())
    assert tags.names.count("rect") == 4


@pytest.mark.parametrize(
    "changes", [{"findings": ()}, {"labels": {}}, {"parts": {}}, {"lengths": None}]
)
def test_what_is_missing_leaves_no_heading(changes: dict[str, object]) -> None:
    page = render_page(check(**changes))
    assert Tags(page).names.count("h2") == 4 - (0 if "findings" in changes else 1)
    assert "None" not in page


def test_many_labels_are_summed() -> None:
    labels = {f"label {number}": 1000 - number for number in range(LABELS + 5)}
    text = Tags(render_page(check(labels=labels))).text
    assert "5 other labels" in text
    assert f"label {LABELS - 1}" in text
    assert f"label {LABELS}" not in text


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    file, page = tmp_path / "claims.csv", tmp_path / "report.html"
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["text", "label"])
        writer.writerows(
            [f"burst pipe {number}", ("fire", "water")[number % 2]] for number in range(40)
        )
    done = invoke(
        "--workspace",
        str(tmp_path),
        "datasets",
        "check",
        str(file),
        "--label",
        "label",
        "--html",
        str(page),
    )
    assert done.exit_code == 0, done.output
    assert str(page) in done.stderr
    assert "fire" in Tags(page.read_text(encoding="utf-8")).text


def test_the_page_never_replaces_the_rows(tmp_path: Path) -> None:
    file = tmp_path / "claims.csv"
    file.write_text("text,label\na,b\n")
    args = ("datasets", "check", str(file), "--label", "label", "--html", str(file))
    done = invoke("--workspace", str(tmp_path), *args)
    assert done.exit_code == 2
    assert "is not a page" in done.stderr
    assert file.read_text() == "text,label\na,b\n"


def test_a_folder_of_texts_is_checked(tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / "claims" / ("fire", "water")[number % 2] / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"house {number}")
    done = invoke(
        "--workspace",
        str(tmp_path),
        "datasets",
        "check",
        str(tmp_path / "claims"),
        "--label",
        "label",
    )
    assert done.exit_code == 0, done.output
    assert "40" in done.stdout
