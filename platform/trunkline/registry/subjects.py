"""Subjects: how everything that can be told of is named in events, tags and notes.

Owns: the words for subjects, and looking whether there is such a thing.
Must not know: what is told of them.

``run/3``, ``key/<id>``, ``server/<number>``, ``dataset/<id>``, ``base/<digest>`` and
``request/<id>`` come first; anything else is an adapter or a version of one.
"""

from __future__ import annotations

import re

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from trunkline.errors import NotFoundError, UsageError
from trunkline.refs import Ref, shown
from trunkline.registry.lookup import find_adapter, find_version
from trunkline.registry.tables import ApiKey, Base, Dataset, Deployment, LoggedRequest, Run

KINDS = ("run", "key", "server", "dataset", "base", "request")

_NUMBER = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,80}", re.ASCII)


def find_subject(session: Session, text: str) -> str:
    """The one name under which ``text`` is told of; an alias becomes the version's number.

    Raises:
        UsageError: it names nothing that can be told of.
        NotFoundError: there is no such thing.
    """
    kind, slash, id = text.partition("/")
    if not slash or kind not in KINDS or (kind in ("run", "server", "dataset") and _is_name(id)):
        return _adapter(session, text)
    if session.execute(select(1).where(_exists(kind, id))).first() is None:
        raise NotFoundError(
            f"There is no {kind} {shown(id)}.",
            f"See them with: trunkline {'requests' if kind == 'request' else kind + 's'} list."
            if kind in ("run", "key", "request")
            else "`trunkline lineage REF` names them.",
        )
    return f"{kind}/{id}"


def _is_name(text: str) -> bool:
    return not text[:1].isdigit()


def _adapter(session: Session, text: str) -> str:
    try:
        ref = Ref.parse(text)
    except UsageError as error:
        raise UsageError(
            f"{shown(text)} names nothing that can be tagged or noted.",
            "Write domain/name, domain/name@3, or one of: "
            + ", ".join(f"{kind}/…" for kind in KINDS)
            + ".",
        ) from error
    if ref.selector is None:
        find_adapter(session, ref, gone=True)
        return ref.adapter
    version = find_version(session, ref, gone=True)[0][0]
    return f"{ref.adapter}@{version.number}"


def _exists(kind: str, id: str) -> ColumnElement[bool]:
    if kind in ("run", "server", "dataset"):
        if not _NUMBER.fullmatch(id):
            raise UsageError(
                f"{shown(id)} is not the number of a {kind}.", f"Write for example {kind}/3."
            )
        key = {"run": Run.id, "server": Deployment.id, "dataset": Dataset.id}[kind]
        return select(key).where(key == int(id)).exists()
    if not _ID.fullmatch(id):
        raise UsageError(
            f"{shown(id)} is not the id of a {kind}.",
            "Use 1 to 80 of A-Z, a-z, 0-9, '_', '.', ':' and '-'.",
        )
    column = {"key": ApiKey.id, "base": Base.digest, "request": LoggedRequest.id}[kind]
    return select(column).where(column == id).exists()
