"""What an auditor asks for: chained events and requests, alias moves, tombstones, deployments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

from trunkline.registry.chain import EVENTS, REQUESTS, ROOT, Chain, Head, linked
from trunkline.registry.tables import UtcDateTime

revision = "0003"
down_revision = "0002"

_PAGE = 1000
_STATUSES = "status IN ('pending', 'visible', 'failed', 'removed')"


def upgrade() -> None:
    """Add columns and tables, chain the rows that are there, and tell old moves and scores anew."""
    _alter()
    _create()
    connection = op.get_bind()
    _retell_moves(connection)
    _chain(connection, EVENTS)
    _chain(connection, REQUESTS)
    _retell_scores(connection)


def _alter() -> None:
    hashes = [("previous_hash", "events"), ("hash", "events")]
    hashes += [("previous_hash", "requests"), ("hash", "requests")]
    for column, name in hashes:
        op.add_column(
            name, sa.Column(column, sa.Text(), nullable=False, server_default=sa.text("''"))
        )
    op.drop_index(op.f("ix_events_subject"), "events")
    op.create_index(op.f("ix_events_subject_seq"), "events", ["subject", "seq"])
    op.create_index(op.f("ix_events_kind_seq"), "events", ["kind", "seq"])
    op.add_column("runs", sa.Column("specification", sa.JSON(), nullable=True))
    added = (
        sa.Column("files", sa.JSON(), nullable=True),
        sa.Column("template_digest", sa.Text(), nullable=True),
        sa.Column("removed", sa.DateTime(timezone=True), nullable=True),
        sa.Column("removal", sa.Text(), nullable=True),
        sa.Column("publisher", sa.JSON(), nullable=True),
    )
    with op.batch_alter_table("versions") as batch:
        batch.drop_constraint(op.f("ck_versions_status"), type_="check")
        batch.create_check_constraint(op.f("ck_versions_status"), _STATUSES)
        for one in added:
            batch.add_column(one)


def _create() -> None:
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "chain_heads",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_chain_heads")),
    )
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=True),
        sa.Column("old_version_id", sa.Integer(), nullable=True),
        sa.Column("back_to", sa.Integer(), nullable=True),
        sa.Column("at", moment, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("gate", sa.JSON(), nullable=True),
        sa.CheckConstraint(
            "kind IN ('promoted', 'rolled-back', 'dropped')", name=op.f("ck_alias_moves_kind")
        ),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name=op.f("fk_alias_moves_adapter_id_adapters")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_alias_moves_version_id_versions")
        ),
        sa.ForeignKeyConstraint(
            ["old_version_id"],
            ["versions.id"],
            name=op.f("fk_alias_moves_old_version_id_versions"),
        ),
        sa.ForeignKeyConstraint(
            ["back_to"], ["alias_moves.id"], name=op.f("fk_alias_moves_back_to_alias_moves")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_moves")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_alias_moves_adapter_id_alias_id"), "alias_moves", ["adapter_id", "alias", "id"]
    )
    op.create_index(op.f("ix_alias_moves_version_id"), "alias_moves", ["version_id"])
    op.create_table(
        "scores",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("low", sa.Float(), nullable=True),
        sa.Column("high", sa.Float(), nullable=True),
        sa.Column("evaluation_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_scores_version_id_versions")
        ),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["evaluations.id"], name=op.f("fk_scores_evaluation_id_evaluations")
        ),
        sa.PrimaryKeyConstraint("version_id", "split", "metric", name=op.f("pk_scores")),
    )
    op.create_index(op.f("ix_scores_metric_split_value"), "scores", ["metric", "split", "value"])
    op.create_table(
        "tags",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tags")),
        sa.UniqueConstraint("subject", "key", name=op.f("uq_tags_subject_key")),
    )
    op.create_index(op.f("ix_tags_key_value"), "tags", ["key", "value"])
    op.create_table(
        "deployments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("base_id", sa.Integer(), nullable=True),
        sa.Column("started", moment, nullable=False),
        sa.Column("seen", moment, nullable=False),
        sa.Column("stopped", moment, nullable=True),
        sa.ForeignKeyConstraint(
            ["base_id"], ["bases.id"], name=op.f("fk_deployments_base_id_bases")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployments")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_deployments_stopped"), "deployments", ["stopped"])
    op.create_table(
        "deployment_loads",
        sa.Column("id", big, nullable=False),
        sa.Column("deployment_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("loaded", moment, nullable=False),
        sa.Column("unloaded", moment, nullable=True),
        sa.ForeignKeyConstraint(
            ["deployment_id"],
            ["deployments.id"],
            name=op.f("fk_deployment_loads_deployment_id_deployments"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployment_loads")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_deployment_loads_digest_unloaded"), "deployment_loads", ["digest", "unloaded"]
    )
    op.create_index(
        op.f("ix_deployment_loads_deployment_id_id"), "deployment_loads", ["deployment_id", "id"]
    )


def _pages(
    connection: sa.Connection, query: sa.Select[Any], key: sa.ColumnClause[Any]
) -> Iterator[Any]:
    """The rows in the order of ``key``, a page at a time."""
    last = 0
    while True:
        page = connection.execute(query.where(key > last).order_by(key).limit(_PAGE)).all()
        yield from page
        if len(page) < _PAGE:
            return
        last = page[-1]._mapping[key.name]


def _chain(connection: sa.Connection, chain: Chain) -> None:
    head = Head(0, ROOT)
    columns = [
        sa.column(column.name, column.type)
        for column in chain.table.__table__.columns
        if column.name in chain.fields
    ]
    rows = sa.table(
        chain.name, *columns, sa.column("previous_hash", sa.Text()), sa.column("hash", sa.Text())
    )
    query = sa.select(*(rows.c[name] for name in chain.fields))
    for row in _pages(connection, query, rows.c.seq):
        told = dict(row._mapping)
        # Rows of before may leave numbers out, so each follows the row before it, not its number.
        made = linked(chain, Head(told["seq"] - 1, head.hash), [told])[0]
        connection.execute(
            sa.update(rows)
            .where(rows.c.seq == told["seq"])
            .values(previous_hash=made["previous_hash"], hash=made["hash"])
        )
        head = Head(made["seq"], made["hash"])
    heads = sa.table("chain_heads", sa.column("name"), sa.column("seq"), sa.column("hash"))
    connection.execute(sa.insert(heads).values(name=chain.name, seq=head.seq, hash=head.hash))


def _retell_moves(connection: sa.Connection) -> None:
    """Alias moves out of the events that told them; where an alias stands elsewhere than its
    events say, a move and an event of their own."""
    adapters = sa.table("adapters", sa.column("id"), sa.column("domain"), sa.column("name"))
    versions = sa.table("versions", sa.column("id"), sa.column("adapter_id"), sa.column("number"))
    aliases = sa.table(
        "aliases", sa.column("adapter_id"), sa.column("alias"), sa.column("version_id")
    )
    events = sa.table(
        "events",
        sa.column("seq", sa.Integer()),
        sa.column("at", UtcDateTime()),
        sa.column("actor", sa.Text()),
        sa.column("kind", sa.Text()),
        sa.column("subject", sa.Text()),
        sa.column("detail", sa.JSON()),
    )
    moves = sa.table(
        "alias_moves",
        sa.column("id", sa.Integer()),
        sa.column("adapter_id", sa.Integer()),
        sa.column("alias", sa.Text()),
        sa.column("kind", sa.Text()),
        sa.column("version_id", sa.Integer()),
        sa.column("old_version_id", sa.Integer()),
        sa.column("back_to", sa.Integer()),
        sa.column("at", UtcDateTime()),
        sa.column("actor", sa.Text()),
        sa.column("forced", sa.Boolean()),
        sa.column("reason", sa.Text()),
        sa.column("gate", sa.JSON(none_as_null=True)),
    )
    names = {f"{row.domain}/{row.name}": row.id for row in connection.execute(sa.select(adapters))}
    last: dict[tuple[int, str], tuple[int, int]] = {}

    def version_id(adapter: int, number: Any) -> int | None:
        return connection.scalar(
            sa.select(versions.c.id).where(
                versions.c.adapter_id == adapter, versions.c.number == number
            )
        )

    def add(adapter: int, alias: str, version: int, **told: Any) -> None:
        before = last.get((adapter, alias))
        made = connection.execute(
            sa.insert(moves)
            .values(
                adapter_id=adapter,
                alias=alias,
                kind="promoted",
                version_id=version,
                old_version_id=before and before[1],
                back_to=before and before[0],
                **told,
            )
            .returning(moves.c.id)
        ).scalar_one()
        last[adapter, alias] = (made, version)

    query = sa.select(events).where(events.c.kind == "alias.moved")
    for event in _pages(connection, query, events.c.seq):
        adapter = names.get(event.subject)
        detail = event.detail if isinstance(event.detail, dict) else json.loads(event.detail)
        if adapter is None or (version := version_id(adapter, detail.get("new"))) is None:
            continue
        add(
            adapter,
            detail["alias"],
            version,
            at=event.at,
            actor=event.actor,
            forced=bool(detail.get("forced")),
            reason=detail.get("reason"),
            gate=detail.get("gate"),
        )
    now = datetime.now(UTC)
    reason = "stood so before moves were kept"
    numbers = sa.select(versions.c.id, versions.c.number)
    for row in connection.execute(sa.select(aliases)).all():
        known = last.get((row.adapter_id, row.alias))
        if known is not None and known[1] == row.version_id:
            continue
        stood = {row.version_id} if known is None else {row.version_id, known[1]}
        found = connection.execute(numbers.where(versions.c.id.in_(stood))).all()
        number = {one.id: one.number for one in found}
        detail = {
            "alias": row.alias,
            "old": None if known is None else number.get(known[1]),
            "new": number[row.version_id],
            "kind": "promoted",
            "gate": None,
            "forced": False,
            "reason": reason,
        }
        subject = next(name for name, id in names.items() if id == row.adapter_id)
        connection.execute(
            sa.insert(events).values(
                at=now, actor="unknown", kind="alias.moved", subject=subject, detail=detail
            )
        )
        add(
            row.adapter_id,
            row.alias,
            row.version_id,
            at=now,
            actor="unknown",
            forced=False,
            reason=reason,
            gate=None,
        )


def _retell_scores(connection: sa.Connection) -> None:
    """The newest figures of every version, by split and metric."""
    evaluations = sa.table(
        "evaluations",
        sa.column("id", sa.Integer()),
        sa.column("version_id", sa.Integer()),
        sa.column("split", sa.Text()),
        sa.column("results", sa.JSON()),
    )
    scores = sa.table(
        "scores",
        *(sa.column(name) for name in ("version_id", "split", "metric", "value", "low", "high")),
        sa.column("evaluation_id"),
    )
    query = sa.select(evaluations).where(evaluations.c.version_id.is_not(None))
    for row in _pages(connection, query, evaluations.c.id):
        figures = (row.results or {}).get("scores")
        if not isinstance(figures, dict):
            continue
        connection.execute(
            sa.delete(scores).where(
                scores.c.version_id == row.version_id, scores.c.split == row.split
            )
        )
        lines = [
            {
                "version_id": row.version_id,
                "split": row.split,
                "metric": metric,
                "value": figure.get("value"),
                "low": figure.get("low"),
                "high": figure.get("high"),
                "evaluation_id": row.id,
            }
            for metric, figure in figures.items()
            if isinstance(figure, dict)
        ]
        if lines:
            connection.execute(sa.insert(scores), lines)
