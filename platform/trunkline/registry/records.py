"""What the registry gives back: frozen values that outlive their transaction.

Owns: the shape of every answer.
Must not know: tables or sessions. ``dataclasses.asdict`` works on each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from trunkline.errors import UsageError
from trunkline.refs import BASE, Ref

if TYPE_CHECKING:
    from trunkline.registry.chain import Head


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
    license: str
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
    """A figure at an optimizer step of a run; ``value`` may be not-a-number."""

    step: int
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Standing:
    """How a version stands by its newest evaluation on its test rows: the deciding metric.

    Attributes:
        metric: its name; ``value`` with the interval from ``low`` to ``high``.
        verdict: against the best baseline: ``beats``, ``ties`` or ``loses``.
    """

    metric: str
    value: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True, slots=True)
class TagsRecord:
    """The tags of a subject, which is named as in events, by key."""

    subject: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """An adapter that has at least one visible version.

    Attributes:
        newest: the highest visible number.
        versions: how many are visible.
        aliases: alias → number.
        standing: of the newest version, where it was asked for and there is one.
    """

    domain: str
    name: str
    task: str
    newest: int
    versions: int
    aliases: Mapping[str, int]
    standing: Standing | None = None

    @property
    def ref(self) -> Ref:
        """``domain/name``."""
        return Ref(self.domain, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """One visible version, or, where ``removed`` is set, the tombstone of one.

    Attributes:
        digest: ``sha256:`` with 64 hex digits; the identity of the artifact.
        path: of the artifact's folder, relative to ``adapters/``, with forward slashes.
        bytes: size of the artifact's files together.
        aliases: those that point here, sorted.
        files: file name → ``{"bytes", "sha256"}``; None for a version of an earlier release.
        template_digest: sha256 of the prompt template, in hex.
        removed: when its files were taken away, if they were.
        removal: why.
        standing: where it was asked for and there is one.
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
    removed: datetime | None = None
    removal: str | None = None
    standing: Standing | None = None

    @property
    def ref(self) -> Ref:
        """``domain/name@number``."""
        return Ref(self.domain, self.name, str(self.number))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """A version's row as the upkeep of a store sees it, whatever its status; ``id`` orders.

    ``removal`` is why a version failed or was removed, if that was said; ``publisher`` is that of
    a pending one, see :mod:`trunkline.registry.publisher`.
    """

    id: int
    domain: str
    name: str
    number: int
    status: str
    digest: str | None
    path: str | None
    reserved: datetime
    removal: str | None = None
    publisher: Mapping[str, Any] | None = None

    @property
    def ref(self) -> Ref:
        """``domain/name@number``."""
        return Ref(self.domain, self.name, str(self.number))


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMoveRecord:
    """A change of an alias; ``id`` orders.

    Attributes:
        adapter: ``domain/name``.
        kind: ``promoted``, ``rolled-back`` or ``dropped``.
        new, old: numbers of versions; ``new`` is None where the alias was dropped, ``old`` where
            there was none before.
        back_to: the move that a rollback of this one restores.
        gate: what each gate said, as ``{"name", "passed", "figures"}``; None where none was asked.
    """

    id: int
    adapter: str
    alias: str
    kind: str
    new: int | None
    old: int | None
    back_to: int | None
    at: datetime
    actor: str
    forced: bool
    reason: str | None
    gate: Sequence[Mapping[str, Any]] | None


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
    baseline_prediction: str | None = None


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
class ChainBreak:
    """A place where a hash chain does not hold: the row ``seq`` (None: the end), and what of it."""

    seq: int | None
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """What a check of a hash chain found.

    Attributes:
        chain: ``events`` or ``requests``.
        rows: how many were read.
        head: the last row that was read, as it stands.
        kept: the head from elsewhere that the chain was held against, if one was given.
        breaks: the first of what does not hold; empty where everything does.
        broken: how many such places there are.
    """

    chain: str
    rows: int
    head: Head
    kept: Head | None
    breaks: tuple[ChainBreak, ...]
    broken: int

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return self.broken == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRecord:
    """A server's life.

    Attributes:
        number: ``server/<number>`` is the subject of its events.
        url: where it listens; empty where another program holds the socket.
        seen: when it last told that it lives.
        stopped: when it said that it ends; None for one that runs, or was killed.
        alive: whether it runs as far as can be known: not stopped, seen within 90 s, and not a
            process of this host that is gone.
        base_digest: None where the base was never recorded.
    """

    number: int
    actor: str
    host: str
    pid: int
    url: str
    base_name: str | None
    base_digest: str | None
    started: datetime
    seen: datetime
    stopped: datetime | None
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRecord:
    """A version in a server's memory; ``version`` is its ref, ``id`` orders.

    ``unloaded`` is None while it is there, and for ever after a server that was killed:
    ``server.seen`` says until when it was known to live.
    """

    id: int
    version: str
    digest: str
    loaded: datetime
    unloaded: datetime | None
    server: DeploymentRecord


@dataclass(frozen=True, slots=True)
class RestoredLineage:
    """What was recorded of a version's origin; None where nothing is known."""

    base_digest: str
    dataset_id: int | None
    run: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundVersion:
    """A sound artifact that no row knows.

    Attributes:
        ref: with the number that its folder has.
        path: of the folder, relative to the store.
        files: file name → ``{"bytes", "sha256"}``.
        template_digest: sha256 of the prompt template, in hex.
        provenance: in the form of ``provenance.json``.
    """

    ref: Ref
    task: str
    digest: str
    path: str
    bytes: int
    files: Mapping[str, Any]
    template_digest: str
    created: datetime
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """How many rows of each kind were made again."""

    bases: int
    datasets: int
    runs: int
    versions: int


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

        Asks nothing about the time: :meth:`Keys.authenticate` gives no key that is over.
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
