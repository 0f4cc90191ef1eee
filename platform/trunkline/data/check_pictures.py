"""The part of ``datasets check`` that is about pictures: files, sizes, colors, brightness."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from trunkline.contracts import Row
from trunkline.data.check_report import DataFinding, PictureReport, finding
from trunkline.data.picture_facts import PictureFacts, facts_of
from trunkline.data.pictures import GRAY
from trunkline.errors import DataError, TrunklineError

SIZES = 12
"""Sizes that the report lists; further ones are summed."""

SMALL_EDGE = 32
"""A picture with a shorter edge is reported, in pixels."""

LONG = 3
"""A picture whose edges have a larger ratio is reported."""

FLAT, DARK, BRIGHT = 2.0, 16.0, 240.0
"""Bounds of contrast and brightness, on the scale from 0 to 255."""

_BINS = 8
_REVEALED, _MARGIN = 0.95, 0.1
"""A size or a color mode is reported that gives the label of so many rows, and of so many more than
the most frequent label does."""


def examine_pictures(
    rows: Sequence[Row], unreadable: Mapping[str, TrunklineError]
) -> tuple[list[Row], PictureReport | None, list[DataFinding]]:
    """Decode every picture.

    Args:
        rows: those whose pictures could be read.
        unreadable: row id → why the others could not.

    Returns:
        The rows whose pictures can be decoded, how these are distributed (None without rows), and
        the findings.

    Raises:
        UsageError: a package of the extra ``trunkline[images]`` is missing.
    """
    problems = dict(unreadable)
    facts: dict[str, PictureFacts] = {}
    for row in rows:
        try:
            facts[row.id] = facts_of(row)
        except DataError as error:
            problems[row.id] = error
    usable = [row for row in rows if row.id in facts]
    findings = [*_unreadable_findings(problems), *_fact_findings(facts)]
    if not usable:
        return usable, None, findings
    findings += _revealing_findings(usable, facts)
    return usable, _report(list(facts.values())), findings


def _unreadable_findings(problems: Mapping[str, TrunklineError]) -> Iterator[DataFinding]:
    """A finding for each way out: to save it smaller, in another format, or again."""
    by_hint: dict[str, dict[str, str]] = defaultdict(dict)
    for row, error in problems.items():
        by_hint[error.hint or ""][row] = error.message
    for hint, messages in by_hint.items():
        first = next(iter(messages.values())).rstrip(".")
        yield from finding(
            "unreadable pictures", "error", messages,
            f"a picture that can't be used, such as: {first}",
            f"{hint} Or leave the rows out.".strip(),
        )  # fmt: skip


def _fact_findings(facts: Mapping[str, PictureFacts]) -> Iterator[DataFinding]:
    """Findings about single pictures."""

    def rows(condition: Callable[[PictureFacts], bool]) -> list[str]:
        return [row for row, one in facts.items() if condition(one)]

    yield from finding(
        "rotation", "note", rows(lambda one: one.rotated),
        "a rotation in EXIF, which is applied",
        "Look at some: a label made with another program may be of the picture as it was stored.",
    )  # fmt: skip
    yield from finding(
        "color modes", "note", rows(lambda one: one.mode == "CMYK"),
        "CMYK colors, which are converted without a color profile",
        "Convert them to RGB with a program that uses the profile.",
    )  # fmt: skip
    yield from finding(
        "color modes", "note", rows(lambda one: one.transparent),
        "transparency, which is put on white",
        "Put them on the background that the pictures of requests will have.",
    )  # fmt: skip
    gray = rows(lambda one: one.mode in GRAY)
    colored = rows(lambda one: one.mode not in GRAY)
    for few, noun, most in ((gray, "gray", "have colors"), (colored, "colors", "are gray")):
        if len(few) * 20 < len(facts):
            yield from finding(
                "color modes", "note", few, f"{noun} pixels, where most pictures {most}",
                "Keep them only if requests will look like this.",
            )  # fmt: skip
    yield from finding(
        "size", "note", rows(lambda one: min(one.width, one.height) < SMALL_EDGE),
        f"a shorter edge of less than {SMALL_EDGE} pixels, so the base reads it enlarged",
        "Use larger originals, if there are any.",
    )  # fmt: skip
    yield from finding(
        "size", "note",
        rows(lambda one: max(one.width, one.height) > LONG * min(one.width, one.height)),
        f"one edge more than {LONG} times as long as the other, so it is cut or squashed",
        "Crop it to what matters.",
    )  # fmt: skip
    flat = dict.fromkeys(rows(lambda one: one.contrast < FLAT))
    yield from finding(
        "empty pictures", "warning", flat, "one color, or nearly so",
        "Look at them: the file may be damaged, or the camera covered.",
    )  # fmt: skip
    for condition, noun in (
        (lambda one: one.brightness < DARK, "black"),
        (lambda one: one.brightness > BRIGHT, "white"),
    ):
        yield from finding(
            "brightness", "note", [row for row in rows(condition) if row not in flat],
            f"a picture that is nearly {noun}",
            "Look at them: exposed like this, they may not show what their label says.",
        )  # fmt: skip


def _revealing_findings(
    rows: Sequence[Row], facts: Mapping[str, PictureFacts]
) -> Iterator[DataFinding]:
    """A finding if the size or the color mode alone gives the label away."""
    labels = [row.target for row in rows]
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < 2:
        return
    most = max(Counter(labels).values()) / len(rows)
    attributes = {
        "size": [f"{facts[row.id].width} × {facts[row.id].height}" for row in rows],
        "color mode": [facts[row.id].mode for row in rows],
    }
    for name, values in attributes.items():
        by_value: dict[str, Counter[object]] = defaultdict(Counter)
        for value, label in zip(values, labels, strict=True):
            by_value[value][label] += 1
        if len(by_value) * 8 > len(rows):  # nearly every picture has a value of its own
            continue
        known = sum(max(counts.values()) for counts in by_value.values()) / len(rows)
        if known >= _REVEALED and known >= most + _MARGIN:
            yield DataFinding(
                "revealing files",
                "warning",
                f"the {name} of the file alone gives the label of {known:.0%} of the rows",
                "Save the pictures of all labels in one way, or the adapter learns how they were "
                "saved.",
            )


def _report(facts: Sequence[PictureFacts]) -> PictureReport:
    def quantiles(values: list[int]) -> tuple[int, int, int]:
        return min(values), int(statistics.median_low(values)), max(values)

    sizes = Counter(f"{one.width} × {one.height}" for one in facts).most_common()
    listed = dict(sizes[:SIZES])
    if rest := sizes[SIZES:]:
        listed[f"{len(rest):,} other sizes"] = sum(count for _, count in rest)
    width = 256 // _BINS
    bins = Counter(min(int(one.brightness) // width, _BINS - 1) for one in facts)
    return PictureReport(
        width=quantiles([one.width for one in facts]),
        height=quantiles([one.height for one in facts]),
        sizes=listed,
        modes=dict(Counter(one.mode for one in facts).most_common()),
        brightness={
            f"{index * width}–{(index + 1) * width - 1}": bins[index] for index in range(_BINS)
        },
    )
