"""`datasets check` names the rows of a dataset of pictures that are wrong, and says what to do."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from cli_runner import invoke
from tiny_images import encoded, picture
from trunkline.contracts import DatasetSpec, Row
from trunkline.data.check import check_dataset
from trunkline.data.check_page import render_page
from trunkline.data.check_report import DataFinding, DatasetCheck
from trunkline.data.prepare import default_recipe, prepare
from trunkline.errors import DataError, UsageError

CLASSES = ("cracked", "sound")


def row(number: int, image: Any, **fields: Any) -> Row:
    values = {"target": CLASSES[number % 2], "group": str(number), **fields}
    return Row(id=str(number), image=image, **values)


def detailed(seed: int) -> Image.Image:
    """A picture with more detail than :func:`picture` draws, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (18, 24, 3), dtype=np.uint8))
    return coarse.resize((64, 48), Image.Resampling.BICUBIC)


def made(count: int = 40) -> list[Row]:
    """Clean rows of two labels."""
    return [row(number, encoded(detailed(number))) for number in range(count)]


def spec(rows: Sequence[Row], **fields: Any) -> DatasetSpec:
    values: dict[str, Any] = {"task": "classification", **fields}
    return DatasetSpec(
        name="own/cells", description="", load=lambda: rows, license="", source="", grouping="",
        modality="image", **values,
    )  # fmt: skip


def checked(rows: Sequence[Row], **options: Any) -> DatasetCheck:
    dataset = spec(rows)
    return check_dataset(dataset, default_recipe(dataset), **options)


def finding_of(rows: Sequence[Row], kind: str) -> DataFinding:
    """The one finding of a kind."""
    result = checked(rows)
    (finding,) = [one for one in result.findings if one.kind == kind]
    assert finding.message
    assert finding.advice.endswith(".")
    return finding


def with_row(image: Any, **fields: Any) -> list[Row]:
    return [*made(), row(100, image, **fields)]


def test_clean_pictures_have_no_findings() -> None:
    result = checked(made())
    assert result.findings == ()
    assert result.usable
    assert result.labels == {"cracked": 20, "sound": 20}
    assert sum(result.parts.values()) == result.rows == 40


def test_distribution_of_sizes_modes_and_brightness() -> None:
    report = checked(with_row(encoded(Image.new("L", (200, 100), 250)))).pictures
    assert report is not None
    assert (report.width, report.height) == ((64, 64, 200), (48, 48, 100))
    assert report.sizes == {"64 × 48": 40, "200 × 100": 1}
    assert report.modes == {"RGB": 40, "L": 1}
    assert sum(report.brightness.values()) == 41
    assert report.brightness["224–255"] == 1


def test_every_unreadable_picture_is_named_with_what_to_do() -> None:
    complete = encoded(picture(1, 200, 200))
    frames = encoded(picture(1), "GIF", save_all=True, append_images=[picture(2)])
    rows = [
        *made(),
        row(100, complete[: len(complete) // 2]),
        row(101, complete[: len(complete) // 3]),
        row(102, b"<svg/>"),
        row(103, "missing.png"),
        row(104, frames),
    ]
    result = checked(rows)
    named = {one.rows: one for one in result.findings if one.kind == "unreadable pictures"}
    assert set(named) == {("100", "101"), ("102",), ("103",), ("104",)}
    assert all(one.level == "error" for one in named.values())
    assert "damaged or truncated" in named["100", "101"].message
    assert "Copy or save it again." in named["100", "101"].advice
    assert not result.usable
    assert result.rows == 45
    assert sum(result.parts.values()) == 40


@pytest.mark.parametrize(
    ("kind", "image", "part"),
    [
        ("color modes", encoded(picture(900, mode="L")), "gray pixels"),
        ("color modes", encoded(picture(900).convert("CMYK"), "JPEG"), "CMYK"),
        ("color modes", encoded(picture(900).convert("RGBA")), "transparency"),
        ("empty pictures", encoded(Image.new("RGB", (64, 48), (9, 120, 7))), "one color"),
        ("size", encoded(picture(900, 20, 20)), "less than 32 pixels"),
        ("size", encoded(picture(900, 400, 40)), "3 times as long"),
        (
            "brightness",
            encoded(ImageEnhance.Brightness(picture(900, 64, 48)).enhance(0.08)),
            "nearly black",
        ),
    ],
)
def test_finding_names_its_row(kind: str, image: bytes, part: str) -> None:
    finding = finding_of(with_row(image), kind)
    assert (finding.count, finding.rows) == (1, ("100",))
    assert part in finding.message


def test_rotation_of_a_camera_is_named() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    finding = finding_of(with_row(encoded(picture(900, 64, 48), exif=exif)), "rotation")
    assert finding.rows == ("100",)


def test_equal_pictures_are_duplicates_or_conflicts() -> None:
    again = encoded(detailed(0))
    assert finding_of(with_row(again), "duplicates").rows == ("100",)
    conflict = finding_of(with_row(again, target="sound", group="0"), "label conflicts")
    assert set(conflict.rows) == {"0", "100"}


def saved_again(number: int, how: str) -> bytes:
    """Another file of the picture of a row."""
    image = detailed(number)
    if how == "smaller":
        return encoded(image.resize((48, 36), Image.Resampling.LANCZOS))
    if how == "brighter":
        return encoded(ImageEnhance.Brightness(image).enhance(1.1))
    return encoded(image, "JPEG", quality=60)


@pytest.mark.parametrize("how", ["jpeg", "smaller", "brighter"])
def test_near_duplicates_across_an_official_split(how: str) -> None:
    rows = [replace(one, split="train") for one in made()]
    rows += [
        row(200 + number, saved_again(number, how), target=CLASSES[number % 2], split="test")
        for number in range(6)
    ]
    finding = finding_of(rows, "near-duplicates")
    assert finding.level == "warning"
    assert set(finding.rows) == {str(200 + number) for number in range(6)}
    assert "row 200 is like row 0" in finding.message
    dataset = spec(rows)
    report = prepare(dataset, default_recipe(dataset)).report
    assert (report.near_duplicates, report.compared_by) == (6, "phash")


def test_size_that_gives_the_label_away() -> None:
    rows = [row(n, encoded(picture(n, 64 + 16 * (n % 2), 48))) for n in range(40)]
    finding = finding_of(rows, "revealing files")
    assert "the size of the file alone gives the label of 100%" in finding.message


def test_frequency_of_labels() -> None:
    rows = [replace(one, target=CLASSES[int(one.id) >= 100]) for one in made(110)]
    finding = finding_of(rows, "class balance")
    assert finding.message == "'cracked' has 100 rows and 'sound' 10"


def test_undecodable_picture_ends_the_preparation() -> None:
    rows = [replace(one, split="train") for one in made()]
    rows.append(row(100, encoded(picture(1))[:200], split="test"))
    dataset = spec(rows)
    with pytest.raises(DataError, match="Row '100': the picture is damaged or truncated"):
        prepare(dataset, default_recipe(dataset))


def test_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    rows = [row(n, encoded(detailed(5000 + n))) for n in range(12)]  # decoded nowhere else
    with pytest.raises(UsageError, match="needs the package imagehash") as caught:
        checked(rows)
    assert "trunkline[images]" in str(caught.value.hint)


# ------------------------------------------------------------------------------- contact sheet


def test_contact_sheet_shows_labels_and_pairs() -> None:
    plain = checked(made(), contact_sheet=True).contact_sheet
    assert plain is not None
    rows = [replace(one, split="train") for one in made()]
    rows.append(row(200, saved_again(0, "jpeg"), split="test"))
    paired = checked(rows, contact_sheet=True).contact_sheet
    assert paired is not None
    heights = [Image.open(io.BytesIO(sheet)).height for sheet in (plain, paired)]
    assert heights[1] > heights[0]
    assert not Image.open(io.BytesIO(plain)).info


def test_contact_sheet_of_numbers_has_four_ranges() -> None:
    rows = [replace(one, target=float(index)) for index, one in enumerate(made())]
    dataset = spec(rows, task="regression")
    sheet = check_dataset(dataset, default_recipe(dataset), contact_sheet=True).contact_sheet
    assert sheet is not None
    two = checked(made(), contact_sheet=True).contact_sheet
    assert two is not None
    assert Image.open(io.BytesIO(sheet)).height > 1.8 * Image.open(io.BytesIO(two)).height


def test_page_has_the_distribution_and_the_sheet() -> None:
    page = render_page(checked(made(), contact_sheet=True))
    assert '<img src="data:image/png;base64,' in page
    assert "64 × 48" in page
    assert page.count("src=") == 1


# -------------------------------------------------------------------------------- command line


def draw(folder: Path, count: int = 10) -> Path:
    for number in range(2 * count):
        file = folder / CLASSES[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(picture(number, 64, 48)))
    return folder


def test_folder_is_checked_and_drawn(tmp_path: Path) -> None:
    folder = draw(tmp_path / "cells")
    page, sheet = tmp_path / "cells.html", tmp_path / "cells.png"
    args = ("--workspace", str(tmp_path), "--no-plugins", "datasets", "check", str(folder))
    done = invoke(*args, "--html", str(page), "--contact-sheet", str(sheet))
    assert done.exit_code == 0, done.output
    assert "width 64 to 64 (median 64)" in done.stdout
    assert "data:image/png" in page.read_text(encoding="utf-8")
    assert Image.open(sheet).format == "PNG"
    (folder / "sound" / "1.png").write_bytes(b"no picture")
    (folder / "sound" / "3.png").write_bytes(b"no picture")
    failed = invoke(*args, "--json")
    assert failed.exit_code == 1
    report = json.loads(failed.stdout)
    assert report["usable"] is False
    assert report["findings"][0]["rows"] == ["sound/1.png", "sound/3.png"]
    assert "contact_sheet" not in report
    assert "Traceback" not in failed.stderr


def test_every_missing_picture_of_a_table_is_named(tmp_path: Path) -> None:
    draw(tmp_path)
    table = tmp_path / "cells.csv"
    names = [f"{CLASSES[number % 2]}/{number}.png" for number in range(20)]
    lines = [f"{name},{name.partition('/')[0]}" for name in (*names, "x/1.png", "x/2.png")]
    table.write_text("\n".join(["photo,kind", *lines]))
    args = ("datasets", "check", str(table), "--image", "photo", "--label", "kind", "--json")
    done = invoke("--workspace", str(tmp_path), "--no-plugins", *args)
    (finding,) = json.loads(done.stdout)["findings"]
    assert finding["rows"] == ["x/1.png", "x/2.png"]
    assert "Row 21 (line 22) of cells.csv: There is no file" in finding["message"]


@pytest.mark.parametrize(
    ("options", "part"),
    [(("--contact-sheet", "a.jpg"), "is not a PNG"), (("--contact-sheet", "a.png"), "holds texts")],
)
def test_contact_sheet_is_a_png_of_pictures(
    tmp_path: Path, options: tuple[str, ...], part: str
) -> None:
    (tmp_path / "claims.csv").write_text("text,label\na,b\n")
    args = ("datasets", "check", str(tmp_path / "claims.csv"), "--label", "label", *options)
    done = invoke("--workspace", str(tmp_path), "--no-plugins", *args)
    assert done.exit_code == 2
    assert part in done.stderr


def test_pictures_that_are_all_unreadable_have_one_error() -> None:
    rows = [replace(row, image=b"no picture") for row in made()]
    errors = [one.kind for one in checked(rows).findings if one.level == "error"]
    assert errors == ["unreadable pictures"]


def test_transparency_of_a_palette_is_a_finding() -> None:
    stream = io.BytesIO()
    palette = Image.new("P", (40, 40))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(stream, "PNG", transparency=0)
    rows = [replace(made()[0], image=stream.getvalue()), *made()[1:]]
    kinds = {one.message for one in checked(rows).findings if one.kind == "color modes"}
    assert any("transparency" in message for message in kinds)


def test_contact_sheet_leaves_out_rows_without_a_target() -> None:
    rows = made()
    blank = [*rows, replace(rows[0], id="blank", target=" ")]
    sheets = [checked(one, contact_sheet=True).contact_sheet for one in (rows, blank)]
    heights = [Image.open(io.BytesIO(sheet)).height for sheet in sheets if sheet]
    assert heights[0] == heights[1]
