"""Databases on the tests' PostgreSQL server that are quickly copied from a template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from postgres_server import server


class Postgres:
    """A connection that creates databases; :meth:`close` closes it."""

    def __init__(self) -> None:
        uri = server().set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection: psycopg.Connection[Any] = psycopg.connect(uri, autocommit=True)

    def url(self, database: str) -> str:
        """The URL of a database for SQLAlchemy."""
        return server().set(database=database).render_as_string(hide_password=False)

    def template(self, name: str, fill: Callable[[str], None]) -> str:
        """Create a template database, let ``fill`` fill it, and return its name."""
        self._run(f'CREATE DATABASE "{name}"')
        fill(self.url(name))
        return name

    def renew(self, name: str, template: str) -> None:
        """Replace a database with a copy of the template, closing its connections."""
        self._run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')

    def close(self) -> None:
        self._connection.close()

    def _run(self, statement: str) -> None:
        self._connection.execute(statement.encode())
