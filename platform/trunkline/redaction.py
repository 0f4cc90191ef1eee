"""Remove secrets from text and exceptions: credentials in URLs, API keys, tokens, passwords.

:func:`redact` recognizes credentials by their form, and every secret that this process was given:
in its environment, or by :func:`remember` and :func:`remember_url`. Errors, logs and command line
output pass through it. :func:`redact_url` shows one URL. This module imports nothing else of
Trunkline.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from base64 import b64decode
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, TypeVar
from unicodedata import normalize
from urllib.parse import parse_qsl, unquote, unquote_plus

HIDDEN = "…"

_MAX_REMEMBERED = 200
_remembered: dict[str, None] = {}
"""The secrets of this process, oldest first."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*(?:::[A-Za-z][A-Za-z0-9+.-]*)*):(/*)")
_ARGUMENT = re.compile(r"\s*(?:hf:|[A-Za-z][A-Za-z0-9+.:-]*://)[^\0]*[@?;&#]", re.DOTALL)
"""An argument that is a URL with more than host and path."""

_FILE_SCHEMES = frozenset({"file", "local", "memory"})
_SAFE_PARAMETERS = frozenset({"host", "hostaddr", "port", "dbname", "sslmode", "mode", "uri"})
"""Query parameters of a database URL that hold no secret."""

_SHORT_NUMBER = re.compile(r"[0-9]{1,3}")
"""A setting such as ``timeout=1``; as a secret it would hide numbers in every message."""

_IN_TEXT = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*:/{1,3})([^\s'\"<>`]*)@")
_PARAMETER = re.compile(
    r"((?:[?&;#]|%3B|%26|%23)"
    r"(?:[\w.-]*(?:token|secret|passw|pwd|sig|credential|key|auth|sas)[\w.-]*)(?:=|%3D))[^&\s'\"#]+",
    re.IGNORECASE,
)
_SETTING = re.compile(
    r"(?<![A-Za-z])[A-Za-z_]*(?:token|secret|passw|passphrase|pwd|sig|credential|key|auth|sas)\w*\s*"
    r"(?:=|%3D)",
    re.IGNORECASE,
)
"""The name of a secret with its equals sign, in a connection string or a path."""
_KEYS = re.compile(
    r"\b(?:(tl-[0-9][a-z0-9]{7}-|sk-|github_pat_|glpat-|pypi-|xox[abeoprs]-|AIza)[A-Za-z0-9_-]{16,}"
    r"|(hf_|gh[pousr]_|npm_)[A-Za-z0-9]{10,}|(AKIA|ASIA)[A-Z0-9]{12,})"
)
_JWT = re.compile(r"\b(eyJ)[\w-]{8,}\.[\w-]{8,}\.[\w-]+")
_PRIVATE_KEY = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).+?(?:(?=-----END)|\Z)", re.DOTALL)
_ENCODED = re.compile(
    r"(?<![\w+/])(?:[A-Za-z0-9+/]{4}){3,}(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?(?![\w+/=])"
)
_LOGIN = re.compile(r"[\w.@+\\-]+:.+")
"""A user with a password, once decoded from base64."""
_BASIC = re.compile(r"\b(Basic\s+)(?=[A-Za-z+/]*\d)[A-Za-z0-9+/]{12,}=*")
_BEARER = re.compile(r"\b(Bearer\s+)(?=[\w.~+/-]*\d)[\w.~+/-]{8,}=*")
_ENVIRONMENT = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASS|PASSWD|PASSPHRASE|KEY|PAT|CREDENTIALS?)$|PASSWORD$|API_?KEY$|_PWD$"
    r"|^AWS_ACCESS_KEY_ID$|(?:^|_)(?:SECRET|PASSWORD|TOKEN)_(?!.*(?:FILE|PATH|DIR|NAME|URL)$)",
    re.IGNORECASE,
)
"""The name of a variable that holds a secret."""

_OPTION = re.compile(r"key|secret|token|passw|passphrase|credential|sas|auth|username", re.I)


# --------------------------------------------------------------------------------- known secrets


def remember(*secrets: str) -> None:
    """Hide these secrets from now on wherever they occur."""
    for secret in secrets:
        if secret.strip():
            _remembered.pop(secret, None)
            _remembered[secret] = None
    while len(_remembered) > _MAX_REMEMBERED:
        del _remembered[next(iter(_remembered))]


def remember_url(url: str) -> None:
    """Hide the credentials of a URL from now on, also where it can't be parsed."""
    remember(*_secrets_of_url(url))


def remember_options(options: object, name: str = "") -> None:
    """Hide the secrets among the options of a storage: by their names, and in URLs."""
    if isinstance(options, dict):
        for key, value in options.items():
            remember_options(value, str(key))
    elif isinstance(options, list | tuple):
        for value in options:
            remember_options(value, name)
    elif isinstance(options, str):
        remember(*_secrets_of_url(options))
        if _OPTION.search(name):
            remember(options)


def remember_arguments(arguments: Iterable[str]) -> None:
    """Hide the credentials of every URL among the arguments of a command line.

    An argument in the wrong place is quoted by an error before anything reads it as a URL.
    """
    for argument in arguments:
        for text in {argument, argument.partition("=")[2]}:
            if _ARGUMENT.match(text):
                remember_url(text)


def decoded_url(text: str) -> str | None:
    """The URL that a text is once it is percent-decoded, also twice; None if it is none."""
    decoded = text.strip()
    for _ in range(3):
        if (once := unquote(decoded)) == decoded:
            return None
        decoded = once
        if _SCHEME.match(decoded) or "@" in decoded:
            return decoded
    return None


def _secrets_of_url(url: str) -> Iterator[str]:
    """Every part of a URL that may be a secret, however the URL is read."""
    match = _SCHEME.match(url.strip())
    if match is None and (decoded := decoded_url(url)) is not None:
        yield url.strip()
        yield from _secrets_of_url(decoded)
        return
    rest = url.strip()[match.end() :] if match else url.strip()
    if match and _is_local(match[1]) and len(match[2]) != 2:
        return
    before_query, _, query = rest.partition("?")
    for userinfo in {before_query.rpartition("@")[0], rest.rpartition("@")[0]} - {""}:
        yield from _secrets_of_userinfo(userinfo)
    if "@" not in rest:
        authority = before_query.partition("/")[0]
        _, colon, port = authority.partition(":")
        if colon and not (port.isdigit() or authority.startswith(("[", "arn:"))):
            yield before_query
            yield port
    if setting := _SETTING.search(url):
        yield from _secrets_of_settings(url[setting.start() :])
    for parameter in query.split("&"):
        name, _, value = parameter.partition("=")
        if name not in _SAFE_PARAMETERS and (
            not _SHORT_NUMBER.fullmatch(value) or _OPTION.search(name)
        ):
            yield value or name
            yield unquote_plus(value)
            yield from (part for part in re.split(r"[@:/?#&=]", value) if len(part) >= 4)


def _secrets_of_settings(text: str) -> Iterator[str]:
    """The values of a connection string, such as ``password=x user=y`` or ``Pwd=x;Uid=y``."""
    for part in {text, *re.split(r"[\s;&#]", text)}:
        if _SETTING.match(part) and (value := part.partition("=")[2].strip()):
            yield value
            yield from (one for one in re.split(r"[@:/?#&=;\s]", value) if len(one) >= 4)


def _secrets_of_userinfo(userinfo: str) -> Iterator[str]:
    user, colon, password = userinfo.partition(":")
    if not colon and user.isalpha() and len(user) < 8:
        return  # a plain user name, such as git
    yield userinfo
    yield password if colon else user
    if len(user) >= 12 and not user.isalpha():
        yield user
        yield from (part for part in re.split(r"[@:/?#&=]", user) if len(part) >= 4)
    parts = (part for part in re.split(r"[@:/?#&=]", password) if len(part) >= 2)
    yield from (part for part in parts if "?" not in userinfo or _is_distinctive(part))


def _environment_secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        if _names_a_secret(name) and not _is_path(name, value):
            if len(value) >= 6:
                yield value.strip()
        elif ":/" in value and ("@" in value or "?" in value):
            for part in value.split():
                if _SCHEME.match(part):
                    yield from _secrets_of_url(part)
        elif setting := _SETTING.search(value) if "CONNECTION_STRING" in name else None:
            yield from _secrets_of_settings(value[setting.start() :])
        elif name.startswith("FSSPEC_") and value.startswith("{"):
            yield from _VALUE_IN_JSON.findall(value)


_VALUE_IN_JSON = re.compile(
    r'"[^"]*(?:key|secret|token|passw|credential|sas)[^"]*"\s*:\s*"([^"]{6,})"', re.IGNORECASE
)


@lru_cache(1024)
def _names_a_secret(variable: str) -> bool:
    return bool(_ENVIRONMENT.search(variable))


def _is_path(name: str, value: str) -> bool:
    """Whether the value of a variable is the path of a file, as of Google's credentials."""
    if not value.startswith(("/", ".", "~")):
        return False
    return name.upper().endswith("CREDENTIALS") or os.path.exists(os.path.expanduser(value))


@lru_cache(_MAX_REMEMBERED)
def _spellings(secret: str) -> tuple[str, ...]:
    """The secret as given and decoded; :func:`_pattern` finds what libraries make of each."""
    forms = {secret, unquote(secret)} - {""}
    for form in [one for one in forms if not one.isascii()]:
        forms |= {normalize("NFC", form), normalize("NFD", form)}
        forms.add(form.encode("utf-8", "replace").decode("latin-1"))
    return tuple(forms)


@lru_cache(4 * _MAX_REMEMBERED)
def _core(secret: str) -> str:
    """A part of a secret that every form of it contains."""
    return max(re.findall("[A-Za-z0-9]+", secret), key=len, default="")


@lru_cache(4 * _MAX_REMEMBERED)
def _pattern(secret: str) -> re.Pattern[str]:
    """Finds a secret whose signs are written as they are, percent-encoded, or escaped.

    URLs, JSON, HTML, Python, the shell and databases each escape other signs.
    """
    return re.compile("".join(_forms(sign) for sign in secret))


def _forms(sign: str) -> str:
    """A pattern of the forms of one character."""
    if sign.isascii() and sign.isalnum():
        return sign
    data = sign.encode("utf-8", "replace")
    percent = ("".join(f"%(?:25)?(?i:{byte:02x})" for byte in data),)
    python = "".join(rf"\\+x(?i:{byte:02x})" for byte in data)
    code = f"{ord(sign):x}"
    escapes = [rf"\\+[uU](?i:0*{code})", python, f"&#(?:{ord(sign)}|(?i:x0*{ord(sign):x}));"]
    if ord(sign) < 256:
        escapes.append(rf"\\+x(?i:{ord(sign):02x})")
    if ord(sign) > 0xFFFF:  # JSON writes two halves
        high, low = struct.unpack("<HH", sign.encode("utf-16-le"))
        escapes.append(rf"\\+u(?i:{high:04x})\\+u(?i:{low:04x})")
    escapes += [rf"\\+{escape}" for escape in _ESCAPES.get(sign, ())]
    escapes += [re.escape(one) for one in _REPLACEMENTS.get(sign, ())]
    plain = rf"\\*{re.escape(sign)}" if sign in "'\"" else re.escape(sign)
    if sign == "\\":
        plain = r"\\+"
    return f"(?:{'|'.join([*escapes, *percent, plain])})"


_ESCAPES = {"\n": "n", "\t": "t", "\r": "r"}
_REPLACEMENTS = {
    " ": ("+",),
    "&": ("&amp;",),
    "<": ("&lt;",),
    ">": ("&gt;",),
    '"': ("&quot;", "&#34;"),
    "'": ("&#x27;", "&#39;", "''", "'\"'\"'"),
}


def _is_distinctive(secret: str) -> bool:
    """Whether a text that contains ``secret`` can only contain it as the secret."""
    if len(secret) >= 16:
        return True
    if secret.isdigit() or len(secret) < 4:
        return len(secret) >= 8
    return not secret.isalpha() or (len(secret) >= 8 and not secret.islower())


# --------------------------------------------------------------------------------------- text


def redact(text: str, *, foreign: bool = False) -> str:
    """``text`` without secrets.

    Args:
        text: any text.
        foreign: the text comes from another library, so a known secret that is an ordinary word
            is hidden in it too. In our own sentences that would hide the word itself.
    """
    secrets = dict.fromkeys((*_remembered, *_environment_secrets()))
    spellings = {spelling for secret in secrets for spelling in _spellings(secret)}
    for secret in sorted(spellings, key=len, reverse=True):
        if _core(secret) not in text:
            continue
        if _is_distinctive(secret):
            text = _pattern(secret).sub(HIDDEN, text)
        elif foreign:
            text = re.sub(rf"(?<!\w){_pattern(secret).pattern}(?!\w)", HIDDEN, text)
    text = _PRIVATE_KEY.sub(rf"\1{HIDDEN}", text)
    text = _ENCODED.sub(_hide_login, text)
    text = _IN_TEXT.sub(_hide_userinfo, text)
    text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    text = _KEYS.sub(lambda match: f"{match[1] or match[2] or match[3]}{HIDDEN}", text)
    text = _JWT.sub(rf"\1{HIDDEN}", text)
    text = _BASIC.sub(rf"\1{HIDDEN}", text)
    return _BEARER.sub(rf"\1{HIDDEN}", text)


def _hide_login(match: re.Match[str]) -> str:
    """Hide ``user:password`` in base64, as a header of HTTP has it."""
    try:
        decoded = b64decode(match[0], validate=True).decode()
    except ValueError:
        return match[0]
    return HIDDEN if decoded.isprintable() and _LOGIN.fullmatch(decoded) else match[0]


def _hide_userinfo(match: re.Match[str]) -> str:
    """Hide what precedes an ``@`` in a URL, unless it is only host and path."""
    authority, slash, path = match[2].partition("/")
    _, colon, port = authority.rpartition(":")
    is_host = slash and (not colon or port.isdigit() or port.endswith("]"))
    if (is_host and ":" not in path) or match[2] == "USER":
        return match[0]
    return f"{match[1]}{HIDDEN}@"


def redact_url(url: str) -> str:
    """A URL as it may be shown: scheme, host and path, without user, password and parameters.

    Where the parts can't be told apart with certainty, only the scheme is shown.
    """
    url = url.strip()
    match = _SCHEME.match(url)
    if match is None and decoded_url(url) is not None:
        return HIDDEN
    if match is None or (not match[2] and "@" in url):
        return HIDDEN if re.search(r"[@:?]", url) or _SETTING.search(url) else url
    scheme, slashes, rest = match[1], match[2], url[match.end() :]
    if slashes in ("", "/"):
        return f"{scheme}:{slashes}{HIDDEN}"
    start = f"{scheme}://"
    if _is_local(scheme) and (len(slashes) > 2 or "@" not in rest):
        path, mark, _ = rest.partition("?")
        return f"{scheme}:{slashes}{_without_settings(path)}" + (f"?{HIDDEN}" if mark else "")
    rest = slashes[2:] + rest
    before, at, after = rest.rpartition("@")
    if at and (re.search("[?#@]", before) or _SETTING.search(before)):
        return start + HIDDEN  # either @ may belong to a password or a parameter
    place, _, query = re.sub("#", "?", after, count=1).partition("?")
    authority = place.partition("/")[0]
    if not _is_host(authority):
        return start + HIDDEN
    place = _without_settings(place)
    shown = f"{start}{HIDDEN}@{place}" if at else start + place
    return shown + _safe_query(query)


def _without_settings(path: str) -> str:
    """A path up to the first setting of a secret, as where ``;`` stands in place of ``?``."""
    setting = _SETTING.search(path)
    return path[: setting.start()] + HIDDEN if setting else path


def redact_source(name: str) -> str:
    """The name of a base, or of an adapter's source, as it may be shown."""
    prefix = "hf:" if name.startswith("hf:") else ""
    rest = name.removeprefix(prefix)
    match = _SCHEME.match(rest)
    if match and match[2]:
        return prefix + redact_url(rest)
    place, mark, _ = rest.partition("?")
    before, at, _ = place.rpartition("@")
    if (at or mark) and re.search(r"[:&=@\s]", before if at else place):
        place = HIDDEN
    return redact(prefix + _without_settings(place) + (f"?{HIDDEN}" if mark else ""))


def _is_local(scheme: str) -> bool:
    return scheme.partition("+")[0] == "sqlite" or scheme in _FILE_SCHEMES


def _is_host(authority: str) -> bool:
    """Whether a text is a host, perhaps with a port, or the name of a bucket."""
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        return True
    return port.isdigit() and (":" not in host or host.startswith("["))


def _safe_query(query: str) -> str:
    """The parameters of a URL that hold no secret; the others are indicated."""
    if not query:
        return ""
    pairs = parse_qsl(query, keep_blank_values=True)
    safe = [f"{name}={value}" for name, value in pairs if name in _SAFE_PARAMETERS]
    hidden = [HIDDEN] if len(safe) < len(pairs) or not pairs else []
    return "?" + "&".join([*safe, *hidden])


# --------------------------------------------------------------------------------- exceptions


_Error = TypeVar("_Error", bound=BaseException)


def redact_exception(error: _Error) -> _Error:
    """Remove secrets from an exception and from all that led to it, in place; returns it."""
    seen: set[int] = set()
    pending: list[BaseException] = [error]
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        _redact_one(current)
        for name in ("__cause__", "__context__", "orig"):
            linked = getattr(current, name, None)
            if isinstance(linked, BaseException):
                pending.append(linked)
                if _shows_secret(linked):
                    _replace(current, name, linked)
        pending.extend(getattr(current, "exceptions", ()))
    return error


def _redact_one(error: BaseException) -> None:
    args = tuple(_redacted_value(value) for value in error.args)
    if args != error.args:
        error.args = args
    for name in ("message", "hint", "filename", "filename2", "strerror", "msg", "doc", "reason"):
        value = getattr(error, name, None)
        if isinstance(value, str) and (clean := redact(value, foreign=True)) != value:
            try:
                setattr(error, name, clean)
            except (AttributeError, TypeError):
                continue
    if notes := getattr(error, "__notes__", None):
        error.__notes__ = [redact(str(note), foreign=True) for note in notes]


def _redacted_value(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value, foreign=True)
    if isinstance(value, tuple):
        return tuple(_redacted_value(one) for one in value)
    return value


def _shows_secret(error: BaseException) -> bool:
    _redact_one(error)
    try:
        text = f"{error}\n{error!r}"
    except Exception:  # an exception of a plugin that can't be converted shows nothing
        return False
    return redact(text, foreign=True) != text


def _replace(holder: BaseException, name: str, linked: BaseException) -> None:
    """Replace an exception that can't be changed by one of the same text without the secrets."""
    text = redact(f"{type(linked).__name__}: {linked}", foreign=True)
    substitute = RuntimeError(text).with_traceback(linked.__traceback__)
    substitute.__cause__ = linked.__cause__
    suppressed = holder.__suppress_context__
    setattr(holder, name, substitute)
    holder.__suppress_context__ = suppressed


# --------------------------------------------------------------------------------------- logs


def redact_logs() -> None:
    """Let every log record of this process pass through :func:`redact`."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def make_redacted(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        try:
            message = record.getMessage()
        except Exception:  # the logging module reports wrong arguments itself
            return record
        clean = redact(message, foreign=True)
        if clean != message:
            record.msg, record.args = clean, ()
        if record.exc_info and record.exc_info[1] is not None:
            redact_exception(record.exc_info[1])
        return record

    make_redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted)
