"""Which versions wait for a second person: everything else that their gate asks for is met."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from trunkline import promotion
from trunkline.console.view import View
from trunkline.errors import TrunklineError
from trunkline.evaluation.gates import check_gate, needs_champion, tighten
from trunkline.registry.lookup import CHAMPION
from trunkline.registry.provenance import IMPORTED
from trunkline.registry.records import EvaluationRecord, VersionRecord
from trunkline.workspace import GateSettings

SHOWN = 20
"""Versions that a page lists."""

CANDIDATES = 500
"""Newest versions whose stored figures are read for one page."""

COMPARING_SECONDS = 0.3
"""After this time, a page starts no further comparison with a champion."""

KEPT_SECONDS = 300
_MAX_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Waiting:
    """A version that only a second person is missing for.

    Attributes:
        compared: False if it passes by its own figures, and the comparison with the champion that
            its gate asks for has not been made yet.
    """

    version: VersionRecord
    compared: bool = True


class _TtlCache:
    """Remembers for :data:`KEPT_SECONDS` what takes long to compute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[object, ...], tuple[float, bool]] = OrderedDict()

    def get(self, key: tuple[object, ...]) -> bool | None:
        with self._lock:
            at, value = self._entries.get(key, (0.0, None))
        return value if at and time.monotonic() - at < KEPT_SECONDS else None

    def set(self, key: tuple[object, ...], value: bool) -> None:
        with self._lock:
            self._entries[key] = time.monotonic(), value
            while len(self._entries) > _MAX_KEPT:
                self._entries.popitem(last=False)


_comparisons = _TtlCache()
"""Whether versions pass the comparison with their champion."""

_contributors = _TtlCache()
"""Whether somebody is known to have trained or imported a version."""


def find_waiting(view: View) -> list[Waiting]:
    """The newest versions of adapters that a second person may promote now, newest first."""
    demanded = view.platform.workspace.configuration.gate
    deadline = time.monotonic() + COMPARING_SECONDS
    waiting: list[Waiting] = []
    for version, evaluation in _candidates(view, demanded):
        parsed = promotion.parse_results(evaluation)
        if parsed is None or evaluation.results.get(IMPORTED):
            continue
        report, recipes = parsed
        gate = tighten(recipes, demanded, higher_is_better=report.higher_is_better)
        if not gate.two_persons or not all(one.passed for one in check_gate(gate, report)):
            continue
        if not _has_contributors(view, version):
            continue  # without them, nobody counts as the second person
        passed: bool | None = True
        if needs_champion(gate):
            passed = _beats_champion(view, version, evaluation, deadline)
        if passed is not False:
            waiting.append(Waiting(version, compared=passed is not None))
        if len(waiting) == SHOWN:
            break
    return waiting


def _candidates(
    view: View, demanded: GateSettings
) -> Iterator[tuple[VersionRecord, EvaluationRecord]]:
    """The newest versions that may follow their champion, read as far as they are needed."""
    for offset in range(0, CANDIDATES, SHOWN):
        rows = view.registry.evaluations.unpromoted(
            two_persons=not demanded.two_persons,
            scope=view.access.scope,
            limit=SHOWN,
            offset=offset,
        )
        yield from rows
        if len(rows) < SHOWN:
            return


def _has_contributors(view: View, version: VersionRecord) -> bool:
    key = (view.platform.workspace.registry_url, version.ref, version.digest)
    if _contributors.get(key):
        return True
    known = bool(view.registry.versions.contributors(version))
    if known:
        _contributors.set(key, known)
    return known


def _beats_champion(
    view: View, version: VersionRecord, evaluation: EvaluationRecord, deadline: float
) -> bool | None:
    """Whether only the second person is missing; None if there is no time left to compare."""
    moves = view.registry.aliases.moves(version.domain, version.name, CHAMPION, limit=1)
    demanded = view.platform.workspace.configuration.gate
    url = view.platform.workspace.registry_url
    key = (url, version.digest, evaluation.id, moves[0].id if moves else 0, demanded)
    passed = _comparisons.get(key)
    if passed is None and time.monotonic() < deadline:
        try:
            evidence = promotion.check(
                view.platform.store, version.ref, CHAMPION,
                metric=view.platform.metric, demanded=demanded, actor=view.access.actor,
            )  # fmt: skip
            passed = all(one.passed for one in evidence.checks if one.name != promotion.TWO_PERSONS)
        except TrunklineError:
            passed = False  # damaged: the evidence page says why
        _comparisons.set(key, passed)
    return passed
