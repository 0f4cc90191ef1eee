"""Help at a wrong address: the page at ``/``, the base URL, and the path that was meant."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

BASE_PATH = "/v1"

PAGES = frozenset({"/", BASE_PATH})
"""Paths that tell a person what this is; they need no key and tell nothing else."""

_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", re.ASCII)

router = APIRouter()


@router.get("/", include_in_schema=False)
@router.get(BASE_PATH, include_in_schema=False)
async def page(request: Request) -> PlainTextResponse:
    """Tell a person what this server is, and what to configure in a client."""
    url = base_url(request)
    return PlainTextResponse(
        "This is Trunkline: one base and many adapters, behind OpenAI's API.\n\n"
        f"Base URL for clients:  {url}\n"
        f"Models:                GET {url}/models\n"
        "All routes:            GET /openapi.json\n"
    )


def base_url(request: Request) -> str:
    """The URL that clients need, as this client reached the server."""
    host = request.headers.get("host", "")
    host = host if _HOST.fullmatch(host) else "HOST"
    return f"{request.url.scheme}://{host}{BASE_PATH}"


def meant_path(path: str, known: Iterable[str]) -> str | None:
    """The known path that a wrong one probably means: with a prefix too many, or without one."""
    paths = [one for one in known if one not in PAGES and "{" not in one]
    tidy = re.sub("/+", "/", path).casefold()
    for one in sorted(paths, key=len, reverse=True):
        if tidy.endswith(one.removeprefix(BASE_PATH).casefold()):
            return one
    match = re.search("/models/+(.+)", path, re.IGNORECASE)
    return f"{BASE_PATH}/models/{match[1]}" if match else None
