"""A dataset of a user's own files: the columns with text, target, group and split.

The files are read by :mod:`trunkline.data.readers`, with texts as they are written.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from trunkline.contracts import IMAGE_TASKS, DatasetSpec, Message, Modality, Row, Target, Task
from trunkline.data.conversations import LossOn, parse_conversation
from trunkline.data.lists import SeparatorCheck, read_items, read_spans
from trunkline.data.pairs import join_groups
from trunkline.data.readers import (
    EmbeddedPicture,
    FileOptions,
    FileRow,
    digest_of,
    embeds_pictures,
    holds_lists,
    is_dataset,
    is_hub,
    is_in_cache,
    read_columns,
    read_rows,
    split_path,
    splits_of,
)
from trunkline.data.readers.folders import SPLITS
from trunkline.data.readers.rows import missing_column
from trunkline.errors import DataError, TooLargeError, UsageError
from trunkline.images import ImageSource
from trunkline.labels import clean_label, is_blank
from trunkline.redaction import redact

TARGETS: Mapping[str, Task] = {
    "label": "classification",
    "labels": "multilabel",
    "target": "regression",
    "completion": "generation",
    "messages": "generation",
    "spans": "tagging",
    "relevant": "ranking",
}
"""Column of the target → the task that it makes."""

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)


class DataFiles(BaseModel):
    """The files of a dataset and the meaning of their columns.

    Exactly one of ``label``, ``labels``, ``target``, ``completion``, ``messages``, ``spans`` and
    ``relevant`` is set; it decides the task.

    Attributes:
        file: CSV, TSV, JSON lines, JSON, Parquet or CoNLL, by its suffix; or a folder of texts,
            with the columns ``text``, ``file``, ``label`` and ``split``; a folder that the library
            ``datasets`` saved; or ``hf:owner/name`` of the Hugging Face hub.
        text: the column that the model reads, or several in a template: ``"{title}\\n{body}"``.
        image: the column with the path of a picture, relative to the file or its folder; instead
            of ``text``. Rows are identified by it. In Parquet and data sets it may hold the
            pictures themselves; rows are then identified by their numbers.
        reads: of rows with both ``text`` and ``image``: which of them the adapter reads. By
            default rows have one of them.
        label: the column with the label of a classification.
        labels: the column with any number of labels, separated, or as a JSON array.
        target: the column with the number of a regression.
        completion: the column with the answer of a generation.
        messages: the column with a conversation, of which the assistant's last message is learned;
            without ``text``.
        loss_on: ``all``: the assistant's earlier messages are learned too.
        spans: the column with labeled spans of the text: a JSON array of ``[start, end, label]`` or
            ``{"start": …, "end": …, "label": …}``, which count characters from 0, ``end`` excluded.
        relevant: the column with the relevant candidate of a ranking; ``text`` is the query.
        candidates: the column with all candidates of a ranking, separated, or as a JSON array.
        separator: between labels or candidates.
        id: the column with a unique name of each row; by default the row's number.
        group: the column with the group; a group is never divided between train, validation and
            test. By default rows with the same text are a group.
        split: the column with the part of an official split: train, validation or test.
        validation, test: files that are these parts of an official split.
        unit: of a regression's target.
        license: of the data.
        encoding, delimiter, quoting: how the files are read; see
            :class:`~trunkline.data.readers.FileOptions`.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    file: str
    text: str = "text"
    image: str | None = None
    reads: Modality | None = None
    label: str | None = None
    target: str | None = None
    labels: str | None = None
    completion: str | None = None
    messages: str | None = None
    loss_on: LossOn = "last"
    spans: str | None = None
    relevant: str | None = None
    candidates: str | None = None
    separator: str = ";"
    id: str | None = None
    group: str | None = None
    split: str | None = None
    validation: str | None = None
    test: str | None = None
    unit: Annotated[str, AfterValidator(redact)] | None = None
    license: Annotated[str, AfterValidator(redact)] | None = None
    encoding: str | None = None
    delimiter: str | None = None
    quoting: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> DataFiles:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"one of {', '.join(TARGETS)} names the column to learn, not "
                f"{' and '.join(given) or 'none'}"
            )
        if (self.relevant is None) != (self.candidates is None):
            raise ValueError("a ranking needs both relevant and candidates")
        if not self.separator:
            raise ValueError("separator is empty")
        if self.separator != ";" and self.labels is None and self.candidates is None:
            raise ValueError("separator belongs to labels or candidates")
        if self.messages is None and self.loss_on != "last":
            raise ValueError("loss_on belongs to messages, the conversations")
        if self.messages is not None and "text" in self.model_fields_set:
            raise ValueError("messages are the text and the answer, so text can't be given")
        if self.reads is not None and self.image is None:
            raise ValueError("reads chooses between text and image, and image is not given")
        if self.reads is None and self.image is not None and "text" in self.model_fields_set:
            raise ValueError(
                "image names the pictures that are read, so text can't be given without reads, "
                "which chooses one of them"
            )
        if self.image is not None and self.task not in IMAGE_TASKS:
            raise ValueError(f"a {self.task} can't be learned of pictures")
        if self.split is not None and (self.test is not None or self.validation is not None):
            raise ValueError("split names a column, so validation and test can't name files")
        if self.validation is not None and self.test is None:
            raise ValueError("a validation file needs a test file")
        files = [os.path.realpath(one) for one in (self.file, self.validation, self.test) if one]
        if len(set(files)) < len(files):
            raise ValueError("one file can't be two parts of a split")
        if self.unit is not None and self.target is None:
            raise ValueError("unit belongs to target, the number of a regression")
        return self

    @property
    def task(self) -> Task:
        """The task that the target makes."""
        return next(task for name, task in TARGETS.items() if getattr(self, name) is not None)

    @property
    def target_column(self) -> str:
        """The column to learn."""
        return next(name for field in TARGETS if (name := getattr(self, field)) is not None)

    @property
    def parts(self) -> dict[str, Path]:
        """Part → file; the key of a single file is empty."""
        if self.test is None:
            path = Path(self.file)
            splits = splits_of(path) if self.split is None and is_dataset(path) else ()
            return _official_parts(path, splits) if splits else {"": path}
        files = {"train": self.file, "validation": self.validation, "test": self.test}
        return {part: Path(file) for part, file in files.items() if file is not None}

    @property
    def options(self) -> FileOptions:
        """How the files are read."""
        return FileOptions(self.encoding, self.delimiter, self.quoting)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that make the text, each once."""
        return tuple(dict.fromkeys(name for _, name in self._text_parts if name is not None))

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read, each once."""
        others = (
            self.image, self.target_column, self.candidates, self.id, self.group, self.split
        )  # fmt: skip
        return tuple(dict.fromkeys((*self.text_columns, *filter(None, others))))

    def nested(self, path: Path) -> tuple[str, ...]:
        """The columns of a file that may hold lists, or that hold pictures."""
        if self.messages is not None:
            return (self.messages,)
        if not holds_lists(path):
            return ()
        names = [self.labels, self.spans, self.candidates]
        if self.image is not None and embeds_pictures(path, self.image):
            names.append(self.image)
        return tuple(filter(None, names))

    def seen_from(self, folder: Path) -> DataFiles:
        """With paths that are relative to the current folder made relative to another one."""
        return self._with_paths(
            lambda path: path if os.path.isabs(path) else os.path.relpath(path, folder)
        )

    def below(self, folder: Path) -> DataFiles:
        """With the paths relative to a folder."""
        return self._with_paths(lambda path: str(folder / path))

    def absolute(self) -> DataFiles:
        """With absolute paths."""
        return self._with_paths(os.path.abspath)

    def _shown(self, path: Path) -> str:
        """A file's name; of a split, with that of its data set."""
        if is_hub(path):
            return str(path)
        folder = Path(self.file)
        return f"{folder.name}/{path.name}" if path.parent == folder else path.name

    def _with_paths(self, change: Callable[[str], str]) -> DataFiles:
        names = ("file", "validation", "test")
        given = {name: path for name in names if (path := getattr(self, name))}
        paths = {name: path if is_hub(path) else change(path) for name, path in given.items()}
        return self.model_copy(update=paths)

    def check_columns(self) -> None:
        """Check the beginning of each file.

        Raises:
            NotFoundError: a file or a column is missing; names the nearest column.
            UsageError, DataError: as :func:`~trunkline.data.readers.read_rows`.
        """
        if self.target_column in self.text_columns:
            raise UsageError(
                f"{self.target_column!r} is both the text and the column to learn.",
                "Name two columns.",
            )
        for path in self.parts.values():
            columns = read_columns(path, self.options)
            for column in self.columns:
                suffixes = (".csv", ".tsv", ".parquet")
                named = path.is_dir() or is_hub(path) or path.suffix.lower() in suffixes
                if column not in columns and named:
                    raise missing_column(self._shown(path), column, columns)

    def rows(self) -> Iterator[Row]:
        """Read the rows of all files.

        Raises:
            NotFoundError, UsageError, DataError: a file can't be read, or a value can't be used;
                names the row and its line.
        """
        self.check_columns()
        lists = self.labels or self.candidates
        separated = None if lists is None else SeparatorCheck(lists, self.separator)
        for part, path in self.parts.items():
            prefix = f"{part}/" if len(self.parts) > 1 else ""
            nested = self.nested(path)
            texts = [column for column in self.columns if column not in nested]
            folder = path if path.is_dir() else path.parent
            for row in read_rows(path, texts, self.options, nested):
                if separated is not None:
                    separated.add(row)
                yield self._row(row, part, prefix, folder)
        if separated is not None:
            separated.check(Path(self.file).name)

    def dataset(self, name: str) -> DatasetSpec:
        """The dataset that the files make.

        Raises:
            NotFoundError: a file is missing.
        """
        self.check_columns()
        parts = self.parts.values()
        digests = [f"{self._shown(path)} (sha256 {digest_of(path)})" for path in parts]
        return DatasetSpec(
            name=name,
            description=f"{self.target_column} of {Path(self.file).name}",
            task=self.task,
            load=partial(_load, self),
            license=self.license or "not given",
            source=", ".join(digests),
            grouping=self._grouping,
            unit=self.unit,
            modality=self.modality,
            text_and_image=self.reads is not None,
        )

    @property
    def modality(self) -> Modality:
        """What the adapter reads."""
        return self.reads or ("text" if self.image is None else "image")

    @property
    def _grouping(self) -> str:
        if self.group is not None:
            return f"rows with the same {self.group}"
        if self.reads is not None:
            return "rows with the same text, apart from case and white space, or the same picture"
        if self.image is not None:
            return "rows with the same picture, byte for byte"
        return "rows with the same text, apart from case and white space"

    def _row(self, row: FileRow, part: str, prefix: str, folder: Path) -> Row:
        if self.split is not None:
            part = self._part(row)
        if self.image is not None:
            return self._pictured(row, part, prefix, folder)
        history: tuple[Message, ...] = ()
        if self.messages is None:
            text, target = self._text(row), self._target(row)
        else:
            history, text, target = self._conversation(row)
        return Row(
            id=row[self.id] if self.id is not None else f"{prefix}{row.number}",
            text=text,
            target=target,
            group=self._group(row, "\n".join((*(one.content for one in history), text)), part),
            split=part or None,
            history=history,
            candidates=(
                () if self.candidates is None else read_items(row, self.candidates, self.separator)
            ),
        )

    def _pictured(self, row: FileRow, part: str, prefix: str, folder: Path) -> Row:
        """A row with the picture that the column ``image`` names."""
        assert self.image is not None
        name: str | int = row.number
        if self.image in row.nested:
            picture = self._embedded(row, folder)
        else:
            name = row[self.image]
            if not name.strip():
                raise DataError(f"{row.place} names no picture in {self.image!r}.", "Name one.")
            picture = _identified(ImageSource(folder / name, name), row)
        text = "" if self.reads is None else self._text(row)
        return Row(
            id=row[self.id] if self.id is not None else f"{prefix}{name}",
            text=text,
            target=self._target(row),
            group=self._group(row, text or picture.sha256 or f"{prefix}{name}", part),
            split=part or None,
            image=picture,
        )

    def _embedded(self, row: FileRow, folder: Path) -> ImageSource:
        """The picture that a row holds, or whose path it holds."""
        assert self.image is not None
        one: EmbeddedPicture | None = row.nested[self.image]
        if one is None or not (one.data or one.path):
            raise DataError(f"{row.place} has no picture in {self.image!r}.", "Add it.")
        name = PurePosixPath(one.path).name or f"picture {row.number}"
        if one.data:
            return ImageSource(one.read, name, hashlib.sha256(one.data).hexdigest())
        path = folder / one.path
        if "://" in one.path or (is_hub(self.file) and not is_in_cache(path)):
            raise DataError(
                f"{row.place} has the path {one.path!r} in {self.image!r} and no bytes.",
                "Save the data set with the bytes of its pictures.",
            )
        return _identified(ImageSource(path, name), row)

    def _text(self, row: FileRow) -> str:
        """The text; empty if all columns that make it are."""
        text = "".join(
            literal + ("" if name is None else row.values[name] or "")
            for literal, name in self._text_parts
        )
        blank = all(is_blank(row.values[name] or "") for name in self.text_columns)
        return "" if blank else text

    def _conversation(self, row: FileRow) -> tuple[tuple[Message, ...], str, str]:
        """The messages before the last of the user, that one, and the assistant's answer to it.

        Where a message before the answer is empty, the text is empty too, so the row is dropped.
        """
        assert self.messages is not None
        value = row.nested[self.messages]
        if not value and not isinstance(value, str):
            return (), "", ""
        *history, text, answer = parse_conversation(value, row.place, self.messages, self.loss_on)
        blank = any(is_blank(message.content) for message in (*history, text))
        return tuple(history), "" if blank else text.content, answer.content

    def _target(self, row: FileRow) -> Target:
        if self.labels is not None:
            return read_items(row, self.labels, self.separator)
        if self.spans is not None:
            return read_spans(row, self.spans)
        text = row.values[self.target_column] or ""
        if self.relevant is not None:
            return text.strip()  # as the candidates are
        if self.task != "regression":
            return text
        if not text.strip():
            return math.nan
        if not _NUMBER.fullmatch(text.strip()):
            raise DataError(
                f"{row.place} has {text!r} in {self.target_column!r}, which is not a number.",
                "Write it with a point and without a unit: 1234.5.",
            )
        number = float(text)
        if math.isinf(number):
            raise DataError(
                f"{row.place} has {text!r} in {self.target_column!r}, which is too large.",
                "Correct it.",
            )
        return number

    def _group(self, row: FileRow, text: str, part: str) -> str:
        if self.group is None:
            # A digest, because groups are recorded. An official split may divide equal texts.
            normal = " ".join(text.split()).casefold()
            return hashlib.sha256(f"{part}\0{normal}".encode(errors="replace")).hexdigest()[:16]
        if not (group := clean_label(row[self.group])):
            raise DataError(
                f"{row.place} has no group in {self.group!r}.",
                "Give an independent row a group of its own.",
            )
        return group

    def _part(self, row: FileRow) -> str:
        assert self.split is not None
        value = row[self.split]
        part = SPLITS.get(value.strip().casefold())
        if part is None:
            raise DataError(
                f"{row.place} has {value!r} in {self.split!r}, which is no part of a split.",
                "Every row needs train, validation or test there.",
            )
        return part

    @cached_property
    def _text_parts(self) -> tuple[tuple[str, str | None], ...]:
        """Literal text and the column after it, in order; no column after the last literal."""
        if self.messages is not None or (self.image is not None and self.reads is None):
            return ()
        return parse_text_template(self.text)


def _identified(picture: ImageSource, row: FileRow) -> ImageSource:
    """The picture with its sha256; if it can't be read, one that raises where it is used.

    So ``datasets check`` can name all pictures that can't be read, and not only the first.
    """
    try:
        return picture.identified()
    except (DataError, TooLargeError) as error:
        problem = type(error)(f"{row.place}: {error.message}", error.hint)

    def fail() -> bytes:
        raise problem

    return ImageSource(fail, picture.name)


def _load(files: DataFiles) -> list[Row]:
    rows = list(files.rows())
    return join_groups(rows) if files.reads is not None and files.group is None else rows


def _official_parts(path: Path, splits: Sequence[str]) -> dict[str, Path]:
    """Part → split of a data set; a single split is divided like a file.

    Raises:
        DataError: there is no split for test or train, or two for one part.
    """
    if len(splits) == 1:
        return {"": split_path(path, splits[0])}
    parts: dict[str, Path] = {}
    for split in splits:
        part = SPLITS.get(split.casefold())
        if part in parts:
            raise DataError(
                f"{path.name} has two splits for {part}: {parts[part].name} and {split}.",
                "Save the data set with one of them.",
            )
        if part is not None:
            parts[part] = split_path(path, split)
    if missing := [part for part in ("train", "test") if part not in parts]:
        raise DataError(
            f"{path.name} has the splits {', '.join(splits)}, but none for {missing[0]}.",
            "Save it with one (DatasetDict.save_to_disk), or a single split, to be divided.",
        )
    return parts


def parse_text_template(text: str) -> tuple[tuple[str, str | None], ...]:
    """Split ``"{title}\\n{body}"`` into literals and columns; a text without braces is a column.

    Raises:
        UsageError: a brace is not paired, or a field is more than the name of a column.
    """
    if "{" not in text and "}" not in text:
        return (("", text),)
    hint = "Write for example '{title}: {body}', and {{ or }} for a brace."
    try:
        parts = list(Formatter().parse(text))
    except ValueError:
        raise UsageError(f"The text {text!r} has a single brace.", hint) from None
    result: list[tuple[str, str | None]] = []
    for literal, name, spec, conversion in parts:
        if name == "" or spec or conversion:
            raise UsageError(f"The text {text!r} has a field that is not a column's name.", hint)
        result.append((literal, name))
    if all(name is None for _, name in result):
        raise UsageError(f"The text {text!r} names no column.", hint)
    return tuple(result)
