"""Compare two versions: what differs, the metrics with paired intervals, the rows that flipped."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trunkline.console.pages import N_, Page
from trunkline.console.routes import Routes
from trunkline.console.row_texts import row_texts
from trunkline.console.view import View
from trunkline.errors import TrunklineError, UsageError
from trunkline.registry.lineage import diff
from trunkline.registry.records import PredictionRecord, VersionRecord

if TYPE_CHECKING:
    from trunkline.evaluation.comparison import Comparison

routes = Routes()

FLIPPED = 50
"""Rows that are shown in each direction."""

MAX_KEPT = 64

_Pair = tuple[PredictionRecord, PredictionRecord]


@dataclass(frozen=True, slots=True)
class _Compared:
    """A comparison with the predictions for rows that flipped."""

    comparison: Comparison
    gained: list[_Pair]
    lost: list[_Pair]


class _Kept:
    """The newest comparisons, since resampling takes a second; the versions never change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, int, str, int], _Compared] = OrderedDict()

    def get(self, view: View, left: VersionRecord, right: VersionRecord) -> _Compared:
        key = (
            view.platform.workspace.registry_url,
            left.digest,
            _evaluation(view, left),
            right.digest,
            _evaluation(view, right),
        )
        with self._lock:
            kept = self._kept.get(key)
        if kept is None:
            comparison = view.platform.compare(str(left.ref), str(right.ref))
            kept = _Compared(comparison, *_flipped(view, left, right, comparison))
            with self._lock:
                self._kept[key] = kept
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
        return kept


_kept = _Kept()


@routes.get("/compare")
def compare(view: View) -> Page:
    """Two versions side by side, or the form to choose them."""
    names = view.text("a"), view.text("b")
    if not all(names):
        return Page(
            "compare.html",
            N_("Compare"),
            {"a": names[0], "b": names[1], "diff": None, "comparison": None, "problem": None},
            {"gained": (), "lost": (), "texts": None},
            place="compare",
        )
    left, right = (
        view.registry.versions.resolve(view.access.check_ref(name), suggest=False)[0]
        for name in names
    )
    if left.ref == right.ref:
        raise UsageError(f"Both are {left.ref}.", "Choose two different versions.")
    traced = (view.registry.lineage.of_version(one.ref) for one in (left, right))
    compared: _Compared | None = None
    problem: str | None = None
    try:
        compared = _kept.get(view, left, right)
    except TrunklineError as error:
        problem = error.message
    return Page(
        "compare.html",
        N_("Compare"),
        {
            "a": str(left.ref),
            "b": str(right.ref),
            "diff": diff(*traced),
            "comparison": compared and compared.comparison,
            "problem": problem,
        },
        {
            "gained": compared.gained if compared else (),
            "lost": compared.lost if compared else (),
            "task": left.task,
            "texts": row_texts(view, left.dataset),
        },
        command=f"trunkline adapters diff {left.ref} {right.ref}",
        place="compare",
    )


def _evaluation(view: View, version: VersionRecord) -> int:
    """The id of a version's newest evaluation; 0 without any."""
    newest = view.registry.evaluations.list(version=version.ref, limit=1)
    return newest[0].id if newest else 0


def _flipped(
    view: View, left: VersionRecord, right: VersionRecord, comparison: Comparison
) -> tuple[list[_Pair], list[_Pair]]:
    """The predictions of both for the rows that only the first or only the second has right."""
    if not (comparison.gained or comparison.lost):
        return [], []
    ours = _predictions(view, left)
    theirs = _predictions(view, right)
    gained, lost = (
        [(ours[row], theirs[row]) for row in rows[:FLIPPED] if row in ours and row in theirs]
        for rows in (comparison.gained, comparison.lost)
    )
    return gained, lost


def _predictions(view: View, version: VersionRecord) -> dict[str, PredictionRecord]:
    evaluations = view.registry.evaluations
    for one in evaluations.list(version=version.ref):
        if one.split == "test" and (stored := evaluations.predictions(one.id)):
            return {record.row_id: record for record in stored}
    return {}
