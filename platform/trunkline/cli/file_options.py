"""Options of the commands that read a user's file of rows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from trunkline.errors import UsageError

if TYPE_CHECKING:
    from trunkline.data.readers import FileOptions


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
