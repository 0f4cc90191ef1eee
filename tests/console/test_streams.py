"""Streams over a socket: a thousand of them, and the answer to those beyond the limits."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
import uvicorn

from console_site import Site
from trunkline.console.routes.runs import STREAMS, STREAMS_OF_KEY

FILES = 3 * STREAMS
"""Both ends of every stream are in this process."""


@pytest.fixture(scope="module")
def port(site: Site) -> Iterator[int]:
    """The port on which the site listens."""
    server = uvicorn.Server(
        uvicorn.Config(site.app, lifespan="off", log_config=None, access_log=False, backlog=512)
    )
    with closing(socket.create_server(("127.0.0.1", 0), backlog=512)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def run(site: Site) -> Iterator[int]:
    """A run that goes on."""
    runs = site.platform.registry.runs
    model = runs.get(1)
    number = runs.start(
        recipe=model.recipe, base_digest=model.base_digest, dataset_id=model.dataset_id, seed=1,
        settings={}, environment={},
    )  # fmt: skip
    runs.log_metrics(number, 1, {"loss": 2.0})
    yield number
    runs.finish(number, "finished")


def connect(port: int, path: str, secret: str) -> socket.socket:
    """A connection that has sent a request."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(
        f"GET /console{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Bearer {secret}\r\nAccept: application/json\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    return connection


def answer_of(connection: socket.socket) -> bytes:
    """Its complete answer."""
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def status(connection: socket.socket) -> int:
    """The status of its answer."""
    return int(connection.recv(4096).split(b" ", 2)[1])


def test_thousand_streams_leave_the_server_answering(site: Site, port: int, run: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), hard))
    registry = site.platform.registry
    path = f"/runs/{run}/stream"
    keys = [
        registry.keys.create(f"reader {number}", role="viewer")[1]
        for number in range(STREAMS // STREAMS_OF_KEY + 1)
    ]
    with ExitStack() as stack:
        streams = [
            stack.enter_context(closing(connect(port, path, keys[number // STREAMS_OF_KEY])))
            for number in range(STREAMS)
        ]
        assert {status(one) for one in streams} == {200}
        with closing(connect(port, path, keys[-1])) as refused:
            answer = answer_of(refused)
        assert b" 429 " in answer.split(b"\r\n", 1)[0]
        assert b"1,000 streams are open" in answer
        with closing(connect(port, "/runs", keys[0])) as page:
            assert status(page) == 200
    deadline = time.monotonic() + 30
    while True:  # the server notices ends when it writes
        with closing(connect(port, path, keys[-1])) as again:
            if status(again) == 200:
                break
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_one_key_does_not_take_the_streams_of_others(site: Site, port: int, run: int) -> None:
    path = f"/runs/{run}/stream"
    greedy, other = site.secrets["viewer"], site.secrets["tester"]
    with ExitStack() as stack:
        streams = [
            stack.enter_context(closing(connect(port, path, greedy))) for _ in range(STREAMS_OF_KEY)
        ]
        assert {status(one) for one in streams} == {200}
        with closing(connect(port, path, greedy)) as refused:
            answer = answer_of(refused)
        assert b"streams of your key are open" in answer
        with closing(connect(port, path, other)) as accepted:
            assert status(accepted) == 200
