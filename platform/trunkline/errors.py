"""The errors that users can cause: a message, a hint, and an exit code or HTTP status.

The command line prints ``Error: <message>`` and ``Hint: <hint>`` and exits with
:attr:`TrunklineError.exit_code`; a traceback appears only under ``--debug``. Secrets never appear
in a message or a hint: see :mod:`trunkline.redaction`.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from trunkline.process import ProcessExit, UserInterrupt, exits_refused, state_kept, user_interrupts
from trunkline.redaction import redact


class TrunklineError(Exception):
    """An operation failed or was refused.

    Args:
        message: what is wrong, in one sentence that contains the offending value.
        hint: what to do about it, if possible a command to paste.

    Attributes:
        code: identifies the kind of error to HTTP clients; None where the status is enough.
            Clients compare it, so it never changes. A subclass without a code of its own inherits
            its parent's.
        param: the field of an HTTP request that caused the error, if a client sent one.
    """

    exit_code = 1
    http_status = 500
    code: str | None = None
    param: str | None = None

    def __init__(self, message: str, hint: str | None = None) -> None:
        message = redact(message)
        super().__init__(message)
        self.message = message
        self.hint = None if hint is None else redact(hint)


class UsageError(TrunklineError):
    """The request is invalid: a malformed name, a value out of range."""

    exit_code = 2
    http_status = 400


class SingleTextError(UsageError):
    """A conversation of several messages for an adapter that was trained on single texts."""

    code = "single_text"


class NotFoundError(UsageError):
    """No object has this name."""

    http_status = 404
    code = "not_found"

    @classmethod
    def named(
        cls, kind: str, name: str, candidates: Iterable[str], hint: str | None = None
    ) -> NotFoundError:
        """Build the error for an unknown ``name``; suggest the closest candidate, if any."""
        spellings = {candidate.casefold(): candidate for candidate in candidates}
        close = difflib.get_close_matches(name.casefold(), spellings, n=1, cutoff=0.5)
        suggestion = None
        if close:
            nearest = spellings[close[0]]
            alike = unicodedata.normalize("NFC", nearest) == unicodedata.normalize("NFC", name)
            suggestion = f"Did you mean {ascii(nearest) if alike else repr(nearest)}?"
        parts = [part for part in (suggestion, hint) if part]
        return cls(f"There is no {kind} {name!r}.", " ".join(parts) or None)


class PluginError(TrunklineError):
    """A plugin can't be imported or breaks a rule of the contracts."""


class PluginCallError(PluginError):
    """A plugin's function raised, or returned a value that its contract does not allow."""

    @classmethod
    def raised(cls, subject: str, error: BaseException, hint: str | None = None) -> PluginCallError:
        """Build the error for an exception that a plugin's function raised.

        Args:
            subject: what was called, as the start of a sentence: ``The metric toy/hit_rate``.
        """
        if isinstance(error, SystemExit):
            call = error.call if isinstance(error, ProcessExit) else f"sys.exit({error.code!r})"
            return cls(f"{subject} tried to end the program with {call}.", hint)
        return cls(f"{subject} failed: {one_line(error, with_type=True)}.", hint)


@contextmanager
def plugin_call(subject: str, hint: str | None = None) -> Iterator[None]:
    """Raise :class:`PluginCallError` for whatever a plugin's function raises, exits included.

    Trunkline's own errors and the user's Ctrl-C pass unchanged. What the function changes in the
    process is restored, see :func:`~trunkline.process.state_kept`.

    Args:
        subject: what is called, as the start of a sentence: ``The metric toy/hit_rate``.
        hint: of the error.
    """
    with user_interrupts():
        try:
            with exits_refused(), state_kept():
                yield
        except (TrunklineError, UserInterrupt):
            raise
        except BaseException as error:
            raise PluginCallError.raised(subject, error, hint) from error


@contextmanager
def plugin_ends_refused(subject: str, hint: str | None = None) -> Iterator[None]:
    """Raise :class:`PluginCallError` where a plugin's code tries to end the program or a run.

    For code of ours that calls some of a plugin's: other exceptions pass unchanged.

    Args:
        subject, hint: as for :func:`plugin_call`.
    """
    with user_interrupts():
        try:
            with exits_refused():
                yield
        except UserInterrupt:
            raise
        except Exception:
            raise
        except BaseException as error:
            raise PluginCallError.raised(subject, error, hint) from error


class DataError(TrunklineError):
    """Rows or texts can't be used: none are left, there is one class, an answer would be cut."""

    http_status = 422
    code = "unusable_input"


class MissingDataError(DataError):
    """The files of a dataset are not on this machine, and come with no package of Python."""

    code = "missing_data"


class BaseModelError(TrunklineError):
    """The base is not available, can't be read, or is not the one requested."""

    http_status = 503
    code = "base_unavailable"


class BaseMismatchError(BaseModelError):
    """An adapter was trained on a base with other weights."""

    http_status = 409
    code = "other_base"


class IntegrityError(TrunklineError):
    """An artifact does not match its digest, or contains something that must not be loaded."""

    http_status = 422
    code = "damaged_artifact"


class RegistryError(TrunklineError):
    """The registry can't be opened, read or written."""

    http_status = 503
    code = "registry_unavailable"


class TrainingError(TrunklineError):
    """A run failed: the loss is not finite, the adapter has no effect, the head was lost."""


class RefusedError(TrunklineError):
    """A gate or a rule refused the operation; nothing was changed."""

    http_status = 409
    code = "refused"


class Interrupted(TrunklineError):
    """The user stopped the operation; finished work is kept."""

    exit_code = 130
    http_status = 499
    code = "cancelled"


class AuthenticationError(TrunklineError):
    """An HTTP request has no API key, or an invalid one."""

    http_status = 401
    code = "invalid_api_key"


class ForbiddenError(TrunklineError):
    """The API key does not permit the operation."""

    http_status = 403
    code = "forbidden"


class TooLargeError(TrunklineError):
    """A request exceeds the server's limits."""

    http_status = 413
    code = "too_large"


class BusyError(TrunklineError):
    """There is no capacity for the request now; retry after ``retry_after`` seconds."""

    http_status = 429
    code = "busy"

    def __init__(self, message: str, hint: str | None = None, *, retry_after: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class PinnedError(BusyError):
    """Pinned adapters occupy all slots; waiting does not help."""

    code = "pinned"


class UnavailableError(BusyError):
    """The engine accepts no requests: it is starting or shutting down."""

    http_status = 503
    code = "unavailable"


class DeadlineError(TrunklineError):
    """The request's deadline passed before it was answered."""

    http_status = 504
    code = "deadline_exceeded"


def one_line(error: BaseException, *, with_type: bool = False) -> str:
    """The first line of an exception's message, without a final period and without secrets.

    Args:
        with_type: put the name of the exception's class first: ``ValueError: bad digit``.
    """
    text = (
        error.message if isinstance(error, TrunklineError) else redact(_text(error), foreign=True)
    )
    name = type(error).__name__
    lines = text.strip().splitlines()
    if not lines:
        return f"{name}: no message" if with_type else name
    first = lines[0].rstrip().rstrip(".")
    return f"{name}: {first}" if with_type else first


def reason_of(error: BaseException) -> str:
    """An ``OSError``'s reason without its number and path; else :func:`one_line`."""
    return redact(getattr(error, "strerror", None) or one_line(error), foreign=True)


def _text(error: BaseException) -> str:
    """``str(error)``; empty for an exception of a plugin that can't be converted."""
    try:
        with exits_refused():
            return str(error)
    except BaseException:
        return ""
