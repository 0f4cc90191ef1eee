"""The one family of errors that a user can cause.

Owns: the message, the hint, and what they become at the edge (exit code, HTTP status and code).
Must not know: anything else of Trunkline; every other module imports this one.

The command line prints ``Error: <message>`` and ``Hint: <hint>`` and exits with
:attr:`TrunklineError.exit_code`; a traceback is shown only under ``--debug``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrunklineError(Exception):
    """Something failed or was refused, told in one sentence, with what to do about it.

    Args:
        message: one sentence that holds the offending value.
        hint: the next step, if possible a command that can be pasted.

    Attributes:
        code: the word by which a server tells this kind; None where the status says it all. Clients
            compare it, so it never changes. A subclass without its own is told by its parent's.
    """

    exit_code = 1
    http_status = 500
    code: str | None = None

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(TrunklineError):
    """The request itself is wrong: a malformed name, a value out of range."""

    exit_code = 2
    http_status = 400


class NotFoundError(UsageError):
    """A name that nothing answers to."""

    http_status = 404
    code = "not_found"

    @classmethod
    def named(
        cls, kind: str, name: str, known: Iterable[str], hint: str | None = None
    ) -> NotFoundError:
        """Build the error for an unknown ``name``, naming the nearest known one if there is one."""
        spellings = {one.casefold(): one for one in known}
        close = difflib.get_close_matches(name.casefold(), spellings, n=1, cutoff=0.5)
        nearest = f"Did you mean {spellings[close[0]]!r}?" if close else None
        parts = [part for part in (nearest, hint) if part]
        return cls(f"There is no {kind} {name!r}.", " ".join(parts) or None)


class PluginError(TrunklineError):
    """A plugin failed to import, broke a rule of the contracts, or raised while it was asked."""


class DataError(TrunklineError):
    """The rows can't be trained on or evaluated: none, one class, an answer that would be cut
    off."""

    http_status = 422
    code = "unusable_input"


class BaseModelError(TrunklineError):
    """The base can't be had, read, or is not the one that was asked for."""

    http_status = 503
    code = "base_unavailable"


class BaseMismatchError(BaseModelError):
    """An adapter meets a base whose weights are not those it was trained on."""

    http_status = 409
    code = "other_base"


class IntegrityError(TrunklineError):
    """An artifact is not what its digest says, or holds something that must not be loaded."""

    http_status = 422
    code = "damaged_artifact"


class RegistryError(TrunklineError):
    """The registry can't be opened, read or written."""

    http_status = 503
    code = "registry_unavailable"


class TrainingError(TrunklineError):
    """A run failed: the loss is not a number, the adapter does nothing, the head was lost."""


class RefusedError(TrunklineError):
    """A gate or a rule said no; nothing was changed."""

    http_status = 409
    code = "refused"


class Interrupted(TrunklineError):
    """The user stopped the work; what was done so far is kept."""

    exit_code = 130
    http_status = 499
    code = "cancelled"


class AuthenticationError(TrunklineError):
    """A server's request brings no key, or one that is not known."""

    http_status = 401
    code = "invalid_api_key"


class ForbiddenError(TrunklineError):
    """A key may not do what was asked with it."""

    http_status = 403
    code = "forbidden"


class TooLargeError(TrunklineError):
    """A request is bigger than the server takes."""

    http_status = 413
    code = "too_large"


class BusyError(TrunklineError):
    """There is no room for the request now; ``retry_after`` is in seconds."""

    http_status = 429
    code = "busy"

    def __init__(self, message: str, hint: str | None = None, *, retry_after: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class PinnedError(BusyError):
    """What is pinned leaves no place, however long one waits."""

    code = "pinned"


class UnavailableError(BusyError):
    """The engine takes no work: it is ending, or not there yet."""

    http_status = 503
    code = "unavailable"


class DeadlineError(TrunklineError):
    """The request's own deadline passed before it was answered."""

    http_status = 504
    code = "deadline_exceeded"
