"""The address and the limits of a server."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from trunkline.errors import UsageError
from trunkline.refs import shown
from trunkline.settings import check_value

RANGES: dict[str, tuple[type[int] | type[float], float, float]] = {
    "port": (int, 0, 65535),
    "max_body_bytes": (int, 1024, 1 << 30),
    "max_header_bytes": (int, 1024, 1 << 20),
    "max_prompt_chars": (int, 1, 1 << 30),
    "max_inputs": (int, 1, 10_000),
    "max_new_tokens": (int, 1, 1 << 20),
    "max_requests": (int, 1, 100_000),
    "request_timeout": (float, 0.1, 86_400),
    "read_timeout": (float, 0.1, 3_600),
    "write_timeout": (float, 0.1, 3_600),
    "drain_seconds": (float, 0, 86_400),
    "workers": (int, 1, 256),
    "metric_versions": (int, 1, 10_000),
}
"""Field of :class:`ServerSettings` → its type, minimum and maximum."""

_OPTIONAL = frozenset({"max_new_tokens"})

ANY_ORIGIN = "*"

_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The address and the limits of one server; times are in seconds.

    Attributes:
        host: a name or an address of this machine.
        port: 0 takes a free one.
        max_body_bytes: size of a request's body.
        max_header_bytes: size of all headers of a request.
        max_prompt_chars: characters of all texts of a request.
        max_inputs: texts of a request.
        max_new_tokens: the largest ``max_tokens`` that a request may set; None: as many as the
            context has room for.
        max_requests: requests in flight; more are refused with 429.
        request_timeout: from a request's arrival to the end of its answer.
        read_timeout: for the head of a request to arrive, and for its body.
        write_timeout: how long a client may stop reading before its request is cancelled.
        drain_seconds: for requests in flight to finish after the first signal.
        workers: threads for registry queries, and as many for loading adapters.
        metric_versions: versions with metrics of their own: the most used ones.
        log_requests: write a line in the registry for each request.
        log_text: also write the request's input and output.
        open_metrics: answer ``GET /metrics`` without a key, although it names all adapters.
        cors_origins: origins such as ``https://chat.example.org`` whose pages may use the server;
            ``*`` is any, and every request needs a key then.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_body_bytes: int = 1 << 20
    max_header_bytes: int = 16 << 10
    max_prompt_chars: int = 200_000
    max_inputs: int = 256
    max_new_tokens: int | None = None
    max_requests: int = 1024
    request_timeout: float = 300.0
    read_timeout: float = 30.0
    write_timeout: float = 30.0
    drain_seconds: float = 30.0
    workers: int = 8
    metric_versions: int = 200
    log_requests: bool = True
    log_text: bool = False
    open_metrics: bool = False
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.host, str) or not self.host.strip():
            raise UsageError(
                f"host can't be {shown(self.host)}.", "Give an address such as 127.0.0.1."
            )
        for name, (kind, minimum, maximum) in RANGES.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            check_value(name, value, kind, least=minimum, most=maximum)
        object.__setattr__(self, "cors_origins", tuple(map(check_origin, self.cors_origins)))


def check_origin(text: str) -> str:
    """An origin as browsers send it: scheme, host and, if it is not the default, port.

    Raises:
        UsageError: it is neither an origin nor ``*``.
    """
    origin = text.strip().lower().removesuffix("/")
    if origin == ANY_ORIGIN:
        return origin
    if not _ORIGIN.fullmatch(origin):
        raise UsageError(
            f"{shown(text)} is not the origin of a web page.",
            "Give scheme, host and port only, such as https://chat.example.org or "
            "http://localhost:3000.",
        )
    default = ":443" if origin.startswith("https:") else ":80"
    return origin.removesuffix(default)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``: all its addresses are loopback addresses.

    Raises:
        UsageError: the name has no address.
    """
    return all(ipaddress.ip_address(address).is_loopback for address in addresses(host))


def addresses(host: str) -> list[str]:
    """The addresses of ``host``, in order of preference.

    Raises:
        UsageError: there are none.
    """
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"The host {shown(host)} has no address.", "Give an address such as 127.0.0.1."
        ) from error
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in entries))
