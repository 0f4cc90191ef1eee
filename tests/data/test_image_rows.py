"""Rows of pictures: folders and tables of a user's own, and datasets of plugins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tiny_images import encoded, picture
from trunkline.cli.file_options import make_own_recipe
from trunkline.contracts import DatasetSpec, Row, TransformSpec
from trunkline.data.columns import DataFiles
from trunkline.data.croissant import croissant_of, row_lines
from trunkline.data.prepare import Prepared, default_recipe, prepare, read_rows
from trunkline.errors import DataError, NotFoundError, PluginCallError, UsageError
from trunkline.plugins import load_plugins

CLASSES = ("cracked", "sound")


def draw(folder: Path, *, split: bool = False, count: int = 6) -> Path:
    """A folder for each class, perhaps below one for each part of a split."""
    for number, name in enumerate(CLASSES):
        for index in range(count):
            part = ("test" if index == 0 else "train") if split else ""
            file = folder / part / name / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(picture(100 * number + index)))
    return folder


def read(file: Path, **columns: Any) -> list[Row]:
    return list(DataFiles(file=str(file), image="path", label="label", **columns).rows())


def dataset(rows: Sequence[Row], **changes: Any) -> DatasetSpec:
    values: dict[str, Any] = {
        "name": "toy/cells",
        "description": "cells",
        "task": "classification",
        "load": lambda: rows,
        "license": "CC0-1.0",
        "source": "drawn",
        "grouping": "a picture",
        "modality": "image",
    }
    return DatasetSpec(**{**values, **changes})


def prepared(rows: Sequence[Row], **changes: Any) -> Prepared:
    spec = dataset(rows, **changes)
    return prepare(spec, default_recipe(spec))


def drawn(count: int = 12) -> list[Row]:
    return [
        Row(
            id=str(index),
            target=CLASSES[index % 2],
            group=str(index),
            image=encoded(picture(index)),
        )
        for index in range(count)
    ]


# ------------------------------------------------------------------------------------- folders


def test_folder_for_each_class(tmp_path: Path) -> None:
    rows = read(draw(tmp_path / "cells"))
    assert {row.target for row in rows} == set(CLASSES)
    assert rows[0].id == "cracked/0.png"
    assert rows[0].picture.read() == (tmp_path / "cells" / "cracked" / "0.png").read_bytes()
    assert all(row.text == "" for row in rows)


def test_folder_for_each_part_of_a_split(tmp_path: Path) -> None:
    rows = read(draw(tmp_path / "cells", split=True), split="split")
    assert {row.id.split("/")[0]: row.split for row in rows} == {"test": "test", "train": "train"}


def test_labels_in_a_table(tmp_path: Path) -> None:
    folder = draw(tmp_path / "cells")
    (folder / "labels.csv").write_text(
        "path,label,group\ncracked/0.png,bad,module 1\nsound/0.png,good,module 2\n"
    )
    rows = read(folder, group="group")
    assert [(row.id, row.target, row.group) for row in rows] == [
        ("cracked/0.png", "bad", "module 1"),
        ("sound/0.png", "good", "module 2"),
    ]


def test_table_beside_the_pictures(tmp_path: Path) -> None:
    draw(tmp_path / "cells")
    table = tmp_path / "cells.csv"
    table.write_text("photo,defect\ncells/cracked/0.png,0.7\ncells/sound/0.png,0\n")
    rows = list(DataFiles(file=str(table), image="photo", target="defect").rows())
    assert [row.target for row in rows] == [0.7, 0.0]
    assert rows[1].picture.name == "cells/sound/0.png"


def test_equal_pictures_are_one_group(tmp_path: Path) -> None:
    folder = draw(tmp_path / "cells")
    (folder / "sound" / "copy.png").write_bytes((folder / "sound" / "0.png").read_bytes())
    groups = {row.id: row.group for row in read(folder)}
    assert groups["sound/copy.png"] == groups["sound/0.png"]
    assert len(set(groups.values())) == len(groups) - 1


def test_missing_picture_names_the_row(tmp_path: Path) -> None:
    folder = draw(tmp_path / "cells")
    (folder / "labels.csv").write_text("path,label\ncracked/none.png,bad\n")
    files = DataFiles(file=str(folder), image="path", label="label")
    with pytest.raises(DataError, match=r"^Row 1 \(line 2\) of labels\.csv: There is no file"):
        read_rows(files.dataset("own/cells"))


def test_other_file_in_the_folder_is_refused(tmp_path: Path) -> None:
    folder = draw(tmp_path / "cells")
    (folder / "sound" / "notes.txt").write_text("good")
    with pytest.raises(DataError, match=r"'sound/notes\.txt', which is not a picture"):
        read(folder)


def test_picture_without_a_class_is_refused(tmp_path: Path) -> None:
    folder = draw(tmp_path / "cells")
    (folder / "stray.png").write_bytes(encoded(picture()))
    with pytest.raises(DataError, match="another depth"):
        read(folder)


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = draw(tmp_path / "cells")
    (folder / "sound" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match="not a picture"):
        read(folder)


def test_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    folder = draw(tmp_path / "cells")
    (folder / "broken").symlink_to(draw(tmp_path / "elsewhere") / "sound")
    with pytest.raises(DataError, match="'broken', a link to a folder"):
        read(folder)


def test_parts_of_a_split_are_no_labels(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / "cells" / name).mkdir(parents=True)
        (tmp_path / "cells" / name / "0.png").write_bytes(encoded(picture()))
    with pytest.raises(DataError, match="the labels would be test and train"):
        read(tmp_path / "cells")


def test_options_for_reading_apply_to_the_table_in_the_folder(tmp_path: Path) -> None:
    folder = draw(tmp_path / "cells")
    table = "path;label;group\ncracked/0.png;beschädigt;1\nsound/0.png;gut;2\n"
    (folder / "labels.csv").write_bytes(table.encode("cp1252"))
    options = {"delimiter": ";", "encoding": "cp1252"}
    config = make_own_recipe("own/cells", folder, options)
    assert config.data is not None
    rows = list(config.data.rows())
    assert [(row.target, row.group) for row in rows] == [("beschädigt", "1"), ("gut", "2")]


def test_name_that_no_file_can_have_names_the_row(tmp_path: Path) -> None:
    folder = draw(tmp_path / "cells")
    (folder / "labels.csv").write_text(f"path,label\n{'x' * 300}.png,bad\n")
    files = DataFiles(file=str(folder), image="path", label="label")
    with pytest.raises(DataError, match=r"Row 1 \(line 2\) of labels\.csv: .* name too long"):
        read_rows(files.dataset("own/cells"))


def test_source_names_the_folder_with_its_digest(tmp_path: Path) -> None:
    files = DataFiles(file=str(draw(tmp_path / "cells")), image="path", label="label")
    before = files.dataset("own/cells")
    assert before.modality == "image"
    (tmp_path / "cells" / "sound" / "0.png").write_bytes(encoded(picture(77)))
    assert files.dataset("own/cells").source != before.source


def test_folder_of_pictures_needs_no_columns(tmp_path: Path) -> None:
    config = make_own_recipe("own/cells", draw(tmp_path / "cells", split=True), {})
    assert config.data is not None
    assert (config.data.image, config.data.label, config.data.split) == ("path", "label", "split")


def test_generation_of_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a generation can't be learned of pictures"):
        make_own_recipe("own/cells", draw(tmp_path / "cells"), {"completion": "label"})


def test_unknown_column_names_the_others(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="labels") as caught:
        read(draw(tmp_path / "cells"), group="labels")
    assert "path, label" in str(caught.value.hint)


# ---------------------------------------------------------------------------------- preparation


def test_rows_of_pictures_are_prepared() -> None:
    report = prepared(drawn()).report
    assert (report.kept, report.dropped, report.near_duplicates) == (12, {}, 0)


def test_equal_pictures_are_counted_as_duplicates_and_conflicts() -> None:
    rows = drawn()
    again = Row(id="again", target=rows[0].target, group="x", image=encoded(picture(0)))
    other = Row(id="other", target=CLASSES[1], group="y", image=encoded(picture(2)))
    report = prepared([*rows, again, other]).report
    assert (report.duplicated, report.label_conflicts) == (1, 2)


def test_fingerprint_covers_the_pictures() -> None:
    rows = drawn()
    before = prepared(rows).fingerprint
    rows[3] = Row(id="3", target=rows[3].target, group="3", image=encoded(picture(99)))
    assert prepared(rows).fingerprint != before


def test_picture_that_changes_after_reading_is_an_error(tmp_path: Path) -> None:
    folder = draw(tmp_path / "cells")
    row = next(one for one in read(folder) if one.id == "sound/0.png")
    (folder / "sound" / "0.png").write_bytes(encoded(picture(77)))
    with pytest.raises(DataError, match="was changed while it was used"):
        row.picture.read()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image": None}, "no picture"),
        ({"text": "a cell"}, "a text beside its picture"),
        ({"image": "missing.png"}, "no file"),
    ],
)
def test_row_that_is_no_picture_is_refused(change: dict[str, Any], problem: str) -> None:
    rows = drawn()
    values = {"id": "odd", "target": CLASSES[0], "group": "odd", "image": b"x", **change}
    with pytest.raises(DataError, match=problem):
        prepared([*rows, Row(**values)])


def test_function_that_raises_names_the_row() -> None:
    def fail() -> bytes:
        raise RuntimeError("gone")

    rows = [*drawn(), Row(id="odd", target=CLASSES[0], group="odd", image=fail)]
    with pytest.raises(PluginCallError, match="picture of row 'odd'"):
        prepared(rows)


def test_picture_in_a_dataset_of_text_is_refused() -> None:
    with pytest.raises(DataError, match="the dataset is of text"):
        prepared(drawn(), modality="text")


def test_transforms_of_texts_are_refused() -> None:
    catalog = load_plugins(no_plugins=True)
    step = next(iter(catalog.transforms()))
    spec = dataset(drawn())
    with pytest.raises(UsageError, match="changes texts, and toy/cells holds pictures"):
        prepare(spec, default_recipe(spec), [step])


def test_transforms_of_a_plugin_may_change_pictures() -> None:
    def change(row: Row, rng: Any) -> list[Row]:
        image = encoded(picture(500 + int(row.id)))
        return [row, replace(row, id=f"{row.id}+", image=image)]

    def clean(row: Row, rng: Any) -> list[Row]:
        return [replace(row, image=encoded(picture(900 + int(row.id))))]

    steps = (
        TransformSpec(name="toy/redraw", description="d", stage="clean", apply=clean),
        TransformSpec(name="toy/more", description="d", stage="augment", apply=change),
    )
    spec = dataset(drawn())
    result = prepare(spec, default_recipe(spec), steps)
    digests = {row.picture.sha256 for row in (*result.split.train, *result.augmented)}
    assert len(digests) == 2 * len(result.split.train)
    assert "" not in digests
    assert result.fingerprint != prepared(drawn()).fingerprint


def test_croissant_names_the_pictures() -> None:
    one = prepared(drawn())
    spec = dataset(drawn())
    fields = croissant_of(spec, one.split, one.fingerprint)["recordSet"][0]["field"]
    names = [field["name"] for field in fields]
    assert {"image", "image_sha256"} < set(names)
    assert "text" not in names
    assert b'"image_sha256": "' in next(iter(row_lines(one.split)))
