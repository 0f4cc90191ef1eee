"""Pictures inside of Parquet files and data sets of the library `datasets`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tiny_images import encoded, picture
from trunkline.contracts import Row
from trunkline.data.columns import DataFiles
from trunkline.data.prepare import default_recipe, prepare, read_rows
from trunkline.errors import DataError, TrunklineError

CLASSES = ("cracked", "sound")
COUNT = 12


def drawn(number: int) -> bytes:
    return encoded(picture(number))


def labels() -> list[str]:
    return [CLASSES[number % 2] for number in range(COUNT)]


def as_bytes(folder: Path) -> Path:
    file = folder / "cells.parquet"
    table = pa.table({"image": [drawn(n) for n in range(COUNT)], "kind": labels()})
    parquet.write_table(table, file, row_group_size=5)
    return file


def as_structs(folder: Path) -> Path:
    file = folder / "cells.parquet"
    values = [{"bytes": drawn(n), "path": f"dir/{n}.png"} for n in range(COUNT)]
    parquet.write_table(pa.table({"image": values, "kind": labels()}), file)
    return file


def as_saved_set(folder: Path) -> Path:
    from datasets import ClassLabel, Dataset, Features, Image

    rows = {
        "image": [{"bytes": drawn(n), "path": f"{n}.png"} for n in range(COUNT)],
        "kind": [n % 2 for n in range(COUNT)],
    }
    features = Features({"image": Image(), "kind": ClassLabel(names=list(CLASSES))})
    Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "cells"))
    return folder / "cells"


def files(file: Path, **columns: Any) -> DataFiles:
    return DataFiles(file=str(file), image="image", label="kind", **columns)


def read(file: Path, **columns: Any) -> list[Row]:
    return list(files(file, **columns).rows())


@pytest.mark.parametrize("write", [as_bytes, as_structs, as_saved_set])
def test_pictures_are_read(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    rows = read(write(tmp_path))
    assert [row.id for row in rows] == [str(n + 1) for n in range(COUNT)]
    assert [row.target for row in rows] == labels()
    assert [row.picture.read() for row in reversed(rows)] == [
        drawn(n) for n in reversed(range(COUNT))
    ]
    assert len({row.group for row in rows}) == COUNT


@pytest.mark.parametrize("write", [as_bytes, as_structs, as_saved_set])
def test_they_are_prepared_like_files(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    dataset = files(write(tmp_path)).dataset("own/cells")
    prepared = prepare(dataset, default_recipe(dataset))
    assert (dataset.modality, prepared.report.kept) == ("image", COUNT)
    assert prepared.labels == CLASSES
    assert "sha256" in dataset.source


def test_names_are_those_of_the_original_files(tmp_path: Path) -> None:
    assert [row.picture.name for row in read(as_structs(tmp_path))][:2] == ["0.png", "1.png"]


def test_official_splits_of_a_data_set(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict, Features, Image, Value

    def part(first: int) -> Dataset:
        rows = {
            "image": [{"bytes": drawn(first + n), "path": None} for n in range(6)],
            "kind": labels()[:6],
        }
        return Dataset.from_dict(rows, features=Features({"image": Image(),
                                                          "kind": Value("string")}))  # fmt: skip

    DatasetDict({"train": part(0), "test": part(50)}).save_to_disk(str(tmp_path / "cells"))
    rows = read(tmp_path / "cells")
    assert {row.id.partition("/")[0]: row.split for row in rows} == {
        "train": "train", "test": "test",
    }  # fmt: skip
    assert rows[-1].picture.read() == drawn(55)


def test_paths_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    values = []
    for number in range(COUNT):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(drawn(number))
        values.append({"bytes": None, "path": f"pictures/{number}.png"})
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    file = tmp_path / "cells.parquet"
    parquet.write_table(pa.table({"image": pa.array(values, kind), "kind": labels()}), file)
    assert [row.picture.read() for row in read(file)] == [drawn(n) for n in range(COUNT)]


def test_column_of_paths_is_read_as_before(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(drawn(0))
    file = tmp_path / "cells.parquet"
    parquet.write_table(pa.table({"image": ["0.png"], "kind": ["sound"]}), file)
    (row,) = read(file)
    assert (row.id, row.picture.read()) == ("0.png", drawn(0))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "Row 1 of cells.parquet has no picture in 'image'"),
        ({"bytes": b"", "path": ""}, "has no picture in 'image'"),
        ({"bytes": None, "path": "https://x.org/1.png"}, "has the path 'https://x.org/1.png'"),
        ({"bytes": None, "path": "none.png"}, "Row 1 of cells.parquet: There is no file"),
        ({"bytes": b"\0" * (33 << 20), "path": ""}, "more than 32 MiB"),
    ],
    ids=["null", "empty", "address", "missing", "large"],
)
def test_row_without_a_usable_picture_is_named(
    tmp_path: Path, value: dict[str, Any] | None, problem: str
) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    file = tmp_path / "cells.parquet"
    parquet.write_table(pa.table({"image": pa.array([value], kind), "kind": ["sound"]}), file)

    def read_pictures() -> None:
        for row in read_rows(files(file).dataset("own/cells")):
            row.picture.read()

    with pytest.raises(TrunklineError) as caught:
        read_pictures()
    assert problem in caught.value.message
    assert caught.value.hint


def test_file_that_changes_while_it_is_used_is_an_error(tmp_path: Path) -> None:
    rows = read(as_bytes(tmp_path))
    pictures = [drawn(n + 100) for n in range(COUNT)]
    table = pa.table({"image": pictures, "kind": labels()})
    parquet.write_table(table, tmp_path / "cells.parquet")
    with pytest.raises(DataError, match="was changed while it was used"):
        rows[3].picture.read()


def test_text_of_a_picture_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has binary in 'image', not a text"):
        list(DataFiles(file=str(as_bytes(tmp_path)), text="image", label="kind").rows())
