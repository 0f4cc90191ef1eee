"""Rows of the library ``datasets``: folders of ``save_to_disk``, and data sets of the hub.

The library is the extra ``trunkline[hub]``; it is imported when rows are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from trunkline.data.readers.parquet_rows import holds_pictures
from trunkline.data.readers.rows import (
    FileRow,
    embedded_picture,
    missing_column,
    row_place,
    wrong_value,
)
from trunkline.errors import DataError, UsageError, one_line
from trunkline.files import sha256_file

HUB = "hf:"
"""Begins the name of a data set of the hub: ``hf:owner/name``."""

_BATCH_ROWS = 256
_REFERENCE = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
_DATASET, _SPLITS = "dataset_info.json", "dataset_dict.json"


def is_hub(path: str | Path) -> bool:
    """Whether it names a data set of the hub, not a file."""
    return str(path).startswith(HUB)


def is_dataset(path: Path) -> bool:
    """Whether it is a data set of the hub, or a folder that ``save_to_disk`` wrote."""
    return is_hub(path) or any((path / name).is_file() for name in (_DATASET, _SPLITS))


def splits_of(path: Path) -> tuple[str, ...]:
    """The names of the splits of a data set; none if it is not divided.

    Raises:
        UsageError, DataError: as :class:`DatasetRows`.
    """
    if is_hub(path):
        return tuple(_load_hub(str(path)))
    if not (path / _SPLITS).is_file():
        return ()
    try:
        names = json.loads((path / _SPLITS).read_text(encoding="utf-8"))["splits"]
        return tuple(str(name) for name in names)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path.name, error) from error


def split_path(path: Path, split: str) -> Path:
    """The path of one split, for :class:`DatasetRows`."""
    return Path(f"{path}#{split}") if is_hub(path) else path / split


class DatasetRows:
    """One split of a data set, or a data set that is not divided.

    Texts are as they are. A number is written as Python writes it, true and false as in JSON, and
    a ``ClassLabel`` as its name.

    Args:
        path: a folder that ``Dataset.save_to_disk`` wrote, or ``hf:owner/name#split``.

    Raises:
        UsageError: the library is missing, the name is malformed, or the folder holds several
            splits.
        DataError: it can't be loaded.
    """

    def __init__(self, path: Path) -> None:
        self._name = str(path) if is_hub(path) else path.name
        self._rows = _load(path)

    def columns(self) -> tuple[str, ...]:
        """The names of its columns."""
        return tuple(self._rows.column_names)

    def pictures(self) -> tuple[str, ...]:
        """The columns that hold pictures themselves."""
        schema = self._rows.data.schema
        return tuple(name for name in schema.names if holds_pictures(schema.field(name).type))

    def rows(self, columns: Sequence[str] | None, nested: Sequence[str] = ()) -> Iterator[FileRow]:
        """Stream the rows, with these columns or all; ``nested`` as they are."""
        known = self._rows.column_names
        texts = list(dict.fromkeys(known if columns is None else columns))
        for column in (*texts, *nested):
            if column not in known:
                raise missing_column(self._name, column, known)
        selected = self._rows.select_columns([*texts, *nested]).with_format("arrow")
        pictured = [column for column in self.pictures() if column in nested]
        number = 0
        for batch in selected.iter(batch_size=_BATCH_ROWS):
            read = {column: self._texts(batch.column(column), column, number) for column in texts}
            lists = {column: self._lists(batch.column(column), column) for column in nested}
            for index in range(batch.num_rows):
                number += 1
                values = {column: next(values) for column, values in lists.items()}
                for column in pictured:
                    again = partial(_value, selected, column, number - 1)
                    values[column] = embedded_picture(values[column], again)
                texts_of = {column: read[column][index] for column in texts}
                yield FileRow(self._name, number, None, texts_of, values)

    def _lists(self, values: Any, column: str) -> Iterator[Any]:
        feature = self._rows.features[column]
        return (_as_list(_with_names(value, feature)) for value in values.to_pylist())

    def digest(self) -> str:
        """sha256 over the digests of its Arrow files and the types of its columns."""
        lines = [sha256_file(Path(file["filename"])) for file in self._rows.cache_files]
        lines.append(json.dumps(self._rows.features.to_dict(), sort_keys=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _texts(self, values: Any, column: str, before: int) -> list[str | None]:
        feature, kind = self._rows.features[column], str(values.type)
        return [
            _text(_with_names(value, feature), kind, column, row_place(self._name, number, None))
            for number, value in enumerate(values.to_pylist(), start=before + 1)
        ]


def _value(rows: Any, column: str, index: int) -> Any:
    """One value of a data set in the format of Arrow, which maps its files into memory."""
    return rows[index].column(column)[0].as_py()


def _text(value: Any, kind: str, column: str, place: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _shortest(value, kind)
    raise wrong_value(place, column, kind, "Map the column to strings first.")


def _shortest(value: float, kind: str) -> str:
    """The shortest number that is the same in its precision: 0.1, not 0.10000000149."""
    import numpy

    kinds = {"float": numpy.float32, "halffloat": numpy.float16}
    return str(kinds[kind](value)) if kind in kinds else repr(value)


def _with_names(value: Any, feature: Any) -> Any:
    """The value with the name of each class label in it, by the feature that describes it.

    The code -1 stands for a label that is not known, as in the test part of a competition.
    """
    from datasets import ClassLabel

    if value is None:
        return None
    if isinstance(feature, ClassLabel):
        return None if value == -1 else feature.int2str(value)
    if isinstance(feature, Mapping):
        return {name: _with_names(one, feature[name]) for name, one in value.items()}
    if isinstance(value, list) and (inner := getattr(feature, "feature", None)) is not None:
        return [_with_names(one, inner) for one in value]
    return value


def _as_list(value: Any) -> Any:
    """A list of objects; the library stores some of them as an object of lists."""
    if not isinstance(value, dict) or not value:
        return value
    lists = list(value.values())
    if not all(isinstance(one, list) and len(one) == len(lists[0]) for one in lists):
        return value
    return [dict(zip(value, one, strict=True)) for one in zip(*lists, strict=True)]


def _load(path: Path) -> Any:
    if is_hub(path):
        name, _, split = str(path).partition("#")
        splits = _load_hub(name)
        if split not in splits:
            raise UsageError(
                f"{name} has the splits {', '.join(splits)}.", "Give it as --data alone."
            )
        return splits[split]
    if (path / _SPLITS).is_file():
        raise UsageError(
            f"{path.name} holds the splits {', '.join(splits_of(path))}.",
            "Give it as --data, without --split, --test and --validation.",
        )
    datasets = _library()
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:
        raise _unreadable(path.name, error) from error


def is_in_cache(path: Path) -> bool:
    """Whether a file was fetched by the library, so that a data set of the hub may name it."""
    cache = Path(_library().config.HF_CACHE_HOME).resolve()
    return path.resolve().is_relative_to(cache)


@lru_cache(maxsize=4)
def _load_hub(reference: str) -> Mapping[str, Any]:
    """Split → rows of a data set of the hub, fetched into the library's cache."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError(
            f"{reference!r} does not name a data set of the hub.",
            "Write hf:owner/name, hf:owner/name/config or hf:owner/name@revision.",
        )
    datasets = _library()
    if Path(match["repo"]).exists():
        raise UsageError(
            f"There is a folder {match['repo']!r} here, which would be read instead of the hub.",
            "Run the command in another folder.",
        )
    shows_bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(
            match["repo"], match["config"], revision=match["revision"] or None
        )
    except Exception as error:
        raise DataError(
            f"{reference} can't be loaded: {one_line(error)}.",
            "Check its name and the network; `hf auth login` gives access to a private one.",
        ) from error
    finally:
        if shows_bars:
            datasets.enable_progress_bars()
    return loaded if isinstance(loaded, dict) else {"": loaded}


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            "Reading a data set of the hub or of save_to_disk needs the package datasets.",
            "Run: pip install 'trunkline[hub]'",
        ) from None
    return datasets


def _unreadable(name: str, error: Exception) -> DataError:
    return DataError(
        f"The data set {name!r} can't be read: {one_line(error)}.",
        "Check that save_to_disk wrote it completely.",
    )
