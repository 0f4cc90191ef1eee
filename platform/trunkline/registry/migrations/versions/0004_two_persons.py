"""Evaluations whose gate asks for a second person are found without reading all of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Index them; a revision keeps the conditions of its own time."""
    op.create_index(
        "ix_evaluations_two_persons",
        "evaluations",
        ["version_id"],
        sqlite_where=sa.text("json_extract(results, '$.gate.two_persons') = 1"),
        postgresql_where=sa.text("(results #>> '{gate,two_persons}') = 'true'"),
    )
