"""The registry: one object with an attribute for each aggregate.

``Registry.open(url)`` opens the database at ``url``. Every method of an aggregate is one
transaction and returns frozen records; each change of state appends an event.
"""

from __future__ import annotations

from typing import Self

from trunkline.registry.aliases import Aliases
from trunkline.registry.artifacts import Artifacts
from trunkline.registry.audit import Audit
from trunkline.registry.engine import BUSY_SECONDS
from trunkline.registry.events import Events
from trunkline.registry.keys import Keys
from trunkline.registry.lineage import LineageTracer
from trunkline.registry.provenance import Provenance
from trunkline.registry.requests import Requests
from trunkline.registry.runs import Evaluations, Runs
from trunkline.registry.servers import Servers
from trunkline.registry.session import Sessions
from trunkline.registry.sources import Sources
from trunkline.registry.tags import Tags
from trunkline.registry.versions import Adapters, Versions


class Registry:
    """An open registry; a context manager that closes it.

    Safe to share between threads, not between forked processes.
    """

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.sources = Sources(sessions)
        self.runs = Runs(sessions)
        self.evaluations = Evaluations(sessions)
        self.adapters = Adapters(sessions)
        self.versions = Versions(sessions)
        self.artifacts = Artifacts(sessions)
        self.aliases = Aliases(sessions)
        self.provenance = Provenance(sessions)
        self.tags = Tags(sessions)
        self.events = Events(sessions)
        self.audit = Audit(sessions)
        self.keys = Keys(sessions)
        self.requests = Requests(sessions)
        self.servers = Servers(sessions)
        self.lineage = LineageTracer(
            sessions,
            runs=self.runs,
            evaluations=self.evaluations,
            events=self.events,
            requests=self.requests,
            servers=self.servers,
        )

    @classmethod
    def open(cls, url: str, *, create: bool = True, busy_seconds: float = BUSY_SECONDS) -> Self:
        """Open the registry at ``url`` and bring its schema up to date.

        Args:
            url: any SQLAlchemy URL of SQLite or PostgreSQL.
            create: whether to create a missing SQLite file.
            busy_seconds: how long to wait for another process's write lock.

        Raises:
            RegistryError: it can't be opened, is damaged, is newer than this code, or is no
                registry.
        """
        return cls(Sessions.open(url, create=create, busy_seconds=busy_seconds))

    def close(self) -> None:
        """Close every connection; the object reconnects when it is used again."""
        self.sessions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def read_only(self) -> bool:
        """Whether only reading works."""
        return self.sessions.read_only
