"""Checking and handing out the two hash chains: the events, and the server's request log.

Owns: what is said about a chain that does not hold, and the form in which rows are handed out.
Must not know: how rows get into a chain (:mod:`trunkline.registry.chain`), or where heads are kept.

A changed, removed or inserted row shows in the chain itself. A cut-off tail, or a chain that was
rewritten from some row on, only shows against a head that was kept elsewhere.
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
from trunkline.registry.chain import CHAINS, EVENTS, ROOT, Chain, Head, row_hash
from trunkline.registry.records import ChainBreak, ChainReport
from trunkline.registry.session import Aggregate
from trunkline.registry.tables import Adapter, Alias, ChainHead, Version

PAGE = 1000
"""Rows that are read at a time."""

SHOWN = 20
"""So many breaks of a chain are told one by one; all are counted."""

Told = Callable[[str, int, int], None]

Standing = dict[tuple[str, str], Any]
"""Adapter and alias → number that the alias's last event told."""

_LAST = 2**63 - 1


class Audit(Aggregate):
    """Reads the chains: their heads, whether they hold, and every row."""

    def verify(
        self, heads: Mapping[str, Head] = MappingProxyType({}), *, told: Told | None = None
    ) -> list[ChainReport]:
        """Follow both chains from their first row to the last, as they stand at one moment.

        Args:
            heads: by the chain's name, heads that were kept elsewhere, of any age.
            told: called with the chain's name, rows read so far and rows expected, page by page.

        Raises:
            UsageError: a head is given for a chain that there is not.
        """
        for name in heads:
            chain_named(name)
        with self._sessions.read() as session:
            return [
                _verified(session, chain, heads.get(name), told) for name, chain in CHAINS.items()
            ]

    def export(self, chain: str = "events", *, after: int = 0) -> Iterator[dict[str, Any]]:
        """Every row of a chain in its order, as values of JSON; all as of one moment.

        A row has the fields that its hash covers, written as they were hashed, and
        ``previous_hash`` and ``hash``. Nothing is checked here.

        Args:
            chain: ``events`` or ``requests``.
            after: only rows that follow the one with this number.

        Raises:
            UsageError: there is no such chain.
            IntegrityError: a row can't be read, so that somebody changed it by hand.
        """
        found = chain_named(chain)
        with self._sessions.read() as session:
            for page in _pages(session, found, min(after, _LAST)):
                for link in page:
                    if link.row is None:
                        raise IntegrityError(
                            f"Row {link.seq} of the {chain} can't be read: it was changed by hand.",
                            "See what else was with: trunkline audit verify.",
                        )
                    told = {name: _written(value) for name, value in link.row.items()}
                    yield {**told, "previous_hash": link.previous, "hash": link.hash}


def chain_named(name: str) -> Chain:
    """The chain of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in CHAINS:
        raise UsageError(f"There is no chain {shown(name)}.", "There are: events, requests.")
    return CHAINS[name]


@dataclass(frozen=True, slots=True)
class _Link:
    """A row as it stands in a chain; ``row`` is None where the database can't read it."""

    seq: int
    previous: str
    hash: str
    row: dict[str, Any] | None

    def holds(self) -> bool:
        """Whether the row is what its hash says."""
        try:
            return self.row is not None and row_hash(self.previous, self.row) == self.hash
        except (TypeError, ValueError):
            return False


def _verified(session: Session, chain: Chain, kept: Head | None, told: Told | None) -> ChainReport:
    stored = session.scalar(select(ChainHead).where(ChainHead.name == chain.name))
    expected = 0 if stored is None else stored.seq
    breaks: list[ChainBreak] = []
    stood: Standing = {}
    broken = rows = 0
    met = kept is None or (kept.seq == 0 and kept.hash == ROOT)
    last = Head(0, ROOT)

    def add(seq: int | None, what: str) -> None:
        nonlocal broken
        broken += 1
        if len(breaks) < SHOWN:
            breaks.append(ChainBreak(seq, what))

    for page in _pages(session, chain):
        for link in page:
            if not link.holds():
                add(link.seq, f"row {link.seq} is not what its hash says: changed, or put in")
            elif link.previous != last.hash:
                add(link.seq, _gap(last.seq, link.seq))
            if kept is not None and link.seq == kept.seq:
                met = True
                if link.hash != kept.hash:
                    add(
                        link.seq,
                        f"row {link.seq} is not the one that was kept: the chain was rewritten "
                        "from there or from before",
                    )
            if chain is EVENTS and link.row is not None and link.row["kind"] == "alias.moved":
                _note_move(stood, link.row)
            last = Head(link.seq, link.hash)
        rows += len(page)
        if told is not None:
            told(chain.name, rows, max(rows, expected))
    if stored is None:
        add(None, "the record of the chain's end was removed")
    elif (stored.seq, stored.hash) != (last.seq, last.hash):
        add(None, _end(stored.seq, last.seq))
    if kept is not None and not met:
        add(
            None,
            f"row {kept.seq}, whose head was kept, is missing: the chain ends at row {last.seq}",
        )
    if chain is EVENTS:
        for what in _moved_unseen(session, stood):
            add(None, what)
    return ChainReport(
        chain=chain.name, rows=rows, head=last, kept=kept, breaks=tuple(breaks), broken=broken
    )


def _note_move(stood: Standing, event: Mapping[str, Any]) -> None:
    detail = event["detail"]
    if isinstance(detail, dict) and isinstance(detail.get("alias"), str):
        stood[event["subject"], detail["alias"]] = detail.get("new")


def _moved_unseen(session: Session, stood: Standing) -> Iterator[str]:
    """Aliases that stand elsewhere than their last events say."""
    query = (
        select(Adapter.domain, Adapter.name, Alias.alias, Version.number)
        .join(Alias, Alias.adapter_id == Adapter.id)
        .join(Version, Version.id == Alias.version_id)
        .execution_options(yield_per=PAGE)
    )
    left = {key: number for key, number in stood.items() if number is not None}
    for domain, name, alias, number in session.execute(query):
        told = left.pop((f"{domain}/{name}", alias), None)
        if told != number:
            says = "no event tells of it" if told is None else f"its last event says {told}"
            yield f"the alias {alias!r} of {domain}/{name} stands at version {number}, but {says}"
    for (subject, alias), told in left.items():
        yield f"the alias {alias!r} of {subject} is gone, but its last event says {told}"


def _gap(before: int, seq: int) -> str:
    if seq == before + 1:
        return (
            f"row {seq} does not follow row {before}: one of them was changed, or a row was put "
            "in or taken out"
            if before
            else "row 1 does not begin the chain"
        )
    missing = f"row {before + 1} is" if seq == before + 2 else f"rows {before + 1} to {seq - 1} are"
    return f"{missing} missing before row {seq}"


def _end(stored: int, last: int) -> str:
    if stored > last:
        return f"the chain's end is recorded at row {stored}, and its last row is {last}: cut off"
    if stored < last:
        return f"the chain's end is recorded at row {stored}, and rows up to {last} follow: put in"
    return f"the chain's recorded end is not row {last} as it stands"


def _pages(session: Session, chain: Chain, after: int | None = None) -> Iterator[list[_Link]]:
    """The rows in their order, a page at a time."""
    columns = chain.table.__table__.c
    whole = [columns[name] for name in chain.fields]
    links = (columns.seq, columns.previous_hash, columns.hash)

    def page(*wanted: ColumnElement[Any], limit: int = PAGE) -> Sequence[Row[*tuple[Any, ...]]]:
        query = select(*links, *wanted).order_by(columns.seq).limit(limit)
        if after is not None:
            query = query.where(columns.seq > after)
        return session.execute(query).all()

    while True:
        try:
            read = [
                _Link(one[0], one[1], one[2], dict(zip(chain.fields, one[3:], strict=True)))
                for one in page(*whole)
            ]
        except (TypeError, ValueError, DBAPIError):
            # A value that no code of ours writes: find the row, one at a time.
            read = _apart(session, chain, page())
        if read:
            yield read
        if len(read) < PAGE:
            return
        after = read[-1].seq


def _apart(session: Session, chain: Chain, links: Sequence[Row[*tuple[Any, ...]]]) -> list[_Link]:
    columns = chain.table.__table__.c
    found = []
    for seq, previous, digest in links:
        query = select(*(columns[name] for name in chain.fields)).where(columns.seq == seq)
        row: dict[str, Any] | None
        try:
            row = dict(session.execute(query).one()._mapping)
        except (TypeError, ValueError, DBAPIError):
            row = None
        found.append(_Link(seq, previous, digest, row))
    return found


def _written(value: Any) -> Any:
    return value.isoformat(timespec="microseconds") if isinstance(value, datetime) else value
