"""How a server listens and what it takes.

Owns: the limits and their ranges, and what counts as this machine alone. Must not know: the web
framework.
"""

from __future__ import annotations

import ipaddress
import math
import socket
from dataclasses import dataclass

from trunkline.errors import UsageError
from trunkline.refs import shown

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
}
"""Field of :class:`ServerSettings` → its type, least and most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The address and the limits of one server; times are in seconds.

    Attributes:
        host: a name or an address of this machine.
        port: 0 takes a free one.
        max_body_bytes: of a request's body.
        max_header_bytes: of a request's headers together.
        max_prompt_chars: of all texts of one request together.
        max_inputs: texts in one request.
        max_new_tokens: the most that a request may ask for.
        max_requests: in flight at once; the next one is told to come back.
        request_timeout: from submission to the end of an answer.
        read_timeout: for the head of a request to arrive, and for its body.
        write_timeout: a client that takes nothing for so long is given up, and its work with it.
        drain_seconds: for what is in flight when the server is told to end.
        workers: threads for what blocks: the registry, and loading adapters.
        log_requests: whether each request leaves a line in the registry.
        log_text: whether that line holds what was asked and answered.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_body_bytes: int = 1 << 20
    max_header_bytes: int = 16 << 10
    max_prompt_chars: int = 200_000
    max_inputs: int = 256
    max_new_tokens: int = 1024
    max_requests: int = 1024
    request_timeout: float = 300.0
    read_timeout: float = 30.0
    write_timeout: float = 30.0
    drain_seconds: float = 30.0
    workers: int = 8
    log_requests: bool = True
    log_text: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.host, str) or not self.host.strip():
            raise UsageError(
                f"The host can't be {shown(self.host)}.", "Give an address such as 127.0.0.1."
            )
        for name, (kind, least, most) in RANGES.items():
            value = getattr(self, name)
            typed = isinstance(value, int) or (kind is float and isinstance(value, float))
            if isinstance(value, bool) or not typed or not least <= value <= most:
                raise UsageError(
                    f"The server's {name} can't be {value!r}.", f"Give {least:g} to {most:,g}."
                )
            if not math.isfinite(value):
                raise UsageError(f"The server's {name} can't be {value!r}.", "Give a number.")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``: every address that it stands for is loopback.

    Raises:
        UsageError: the name stands for no address.
    """
    return all(ipaddress.ip_address(address).is_loopback for address in addresses(host))


def addresses(host: str) -> list[str]:
    """What ``host`` stands for, in the order of preference.

    Raises:
        UsageError: nothing.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"The host {shown(host)} has no address here.", "Give an address such as 127.0.0.1."
        ) from error
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
