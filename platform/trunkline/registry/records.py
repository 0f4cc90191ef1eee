"""What the registry gives back: frozen values that outlive their transaction.

Owns: the shape of every answer.
Must not know: tables or sessions. ``dataclasses.asdict`` works on each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trunkline.errors import UsageError
from trunkline.refs import BASE, Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecord:
    """A base that took part in something; ``parameters`` counts its weights."""

    id: int
    digest: str
    name: str
    source: str
    architecture: str
    parameters: int
    dtype: str
    first_seen: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRecord:
    """A dataset as it was used; ``counts`` holds rows by split, and what else was counted."""

    id: int
    name: str
    fingerprint: str
    split_fingerprint: str
    rows: int
    licence: str
    source: str
    counts: Mapping[str, Any]
    first_seen: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One execution of a recipe.

    Attributes:
        number: what users call it by.
        status: ``running``, ``finished``, ``failed`` or ``interrupted``.
        plugin: ``distribution version`` of the plugin, if one was recorded.
        versions: refs of the visible versions that it made.
        specification: the recipe as it was then; None for a run of an earlier release.
    """

    number: int
    recipe: str
    status: str
    base_name: str
    base_digest: str
    dataset: str
    dataset_id: int
    dataset_fingerprint: str
    split_fingerprint: str
    plugin: str | None
    seed: int
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    report: Mapping[str, Any] | None
    error: str | None
    started: datetime
    finished: datetime | None
    versions: tuple[str, ...]
    specification: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRecord:
    """A figure at an optimiser step of a run; ``value`` may be not-a-number."""

    step: int
    name: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """An adapter that has at least one visible version.

    Attributes:
        newest: the highest visible number.
        versions: how many are visible.
        aliases: alias → number.
    """

    domain: str
    name: str
    task: str
    newest: int
    versions: int
    aliases: Mapping[str, int]

    @property
    def ref(self) -> Ref:
        """``domain/name``."""
        return Ref(self.domain, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """One visible version.

    Attributes:
        digest: ``sha256:`` with 64 hex digits; the identity of the artifact.
        path: of the artifact's folder, relative to ``adapters/``, with forward slashes.
        bytes: size of the artifact's files together.
        aliases: those that point here, sorted.
        files: file name → ``{"bytes", "sha256"}``; None for a version of an earlier release.
        template_digest: sha256 of the prompt template, in hex.
    """

    domain: str
    name: str
    number: int
    task: str
    digest: str
    path: str
    bytes: int
    base_name: str
    base_digest: str
    dataset: str | None
    dataset_fingerprint: str | None
    split_fingerprint: str | None
    run: int | None
    created: datetime
    aliases: tuple[str, ...]
    files: Mapping[str, Any] | None = None
    template_digest: str | None = None

    @property
    def ref(self) -> Ref:
        """``domain/name@number``."""
        return Ref(self.domain, self.name, str(self.number))


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """Figures on one split; ``version`` is a ref, or None for a run's or the bare base's."""

    id: int
    version: str | None
    run: int | None
    recipe: str
    dataset: str
    dataset_fingerprint: str
    split_fingerprint: str
    split: str
    base_digest: str
    results: Mapping[str, Any]
    created: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRecord:
    """What was answered for one row; targets and answers are text, whatever the task."""

    row_id: str
    group: str
    target: str
    prediction: str
    confidence: float | None = None
    floor_prediction: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """Something that was done: ``seq`` orders, ``at`` only tells the time.

    ``subject`` is ``run/<number>``, ``key/<id>``, ``server/<number>``, ``domain/name`` or
    ``domain/name@number``. ``hash`` chains it to the event before.
    """

    seq: int
    at: datetime
    actor: str
    kind: str
    subject: str
    detail: Mapping[str, Any]
    hash: str


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is known of a key; neither the key nor its hash is in here.

    Attributes:
        id: the 8 characters after ``tl-``, which are no secret.
        adapters: patterns: ``*`` for everything, ``domain/*``, ``domain/name``, or ``base``.
        admin: whether it opens the admin routes; it adds nothing to ``adapters``.
        expires: from then on it is refused; None for never.
        removed: when it was removed, if it was.
    """

    id: str
    owner: str
    adapters: tuple[str, ...]
    admin: bool
    created: datetime
    expires: datetime | None
    removed: datetime | None

    def may_use(self, name: str) -> bool:
        """Whether a pattern covers ``domain/name`` or ``base``; no for any other text.

        Asks nothing about the time: :meth:`Keys.key_of` gives no key that is over.
        """
        covering = {"*", name}
        if name != BASE:
            try:
                ref = Ref.parse(name)
            except UsageError:
                return False
            if ref.selector is not None:
                return False
            covering.add(f"{ref.domain}/*")
        return not covering.isdisjoint(self.adapters)


@dataclass(frozen=True, slots=True)
class RequestLine:
    """A request as a server hands it to the log, once it has ended.

    Attributes:
        id: the server's own, used once: 1 to 80 of A-Z, a-z, 0-9, ``_``, ``.`` and ``-``.
        at: when it arrived; aware.
        key: id of the key that it came with.
        route: such as ``/v1/chat/completions``.
        asked: the adapter as the client wrote it.
        version: what answered, ``domain/name@number`` or ``base``; None if it never came to that.
        digest: of that version.
        status: of HTTP.
        seconds: from arrival to end.
        text, output: what was asked and answered, where the operator keeps that.
    """

    id: str
    at: datetime
    key: str | None
    route: str
    asked: str
    version: str | None
    digest: str | None
    prompt_tokens: int
    new_tokens: int
    status: int
    seconds: float
    text: str | None = None
    output: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord(RequestLine):
    """A line of the request log; ``seq`` orders, ``hash`` chains it to the line before."""

    seq: int
    hash: str
