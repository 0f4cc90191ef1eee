"""The request log: which requests a server answered, and with which version.

Rows are added and read; no code changes or deletes one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from trunkline.errors import NotFoundError, UsageError
from trunkline.refs import BASE, Ref, shown
from trunkline.registry.chain import REQUESTS, append
from trunkline.registry.engine import storable
from trunkline.registry.lookup import MAX_INT64, clamp
from trunkline.registry.mapping import request_record
from trunkline.registry.records import RequestEntry, RequestRecord
from trunkline.registry.scope import Scope, covered_names
from trunkline.registry.session import Aggregate
from trunkline.registry.tables import LoggedRequest

MAX_MODEL_LENGTH = 200
"""The client's name of its adapter is cut after this many characters; every ref is shorter."""

SCAN_LIMIT = 20_000
"""The most rows that a search reads for one page."""

_ID = re.compile(r"[A-Za-z0-9_.-]{1,80}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RequestPage:
    """A page of the log; ``next`` is the ``before`` of the next page, None on the last one.

    A page may hold fewer requests than its limit, even none, and still have a next one.
    """

    requests: tuple[RequestRecord, ...]
    next: int | None


class Requests(Aggregate):
    """Appends to the request log and lists it."""

    def log(self, entries: Sequence[RequestEntry]) -> None:
        """Append entries, all of them or none, in one transaction.

        Text that no database accepts (NUL, lone surrogates) is stored with U+FFFD instead, and
        ``model`` is cut after 200 characters, so that no client can prevent its logging.

        Raises:
            UsageError: an id is malformed.
            RegistryError: an id was used before, or the registry can't be written.
        """
        rows = [_row_values(entry) for entry in entries]
        if rows:
            with self._sessions.write() as session:
                append(session, REQUESTS, rows)

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
                    "List them with: trunkline requests list.",
                )
            return request_record(row)

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
            before: only requests older than the one with this ``seq``, for the next page.
            adapter: ``domain/name`` or ``base``: only what it answered, in any version.
            key: only requests with the key of this id.

        Raises:
            UsageError: ``adapter`` or ``key`` is malformed.
        """
        query = select(LoggedRequest).order_by(LoggedRequest.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(LoggedRequest.seq < clamp(before, MAX_INT64))
        if adapter is not None:
            query = query.where(LoggedRequest.adapter == _checked_adapter(adapter))
        if key is not None:
            query = query.where(LoggedRequest.key_id == _checked_id(key, "key"))
        with self._sessions.read() as session:
            return [request_record(row) for row in session.scalars(query)]

    def search(
        self,
        *,
        limit: int = 100,
        before: int | None = None,
        model: str | None = None,
        key: str | None = None,
        statuses: tuple[int, int] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        scope: Scope = None,
    ) -> RequestPage:
        """A page of the log, newest first, from at most :data:`SCAN_LIMIT` rows.

        Args:
            before: the ``next`` of the page before.
            model: ``domain/name``, a version ``domain/name@3``, or ``base``, which answered.
            key: only requests with the key of this id.
            statuses: only HTTP statuses from the first to the last of these.
            since, until: only requests that arrived from the first on, and before the second.
            scope: only what adapters that these patterns cover answered.

        Raises:
            UsageError: ``model`` or ``key`` is malformed.
        """
        query = select(LoggedRequest).order_by(LoggedRequest.seq.desc()).limit(limit + 1)
        if model is not None:
            adapter, at, _ = model.partition("@")
            query = query.where(LoggedRequest.adapter == _checked_adapter(adapter))
            if at:
                query = query.where(LoggedRequest.version == str(Ref.parse(model)))
        if key is not None:
            query = query.where(LoggedRequest.key_id == _checked_id(key, "key"))
        if statuses is not None:
            query = query.where(LoggedRequest.status.between(*statuses))
        if since is not None:
            query = query.where(LoggedRequest.at >= since)
        if until is not None:
            query = query.where(LoggedRequest.at < until)
        query = query.where(*covered_names(LoggedRequest.adapter, scope))
        with self._sessions.read() as session:
            newest = session.scalar(select(func.max(LoggedRequest.seq))) or 0
            end = newest + 1 if before is None else min(clamp(before, MAX_INT64), newest + 1)
            start = max(0, end - SCAN_LIMIT)
            scanned = LoggedRequest.seq < end, LoggedRequest.seq >= start
            records = [request_record(row) for row in session.scalars(query.where(*scanned))]
        if len(records) > limit:
            return RequestPage(tuple(records[:limit]), records[limit - 1].seq)
        return RequestPage(tuple(records), start if start > 1 else None)


def _row_values(entry: RequestEntry) -> dict[str, object]:
    version = _storable(entry.version)
    return {
        "id": _checked_id(entry.id, "request"),
        "at": entry.at,
        "key_id": None if entry.key is None else _checked_id(entry.key, "key"),
        "route": _storable(entry.route),
        "model": _storable(entry.model[:MAX_MODEL_LENGTH]),
        "adapter": None if version is None else version.partition("@")[0],
        "version": version,
        "digest": _storable(entry.digest),
        "prompt_tokens": entry.prompt_tokens,
        "new_tokens": entry.new_tokens,
        "status": entry.status,
        "seconds": float(entry.seconds),
        "text": _storable(entry.text),
        "output": _storable(entry.output),
    }


def _storable(text: str | None) -> str | None:
    return None if text is None else storable(text)


def _checked_id(text: str, kind: str) -> str:
    if not _ID.fullmatch(text):
        raise UsageError(
            f"{shown(text)} is not the id of a {kind}.",
            f"Use 1 to 80 of A-Z, a-z, 0-9, '_', '.' and '-'; list them with: trunkline {kind}s "
            "list.",
        )
    return text


def _checked_adapter(text: str) -> str:
    if text == BASE:
        return text
    ref = Ref.parse(text)
    if ref.selector is not None:
        raise UsageError(
            f"The request log is filtered by adapter, but {shown(text)} names a version.",
            f"Write {ref.adapter}.",
        )
    return text
