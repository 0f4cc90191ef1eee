"""A contact sheet: small pictures of each label on one PNG, and pairs that look alike."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from trunkline.contracts import Row
from trunkline.data.near_duplicates import NearDuplicate
from trunkline.data.pictures import decode, pillow
from trunkline.data.split import evenly
from trunkline.data.targets import labels_in, number
from trunkline.labels import clean_label

EDGE = 96
"""The longer edge of a picture on the sheet, in pixels."""

COLUMNS, LABELS = 8, 24
"""Pictures of each label, and labels, at most."""

_GAP, _TITLE, _CHARACTERS = 6, 20, 100


def draw_contact_sheet(rows: Sequence[Row], pairs: Sequence[NearDuplicate] = ()) -> bytes:
    """Draw pictures of every label, evenly over the rows; of numbers, of four ranges.

    Args:
        rows: with pictures that can be decoded.
        pairs: near-duplicates, drawn side by side below.

    Returns:
        A PNG, which holds pixels and labels and nothing else of the files.

    Raises:
        DataError: a picture can't be read any more.
        UsageError: Pillow is not installed.
    """
    strips = list(_strips([row for row in rows if _has_target(row)]))
    if pairs:
        alike = [row for pair in pairs[: COLUMNS // 2] for row in (pair.row, pair.other)]
        strips.append((f"near-duplicates, in pairs ({len(pairs):,})", alike))
    image_module, _ = pillow()
    from PIL import ImageDraw

    height = _TITLE + EDGE + _GAP
    size = (COLUMNS * (EDGE + _GAP) + _GAP, max(1, len(strips)) * height + _GAP)
    sheet = image_module.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, (title, shown) in enumerate(strips):
        top = _GAP + index * height
        _write(draw, (_GAP, top), title)
        for column, row in enumerate(shown):
            small = image_module.fromarray(decode(row.picture.read(), row.picture.name))
            small.thumbnail((EDGE, EDGE))
            sheet.paste(small, (_GAP + column * (EDGE + _GAP), top + _TITLE))
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _strips(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """A title and the pictures below it."""
    if rows and isinstance(rows[0].target, int | float):
        ordered = sorted(rows, key=lambda row: number(row.target))
        size = -(-len(ordered) // 4)
        for start in range(0, len(ordered), size):
            part = ordered[start : start + size]
            title = f"{number(part[0].target):g} to {number(part[-1].target):g} ({len(part):,})"
            yield title, evenly(part, COLUMNS)
        return
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        for label in {clean_label(str(one)) for one in labels_in(row.target)} - {""}:
            by_label[label].append(row)
    for label, own in sorted(by_label.items(), key=lambda item: -len(item[1]))[:LABELS]:
        yield f"{label} ({len(own):,})", evenly(own, COLUMNS)


def _has_target(row: Row) -> bool:
    return not isinstance(row.target, float) or math.isfinite(row.target)


def _write(draw: Any, place: tuple[int, int], text: str) -> None:
    text = "".join(character if character.isprintable() else " " for character in text)
    text = text[:_CHARACTERS]
    try:
        draw.text(place, text, fill="black")
    except UnicodeEncodeError:  # the font without FreeType has Latin letters only
        draw.text(place, text.encode("ascii", "replace").decode(), fill="black")
