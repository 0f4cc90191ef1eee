"""What is told of versions that are signed or go out to another workspace.

Owns: these events. Must not know: archives, keys'
files, or who reads the events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from trunkline.refs import Ref
from trunkline.registry.database import Database, add_event
from trunkline.registry.lookup import find_version

Move = Literal["adapter.exported", "version.signed"]


class Moving(Database):
    """Tells of versions' ways between workspaces."""

    def tell_moved(
        self, kind: Move, ref: Ref, detail: Mapping[str, Any], *, actor: str | None = None
    ) -> None:
        """Leave an event under the adapter's name; number and digest are added to ``detail``.

        Raises:
            NotFoundError: no visible version answers ``ref``.
        """
        with self._write() as session:
            version = find_version(session, ref)[0][0]
            told = {**detail, "number": version.number, "digest": version.digest}
            add_event(session, actor, kind, ref.adapter, told)
