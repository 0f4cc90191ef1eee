"""Databases that are copied from a prepared one in a moment, on the PostgreSQL server of the tests.

Owns: making and renewing them. Must not know: what they hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from postgres_server import server


class Postgres:
    """A connection that makes databases; :meth:`close` ends it."""

    def __init__(self) -> None:
        uri = server().set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection: psycopg.Connection[Any] = psycopg.connect(uri, autocommit=True)

    def url(self, database: str) -> str:
        """For SQLAlchemy."""
        return server().set(database=database).render_as_string(hide_password=False)

    def template(self, name: str, fill: Callable[[str], None]) -> str:
        """Make a database, let ``fill`` fill it by its URL, and give its name for copies."""
        self._run(f'CREATE DATABASE "{name}"')
        fill(self.url(name))
        return name

    def renew(self, name: str, template: str) -> None:
        """Make the database anew, as a copy, and cut off whoever is connected to the old one."""
        self._run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')

    def close(self) -> None:
        self._connection.close()

    def _run(self, statement: str) -> None:
        self._connection.execute(statement.encode())
