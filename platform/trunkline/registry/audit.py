"""Verifying and exporting the two hash chains: the events and the request log.

A changed, removed or inserted row breaks the chain itself. A truncated tail, or a chain that was
rewritten from some row on, is detected only by comparison with a head that was stored elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, Row, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from trunkline.errors import IntegrityError, UsageError
from trunkline.refs import shown
from trunkline.registry.chain import CHAINS, EVENTS, ROOT, Chain, Head, add_event, row_hash
from trunkline.registry.lookup import MAX_INT64
from trunkline.registry.records import ChainBreak, ChainReport
from trunkline.registry.session import Aggregate
from trunkline.registry.tables import Adapter, Alias, ChainHead, Version

HEADS_SAVED = "audit.heads_saved"
"""Kind of the event of someone who saved the heads of the chains elsewhere."""

PAGE = 1000
"""Rows that are read at a time."""

MAX_BREAKS = 20
"""The breaks of a chain that are reported one by one; all are counted."""

Progress = Callable[[str, int, int], None]
"""Called with the chain's name, rows read and rows expected, after each page."""

_Targets = dict[tuple[str, str], Any]
"""Adapter and alias → number, according to the alias's last event."""


class Audit(Aggregate):
    """Verifies and exports the hash chains."""

    def verify(
        self,
        heads: Mapping[str, Head] = MappingProxyType({}),
        *,
        progress: Progress | None = None,
    ) -> list[ChainReport]:
        """Verify both chains from their first row to the last, as of one moment.

        Args:
            heads: by the chain's name, heads of any age that were stored elsewhere.

        Raises:
            UsageError: a head is given for an unknown chain.
        """
        for name in heads:
            find_chain(name)
        with self._sessions.read() as session:
            return [
                _verify(session, chain, heads.get(name), progress) for name, chain in CHAINS.items()
            ]

    def ends_are_intact(self, rows: int = 200) -> Mapping[str, bool]:
        """Whether the last rows of each chain match their hashes and end at the stored head.

        This takes milliseconds, so a server can repeat it; :meth:`verify` reads all rows.

        Args:
            rows: how many rows to read of each chain.
        """
        with self._sessions.read() as session:
            return {name: _end_is_intact(session, chain, rows) for name, chain in CHAINS.items()}

    def record_saved_heads(self, heads: Mapping[str, Head], *, actor: str | None = None) -> None:
        """Record that someone saved heads elsewhere, so that others see when it was last done.

        Args:
            heads: by the chain's name.
            actor: who saved them; by default the system's user.
        """
        detail = {find_chain(name).name: str(head) for name, head in heads.items()}
        with self._sessions.write() as session:
            add_event(session, actor, HEADS_SAVED, "audit", detail)

    def export(self, chain: str = "events", *, after: int = 0) -> Iterator[dict[str, Any]]:
        """Every row of a chain in its order, as JSON values; all as of one moment.

        A row has the fields that its hash covers, in the form that was hashed, and
        ``previous_hash`` and ``hash``. Nothing is verified.

        Args:
            chain: ``events`` or ``requests``.
            after: only rows that follow the one with this number.

        Raises:
            UsageError: there is no such chain.
            IntegrityError: a row can't be read, because it was changed by hand.
        """
        with self._sessions.read() as session:
            for page in _read_pages(session, find_chain(chain), min(after, MAX_INT64)):
                for link in page:
                    if link.row is None:
                        raise IntegrityError(
                            f"Row {link.seq} of the {chain} can't be read: it was changed by hand.",
                            "Find all such rows with: trunkline audit verify.",
                        )
                    values = {name: _json_value(value) for name, value in link.row.items()}
                    yield {**values, "previous_hash": link.previous, "hash": link.hash}


def find_chain(name: str) -> Chain:
    """The chain of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in CHAINS:
        raise UsageError(f"There is no chain {shown(name)}.", f"Use one of: {', '.join(CHAINS)}.")
    return CHAINS[name]


@dataclass(frozen=True, slots=True)
class _Link:
    """A stored row of a chain; ``row`` is None if the database can't read it."""

    seq: int
    previous: str
    hash: str
    row: dict[str, Any] | None

    def is_intact(self) -> bool:
        """Whether the row matches its hash."""
        try:
            return self.row is not None and row_hash(self.previous, self.row) == self.hash
        except (TypeError, ValueError):
            return False


def _verify(
    session: Session, chain: Chain, expected: Head | None, progress: Progress | None
) -> ChainReport:
    stored = session.scalar(select(ChainHead).where(ChainHead.name == chain.name))
    expected_rows = 0 if stored is None else stored.seq
    breaks: list[ChainBreak] = []
    targets: _Targets = {}
    break_count = rows = 0
    expected_seen = expected is None or (expected.seq == 0 and expected.hash == ROOT)
    last = Head(0, ROOT)

    def add(seq: int | None, message: str) -> None:
        nonlocal break_count
        break_count += 1
        if len(breaks) < MAX_BREAKS:
            breaks.append(ChainBreak(seq, message))

    for page in _read_pages(session, chain):
        for link in page:
            if not link.is_intact():
                add(link.seq, f"row {link.seq} does not match its hash: changed or inserted")
            elif link.previous != last.hash:
                add(link.seq, _gap(last.seq, link.seq))
            if expected is not None and link.seq == expected.seq:
                expected_seen = True
                if link.hash != expected.hash:
                    add(
                        link.seq,
                        f"row {link.seq} differs from the expected head: the chain was rewritten "
                        "there or before",
                    )
            if chain is EVENTS and link.row is not None and link.row["kind"] == "alias.moved":
                _note_target(targets, link.row)
            last = Head(link.seq, link.hash)
        rows += len(page)
        if progress is not None:
            progress(chain.name, rows, max(rows, expected_rows))
    if stored is None:
        add(None, "the stored head of the chain was removed")
    elif (stored.seq, stored.hash) != (last.seq, last.hash):
        add(None, _wrong_end(stored.seq, last.seq))
    if expected is not None and not expected_seen:
        add(
            None,
            f"row {expected.seq}, the expected head, is missing: the chain ends at row {last.seq}",
        )
    if chain is EVENTS:
        for message in _unrecorded_moves(session, targets):
            add(None, message)
    return ChainReport(
        chain=chain.name,
        rows=rows,
        head=last,
        expected_head=expected,
        breaks=tuple(breaks),
        break_count=break_count,
    )


def _end_is_intact(session: Session, chain: Chain, rows: int) -> bool:
    stored = session.scalar(select(ChainHead).where(ChainHead.name == chain.name))
    if stored is None:
        return False
    after = max(0, stored.seq - rows)
    last = None if after else Head(0, ROOT)
    for page in _read_pages(session, chain, after):
        for link in page:
            if not link.is_intact() or (last is not None and link.previous != last.hash):
                return False
            last = Head(link.seq, link.hash)
    return last is not None and (stored.seq, stored.hash) == (last.seq, last.hash)


def _note_target(targets: _Targets, event: Mapping[str, Any]) -> None:
    detail = event["detail"]
    if isinstance(detail, dict) and isinstance(detail.get("alias"), str):
        targets[event["subject"], detail["alias"]] = detail.get("new")


def _unrecorded_moves(session: Session, targets: _Targets) -> Iterator[str]:
    """Aliases that point elsewhere than their last events say."""
    query = (
        select(Adapter.domain, Adapter.name, Alias.alias, Version.number)
        .join(Alias, Alias.adapter_id == Adapter.id)
        .join(Version, Version.id == Alias.version_id)
        .execution_options(yield_per=PAGE)
    )
    remaining = {key: number for key, number in targets.items() if number is not None}
    for domain, name, alias, number in session.execute(query):
        recorded = remaining.pop((f"{domain}/{name}", alias), None)
        if recorded != number:
            why = "no event says so" if recorded is None else f"its last event says {recorded}"
            yield f"the alias {alias!r} of {domain}/{name} points to version {number}, but {why}"
    for (subject, alias), recorded in remaining.items():
        yield f"the alias {alias!r} of {subject} is missing, but its last event says {recorded}"


def _gap(before: int, seq: int) -> str:
    if seq == before + 1:
        return (
            f"row {seq} does not follow row {before}: one of them was changed, or a row was "
            "inserted or removed"
            if before
            else "row 1 does not start the chain"
        )
    missing = f"row {before + 1} is" if seq == before + 2 else f"rows {before + 1} to {seq - 1} are"
    return f"{missing} missing before row {seq}"


def _wrong_end(stored: int, last: int) -> str:
    if stored > last:
        return f"the stored head is row {stored}, but the last row is {last}: truncated"
    if stored < last:
        return f"the stored head is row {stored}, but rows up to {last} follow: inserted"
    return f"the stored head does not match row {last}"


def _read_pages(session: Session, chain: Chain, after: int | None = None) -> Iterator[list[_Link]]:
    """The rows in their order, a page at a time."""
    columns = chain.table.__table__.c
    hashed = [columns[name] for name in chain.fields]
    links = (columns.seq, columns.previous_hash, columns.hash)

    def read(*wanted: ColumnElement[Any]) -> Sequence[Row[*tuple[Any, ...]]]:
        query = select(*links, *wanted).order_by(columns.seq).limit(PAGE)
        if after is not None:
            query = query.where(columns.seq > after)
        return session.execute(query).all()

    while True:
        try:
            page = [
                _Link(row[0], row[1], row[2], dict(zip(chain.fields, row[3:], strict=True)))
                for row in read(*hashed)
            ]
        except (TypeError, ValueError, DBAPIError):
            # A value that this code never writes: read row by row to find it.
            page = _read_singly(session, chain, read())
        if page:
            yield page
        if len(page) < PAGE:
            return
        after = page[-1].seq


def _read_singly(
    session: Session, chain: Chain, links: Sequence[Row[*tuple[Any, ...]]]
) -> list[_Link]:
    columns = chain.table.__table__.c
    page = []
    for seq, previous, digest in links:
        query = select(*(columns[name] for name in chain.fields)).where(columns.seq == seq)
        row: dict[str, Any] | None
        try:
            row = dict(session.execute(query).one()._mapping)
        except (TypeError, ValueError, DBAPIError):
            row = None
        page.append(_Link(seq, previous, digest, row))
    return page


def _json_value(value: Any) -> Any:
    return value.isoformat(timespec="microseconds") if isinstance(value, datetime) else value
