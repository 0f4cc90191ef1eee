"""The registry's tables as typed ORM classes; a change here needs a migration.

There are no relationships: every query states its joins. Times are aware and in UTC. Rows are
ordered by surrogate key or sequence, never by time, since clocks go backwards.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    TextClause,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

RUN_STATUSES = ("running", "finished", "failed", "interrupted")
VERSION_STATUSES = ("pending", "visible", "failed", "removed")
ALIAS_MOVES = ("promoted", "rolled-back", "dropped")
KEY_ROLES = ("viewer", "tester", "promoter", "admin")
"""Each may do what those before it may do."""


def utc_now() -> datetime:
    """The current time in UTC; for people to read, never to order by."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """Stores aware datetimes as UTC, also in databases without time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def asks_for_two_persons(dialect: str) -> TextClause:
    """The condition that the gate of an evaluation asks for a second person, as it is indexed."""
    return text(
        "json_extract(results, '$.gate.two_persons') = 1"
        if dialect == "sqlite"
        else "(results #>> '{gate,two_persons}') = 'true'"
    )


class Table(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[str]: JSON,
        str: Text,
        float: Float,
    }


class Plugin(Table):
    """One release of a plugin that a run used."""

    __tablename__ = "plugins"
    __table_args__ = (UniqueConstraint("distribution", "version", "domain"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    distribution: Mapped[str]
    version: Mapped[str]
    api: Mapped[int]
    domain: Mapped[str]
    first_seen: Mapped[datetime]


class Base(Table):
    """A foundation model, by the digest of its weights, tokenizer and chat template.

    ``modality`` is what it reads: ``text`` or ``image``; of the pair of bases that a fusion needs
    it is ``text+image``.
    """

    __tablename__ = "bases"

    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    source: Mapped[str]
    architecture: Mapped[str]
    parameters: Mapped[int] = mapped_column(BigInteger)
    dtype: Mapped[str]
    modality: Mapped[str] = mapped_column(default="text", server_default="text")
    first_seen: Mapped[datetime]


class Dataset(Table):
    """A dataset as it was used: fingerprints of its rows and of their split."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("name", "fingerprint", "split_fingerprint"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    fingerprint: Mapped[str]
    split_fingerprint: Mapped[str]
    rows: Mapped[int]
    license: Mapped[str]
    source: Mapped[str]
    counts: Mapped[dict[str, Any]]
    first_seen: Mapped[datetime]


class Run(Table):
    """One execution of a recipe; its key is the run number that users see.

    ``specification`` is the recipe at that time: dataset, transforms, template, loss, metrics,
    gate, and the plugin's commit if available.
    """

    __tablename__ = "runs"
    __table_args__ = (_one_of("status", RUN_STATUSES), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True)
    recipe: Mapped[str] = mapped_column(index=True)
    status: Mapped[str]
    base_id: Mapped[int] = mapped_column(ForeignKey("bases.id"))
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id"))
    plugin_id: Mapped[int | None] = mapped_column(ForeignKey("plugins.id"))
    seed: Mapped[int]
    settings: Mapped[dict[str, Any]]
    environment: Mapped[dict[str, Any]]
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[str | None]
    started: Mapped[datetime]
    finished: Mapped[datetime | None]
    specification: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class RunMetric(Table):
    """A metric's value at an optimizer step; NULL means NaN.

    ``at`` is NULL in rows that were stored before times were.
    """

    __tablename__ = "run_metrics"

    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float | None]
    at: Mapped[datetime | None]


class Adapter(Table):
    """A name that has versions; ``last_number`` is the highest version number ever reserved."""

    __tablename__ = "adapters"
    __table_args__ = (UniqueConstraint("domain", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    domain: Mapped[str]
    name: Mapped[str]
    task: Mapped[str]
    last_number: Mapped[int]


class Version(Table):
    """One artifact: ``pending`` while its files are written, then ``visible`` or ``failed``.

    A ``removed`` version is a tombstone: its files are deleted, its row and lineage stay, and its
    number is never reused. ``files`` is file name → ``{"bytes", "sha256"}``. ``reserved_by`` is the
    process that holds a pending version. ``removal_reason`` says why a version was removed or
    failed. ``merge`` is the method of a version that was merged from others.
    """

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("adapter_id", "number"),
        Index(None, "adapter_id", "status", "number"),
        _one_of("status", VERSION_STATUSES),
        CheckConstraint(
            "status <> 'visible' OR (digest IS NOT NULL AND path IS NOT NULL"
            " AND bytes IS NOT NULL AND base_id IS NOT NULL)",
            name="complete",
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"))
    number: Mapped[int]
    status: Mapped[str]
    digest: Mapped[str | None] = mapped_column(index=True)
    path: Mapped[str | None]
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    base_id: Mapped[int | None] = mapped_column(ForeignKey("bases.id"))
    dataset_id: Mapped[int | None] = mapped_column(ForeignKey("datasets.id"))
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"), index=True)
    created: Mapped[datetime]
    files: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    template_digest: Mapped[str | None]
    removed: Mapped[datetime | None]
    removal_reason: Mapped[str | None]
    reserved_by: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    merge: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class VersionParent(Table):
    """A version that another one was merged from.

    The parent may be of another workspace, so it is known by its digest, not by a foreign key.
    """

    __tablename__ = "version_parents"

    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    ref: Mapped[str]
    digest: Mapped[str] = mapped_column(index=True)
    weight: Mapped[float]


class Alias(Table):
    """A movable name for one version of an adapter."""

    __tablename__ = "aliases"
    __table_args__ = (UniqueConstraint("adapter_id", "alias"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"))
    alias: Mapped[str]
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), index=True)


class AliasMove(Table):
    """A change of an alias; an alias points where its newest move says. Rows are only added.

    ``back_to`` is the move that a rollback of this one restores: the newest move before it, or, for
    a rollback, the ``back_to`` of the restored move. So each further rollback goes one step
    further. ``version_id`` is NULL where the alias was dropped.
    """

    __tablename__ = "alias_moves"
    __table_args__ = (
        Index(None, "adapter_id", "alias", "id"),
        _one_of("kind", ALIAS_MOVES),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"))
    alias: Mapped[str]
    kind: Mapped[str]
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"), index=True)
    old_version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"))
    back_to: Mapped[int | None] = mapped_column(ForeignKey("alias_moves.id"))
    at: Mapped[datetime]
    actor: Mapped[str]
    forced: Mapped[bool]
    reason: Mapped[str | None]
    gate: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))


class Evaluation(Table):
    """Scores of a version, of a run that has no version yet, or of the bare base."""

    __tablename__ = "evaluations"
    __table_args__ = (
        Index(
            "ix_evaluations_two_persons",
            "version_id",
            sqlite_where=asks_for_two_persons("sqlite"),
            postgresql_where=asks_for_two_persons("postgresql"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"), index=True)
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"), index=True)
    recipe: Mapped[str] = mapped_column(index=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id"))
    split: Mapped[str]
    base_id: Mapped[int] = mapped_column(ForeignKey("bases.id"))
    results: Mapped[dict[str, Any]]
    created: Mapped[datetime]


class Score(Table):
    """The newest score of a version by split and metric, for searching."""

    __tablename__ = "scores"
    __table_args__ = (Index(None, "metric", "split", "value"),)

    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    split: Mapped[str] = mapped_column(primary_key=True)
    metric: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float | None]
    low: Mapped[float | None]
    high: Mapped[float | None]
    evaluation_id: Mapped[int] = mapped_column(ForeignKey("evaluations.id"))


class Prediction(Table):
    """The prediction for one row of an evaluation."""

    __tablename__ = "predictions"

    evaluation_id: Mapped[int] = mapped_column(ForeignKey("evaluations.id"), primary_key=True)
    row_id: Mapped[str] = mapped_column(primary_key=True)
    group_name: Mapped[str]
    target: Mapped[str]
    prediction: Mapped[str]
    confidence: Mapped[float | None]
    baseline_prediction: Mapped[str | None]


class ChainHead(Table):
    """The head of a hash chain (``events`` or ``requests``); writers lock it in turn."""

    __tablename__ = "chain_heads"

    name: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str]


class Event(Table):
    """A change: who did what to which subject. Rows are only added.

    Each stores the hash of the one before; see :mod:`trunkline.registry.chain`.
    """

    __tablename__ = "events"
    __table_args__ = (
        Index(None, "subject", "seq"),
        Index(None, "kind", "seq"),
        {"sqlite_autoincrement": True},
    )

    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str]
    kind: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[dict[str, Any]]
    previous_hash: Mapped[str]
    hash: Mapped[str]


class Tag(Table):
    """A key and value on any subject; subjects are named as in events."""

    __tablename__ = "tags"
    __table_args__ = (UniqueConstraint("subject", "key"), Index(None, "key", "value"))

    id: Mapped[int] = mapped_column(primary_key=True)
    subject: Mapped[str]
    key: Mapped[str]
    value: Mapped[str]


class Server(Table):
    """A serving process from start to stop, with its last heartbeat."""

    __tablename__ = "servers"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    actor: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    url: Mapped[str]
    base_id: Mapped[int | None] = mapped_column(ForeignKey("bases.id"))
    started: Mapped[datetime]
    last_seen: Mapped[datetime]
    stopped: Mapped[datetime | None] = mapped_column(index=True)


class ServerLoad(Table):
    """A version in a server's memory, from ``loaded`` to ``unloaded``."""

    __tablename__ = "server_loads"
    __table_args__ = (
        Index(None, "digest", "unloaded"),
        Index(None, "server_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True
    )
    server_id: Mapped[int] = mapped_column(ForeignKey("servers.id"))
    version: Mapped[str]
    digest: Mapped[str]
    loaded: Mapped[datetime]
    unloaded: Mapped[datetime | None]


class ApiKey(Table):
    """Permission to use a server; only the sha256 of the key is stored, in hex.

    A key has 256 random bits, so one pass of sha256 is enough; a slow password hash would only
    delay every request. The row of a removed key stays, since the request log refers to it.
    """

    __tablename__ = "api_keys"
    __table_args__ = (_one_of("role", KEY_ROLES), {"sqlite_autoincrement": True})

    seq: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    owner: Mapped[str]
    secret_hash: Mapped[str]
    adapters: Mapped[list[str]]
    role: Mapped[str]
    created: Mapped[datetime]
    expires: Mapped[datetime | None]
    removed: Mapped[datetime | None]


class LoggedRequest(Table):
    """A request that a server finished, successfully or not. Rows are only added.

    ``key_id`` is no foreign key: the log accepts every request, whatever keys are stored.
    ``model`` is the client's text; ``adapter`` is ``version`` without its number, for the index.
    """

    __tablename__ = "requests"
    __table_args__ = (
        Index(None, "adapter", "seq"),
        Index(None, "key_id", "seq"),
        {"sqlite_autoincrement": True},
    )

    seq: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True
    )
    id: Mapped[str] = mapped_column(unique=True)
    at: Mapped[datetime]
    key_id: Mapped[str | None]
    route: Mapped[str]
    model: Mapped[str]
    adapter: Mapped[str | None]
    version: Mapped[str | None]
    digest: Mapped[str | None] = mapped_column(index=True)
    prompt_tokens: Mapped[int]
    new_tokens: Mapped[int]
    status: Mapped[int]
    seconds: Mapped[float]
    text: Mapped[str | None]
    output: Mapped[str | None]
    previous_hash: Mapped[str]
    hash: Mapped[str]
