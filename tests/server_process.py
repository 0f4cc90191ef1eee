"""Servers for tests: in a process of its own, or as an application in this process."""

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
from fastapi.testclient import TestClient
from openai import OpenAI

from trunkline.api import Platform
from trunkline.serving.app import create_app
from trunkline.serving.settings import ServerSettings

MESSAGES: Any = [{"role": "user", "content": "The quick brown fox"}]

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
    """One server process, as an operator runs it; what it wrote to stderr is in :attr:`output`.

    Args:
        workspace: folder of the workspace.
        base: folder of the base.
        files: limit of open files.
        settings: of ``ServerSettings``; by default the port is a free one.
    """

    def __init__(
        self, workspace: Path, base: Path, *, files: int | None = None, **settings: Any
    ) -> None:
        self.workspace = workspace
        fields = json.dumps({"port": 0} | settings)
        limit = [] if files is None else [str(files)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(workspace), str(base), fields, *limit],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.output = ""
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=read, daemon=True)
            for read in (self._read_lines, self._read_errors)
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
        """Wait until the process exits; returns what it wrote to stderr."""
        self.process.wait(_START_SECONDS)
        for reader in self._readers:
            reader.join()
        return self.output

    def stop(self) -> int:
        """Send SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_START_SECONDS)

    def client(self, key: str = "none") -> OpenAI:
        """OpenAI's client, unmodified."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return httpx2.get(self.url + path, timeout=60).json()

    @contextmanager
    def stream(self, path: str, body: dict[str, Any]) -> Iterator[httpx2.Response]:
        """Open a stream without reading from it; leaving the context closes the connection."""
        with (
            httpx2.Client(timeout=60) as client,
            client.stream("POST", self.url + path, json={**body, "stream": True}) as response,
        ):
            yield response

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as errors:
            self.output = errors.read()


@contextmanager
def app_client(
    platform: Platform, settings: ServerSettings, *, host: str = "127.0.0.1"
) -> Iterator[TestClient]:
    """A client of an application in this process; the base may still be loading."""
    with TestClient(create_app(platform, settings), base_url=f"http://{host}") as client:
        yield client


@contextmanager
def ready_client(platform: Platform, settings: ServerSettings) -> Iterator[TestClient]:
    """A client of an application in this process whose base is loaded."""
    with app_client(platform, settings) as client:
        wait_until(lambda: client.get("/ready").status_code == 200, "the base is loaded")
        yield client


def openai_client(http: TestClient, key: str = "none", **options: Any) -> OpenAI:
    """OpenAI's client, unmodified, on a client of an application."""
    options = {"max_retries": 0, "timeout": None} | options
    return OpenAI(base_url="http://127.0.0.1/v1", api_key=key, http_client=http, **options)


def chat_body(**fields: Any) -> dict[str, Any]:
    """A chat request for a short, deterministic answer of the base, with other fields."""
    return {"model": "base", "messages": MESSAGES, "temperature": 0, "max_tokens": 6, **fields}


def wait_until(condition: Callable[[], bool], description: str) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"Timed out waiting until {description}."
        time.sleep(0.02)
