"""Keys have a role instead of a mark for administrators."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Administrators' keys get the role ``admin``, all others ``tester``: what they may do now."""
    with op.batch_alter_table("api_keys") as batch:
        batch.add_column(sa.Column("role", sa.Text(), nullable=False, server_default="tester"))
    keys = sa.table("api_keys", sa.column("admin", sa.Boolean()), sa.column("role", sa.Text()))
    op.execute(keys.update().where(keys.c.admin.is_(sa.true())).values(role="admin"))
    with op.batch_alter_table("api_keys", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.alter_column("role", server_default=None)
        batch.create_check_constraint(
            op.f("ck_api_keys_role"), "role IN ('viewer', 'tester', 'promoter', 'admin')"
        )
        batch.drop_column("admin")
