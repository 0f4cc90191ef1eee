"""A server process with many, slow and disconnecting clients, and its shutdown."""

from __future__ import annotations

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from server_process import MESSAGES, ServerProcess, wait_until
from trunkline.refs import Ref
from trunkline.registry.records import RequestRecord
from trunkline.registry.registry import Registry

LONG: dict[str, Any] = {"model": "toy/plurals", "messages": MESSAGES, "max_tokens": 200, "seed": 1}


def last_logged(server: ServerProcess) -> RequestRecord | None:
    with Registry.open(f"sqlite:///{server.workspace / 'registry.db'}") as registry:
        return next(iter(registry.requests.list(1)), None)


def is_idle(server: ServerProcess) -> bool:
    state = server.get("/admin/state")
    return bool(state["in_flight"] == 1 and state["running"] == state["waiting"] == 0)


def events(response: httpx2.Response) -> list[str]:
    lines = response.read().decode().split("\n\n")
    return [line.removeprefix("data: ") for line in lines if line]


def connect(server: ServerProcess, receive_buffer: int = 0) -> socket.socket:
    """Open a TCP connection."""
    url = httpx2.URL(server.url)
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(60)
    connection.connect((url.host, url.port))
    return connection


def post(connection: socket.socket, path: str, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)


# ---------------------------------------------------------------------------------- many clients


def check_concurrent_streams(server: ServerProcess, count: int) -> None:
    """``count`` streams at once, of three models, equal the same streams one after another."""
    models = ("toy/plurals@1", "toy/plurals@2", "base")

    def text(client: openai.OpenAI, number: int) -> tuple[str, str]:
        chunks = list(
            client.chat.completions.create(
                model=models[number % 3],
                messages=[{"role": "user", "content": f"Say {number % 7}"}],
                max_tokens=24,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert chunks[-1].usage is not None
        texts = (chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        return chunks[-1].model, "".join(texts)

    with server.client() as client, ThreadPoolExecutor(count) as threads:
        alone = {number: text(client, number) for number in range(min(count, 21))}
        concurrent = list(threads.map(lambda number: text(client, number), range(count)))
    assert [model for model, _ in concurrent] == [models[number % 3] for number in range(count)]
    assert concurrent == [alone[number % 21] for number in range(count)]


def test_concurrent_streams_equal_sequential_ones(running: ServerProcess) -> None:
    check_concurrent_streams(running, 24)


@pytest.mark.merge
def test_connections_beyond_the_limit_are_refused(site: Path, tiny: Path) -> None:
    with ServerProcess(site, tiny, files=200) as server, ExitStack() as opened:
        response = b""
        for _ in range(180):
            connection = opened.enter_context(closing(connect(server)))
            with suppress(ConnectionError):
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                response = connection.recv(65536)
                connection.sendall(b"GET /hea")
        assert response.startswith(b"HTTP/1.1 503 ")
        opened.close()
        wait_until(lambda: server.get("/ready")["status"] == "ready", "connections are free again")
        assert server.stop() == 0
    assert server.finish() == ""


@pytest.mark.merge
def test_disconnecting_and_slow_clients_at_shutdown_are_no_errors(site: Path, tiny: Path) -> None:
    heavy = {**LONG, "n": 16, "logprobs": True, "top_logprobs": 20, "stream": True}
    with ServerProcess(site, tiny, drain_seconds=1, write_timeout=60) as server:
        for _ in range(3):
            with closing(connect(server)) as connection:
                post(connection, "/v1/chat/completions", {**LONG, "n": 8})
                wait_until(lambda: server.get("/admin/state")["running"] > 0, "the request runs")
        wait_until(lambda: is_idle(server), "the rows are free")
        with closing(connect(server, receive_buffer=4096)) as connection:
            post(connection, "/v1/chat/completions", heavy)
            wait_until(
                lambda: server.get("/admin/state")["in_flight"] > 1, "a request is in flight"
            )
            time.sleep(1)
            assert server.stop() == 0
    assert server.finish() == ""
    with Registry.open(f"sqlite:///{site / 'registry.db'}") as registry:
        assert len(registry.requests.list()) == 4


def test_openais_client_gets_choices_stops_and_errors(running: ServerProcess) -> None:
    request: dict[str, Any] = {
        "model": "toy/plurals", "messages": MESSAGES, "temperature": 0, "max_tokens": 30,
    }  # fmt: skip
    with running.client() as client:
        completion = client.chat.completions.create(**request, n=3)
        texts = {choice.message.content for choice in completion.choices}
        assert (len(completion.choices), len(texts)) == (3, 1)
        assert completion.usage is not None
        assert completion.usage.completion_tokens <= 3 * 30
        (text,) = texts
        assert text
        stop = text[3:5]
        cut = client.chat.completions.create(**request, stop=[stop]).choices[0]
        assert (cut.message.content, cut.finish_reason) == (text[: text.index(stop)], "stop")
        for wrong, kind in (
            ({"model": "toy/nothing"}, openai.NotFoundError),
            ({"n": 0}, openai.BadRequestError),
            ({"messages": [{"role": "user", "content": ""}]}, openai.UnprocessableEntityError),
        ):
            with pytest.raises(kind) as caught:
                client.chat.completions.create(**{**request, **wrong})
            assert caught.value.body["message"]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/health", 200), ("/v1/models", 200), ("/v1/chat/completions", 405)],
)
def test_head_has_the_headers_of_get_and_no_body(
    running: ServerProcess, path: str, status: int
) -> None:
    with httpx2.Client(base_url=running.url, timeout=60) as client:
        for _ in range(2):  # the connection stays usable
            head, get = client.head(path), client.get(path)
            assert (head.status_code, get.status_code, head.content) == (status, status, b"")
            assert head.headers["content-type"] == get.headers["content-type"]


def test_request_in_flight_keeps_its_version_when_the_alias_moves(
    running: ServerProcess,
) -> None:
    body = {"model": "toy/plurals@live", "messages": MESSAGES, "max_tokens": 150, "seed": 1}
    with Registry.open(f"sqlite:///{running.workspace / 'registry.db'}") as registry:
        registry.aliases.set(Ref("toy", "plurals", "1"), "live")
        with running.stream("/v1/chat/completions", body) as response:
            lines = response.iter_lines()
            first = next(line for line in lines if line)
            registry.aliases.set(Ref("toy", "plurals", "2"), "live")
            models = {
                json.loads(line.removeprefix("data: "))["model"]
                for line in (first, *lines)
                if line and not line.endswith("[DONE]")
            }
        assert models == {"toy/plurals@1"}
        with running.client() as client:
            after = client.chat.completions.create(**{**body, "max_tokens": 1})
        assert after.model == "toy/plurals@2"


@pytest.mark.slow
def test_two_hundred_concurrent_streams(running: ServerProcess) -> None:
    check_concurrent_streams(running, 200)
    wait_until(lambda: is_idle(running), "the rows are free")


@pytest.mark.slow
def test_ten_thousand_unknown_models_use_no_memory(running: ServerProcess) -> None:
    def series() -> int:
        text = httpx2.get(running.url + "/metrics", timeout=60).text
        return sum(not line.startswith("#") for line in text.splitlines())

    def resident_bytes() -> int:
        pages = Path(f"/proc/{running.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096

    def status(client: httpx2.Client, number: int) -> int:
        body = {"model": f"toy/unknown-{number}", "messages": MESSAGES}
        return client.post("/v1/chat/completions", json=body).status_code

    with httpx2.Client(base_url=running.url, timeout=60) as client:
        assert {status(client, number) for number in range(1000)} == {404}
        series()
        series_before, bytes_before = series(), resident_bytes()
        assert {status(client, number) for number in range(1000, 10_000)} == {404}
    assert series() == series_before
    assert resident_bytes() - bytes_before < 32 << 20


# --------------------------------------------------------------------------- disconnecting clients


def test_disconnecting_during_a_stream_frees_the_row(running: ServerProcess) -> None:
    with running.stream("/v1/chat/completions", {**LONG, "n": 4}) as response:
        next(response.iter_bytes(1))
    wait_until(lambda: is_idle(running), "the row is free")
    logged = last_logged(running)
    assert logged is not None
    assert (logged.status, logged.version) == (499, "toy/plurals@2")
    assert logged.new_tokens < 4 * 200


def test_disconnecting_before_the_answer_frees_the_row(running: ServerProcess) -> None:
    with closing(connect(running)) as connection:
        post(connection, "/v1/chat/completions", {**LONG, "n": 8})
        wait_until(lambda: running.get("/admin/state")["running"] > 0, "a request is running")
    wait_until(lambda: is_idle(running), "the row is free")
    logged = last_logged(running)
    assert logged is not None
    assert logged.status == 499


def test_request_of_a_client_that_does_not_read_is_cancelled(running: ServerProcess) -> None:
    heavy = {**LONG, "n": 16, "logprobs": True, "top_logprobs": 20, "stream": True}
    with closing(connect(running, receive_buffer=4096)) as connection:
        post(connection, "/v1/chat/completions", heavy)
        wait_until(lambda: running.get("/admin/state")["in_flight"] > 1, "a request is in flight")
        wait_until(lambda: is_idle(running), "the request is cancelled")
        logged = last_logged(running)
        assert logged is not None
        assert logged.status == 499


def test_connection_without_a_complete_head_is_closed(running: ServerProcess) -> None:
    with closing(connect(running)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert connection.recv(1) == b""


def test_connection_with_an_incomplete_second_head_is_closed(running: ServerProcess) -> None:
    with closing(connect(running)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        response = b""
        while not response.endswith(b'{"status":"alive"}'):
            response += connection.recv(65536)
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert connection.recv(1) == b""


# --------------------------------------------------------------------------------- malformed HTTP


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: minus one\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000,
    ],
    ids=["not HTTP", "invalid length", "large header"],
)
def test_malformed_http_is_an_error_in_openais_format(running: ServerProcess, data: bytes) -> None:
    with closing(connect(running)) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


# --------------------------------------------------------------------------------------- shutdown


@pytest.mark.merge
def test_draining_server_finishes_requests_in_flight(site: Path, tiny: Path) -> None:
    with ServerProcess(site, tiny) as server, ExitStack() as stack:
        request = {**LONG, "n": 4, "stream_options": {"include_usage": True}}
        streams = [
            stack.enter_context(server.stream("/v1/chat/completions", request)) for _ in range(6)
        ]
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx2.get(server.url + "/ready").status_code == 503, "draining")
        assert httpx2.get(server.url + "/health").status_code == 200
        refused = httpx2.post(server.url + "/v1/chat/completions", json=LONG)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        for stream in streams:
            received = events(stream)
            assert received[-1] == "[DONE]"
            assert json.loads(received[-2])["usage"]["completion_tokens"] > 0
        assert "Traceback" not in server.finish()
        assert server.process.returncode == 0
    with Registry.open(f"sqlite:///{site / 'registry.db'}") as registry:
        assert [row.status for row in registry.requests.list()] == [200] * 6


@pytest.mark.merge
def test_killed_server_restarts_and_cancels_late_requests(site: Path, tiny: Path) -> None:
    with (
        ServerProcess(site, tiny) as server,
        server.stream("/v1/chat/completions", {**LONG, "n": 8}),
    ):
        server.process.kill()
    with ServerProcess(site, tiny, drain_seconds=0) as server:
        completion = server.client().chat.completions.create(**{**LONG, "max_tokens": 4})
        assert completion.model == "toy/plurals@2"
        with server.stream("/v1/chat/completions", {**LONG, "n": 16}) as stream:
            server.process.send_signal(signal.SIGTERM)
            last = json.loads(events(stream)[-1])
        assert last["error"]["code"] == "unavailable"
        assert "Traceback" not in server.finish()
        assert server.process.returncode == 0


@pytest.mark.slow
def test_second_signal_ends_a_server_at_once(site: Path, tiny: Path) -> None:
    with (
        ServerProcess(site, tiny) as server,
        server.stream("/v1/chat/completions", {**LONG, "n": 16}),
    ):
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx2.get(server.url + "/ready").status_code == 503, "draining")
        assert server.stop() == -signal.SIGTERM
