"""Options of the commands that read a user's files: how a file is read, what its columns are."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trunkline.errors import UsageError
from trunkline.refs import valid_name

if TYPE_CHECKING:
    from trunkline.data.readers import FileOptions
    from trunkline.training.config import RecipeConfig


def file_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for reading a file; the command receives them as ``reading``."""

    @wraps(function)
    def command(
        *args: Any, encoding: str | None, delimiter: str | None, quoting: bool | None, **kwargs: Any
    ) -> Any:
        reading = {"encoding": encoding, "delimiter": delimiter, "quoting": quoting}
        return function(*args, reading=reading, **kwargs)

    for option in (
        click.option(
            "--quoting/--no-quoting",
            default=None,
            help="Whether double quotes enclose fields.  [default: yes in CSV, no in TSV]",
        ),
        click.option(
            "--delimiter",
            metavar="CHARACTER",
            help="What separates the fields: a character, or tab.  [default: by the suffix]",
        ),
        click.option(
            "--encoding",
            metavar="NAME",
            help="The file's encoding, such as cp1252 or gb18030.  [default: by its byte order "
            "mark, else utf-8]",
        ),
    ):
        command = option(command)
    return command


_COLUMNS = (
    (
        "--text",
        "COLUMN",
        "The column that the model reads; several in a template: '{title}: {body}'.  "
        "[default: text]",
    ),
    (
        "--image",
        "COLUMN",
        "The column with a picture or its path, which the model reads instead of a text.  "
        "[default in a folder of pictures: path]",
    ),
    (
        "--reads",
        "text|image",
        "Of rows with both --text and --image: which of them the adapter reads.  [default: image]",
    ),
    ("--label", "COLUMN", "The column with the label to learn, a classification."),
    ("--labels", "COLUMN", "The column with any number of labels: 'red;green', a multilabel task."),
    ("--target", "COLUMN", "The column with the number to learn, a regression."),
    ("--completion", "COLUMN", "The column with the answer to learn, a generation."),
    (
        "--messages",
        "COLUMN",
        "The column with a conversation, of which the assistant's last message is learned; in "
        "JSON, Parquet or a data set, instead of --text.",
    ),
    (
        "--loss-on",
        "last|all",
        "With --messages: learn the assistant's last message, or all of them.  [default: last]",
    ),
    ("--spans", "COLUMN", "The column with spans of the text: '[[0, 7, \"DRUG\"]]', tagging."),
    ("--relevant", "COLUMN", "The column with the candidate to rank first; --text is the query."),
    ("--candidates", "COLUMN", "With --relevant: the column with all candidates: 'a;b;c'."),
    ("--separator", "TEXT", "Between labels or candidates, if not ';'."),
    ("--id", "COLUMN", "The column with a unique name of each row.  [default: the row's number]"),
    (
        "--group",
        "COLUMN",
        "The column with the group, which is never divided between training and test.  "
        "[default: rows with the same text]",
    ),
    ("--split", "COLUMN", "The column with an official split: train, validation or test."),
    ("--test", "FILE", "The file with the test rows of an official split."),
    ("--validation", "FILE", "The file with its validation rows."),
)


def column_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for the columns of a file of rows to learn from, and for reading it.

    The command receives them as ``columns``: fields of
    :class:`~trunkline.data.columns.DataFiles`.
    """

    @wraps(function)
    def command(*args: Any, reading: dict[str, Any], **kwargs: Any) -> Any:
        names = [option.removeprefix("--").replace("-", "_") for option, _, _ in _COLUMNS]
        values = {name: kwargs.pop(name) for name in names} | reading
        columns = {name: value for name, value in values.items() if value is not None}
        return function(*args, columns=columns, **kwargs)

    decorated = file_options(command)
    for option, metavar, help in reversed(_COLUMNS):
        decorated = click.option(option, metavar=metavar, help=help)(decorated)
    return decorated


CONVERSATION: dict[str, Any] = {"settings": {"max_length": 1024}, "max_new_tokens": 256}
"""What a recipe for conversations begins with: they are longer than texts, and never cut."""


def with_line_breaks(text: str) -> str:
    r"""The text with a line break for each ``\n``; ``\\n`` is a backslash and an n."""
    return re.sub(r"(\\?)\\n", lambda match: r"\n" if match[1] else "\n", text)


def option_name(field: str) -> str:
    """The option for a field of :class:`~trunkline.data.columns.DataFiles`."""
    return f"--{field.replace('_', '-')}"


def own_name(file: Path) -> str:
    """A name for the adapter of a file, such as ``own/claims``."""
    return f"own/{valid_name(file.stem, 'data') or 'data'}"


def make_own_recipe(
    name: str, file: Path, columns: dict[str, Any], template: str | None = None
) -> RecipeConfig:
    """The recipe for a user's own files.

    Args:
        name: ``domain/name`` of the adapter.
        columns: from :func:`column_options`.
        template: the prompt; by default the text alone.

    Raises:
        UsageError: no column to learn is named, or several are; a file or an option is wrong.
    """
    from trunkline.data.columns import TARGETS
    from trunkline.data.readers import FORMATS, holds_pictures, is_dataset, read_columns
    from trunkline.training.config import make_config

    if FORMATS.get(file.suffix.lower()) == "CoNLL":
        columns = {"spans": "spans", **columns}
    if holds_pictures(file):
        columns = _of_pictures(file, columns)
    elif file.is_dir() and not is_dataset(file):
        columns = _with_official_split(file, columns)
    learned = [f"--{option}" for option in TARGETS if option in columns]
    if len(learned) != 1:
        names = ", ".join(read_columns(file, _reading(columns))[:20])
        raise UsageError(
            f"{' and '.join(learned)} can't be combined."
            if learned
            else f"Which column of {file.name} is to be learned?",
            "Use one of --label, --labels (several), --target (a number), --completion (an "
            "answer), --messages (a conversation), --spans and --relevant; the columns are: "
            f"{names}.",
        )
    if "text" in columns:
        columns = {**columns, "text": with_line_breaks(columns["text"])}
        if "image" in columns:
            columns = {"reads": "image", **columns}
    values: dict[str, Any] = {"name": name, "data": {"file": str(file), **columns}}
    if "messages" in columns:
        values |= CONVERSATION
    if template is not None:
        values["template"] = {"prompt": with_line_breaks(template)}
    return make_config(values, "The options don't fit together")


def _of_pictures(folder: Path, columns: dict[str, Any]) -> dict[str, Any]:
    """The columns of a folder of pictures: those that its layout or its labels.csv has."""
    from trunkline.data.columns import TARGETS
    from trunkline.data.readers import LABELS, read_columns

    known = read_columns(folder, _reading(columns))
    own: dict[str, Any] = {"image": "path"}
    if not any(option in columns for option in TARGETS):
        own["label"] = "label"
    if not (folder / LABELS).is_file():
        return _with_official_split(folder, {**own, **columns})
    optional = ("group",) if {"validation", "test"} & columns.keys() else ("group", "split")
    own |= {column: column for column in optional if column in known}
    return {**own, **columns}


def _with_official_split(folder: Path, columns: dict[str, Any]) -> dict[str, Any]:
    """The columns of a folder of texts or pictures, with the split that its layout has."""
    from trunkline.data.readers import holds_split

    if {"split", "test", "validation"} & columns.keys() or not holds_split(folder):
        return columns
    return {**columns, "split": "split"}


def _reading(columns: dict[str, Any]) -> FileOptions:
    """The options for the reader among the fields of a data set."""
    from trunkline.data.readers import FileOptions

    return FileOptions(**{name: columns.get(name) for name in ("encoding", "delimiter", "quoting")})


def parse_file_options(reading: dict[str, Any], *, has_file: bool) -> FileOptions:
    """The options for the reader.

    Raises:
        UsageError: there is no file that they apply to, or a value is wrong.
    """
    from trunkline.data.readers import FileOptions

    given = [name for name, value in reading.items() if value is not None]
    if given and not has_file:
        raise UsageError(f"--{given[0]} needs --file.", "It applies to a file of rows.")
    return FileOptions(**reading)


def read_stdin() -> str:
    """Everything on stdin, without a byte order mark.

    Raises:
        DataError: it is not UTF-8.
    """
    from trunkline.data.readers import decode_text

    return decode_text(sys.stdin.buffer.read(), "stdin")
