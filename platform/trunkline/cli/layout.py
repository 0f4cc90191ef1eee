"""How a table is laid out in so many columns.

Owns: which of a table's columns fold, which move below their row, and when a row becomes a block
of lines. Must not know: any command, or where the table is written. Imported only when a table is
printed.

A column that may fold keeps its longest word whole, and a readable width. Where that can't be, the
widest such column moves below: each row is followed by a line ``name  value``. Where even that is
too wide, every row is a block of such lines.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table

_GAP = 2
_INDENT = 4
_READABLE = 24
"""So wide a folded column is at least, while the others leave it that much."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column with what stands in it; widths are those of its longest line and word."""

    head: str
    cells: tuple[str, ...]
    right: bool
    folds: bool

    @property
    def natural(self) -> int:
        return max(cell_len(line) for cell in (self.head, *self.cells) for line in cell.split("\n"))

    def least(self, readable: int) -> int:
        """The width below which it is not to be folded."""
        if not self.folds:
            return self.natural
        words = (word for cell in (self.head, *self.cells) for word in cell.split())
        return min(self.natural, max(readable, max(map(cell_len, words), default=0)))


def laid_out(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str],
    fold: Collection[str],
    width: int,
) -> RenderableType:
    """The table as it is readable in ``width`` columns.

    Args:
        heads: of the columns; none is shown where all are empty.
        rows: a text a column.
        right: heads of columns that are aligned to the right.
        fold: heads of columns that may fold or move below; the first column never moves.
        width: columns of the terminal.
    """
    columns = [
        Column(head, tuple(row[at] for row in rows), head in right, head in fold)
        for at, head in enumerate(heads)
    ]
    if _together([one.natural for one in columns]) <= width:
        return _table(columns, (), [None] * len(columns))
    kept, readable = list(columns), _READABLE
    below: list[Column] = []
    while (least := _together([one.least(readable) for one in kept])) > width:
        movable = [one for one in kept[1:] if one.folds]
        if not movable:
            break
        widest = max(movable, key=lambda one: one.natural)
        kept.remove(widest)
        below.append(widest)
        readable = 0
    if least > width:
        return _blocks(columns)
    below.sort(key=columns.index)
    return _table(kept, below, _widths(kept, readable, width))


def _together(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _widths(columns: Sequence[Column], readable: int, width: int) -> list[int]:
    """The least of each, and what is left for those that fold, in their order."""
    widths = [one.least(readable) for one in columns]
    for at, one in enumerate(columns):
        widths[at] += min(one.natural - widths[at], width - _together(widths))
    return widths


def _table(
    columns: Sequence[Column], below: Sequence[Column], widths: Sequence[int | None]
) -> RenderableType:
    head = any(one.head for one in columns)
    if not below:
        return _rows(columns, widths, range(len(columns[0].cells)), head=head)
    parts: list[RenderableType] = [_rows(columns, widths, (), head=head)]
    for at in range(len(columns[0].cells)):
        parts.append(_rows(columns, widths, (at,), head=False))
        parts.append(Padding(_named(below, at), (0, 0, 0, _INDENT)))
    return Group(*parts)


def _rows(
    columns: Sequence[Column], widths: Sequence[int | None], chosen: Sequence[int], *, head: bool
) -> Table:
    """These rows alone, in columns of these widths; None is as wide as what stands in it."""
    table = bare_table(show_header=head)
    for one, width in zip(columns, widths, strict=True):
        table.add_column(
            one.head,
            justify="right" if one.right else "left",
            width=width,
            no_wrap=width is None,
            overflow="fold",
        )
    for at in chosen:
        table.add_row(*(one.cells[at] for one in columns))
    return table


def _blocks(columns: Sequence[Column]) -> Group:
    """Every row as lines of ``name  value``, with an empty line between two rows."""
    parts: list[RenderableType] = []
    for at in range(len(columns[0].cells)):
        parts += [""] if at else []
        parts.append(_named(columns, at))
    return Group(*parts)


def _named(columns: Sequence[Column], at: int) -> Table:
    """A row's texts in these columns, one below the other, behind their heads; no empty ones."""
    table = bare_table(show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for one in columns:
        if one.cells[at] not in ("", "-"):
            table.add_row(one.head, one.cells[at])
    return table


def bare_table(*, show_header: bool) -> Table:
    """A table without lines, whose columns are two apart."""
    return Table(
        box=None,
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
        header_style="bold",
        show_header=show_header,
    )
