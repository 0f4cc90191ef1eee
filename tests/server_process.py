"""A server in a process of its own, as an operator runs it.

Owns: starting, asking and ending it. Must not know: what is tested.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
from openai import OpenAI

_START_SECONDS = 120.0
_WAIT_SECONDS = 30.0

_PROGRAM = """
import json, resource, sys
import trunkline
from trunkline.errors import TrunklineError
from trunkline.serving.run import serve
from trunkline.serving.settings import ServerSettings

for files in sys.argv[4:]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), int(files)))
platform = trunkline.open(sys.argv[1], base=sys.argv[2], no_plugins=True)
try:
    serve(platform, ServerSettings(**json.loads(sys.argv[3])), lambda url: print(url, flush=True))
except TrunklineError as error:
    print(error.message, error.hint, file=sys.stderr)
    sys.exit(error.exit_code)
"""


class ServerProcess:
    """One server; its output is in :attr:`output` when it has ended.

    Args:
        workspace: of the platform.
        base: folder of the base.
        files: that the process may open at most.
        settings: for ``ServerSettings``; the port is a free one unless given.
    """

    def __init__(
        self, workspace: Path, base: Path, *, files: int | None = None, **settings: Any
    ) -> None:
        self.workspace = workspace
        told = json.dumps({"port": 0} | settings)
        limit = [] if files is None else [str(files)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(workspace), str(base), told, *limit],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.output = ""
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=read, daemon=True) for read in (self._listen, self._read_errors)
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        self.url = self._lines.get(timeout=_START_SECONDS).strip()
        assert self.url, self.finish()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.finish()

    def finish(self) -> str:
        """Wait for the process to end by itself; gives what it wrote to stderr."""
        self.process.wait(_START_SECONDS)
        for reader in self._readers:
            reader.join()
        return self.output

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_START_SECONDS)

    def client(self, key: str = "none") -> OpenAI:
        """OpenAI's own client, unmodified."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return httpx2.get(self.url + path, timeout=60).json()

    @contextmanager
    def stream(self, path: str, body: dict[str, Any]) -> Iterator[httpx2.Response]:
        """A stream, of which nothing is read yet; leaving it closes the connection."""
        with (
            httpx2.Client(timeout=60) as client,
            client.stream("POST", self.url + path, json={**body, "stream": True}) as response,
        ):
            yield response

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as written:
            self.output = written.read()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Ask again and again until something holds."""
    until = time.monotonic() + _WAIT_SECONDS
    while not holds():
        assert time.monotonic() < until, what
        time.sleep(0.05)
