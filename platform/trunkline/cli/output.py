"""Output of commands: tables, fields and JSON on stdout, notes on stderr, and number formats.

Tables fit the terminal's width and are never truncated; in a pipe they are as wide as they need.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TextIO

import click

from trunkline.errors import TrunklineError, UsageError, one_line
from trunkline.images import SUFFIXES
from trunkline.process import stdout_to_stderr
from trunkline.redaction import redact

if TYPE_CHECKING:
    from rich.table import Table

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_UNLIMITED = 100_000
_NO_TERMINAL = 100
_GAP = 2
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_TRAILING = re.compile(rf"(?: |{_STYLE.pattern})+$")
"""Blanks at the end of a line, and the terminal's style sequences between them."""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_READABLE = 10
"""Columns that each folding column keeps; with less room, every column of the table folds."""


_ROW_FILES = (*SUFFIXES, ".txt", ".csv")
"""Files of a folder of rows: pictures, texts, and ``labels.csv``."""


def check_output(out: Path, *sources: Path | None, option: str = "--out") -> None:
    """Check a file that a command will write, before it computes anything.

    Args:
        sources: the files and folders that the command reads, if any.

    Raises:
        UsageError: its folder does not exist, it is a folder itself, or the command reads it.
    """
    if not out.absolute().parent.is_dir():
        raise UsageError(f"The folder of {str(out)!r} does not exist.", "Create it first.")
    if out.is_dir():
        raise UsageError(f"{str(out)!r} is a folder.", "Name a file in it.")
    path = out.resolve()
    for source in (one.resolve() for one in sources if one is not None and out.exists()):
        if path == source:
            raise UsageError(
                f"{option} {str(out)!r} is the file that the command reads.", "Name another file."
            )
        is_row = path.suffix.lower() in _ROW_FILES and path.is_relative_to(source)
        if is_row and source.is_dir():
            raise UsageError(
                f"{option} {str(out)!r} would replace a file of the folder that the command reads.",
                "Name a file elsewhere.",
            )


def width() -> int:
    """Columns of stdout; practically unlimited if it is not a terminal."""
    return terminal_width() if sys.stdout.isatty() else _UNLIMITED


def terminal_width() -> int:
    """Columns of the terminal; without one, the value of COLUMNS, or 100."""
    return shutil.get_terminal_size((_NO_TERMINAL, 24)).columns


def print_json(value: Any) -> None:
    """Write a value as JSON; dataclasses become objects, not-a-number becomes null."""
    document = _document.get()
    if document is not None:
        document.written = True
    stream = None if document is None else document.stream
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False), file=stream)


@dataclass
class _Document:
    """The one JSON document of a command."""

    stream: TextIO
    written: bool = False


_document: ContextVar[_Document | None] = ContextVar("document", default=None)


@contextmanager
def json_only() -> Iterator[None]:
    """Keep stdout for one JSON document: the result, or the error that the block raises.

    Whatever else is written to stdout, by a plugin for example, goes to stderr.
    """
    with stdout_to_stderr() as stream:
        document = _Document(stream)
        token = _document.set(document)
        try:
            yield
        except (click.exceptions.Exit, BrokenPipeError):
            raise
        except BaseException as error:
            if not document.written:
                print_error_json(error)
            raise
        finally:
            _document.reset(token)


def print_error_json(error: BaseException) -> None:
    """Write an error as the JSON document of a command."""
    print_json({"error": _error_fields(error)})


def _error_fields(error: BaseException) -> dict[str, Any]:
    """An error as JSON: its class, message, hint and code."""
    if isinstance(error, click.ClickException):
        return {"type": type(error).__name__, "message": redact(error.format_message())}
    values: dict[str, Any] = {"message": one_line(error)}
    if isinstance(error, TrunklineError):
        values = {"message": error.message, "hint": error.hint, "code": error.code}
    return {"type": type(error).__name__, **values}


def plain(value: Any) -> Any:
    """Convert a value to the types of JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def print_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Collection[str] = (),
    fold: Collection[str] = (),
) -> None:
    """Write a table on stdout.

    Args:
        heads: of the columns; no header is written if all are empty.
        rows: one value per column.
        right: heads of right-aligned columns.
        fold: heads of the columns that wrap when the terminal is narrow. If that is not enough,
            all columns do.
    """
    from rich.cells import cell_len

    texts = [[without_controls(str(value)) for value in row] for row in rows]
    columns = list(zip(heads, *texts, strict=True))
    room = width() - _GAP * (len(heads) - 1)
    for head, column in zip(heads, columns, strict=True):
        natural = max(cell_len(line) for cell in column for line in cell.split("\n"))
        room -= min(natural, _READABLE) if head in fold else natural
    table = _bare_table(show_header=any(heads))
    for head in heads:
        table.add_column(
            head,
            justify="right" if head in right else "left",
            no_wrap=head not in fold and room >= 0,
            overflow="fold",
        )
    for row in texts:
        table.add_row(*row)
    print_renderable(table)


def print_fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Write names and values, one pair per line; pairs with the value None are omitted."""
    table = _bare_table(show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            table.add_row(name, without_controls(str(value)))
    print_renderable(table)


def print_renderable(renderable: Any) -> None:
    """Write a rich renderable on stdout, without trailing blanks."""
    from rich.console import Console

    console = Console(
        file=sys.stdout,
        width=width(),
        color_system="auto" if styled() else None,
        markup=False,
        emoji=False,
        highlight=False,
    )
    with console.capture() as captured:
        console.print(renderable)
    for line in captured.get().splitlines():
        click.echo(_TRAILING.sub(_styles_only, line), color=True)


def _styles_only(trailing: re.Match[str]) -> str:
    return "".join(_STYLE.findall(trailing[0]))


def _bare_table(*, show_header: bool) -> Table:
    """A table without rules; columns are two apart."""
    from rich.table import Table

    return Table(
        box=None,
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
        header_style="bold",
        show_header=show_header,
    )


def heading(text: str) -> None:
    """Write an empty line and a title on stdout."""
    click.echo()
    click.echo(click.style(text, bold=True) if styled() else text)


def styled() -> bool:
    """Whether stdout is a terminal that shows colors and bold text."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def note(text: str) -> None:
    """Write lines on stderr that are not part of the result."""
    click.echo("\n".join(map(printable, redact(text).split("\n"))), err=True)


def printable(line: str) -> str:
    """Escape control characters, so that text from users and files can't control the terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def without_controls(text: str) -> str:
    """Escape control characters except line breaks and tabs."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def shorten(text: str, columns: int) -> str:
    """A text on one line, without control characters, cut to a number of columns with ``…``."""
    from rich.cells import cell_len, set_cell_size

    line = printable(" ".join(text[: 4 * columns].split()))
    if cell_len(line) <= columns and len(text) <= 4 * columns:
        return line
    return f"{set_cell_size(line, columns - 1).rstrip()}…"


def figure(value: float, sign: bool = False) -> str:
    """A score: three decimals, fewer for large values."""
    if not math.isfinite(value):
        return "-"
    digits = 3 if abs(value) < 100 else 1 if abs(value) < 10_000 else 0
    return f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"


def interval(estimate: Any, *, sign: bool = False, between: str = " ") -> str:
    """``0.862 [0.832, 0.891]``, for anything with value, low and high."""
    low, high = figure(estimate.low, sign), figure(estimate.high, sign)
    return f"{figure(estimate.value, sign)}{between}[{low}, {high}]"


def bytes_text(count: int) -> str:
    """A size in bytes, kB, MB or GB."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def duration(seconds: float) -> str:
    """``4.2 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60} min"


def took(seconds: float) -> str:
    """Like :func:`duration`, with milliseconds below one second: ``82 ms``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else duration(seconds)


READS = {"text": "text", "image": "pictures", "text+image": "text and pictures"}
"""Modality → what a base or an adapter reads."""


def base_text(name: str) -> str:
    """The name of a base; of a folder only its last part."""
    return PurePath(name).name if PurePath(name).is_absolute() else name


def counted(count: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def moment(time: datetime) -> str:
    """Date and minute in the local time zone."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M")


def counts(values: Mapping[str, int]) -> str:
    """``train 950, validation 110``."""
    return ", ".join(f"{name} {count:,}" for name, count in values.items())


def short_digest(digest: str) -> str:
    """The first twelve hex digits, after ``sha256:`` if the digest begins with it."""
    return digest[:19] if digest.startswith("sha256:") else digest[:12]
