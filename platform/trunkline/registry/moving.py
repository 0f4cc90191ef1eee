"""What is told of versions that are signed, go out, or come in from another workspace.

Owns: these events, and taking back a run that came for nothing. Must not know: archives, keys'
files, or who reads the events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import delete, select, update

from trunkline.refs import Ref
from trunkline.registry.database import Database, add_event
from trunkline.registry.lookup import find_version
from trunkline.registry.tables import Evaluation, Run, Version

Move = Literal["adapter.exported", "adapter.imported", "version.signed"]


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

    def take_back_run(self, number: int, *, actor: str | None = None) -> None:
        """Take away a restored run whose version could not be published, with its evaluations.

        Its number is not given again; the event of its restoration stands. A run that a visible or
        removed version came from is left alone.
        """
        with self._write() as session:
            of_run = Version.run_id == number
            kept = of_run & Version.status.in_(("visible", "removed"))
            run = session.get(Run, number)
            if run is None or session.scalar(select(Version.id).where(kept).limit(1)) is not None:
                return
            session.execute(update(Version).where(of_run).values(run_id=None))
            session.execute(delete(Evaluation).where(Evaluation.run_id == number))
            session.delete(run)
            detail = {"recipe": run.recipe, "reason": "its version could not be published"}
            add_event(session, actor, "run.taken-back", f"run/{number}", detail)
