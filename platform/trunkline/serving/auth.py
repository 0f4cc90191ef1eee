"""Who asks: keys, and what is open where there are none.

Owns: reading the Authorization header, and the rule for servers without keys. Must not know: what
is asked for. Asks the registry and blocks.
"""

from __future__ import annotations

from trunkline.errors import AuthenticationError, ForbiddenError
from trunkline.refs import shown
from trunkline.registry.records import KeyRecord
from trunkline.registry.registry import Registry

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


class Authenticator:
    """Decides whether a request comes in.

    A server that only this machine reaches is open as long as no key was ever made for it. Once
    a key was seen it stays closed to those without one, even when the last key is removed.

    Args:
        loopback: whether only this machine reaches the server.
        host: its name, which a browser may give beside the usual local ones.
    """

    def __init__(self, registry: Registry, *, loopback: bool, host: str) -> None:
        self._registry = registry
        self._names = _LOCAL_NAMES | {host.lower()}
        self._closed = not loopback

    def key_of(self, authorization: str | None, host: str | None) -> KeyRecord | None:
        """The key that is shown; None where none is needed.

        Any bearer is let in where none is needed, since OpenAI's clients always send one.

        Raises:
            AuthenticationError: no key, or one that is unknown, removed or expired.
            ForbiddenError: a page of another host asks through a browser on this machine.
        """
        scheme, _, plain = (authorization or "").partition(" ")
        if scheme.lower() == "bearer":
            key = self._registry.keys.authenticate(plain.strip())
            if key is not None:
                return key
        if not self._closed:
            self._closed = self._registry.keys.has_any()
        if self._closed:
            problem = "This key is not valid." if authorization else "The request brings no key."
            raise AuthenticationError(
                problem,
                "Send the header Authorization: Bearer KEY, with a key of `trunkline keys create`.",
            )
        name = (host or "").lower()
        name = name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]
        if name not in self._names:
            raise ForbiddenError(
                f"This server is not {shown(host)}.",
                "Ask it as localhost; to be reached under other names it needs a key: "
                "`trunkline keys create`.",
            )
        return None


def check_figures(key: KeyRecord | None) -> None:
    """Let those through who may know of every adapter, since the figures name all.

    Raises:
        ForbiddenError: the key is not for every adapter.
    """
    if key is not None and "*" not in key.adapters:
        raise ForbiddenError(
            f"The key {key.id} may not see every adapter, and the figures name all.",
            "Make one that may with: trunkline keys create OWNER.",
        )


def check_admin(key: KeyRecord | None) -> None:
    """Let administrators through, and everybody where no key is needed.

    Raises:
        ForbiddenError: the key is not an admin's.
    """
    if key is not None and not key.admin:
        raise ForbiddenError(
            f"The key {key.id} may not administer this server.",
            "Make one that may with: trunkline keys create --admin.",
        )
