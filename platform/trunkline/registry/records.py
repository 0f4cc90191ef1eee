"""Records: the frozen values that the registry returns; they outlive their transaction.

``dataclasses.asdict`` works on each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from trunkline.errors import UsageError
from trunkline.refs import BASE, Ref
from trunkline.registry.tables import KEY_ROLES

if TYPE_CHECKING:
    from trunkline.contracts import Reads
    from trunkline.registry.chain import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecord:
    """A base that runs or versions use; ``parameters`` counts its weights.

    ``modality`` is what it reads: ``text`` or ``image``.
    """

    id: int
    digest: str
    name: str
    source: str
    architecture: str
    parameters: int
    dtype: str
    modality: Reads
    first_seen: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRecord:
    """A dataset as it was used; ``counts`` holds rows by split and other counts."""

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
        status: ``running``, ``finished``, ``failed`` or ``interrupted``.
        plugin: ``distribution version`` of the plugin, if one was recorded.
        versions: refs of the visible versions that it published.
        specification: the recipe at that time; None if it was not recorded.
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


TOKENS = "tokens"
"""The metric of a run that counts the tokens trained on until a step, repetitions included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRecord:
    """A metric at an optimizer step of a run; ``value`` may be NaN.

    ``at`` is when it was stored; None in runs of earlier releases.
    """

    step: int
    name: str
    value: float
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """The deciding metric in a version's newest evaluation on its test rows.

    Attributes:
        metric: its name; ``value`` with the interval from ``low`` to ``high``.
        verdict: against the best baseline: ``beats``, ``ties`` or ``loses``.
        baseline: the name of that baseline, if it was recorded.
        baseline_value: its score.
    """

    metric: str
    value: float
    low: float
    high: float
    verdict: str
    baseline: str | None = None
    baseline_value: float | None = None


@dataclass(frozen=True, slots=True)
class TagsRecord:
    """The tags of a subject, by key."""

    subject: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """An adapter that has at least one visible version.

    Attributes:
        newest: the highest visible number.
        versions: how many are visible.
        aliases: alias → number.
        base: name of the newest version's base.
        modality: what the newest version reads, ``text`` or ``image``.
        score: of the newest version, if it was requested and there is one.
    """

    domain: str
    name: str
    task: str
    newest: int
    versions: int
    aliases: Mapping[str, int]
    base: str
    modality: Reads
    score: ScoreSummary | None = None

    @property
    def ref(self) -> Ref:
        """``domain/name``."""
        return Ref(self.domain, self.name)


@dataclass(frozen=True, slots=True)
class Facets:
    """The values by which adapters can be narrowed down."""

    domains: tuple[str, ...]
    tasks: tuple[str, ...]
    bases: tuple[str, ...]
    modalities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ParentRecord:
    """A version that another one was merged from: its ref at that time, and its weight."""

    ref: str
    digest: str
    weight: float


@dataclass(frozen=True, slots=True)
class MergeRecord:
    """How a version was merged; ``density`` and ``seed`` are None where the method has none."""

    method: str
    density: float | None
    seed: int | None
    parents: tuple[ParentRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """One visible version, or, where ``removed`` is set, the tombstone of one.

    Attributes:
        digest: ``sha256:`` with 64 hex digits; the identity of the artifact.
        path: of the artifact's folder, relative to ``adapters/``, with forward slashes.
        bytes: total size of the artifact's files.
        modality: what it reads, ``text``, ``image`` or ``text+image``.
        aliases: those that point here, sorted.
        files: file name → ``{"bytes", "sha256"}``; None if they were not recorded.
        template_digest: sha256 of the prompt template, in hex.
        removed: when its files were deleted, if they were.
        removal_reason: why.
        score: if it was requested and there is one.
        merge: for a version that was merged from others.
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
    modality: Reads
    dataset: str | None
    dataset_fingerprint: str | None
    split_fingerprint: str | None
    run: int | None
    created: datetime
    aliases: tuple[str, ...]
    files: Mapping[str, Any] | None = None
    template_digest: str | None = None
    removed: datetime | None = None
    removal_reason: str | None = None
    score: ScoreSummary | None = None
    merge: MergeRecord | None = None

    @property
    def ref(self) -> Ref:
        """``domain/name@number``."""
        return Ref(self.domain, self.name, str(self.number))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """The row of a version, whatever its status, for the maintenance of a store; ``id`` orders.

    Attributes:
        removal_reason: why it failed or was removed, if recorded.
        reserved: when its number was reserved or it was published.
        reserved_by: the process that holds a pending version, see
            :func:`trunkline.registry.actors.current_process`.
    """

    id: int
    domain: str
    name: str
    number: int
    status: str
    digest: str | None
    path: str | None
    reserved: datetime
    removal_reason: str | None = None
    reserved_by: Mapping[str, Any] | None = None

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
        new, old: version numbers; ``new`` is None where the alias was dropped, ``old`` where it
            did not exist.
        back_to: the move that a rollback of this one restores.
        gate: the gate's checks, as ``{"name", "passed", "figures"}``; None without a gate.
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
    """Scores on one split; ``version`` is a ref, or None for a run's or the bare base's."""

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
    """The prediction for one row; targets and predictions are text for every task."""

    row_id: str
    group: str
    target: str
    prediction: str
    confidence: float | None = None
    baseline_prediction: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """A change of the registry; ``seq`` orders, ``at`` only informs.

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
    """A place where a hash chain is broken: the row ``seq`` (None: the end), and how."""

    seq: int | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """The verification of a hash chain.

    Attributes:
        chain: ``events`` or ``requests``.
        rows: how many were read.
        head: the last row that was read.
        expected_head: the head from elsewhere that the chain was compared with, if any.
        breaks: the first breaks; empty if the chain is intact.
        break_count: how many breaks there are.
    """

    chain: str
    rows: int
    head: Head
    expected_head: Head | None
    breaks: tuple[ChainBreak, ...]
    break_count: int

    @property
    def intact(self) -> bool:
        """Whether there is no break."""
        return self.break_count == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRecord:
    """A serving process.

    Attributes:
        number: ``server/<number>`` is the subject of its events.
        url: where it listens; empty where another program holds the socket.
        last_seen: its last heartbeat.
        stopped: when it stopped; None if it runs or was killed.
        alive: not stopped, a heartbeat within 90 s, and, on this host, a running process.
        base_digest: None if the base was never recorded.
    """

    number: int
    actor: str
    host: str
    pid: int
    url: str
    base_name: str | None
    base_digest: str | None
    started: datetime
    last_seen: datetime
    stopped: datetime | None
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRecord:
    """A version in a server's memory; ``version`` is its ref, ``id`` orders.

    ``unloaded`` is None while it is resident, and stays None if the server was killed:
    ``server.last_seen`` is then the last time at which it was alive.
    """

    id: int
    version: str
    digest: str
    loaded: datetime
    unloaded: datetime | None
    server: ServerRecord


@dataclass(frozen=True, slots=True)
class RecordedProvenance:
    """The rows that a version's provenance was recorded as."""

    base_digest: str
    dataset_id: int | None
    run: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredVersion:
    """An intact artifact that is to become a row of a rebuilt registry.

    Attributes:
        ref: with the number of its folder.
        path: of the folder, relative to the store.
        files: file name → ``{"bytes", "sha256"}``.
        template_digest: sha256 of the prompt template, in hex.
        provenance: as in ``provenance.json``.
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
class RebuildCounts:
    """How many rows of each kind a rebuild added."""

    bases: int
    datasets: int
    runs: int
    versions: int


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key, without the key and its hash.

    Attributes:
        id: the 8 characters after ``tl-``, which are not secret.
        adapters: patterns: ``*`` for everything, ``domain/*``, ``domain/name``, or ``base``.
        role: ``viewer``, ``tester``, ``promoter`` or ``admin``; each may do what those before it
            may. It adds nothing to ``adapters``.
        expires: when it becomes invalid; None for never.
        removed: when it was removed, if it was.
    """

    id: str
    owner: str
    adapters: tuple[str, ...]
    role: str
    created: datetime
    expires: datetime | None
    removed: datetime | None

    @property
    def admin(self) -> bool:
        """Whether it permits the admin routes."""
        return self.role == "admin"

    def has_role(self, role: str) -> bool:
        """Whether it permits what ``role`` does."""
        return KEY_ROLES.index(self.role) >= KEY_ROLES.index(role)

    def may_use(self, name: str) -> bool:
        """Whether a pattern matches ``domain/name`` or ``base``; False for any other text.

        Expiry is not checked: :meth:`Keys.authenticate` returns valid keys only.
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
class RequestEntry:
    """A finished request, as a server writes it to the request log.

    Attributes:
        id: unique, chosen by the server: 1 to 80 of A-Z, a-z, 0-9, ``_``, ``.`` and ``-``.
        at: when it arrived; aware.
        key: id of its API key.
        route: such as ``/v1/chat/completions``.
        model: the adapter, as the client wrote it.
        version: what answered, ``domain/name@number`` or ``base``; None if nothing did.
        digest: of that version.
        status: of HTTP.
        seconds: from arrival to end.
        text, output: prompt and answer, if the operator stores them.
    """

    id: str
    at: datetime
    key: str | None
    route: str
    model: str
    version: str | None
    digest: str | None
    prompt_tokens: int
    new_tokens: int
    status: int
    seconds: float
    text: str | None = None
    output: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord(RequestEntry):
    """A row of the request log; ``seq`` orders, ``hash`` chains it to the row before."""

    seq: int
    hash: str
