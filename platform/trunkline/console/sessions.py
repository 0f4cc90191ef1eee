"""Sessions of browsers: an API key that was entered once, known by a random cookie.

The cookie holds 256 random bits, of which the server stores the sha256; the key itself is stored
nowhere. A session ends after 12 hours, at the sign-out, when the key is removed or expires, and
when the server stops. The token in a form is an HMAC of the cookie, so that a page of another site
can't make it, even before anyone has signed in.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

LIFETIME = 12 * 3600
"""Seconds until a session ends."""

MAX_SESSIONS = 10_000
"""If more are open, the oldest ends."""


class Sessions:
    """The open sessions of one server. Safe from any thread.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self._secret = secrets.token_bytes(32)

    @staticmethod
    def new_cookie() -> str:
        """A random value for the cookie."""
        return secrets.token_urlsafe(32)

    def open(self, key_id: str) -> str:
        """Open a session for a key; returns the value of its cookie, which is always a new one."""
        cookie = self.new_cookie()
        with self._lock:
            self._open[_digest(cookie)] = key_id, self._clock() + LIFETIME
            while len(self._open) > MAX_SESSIONS:
                self._open.popitem(last=False)
        return cookie

    def key_of(self, cookie: str) -> str | None:
        """The id of the session's key; None if no such session is open."""
        digest = _digest(cookie)
        with self._lock:
            key_id, end = self._open.get(digest, ("", 0.0))
            if key_id and end <= self._clock():
                del self._open[digest]
                return None
        return key_id or None

    def close(self, cookie: str) -> None:
        """End a session; nothing happens if it is not open."""
        with self._lock:
            self._open.pop(_digest(cookie), None)

    def token(self, cookie: str) -> str:
        """The token of the forms that are sent with this cookie."""
        return hmac.new(self._secret, cookie.encode(), hashlib.sha256).hexdigest()

    def is_token(self, cookie: str, token: str) -> bool:
        """Whether a form has the right token for its cookie."""
        return hmac.compare_digest(self.token(cookie).encode(), token.encode())


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode()).digest()
