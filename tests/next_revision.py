"""A second schema revision, for tests of the upgrade: it changes tables and rows.

``write(folder)`` creates a migrations folder with the real revisions and this one; ``use(folder)``
makes this process upgrade to it. Unless ``write`` is given another ``oldest``, code of the revision
before may not use its schema. A test that patches lets ``monkeypatch`` set ``MIGRATIONS``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from trunkline.registry import session

ENVIRONMENT = "TRUNKLINE_TEST_MIGRATIONS"
"""The variable that names the folder to a process that :mod:`faults.operations` runs in."""

REVISION = "0007"

_MIGRATION = '''"""A revision for tests."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("runs", sa.Column("cost", sa.Float(), nullable=True))
    op.add_column("requests", sa.Column("region", sa.Text(), nullable=True))
    with op.batch_alter_table("versions") as batch:
        batch.add_column(sa.Column("size_class", sa.Text(), nullable=True))
    op.create_table(
        "leaderboard",
        sa.Column("version_id", sa.Integer(), sa.ForeignKey("versions.id"), primary_key=True),
        sa.Column("rank", sa.Integer(), nullable=False),
    )
    connection = op.get_bind()
    requests = sa.table("requests", sa.column("seq"), sa.column("region"))
    for seq in connection.scalars(sa.select(requests.c.seq)).all():
        connection.execute(
            sa.update(requests).where(requests.c.seq == seq).values(region="eu")
        )
    connection.execute(
        sa.text("INSERT INTO leaderboard (version_id, rank) SELECT id, number FROM versions")
    )
    connection.execute(sa.text("UPDATE alembic_version SET oldest = '{oldest}'"))
'''


def write(folder: Path, oldest: str = REVISION) -> Path:
    """Create the migrations folder and return it.

    Args:
        folder: where.
        oldest: revision of the oldest code that may use the schema.
    """
    migrations = folder / "migrations"
    shutil.copytree(
        session.MIGRATIONS, migrations, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    text = _MIGRATION.replace("{oldest}", oldest)
    (migrations / "versions" / f"{REVISION}_test.py").write_text(text, encoding="utf-8")
    return migrations


def use(folder: str | Path) -> None:
    """Let this process find its migrations in ``folder``."""
    session.MIGRATIONS = Path(folder)
