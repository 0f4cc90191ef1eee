"""What the key behind a request may see and do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from trunkline.console.pages import N_
from trunkline.errors import ForbiddenError, NotFoundError, UsageError
from trunkline.refs import Ref, shown
from trunkline.registry.actors import key_actor
from trunkline.registry.records import KeyRecord
from trunkline.registry.scope import Scope, covers_everything


@dataclass(frozen=True, slots=True)
class Access:
    """The rights of a request.

    Attributes:
        key: None on a server without keys, where everything is permitted.
    """

    key: KeyRecord | None

    @property
    def role(self) -> str:
        """``viewer``, ``tester``, ``promoter`` or ``admin``."""
        return "admin" if self.key is None else self.key.role

    @property
    def actor(self) -> str | None:
        """Who acts, for events; on a server without keys None, the system's user who runs it."""
        return None if self.key is None else key_actor(self.key.id, self.key.owner)

    @property
    def scope(self) -> Scope:
        """The adapters that queries are restricted to."""
        return None if self.key is None else self.key.adapters

    @property
    def sees_everything(self) -> bool:
        """Whether the key may use every adapter, and so may see what concerns all of them."""
        return covers_everything(self.scope)

    def may(self, role: str) -> bool:
        """Whether the key permits what ``role`` does."""
        return self.key is None or self.key.has_role(role)

    def may_use(self, adapter: str) -> bool:
        """Whether the key covers ``domain/name`` or ``base``."""
        return self.key is None or self.key.may_use(adapter)

    def check_role(self, role: str) -> None:
        """Raise :class:`ForbiddenError` if the key does not permit what ``role`` does."""
        if self.key is not None and not self.key.has_role(role):
            raise ForbiddenError(
                f"Your key has the role {self.key.role}; this needs {role}.",
                f"Ask an administrator for a key: trunkline keys create OWNER --role {role}.",
            )

    def check_everything(self) -> None:
        """Raise :class:`ForbiddenError` if the key does not cover every adapter."""
        if not self.sees_everything:
            raise ForbiddenError(
                N_("This page concerns every adapter, and your key may use some only."),
                N_("Ask an administrator for a key without --adapter."),
            )

    def check_adapter(self, domain: str, name: str) -> Ref:
        """The adapter's ref, if the key may use it.

        Raises:
            NotFoundError: it may not; the error does not reveal whether the adapter exists.
        """
        try:
            ref = Ref(domain, name)
        except UsageError:
            raise _unknown(f"{domain}/{name}") from None
        if not self.may_use(ref.adapter):
            raise _unknown(ref.adapter)
        return ref

    def check_ref(self, text: str) -> Ref:
        """A ref that someone typed, if the key may use its adapter.

        Raises:
            UsageError: the text is not a ref.
            NotFoundError: the key may not use the adapter.
        """
        ref = Ref.parse(text)
        self.check_adapter(ref.domain, ref.name)
        return ref


NOBODY = Access(KeyRecord("", "", (), "viewer", datetime.min.replace(tzinfo=UTC), None, None))
"""The rights of a browser that has not signed in."""


def _unknown(adapter: str) -> NotFoundError:
    return NotFoundError(f"There is no adapter {shown(adapter)}.", "List them under Adapters.")
