"""The schema states the oldest code that may use it, so that servers can be upgraded one by one.

A migration that only adds what code of revision N can ignore (tables, columns with a default) sets
``alembic_version.oldest`` to N. It is empty before each migration, and then no older code may.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Nothing is stated: code before this revision reads no such statement."""
    op.add_column("alembic_version", sa.Column("oldest", sa.String(32), nullable=True))
