"""Bases have a modality, so that listings can tell what an adapter reads."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Recorded bases read text, but those whose architecture is one of vision models."""
    op.add_column("bases", sa.Column("modality", sa.Text(), nullable=False, server_default="text"))
    bases = sa.table("bases", sa.column("architecture"), sa.column("modality"))
    generates = bases.c.architecture.like("%LMHeadModel")
    vision = sa.or_(
        bases.c.architecture == "tf_efficientnet_lite0",
        bases.c.architecture.like("%ForImageClassification"),
        sa.and_(bases.c.architecture.like("%Model"), sa.not_(generates)),
    )
    op.execute(bases.update().where(vision).values(modality="image"))
