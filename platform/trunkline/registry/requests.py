"""The request log: what was asked of a server, and which version answered.

Owns: the rows of ``requests``, which are added and read. No code changes or deletes one.
Must not know: when a request has ended, or whether its text may be kept; the server decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy import select

from trunkline.errors import NotFoundError, UsageError
from trunkline.refs import BASE, Ref, shown
from trunkline.registry.chain import REQUESTS, append
from trunkline.registry.engine import storable
from trunkline.registry.records import RequestLine, RequestRecord
from trunkline.registry.session import Aggregate
from trunkline.registry.tables import LoggedRequest

LONGEST_ASKED = 200
"""So many characters of what a client called its adapter are kept; every ref is shorter."""

_ID = re.compile(r"[A-Za-z0-9_.-]{1,80}", re.ASCII)
_LAST = 2**63 - 1


class Requests(Aggregate):
    """Adds to the request log and reads it."""

    def log(self, rows: Sequence[RequestLine]) -> None:
        """Add lines, all of them or none, in one transaction.

        Text that no database takes (NUL, lone surrogates) is kept with U+FFFD in its place, and
        ``asked`` is cut after 200 characters, so that no client can keep a line from the log.

        Raises:
            UsageError: an id is malformed.
            RegistryError: an id was used before, or the registry can't be written.
        """
        lines = [_values(row) for row in rows]
        if lines:
            with self._sessions.write() as session:
                append(session, REQUESTS, lines)

    def get(self, id: str) -> RequestRecord:
        """One request.

        Raises:
            NotFoundError: none has this id.
        """
        with self._sessions.read() as session:
            query = select(LoggedRequest).where(LoggedRequest.id == id)
            row = session.scalar(query) if _ID.fullmatch(id) else None
            if row is None:
                raise NotFoundError(
                    f"There is no request {shown(id)} in the log.",
                    "See them with: trunkline requests list.",
                )
            return _record(row)

    def list(
        self,
        limit: int = 100,
        *,
        before: int | None = None,
        adapter: str | None = None,
        key: str | None = None,
    ) -> Sequence[RequestRecord]:
        """The log, newest first.

        Args:
            before: only what is older than the line with this ``seq``, for the next page.
            adapter: ``domain/name`` or ``base``: only what it answered, whatever the version.
            key: only what came with the key of this id.

        Raises:
            UsageError: ``adapter`` or ``key`` is malformed.
        """
        query = select(LoggedRequest).order_by(LoggedRequest.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(LoggedRequest.seq < max(0, min(before, _LAST)))
        if adapter is not None:
            query = query.where(LoggedRequest.adapter == _checked_adapter(adapter))
        if key is not None:
            query = query.where(LoggedRequest.key_id == _checked_id(key, "key"))
        with self._sessions.read() as session:
            return [_record(row) for row in session.scalars(query)]


def _values(line: RequestLine) -> dict[str, object]:
    version = _storable(line.version)
    return {
        "id": _checked_id(line.id, "request"),
        "at": line.at,
        "key_id": None if line.key is None else _checked_id(line.key, "key"),
        "route": _storable(line.route),
        "asked": _storable(line.asked[:LONGEST_ASKED]),
        "adapter": None if version is None else version.partition("@")[0],
        "version": version,
        "digest": _storable(line.digest),
        "prompt_tokens": line.prompt_tokens,
        "new_tokens": line.new_tokens,
        "status": line.status,
        "seconds": float(line.seconds),
        "text": _storable(line.text),
        "output": _storable(line.output),
    }


def _storable(text: str | None) -> str | None:
    return None if text is None else storable(text)


def _checked_id(text: str, kind: str) -> str:
    if not _ID.fullmatch(text):
        raise UsageError(
            f"{shown(text)} is not the id of a {kind}.",
            f"Use 1 to 80 of A-Z, a-z, 0-9, '_', '.' and '-'; see them with: trunkline {kind}s "
            "list.",
        )
    return text


def _checked_adapter(text: str) -> str:
    if text == BASE:
        return text
    ref = Ref.parse(text)
    if ref.selector is not None:
        raise UsageError(
            f"The log is looked through by adapter, and {shown(text)} names a version.",
            f"Write {ref.adapter}.",
        )
    return text


def _record(row: LoggedRequest) -> RequestRecord:
    return RequestRecord(
        seq=row.seq,
        hash=row.hash,
        id=row.id,
        at=row.at,
        key=row.key_id,
        route=row.route,
        asked=row.asked,
        version=row.version,
        digest=row.digest,
        prompt_tokens=row.prompt_tokens,
        new_tokens=row.new_tokens,
        status=row.status,
        seconds=row.seconds,
        text=row.text,
        output=row.output,
    )
