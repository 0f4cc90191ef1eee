"""What is written on stdout: tables, fields and JSON; and notes on stderr.

Owns: how values look. Must not know: any command. Tables fit the terminal's width, see ``layout``,
and are never cut; into a pipe they are as wide as they need to be.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_UNLIMITED = 100_000


def width() -> int:
    """Columns that stdout has; practically unlimited where it is no terminal."""
    if not sys.stdout.isatty():
        return _UNLIMITED
    return shutil.get_terminal_size().columns


def print_json(value: Any) -> None:
    """Write a value as JSON; dataclasses become objects, not-a-number becomes null."""
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def plain(value: Any) -> Any:
    """A value in terms of JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def print_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Sequence[str] = (),
    fold: Sequence[str] = (),
) -> None:
    """Write a table on stdout.

    Args:
        heads: of the columns.
        rows: a value a column.
        right: heads of columns that are aligned to the right.
        fold: heads of columns that may be folded, or stand below their row, when the terminal is
            narrow; see :mod:`trunkline.cli.layout`.
    """
    from trunkline.cli.layout import laid_out

    texts = [[str(value) for value in row] for row in rows]
    print_drawn(laid_out(heads, texts, right=right, fold=fold, width=width()))


def print_fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Write names and values, one a line; pairs whose value is None are left out."""
    from trunkline.cli.layout import bare_table

    table = bare_table(show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            table.add_row(name, str(value))
    print_drawn(table)


def heading(text: str) -> None:
    """Write an empty line and a title on stdout."""
    click.echo()
    click.echo(click.style(text, bold=True) if styled() else text)


def styled() -> bool:
    """Whether stdout is a terminal that wants more than plain text."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def note(text: str) -> None:
    """Write lines that are not the result on stderr."""
    click.echo("\n".join(map(printable, text.split("\n"))), err=True)


def printable(line: str) -> str:
    """With control characters as Python writes them: what was typed, or stands in somebody's file,
    must not reach the terminal as a command to it."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)


def figure(value: float, sign: bool = False) -> str:
    """A score: three decimals, fewer where it is large."""
    if not math.isfinite(value):
        return "-"
    digits = 3 if abs(value) < 100 else 1 if abs(value) < 10_000 else 0
    return f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"


def interval(estimate: Any, *, sign: bool = False, between: str = " ") -> str:
    """``0.862 [0.832, 0.891]`` of anything that has value, low and high."""
    low, high = figure(estimate.low, sign), figure(estimate.high, sign)
    return f"{figure(estimate.value, sign)}{between}[{low}, {high}]"


def bytes_text(count: int) -> str:
    """A size in the unit that suits it."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def duration(seconds: float) -> str:
    """``4.2 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def took(seconds: float) -> str:
    """``82 ms`` where :func:`duration` would say ``0.1 s``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else duration(seconds)


def counted(count: int, one: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"


def moment(time: datetime) -> str:
    """Date and minute, in the local time zone."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M")


def counts(values: Mapping[str, int]) -> str:
    """``train 950, validation 110``."""
    return ", ".join(f"{name} {count:,}" for name, count in values.items())


def short_digest(digest: str) -> str:
    """The first twelve digits, after ``sha256:`` if that stands before them."""
    return digest[:19] if digest.startswith("sha256:") else digest[:12]


def print_drawn(drawn: Any) -> None:
    """Write what rich draws on stdout, folded where the terminal is narrower."""
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
        console.print(drawn)
    for line in captured.get().splitlines():
        click.echo(line.rstrip(), color=True)
