"""The client of a server: what goes wrong on the way, and what a server refuses."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cli_runner import invoke
from trunkline.cli.remote import Remote
from trunkline.errors import (
    AuthenticationError,
    BaseMismatchError,
    BaseModelError,
    BusyError,
    DataError,
    DeadlineError,
    ForbiddenError,
    IntegrityError,
    Interrupted,
    NotFoundError,
    RefusedError,
    RegistryError,
    TooLargeError,
    TrunklineError,
    UnavailableError,
    UsageError,
)


@dataclass
class Scripted:
    """A server on a real socket that sends prepared replies, the last one again and again."""

    url: str = ""
    replies: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.replies.append((status, names, body))

    def refuse(
        self, status: int, message: str = "No.", code: str | None = None, **headers: str
    ) -> None:
        body = {"error": {"message": message, "type": "x", "param": None, "code": code}}
        self.reply(status, json.dumps(body).encode(), **headers)

    def stream(self, *data: str) -> None:
        events = "".join(f"data: {one}\n\n" for one in data)
        self.reply(200, events.encode(), content_type="text/event-stream")


@pytest.fixture
def server() -> Iterator[Scripted]:
    script = Scripted()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.asked.append((self.path, headers, body))
            status, sent, content = script.replies[0]
            if len(script.replies) > 1:
                del script.replies[0]
            self.send_response(status)
            for name, value in sent.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        script.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield script
        listening.shutdown()
        thread.join()


@pytest.fixture
def remote(server: Scripted) -> Iterator[Remote]:
    with Remote(server.url) as made:
        yield made


@pytest.fixture
def nowhere() -> str:
    """An address at which nothing listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, UsageError),
        (401, AuthenticationError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (409, RefusedError),
        (413, TooLargeError),
        (422, DataError),
        (500, TrunklineError),
        (503, UnavailableError),
        (504, DeadlineError),
    ],
)
def test_refusal_becomes_one_of_our_errors(
    server: Scripted, remote: Remote, status: int, kind: type[TrunklineError]
) -> None:
    server.refuse(status, "Not\nso.")
    with pytest.raises(TrunklineError) as caught:
        remote.post("/x", {})
    assert type(caught.value) is kind
    assert caught.value.message == "Not so."


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (409, "other_base", BaseMismatchError),
        (422, "damaged_artifact", IntegrityError),
        (499, "cancelled", Interrupted),
        (503, "base_unavailable", BaseModelError),
        (503, "registry_unavailable", RegistryError),
        (504, "deadline_exceeded", DeadlineError),
        (404, "model_not_found", NotFoundError),
        (409, "refused", RefusedError),
        (503, "unavailable", UnavailableError),
        (418, "busy", TrunklineError),
        (431, "too_large", TrunklineError),
    ],
)
def test_code_tells_more_than_the_status_where_it_is_one_of_six(
    server: Scripted, remote: Remote, status: int, code: str, kind: type[TrunklineError]
) -> None:
    server.refuse(status, code=code)
    with pytest.raises(TrunklineError) as caught:
        remote.get("/x")
    assert type(caught.value) is kind


def test_hint_of_the_server_is_told_as_one(server: Scripted, remote: Remote) -> None:
    server.reply(404, b'{"error": {"message": "No. Try x.", "hint": "Try x."}}')
    with pytest.raises(NotFoundError) as caught:
        remote.get("/x")
    assert (caught.value.message, caught.value.hint) == ("No.", "Try x.")


def test_missing_key_says_where_it_goes(server: Scripted, remote: Remote) -> None:
    server.refuse(401)
    with pytest.raises(AuthenticationError) as caught:
        remote.get("/x")
    assert "TRUNKLINE_API_KEY" in (caught.value.hint or "")


def test_full_server_is_asked_again(server: Scripted, remote: Remote) -> None:
    server.refuse(429, retry_after="0")
    server.reply(200, b'{"fine": true}')
    assert remote.post("/x", {}) == {"fine": True}


def test_server_that_stays_full_is_given_up(server: Scripted, remote: Remote) -> None:
    server.refuse(429, retry_after="0")
    with pytest.raises(BusyError):
        remote.post("/x", {})
    assert 1 < len(server.asked) < 10


def test_draining_server_is_not_asked_again(server: Scripted, remote: Remote) -> None:
    server.refuse(503, retry_after="0")
    with pytest.raises(UnavailableError):
        remote.post("/x", {})
    assert len(server.asked) == 1


def test_key_is_sent_as_a_bearer_token(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_API_KEY", "tl-key\n")
    server.reply(200, b"{}")
    with Remote(server.url) as remote:
        remote.get("/x")
    assert server.asked[0][1]["authorization"] == "Bearer tl-key"


@pytest.mark.parametrize("key", ["a b", "a\nb", "schlüssel"])
def test_key_that_is_none_is_refused_unshown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_API_KEY", key)
    with pytest.raises(UsageError) as caught:
        Remote("http://127.0.0.1:1")
    assert key not in caught.value.message


def test_redirect_is_not_followed(server: Scripted, remote: Remote) -> None:
    server.reply(307, b"", location="http://127.0.0.1:1/elsewhere")
    with pytest.raises(UsageError, match="is not followed"):
        remote.post("/x", {})
    assert len(server.asked) == 1


def test_no_proxy_stands_before_this_machine(
    server: Scripted, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", nowhere)
    monkeypatch.setenv("http_proxy", nowhere)
    server.reply(200, b"{}")
    with Remote(server.url) as remote:
        assert remote.get("/x") == {}


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_address_may_end_as_openai_clients_write_it(server: Scripted, suffix: str) -> None:
    server.reply(200, b"{}")
    with Remote(server.url + suffix) as remote:
        remote.get("/v1/models")
    assert server.asked[0][0] == "/v1/models"


@pytest.mark.parametrize(
    "url",
    ["", "x", "localhost:8000", "ftp://x", "file:///etc/passwd", "http://", "http://x:y",
     "http://u:secret@x", "http://x?q=1", "http://x/#a", "http://[::1"],
)  # fmt: skip
def test_address_that_is_none_is_wrong_use(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Remote(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"null", b'"x"'])
@pytest.mark.parametrize("status", [200, 502])
def test_something_else_that_answers_is_told(
    server: Scripted, remote: Remote, status: int, body: bytes
) -> None:
    server.reply(status, body)
    with pytest.raises(TrunklineError, match="does not speak"):
        remote.get("/x")


def test_stream_gives_its_objects_up_to_the_mark(server: Scripted, remote: Remote) -> None:
    server.stream('{"a": "\u2028"}', '{"a": 2}', "[DONE]", '{"a": 3}')
    assert list(remote.events("/x", {})) == [{"a": "\u2028"}, {"a": 2}]


def test_stream_without_its_mark_is_no_end(server: Scripted, remote: Remote) -> None:
    server.stream('{"a": 1}')
    told = remote.events("/x", {})
    assert next(told) == {"a": 1}
    with pytest.raises(UnavailableError, match="broke the answer off"):
        next(told)


def test_error_in_mid_stream_is_raised(server: Scripted, remote: Remote) -> None:
    server.stream('{"a": 1}', '{"error": {"message": "The engine failed."}}', "[DONE]")
    told = remote.events("/x", {})
    next(told)
    with pytest.raises(TrunklineError, match="The engine failed"):
        next(told)


def test_code_in_mid_stream_says_what_kind_of_error_it_is(server: Scripted, remote: Remote) -> None:
    server.stream('{"error": {"message": "Late.", "code": "deadline_exceeded"}}')
    with pytest.raises(DeadlineError, match="Late"):
        next(remote.events("/x", {}))


def test_refused_stream_is_an_error(server: Scripted, remote: Remote) -> None:
    server.refuse(404, "There is no adapter.")
    with pytest.raises(NotFoundError, match="There is no adapter"):
        next(remote.events("/x", {}))


def test_answer_that_is_no_stream_is_told(server: Scripted, remote: Remote) -> None:
    server.reply(200, b"{}", content_type="application/json")
    with pytest.raises(TrunklineError, match="broke off"):
        next(remote.events("/x", {}))


@pytest.mark.parametrize(
    "words",
    [
        ("ps",),
        ("predict", "toy/animals", "x"),
        ("generate", "base", "x"),
        ("chat",),
    ],
    ids=lambda words: words[0],
)
def test_nothing_listens_there(nowhere: str, words: tuple[str, ...]) -> None:
    result = invoke(*words, "--url", nowhere, input="x\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"Error: Nothing answers at {nowhere}" in result.stderr
    assert "Hint: `trunkline serve` starts" in result.stderr


def test_ps_asks_where_the_environment_says(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_URL", nowhere)
    assert nowhere in invoke("ps").stderr


def test_ps_of_another_kind_of_server_is_one_sentence(server: Scripted) -> None:
    server.reply(200, b"{}")
    result = invoke("ps", "--url", server.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "does not speak as this version's server does" in result.stderr
