"""A real server process and its real clients: many, slow, gone; and how it ends."""

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

from server_process import ServerProcess, wait_until
from trunkline.refs import Ref
from trunkline.registry.records import RequestRecord
from trunkline.registry.registry import Registry

SAID: Any = [{"role": "user", "content": "The quick brown fox"}]
LONG: dict[str, Any] = {"model": "toy/plurals", "messages": SAID, "max_tokens": 200, "seed": 1}


def last_logged(server: ServerProcess) -> RequestRecord | None:
    with Registry.open(f"sqlite:///{server.workspace / 'registry.db'}") as registry:
        return next(iter(registry.requests.list(1)), None)


def is_idle(server: ServerProcess) -> bool:
    told = server.get("/admin/state")
    return bool(told["in_flight"] == 1 and told["running"] == told["waiting"] == 0)


def events(response: httpx2.Response) -> list[str]:
    lines = response.read().decode().split("\n\n")
    return [line.removeprefix("data: ") for line in lines if line]


def connect(server: ServerProcess, receive_buffer: int = 0) -> socket.socket:
    """A bare connection."""
    url = httpx2.URL(server.url)
    made = socket.socket()
    if receive_buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.settimeout(60)
    made.connect((url.host, url.port))
    return made


def post(connection: socket.socket, path: str, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)


# ---------------------------------------------------------------------------------- many clients


def ask_all(server: ServerProcess, count: int) -> None:
    """``count`` streams at once, over three models; each must be what it is alone."""
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
        said = (one.choices[0].delta.content or "" for one in chunks if one.choices)
        return chunks[-1].model, "".join(said)

    with server.client() as client, ThreadPoolExecutor(count) as threads:
        alone = {number: text(client, number) for number in range(min(count, 21))}
        told = list(threads.map(lambda number: text(client, number), range(count)))
    assert [one[0] for one in told] == [models[number % 3] for number in range(count)]
    assert told == [alone[number % 21] for number in range(count)]


def test_streams_side_by_side_are_what_each_is_alone(running: ServerProcess) -> None:
    ask_all(running, 24)


def test_more_connections_than_files_are_refused_and_break_nothing(site: Path, tiny: Path) -> None:
    with ServerProcess(site, tiny, files=200) as server, ExitStack() as opened:
        told = b""
        for _ in range(180):
            connection = opened.enter_context(closing(connect(server)))
            with suppress(ConnectionError):
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                told = connection.recv(65536)
                connection.sendall(b"GET /hea")
        assert told.startswith(b"HTTP/1.1 503 ")
        opened.close()
        wait_until(lambda: server.get("/ready")["status"] == "ready", "there is room again")
        assert server.stop() == 0
    assert server.finish() == ""


def test_clients_that_leave_or_do_not_read_at_its_end_are_no_errors(site: Path, tiny: Path) -> None:
    heavy = {**LONG, "n": 16, "logprobs": True, "top_logprobs": 20, "stream": True}
    with ServerProcess(site, tiny, drain_seconds=1, write_timeout=60) as server:
        for _ in range(3):
            with closing(connect(server)) as connection:
                post(connection, "/v1/chat/completions", {**LONG, "n": 8})
                wait_until(lambda: server.get("/admin/state")["running"] > 0, "it runs")
        wait_until(lambda: is_idle(server), "the rows are free again")
        with closing(connect(server, receive_buffer=4096)) as connection:
            post(connection, "/v1/chat/completions", heavy)
            wait_until(lambda: server.get("/admin/state")["in_flight"] > 1, "it is there")
            time.sleep(1)
            assert server.stop() == 0
    assert server.finish() == ""
    with Registry.open(f"sqlite:///{site / 'registry.db'}") as registry:
        assert len(registry.requests.list()) == 4


def test_openais_client_gets_choices_stops_and_errors(running: ServerProcess) -> None:
    asked: dict[str, Any] = {
        "model": "toy/plurals", "messages": SAID, "temperature": 0, "max_tokens": 30,
    }  # fmt: skip
    with running.client() as client:
        told = client.chat.completions.create(**asked, n=3)
        texts = {choice.message.content for choice in told.choices}
        assert (len(told.choices), len(texts)) == (3, 1)
        assert told.usage is not None
        assert told.usage.completion_tokens <= 3 * 30
        (text,) = texts
        assert text
        stop = text[3:5]
        cut = client.chat.completions.create(**asked, stop=[stop]).choices[0]
        assert (cut.message.content, cut.finish_reason) == (text[: text.index(stop)], "stop")
        for wrong, kind in (
            ({"model": "toy/nothing"}, openai.NotFoundError),
            ({"n": 0}, openai.BadRequestError),
            ({"messages": [{"role": "user", "content": ""}]}, openai.UnprocessableEntityError),
        ):
            with pytest.raises(kind) as caught:
                client.chat.completions.create(**{**asked, **wrong})
            assert caught.value.body["message"]


def test_an_answer_in_flight_keeps_its_version_when_the_alias_moves(
    running: ServerProcess,
) -> None:
    body = {"model": "toy/plurals@live", "messages": SAID, "max_tokens": 150, "seed": 1}
    with Registry.open(f"sqlite:///{running.workspace / 'registry.db'}") as registry:
        registry.aliases.set(Ref("toy", "plurals", "1"), "live")
        with running.stream("/v1/chat/completions", body) as response:
            lines = response.iter_lines()
            first = next(line for line in lines if line)
            registry.aliases.set(Ref("toy", "plurals", "2"), "live")
            told = {
                json.loads(line.removeprefix("data: "))["model"]
                for line in (first, *lines)
                if line and not line.endswith("[DONE]")
            }
        assert told == {"toy/plurals@1"}
        with running.client() as client:
            after = client.chat.completions.create(**{**body, "max_tokens": 1})
        assert after.model == "toy/plurals@2"


@pytest.mark.slow
def test_two_hundred_streams_at_once(running: ServerProcess) -> None:
    ask_all(running, 200)
    wait_until(lambda: is_idle(running), "rows are free again")


@pytest.mark.slow
def test_ten_thousand_unknown_names_leave_nothing_behind(running: ServerProcess) -> None:
    def series() -> int:
        text = httpx2.get(running.url + "/metrics", timeout=60).text
        return sum(not line.startswith("#") for line in text.splitlines())

    def resident() -> int:
        pages = Path(f"/proc/{running.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096

    def ask(client: httpx2.Client, number: int) -> int:
        body = {"model": f"toy/unknown-{number}", "messages": SAID}
        return client.post("/v1/chat/completions", json=body).status_code

    with httpx2.Client(base_url=running.url, timeout=60) as client:
        assert {ask(client, number) for number in range(1000)} == {404}
        series()
        before, held = series(), resident()
        assert {ask(client, number) for number in range(1000, 10_000)} == {404}
    assert series() == before
    assert resident() - held < 32 << 20


# ------------------------------------------------------------------------------ clients that leave


def test_who_leaves_in_mid_stream_frees_the_row(running: ServerProcess) -> None:
    with running.stream("/v1/chat/completions", {**LONG, "n": 4}) as response:
        next(response.iter_bytes(1))
    wait_until(lambda: is_idle(running), "the row is free again")
    logged = last_logged(running)
    assert logged is not None
    assert (logged.status, logged.version) == (499, "toy/plurals@2")
    assert logged.new_tokens < 4 * 200


def test_who_leaves_before_the_answer_frees_the_row(running: ServerProcess) -> None:
    with closing(connect(running)) as connection:
        post(connection, "/v1/chat/completions", {**LONG, "n": 8})
        wait_until(lambda: running.get("/admin/state")["running"] > 0, "it is in the batch")
    wait_until(lambda: is_idle(running), "the row is free again")
    logged = last_logged(running)
    assert logged is not None
    assert logged.status == 499


def test_who_reads_nothing_is_given_up(running: ServerProcess) -> None:
    heavy = {**LONG, "n": 16, "logprobs": True, "top_logprobs": 20, "stream": True}
    with closing(connect(running, receive_buffer=4096)) as connection:
        post(connection, "/v1/chat/completions", heavy)
        wait_until(lambda: running.get("/admin/state")["in_flight"] > 1, "it is there")
        wait_until(lambda: is_idle(running), "it is given up")
        logged = last_logged(running)
        assert logged is not None
        assert logged.status == 499


def test_who_says_nothing_is_hung_up_on(running: ServerProcess) -> None:
    with closing(connect(running)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert connection.recv(1) == b""


def test_who_says_half_a_second_head_is_hung_up_on(running: ServerProcess) -> None:
    with closing(connect(running)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        told = b""
        while not told.endswith(b'{"status":"alive"}'):
            told += connection.recv(65536)
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert connection.recv(1) == b""


# -------------------------------------------------------------------------------- what is no HTTP


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: minus one\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000,
    ],
    ids=["no HTTP", "no length", "endless header"],
)
def test_what_cannot_be_read_is_told_in_openais_form(running: ServerProcess, sent: bytes) -> None:
    with closing(connect(running)) as connection:
        connection.sendall(sent)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


# -------------------------------------------------------------------------------------- the end


def test_a_server_that_is_told_to_end_finishes_what_it_has(site: Path, tiny: Path) -> None:
    with ServerProcess(site, tiny) as server, ExitStack() as stack:
        asked = {**LONG, "n": 4, "stream_options": {"include_usage": True}}
        streams = [
            stack.enter_context(server.stream("/v1/chat/completions", asked)) for _ in range(6)
        ]
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx2.get(server.url + "/ready").status_code == 503, "it drains")
        assert httpx2.get(server.url + "/health").status_code == 200
        refused = httpx2.post(server.url + "/v1/chat/completions", json=LONG)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        for stream in streams:
            told = events(stream)
            assert told[-1] == "[DONE]"
            assert json.loads(told[-2])["usage"]["completion_tokens"] > 0
        assert "Traceback" not in server.finish()
        assert server.process.returncode == 0
    with Registry.open(f"sqlite:///{site / 'registry.db'}") as registry:
        assert [one.status for one in registry.requests.list()] == [200] * 6


def test_a_killed_server_starts_again_and_ends_what_takes_too_long(site: Path, tiny: Path) -> None:
    with (
        ServerProcess(site, tiny) as server,
        server.stream("/v1/chat/completions", {**LONG, "n": 8}),
    ):
        server.process.kill()
    with ServerProcess(site, tiny, drain_seconds=0) as server:
        told = server.client().chat.completions.create(**{**LONG, "max_tokens": 4})
        assert told.model == "toy/plurals@2"
        with server.stream("/v1/chat/completions", {**LONG, "n": 16}) as stream:
            server.process.send_signal(signal.SIGTERM)
            last = json.loads(events(stream)[-1])
        assert last["error"]["code"] == "unavailable"
        assert "Traceback" not in server.finish()
        assert server.process.returncode == 0


@pytest.mark.slow
def test_a_second_signal_ends_a_server_at_once(site: Path, tiny: Path) -> None:
    with (
        ServerProcess(site, tiny) as server,
        server.stream("/v1/chat/completions", {**LONG, "n": 16}),
    ):
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx2.get(server.url + "/ready").status_code == 503, "it drains")
        assert server.stop() == -signal.SIGTERM
