"""Metrics of runs have a time, so that a curve can be drawn over it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """The times of the metrics that are stored already are unknown."""
    op.add_column("run_metrics", sa.Column("at", sa.DateTime(timezone=True), nullable=True))
