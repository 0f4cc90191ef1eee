"""Texts of evaluated rows: the registry knows rows by their id, and the dataset has the texts."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from trunkline.console.pages import N_
from trunkline.console.view import View
from trunkline.errors import BusyError, TrunklineError

KEPT_SECONDS = 600
MAX_KEPT = 4
"""Datasets whose texts are kept in memory."""

MAX_LENGTH = 600
"""Characters of a text that a page shows."""


@dataclass(frozen=True, slots=True)
class RowTexts:
    """Texts by row id, as the dataset is now.

    Attributes:
        offered: whether the page may offer to read them.
        read: whether they were read.
        problem: why they could not be.
    """

    dataset: str | None
    offered: bool
    read: bool = False
    texts: Mapping[str, str] | None = None
    problem: str | None = None

    def get(self, row: str) -> str | None:
        """The text of a row, cut if it is long; None if it is unknown."""
        text = (self.texts or {}).get(row)
        if text is None or len(text) <= MAX_LENGTH:
            return text
        return text[:MAX_LENGTH] + "…"


class _Kept:
    """The datasets that were read last."""

    def __init__(self) -> None:
        self._reading = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], tuple[float, dict[str, str]]] = OrderedDict()

    def get(self, view: View, dataset: str) -> dict[str, str]:
        from trunkline.data.prepare import read_rows

        key = str(view.platform.workspace.root), dataset
        at, texts = self._kept.get(key, (0.0, {}))
        if at and time.monotonic() - at < KEPT_SECONDS:
            return texts
        spec = view.platform.catalog.dataset(dataset)
        if not self._reading.acquire(timeout=20):
            raise BusyError(N_("Another dataset is being read."), N_("Retry later."))
        try:
            texts = {row.id: row.title for row in read_rows(spec)}
            self._kept[key] = time.monotonic(), texts
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        finally:
            self._reading.release()
        return texts


_kept = _Kept()


def row_texts(view: View, dataset: str | None) -> RowTexts:
    """The texts of a dataset's rows, if the query asks for them (``texts=yes``)."""
    known = {one.name for one in view.platform.catalog.datasets()}
    offered = dataset in known and dataset is not None and view.access.may_use(dataset)
    if dataset is None or not offered or view.text("texts") != "yes":
        return RowTexts(dataset, offered)
    try:
        return RowTexts(dataset, offered, read=True, texts=_kept.get(view, dataset))
    except TrunklineError as error:
        return RowTexts(dataset, offered, problem=error.message)
