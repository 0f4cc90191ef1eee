"""The console's script, style sheet and vendored libraries; see ``static/vendor/SHA256SUMS``.

They are sent compressed. Pages are not: they hold a secret (the token of their forms) beside text
that others chose, and the length of a compressed page would reveal it, letter by letter (BREACH).
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

FOLDER = Path(__file__).parent / "static"

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class StaticFiles:
    """The files of ``static/``, read once; only their exact names are answered."""

    def __init__(self) -> None:
        self._files = {
            path.relative_to(FOLDER).as_posix(): path.read_bytes()
            for path in sorted(FOLDER.rglob("*"))
            if path.suffix in _TYPES
        }
        self._tags = {name: _tag(content) for name, content in self._files.items()}
        self._compressed = {
            name: gzip.compress(content, mtime=0) for name, content in self._files.items()
        }

    def respond(self, name: str, scope: Scope) -> Response:
        """The file, 304 if the client has it, or 404."""
        content = self._files.get(name)
        if content is None or scope["method"] != "GET":
            return Response("Not found.", 404, media_type="text/plain")
        headers = {
            "etag": self._tags[name],
            "cache-control": "no-cache",
            "vary": "accept-encoding",
        }
        request_headers = Headers(scope=scope)
        if request_headers.get("if-none-match") == self._tags[name]:
            return Response(None, 304, headers=headers)
        if "gzip" in request_headers.get("accept-encoding", ""):
            content = self._compressed[name]
            headers["content-encoding"] = "gzip"
        return Response(content, headers=headers, media_type=_TYPES[Path(name).suffix])


def _tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:20]}"'
