"""The HTTP client: transport errors, and refusals of the server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cli_runner import invoke
from trunkline.cli.http_client import Server
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
    """A server on a real socket that sends prepared replies and repeats the last one."""

    url: str = ""
    replies: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

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
            script.requests.append((self.path, headers, body))
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
def transport(server: Scripted) -> Iterator[Server]:
    with Server(server.url) as made:
        yield made


@pytest.fixture
def nowhere() -> str:
    """An address where nothing listens."""
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
    server: Scripted, transport: Server, status: int, kind: type[TrunklineError]
) -> None:
    server.refuse(status, "Not\nso.")
    with pytest.raises(TrunklineError) as caught:
        transport.post("/x", {})
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
def test_specific_codes_override_the_status(
    server: Scripted, transport: Server, status: int, code: str, kind: type[TrunklineError]
) -> None:
    server.refuse(status, code=code)
    with pytest.raises(TrunklineError) as caught:
        transport.get("/x")
    assert type(caught.value) is kind


def test_hint_of_the_server_becomes_the_hint_of_the_error(
    server: Scripted, transport: Server
) -> None:
    server.reply(404, b'{"error": {"message": "No. Try x.", "hint": "Try x."}}')
    with pytest.raises(NotFoundError) as caught:
        transport.get("/x")
    assert (caught.value.message, caught.value.hint) == ("No.", "Try x.")


def test_missing_key_names_the_variable(server: Scripted, transport: Server) -> None:
    server.refuse(401)
    with pytest.raises(AuthenticationError) as caught:
        transport.get("/x")
    assert "TRUNKLINE_API_KEY" in (caught.value.hint or "")


def test_request_to_a_full_server_is_repeated(server: Scripted, transport: Server) -> None:
    server.refuse(429, retry_after="0")
    server.reply(200, b'{"fine": true}')
    assert transport.post("/x", {}) == {"fine": True}


def test_requests_to_a_full_server_end(server: Scripted, transport: Server) -> None:
    server.refuse(429, retry_after="0")
    with pytest.raises(BusyError):
        transport.post("/x", {})
    assert 1 < len(server.requests) < 10


def test_request_to_a_draining_server_is_not_repeated(server: Scripted, transport: Server) -> None:
    server.refuse(503, retry_after="0")
    with pytest.raises(UnavailableError):
        transport.post("/x", {})
    assert len(server.requests) == 1


def test_key_is_sent_as_a_bearer_token(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_API_KEY", "tl-key\n")
    server.reply(200, b"{}")
    with Server(server.url) as transport:
        transport.get("/x")
    assert server.requests[0][1]["authorization"] == "Bearer tl-key"


@pytest.mark.parametrize("key", ["a b", "a\nb", "schlüssel"])
def test_malformed_key_is_refused_without_showing_it(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_API_KEY", key)
    with pytest.raises(UsageError) as caught:
        Server("http://127.0.0.1:1")
    assert key not in caught.value.message


def test_redirect_is_not_followed(server: Scripted, transport: Server) -> None:
    server.reply(307, b"", location="http://127.0.0.1:1/elsewhere")
    with pytest.raises(UsageError, match="is not followed"):
        transport.post("/x", {})
    assert len(server.requests) == 1


def test_requests_to_this_machine_use_no_proxy(
    server: Scripted, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", nowhere)
    monkeypatch.setenv("http_proxy", nowhere)
    server.reply(200, b"{}")
    with Server(server.url) as transport:
        assert transport.get("/x") == {}


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_address_may_end_as_openai_clients_write_it(server: Scripted, suffix: str) -> None:
    server.reply(200, b"{}")
    with Server(server.url + suffix) as transport:
        transport.get("/v1/models")
    assert server.requests[0][0] == "/v1/models"


@pytest.mark.parametrize(
    "url",
    ["", "x", "localhost:8000", "ftp://x", "file:///etc/passwd", "http://", "http://x:y",
     "http://u:secret@x", "http://x?q=1", "http://x/#a", "http://[::1"],
)  # fmt: skip
def test_malformed_url_is_wrong_usage(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Server(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"null", b'"x"'])
@pytest.mark.parametrize("status", [200, 502])
def test_response_of_another_program_is_an_error(
    server: Scripted, transport: Server, status: int, body: bytes
) -> None:
    server.reply(status, body)
    with pytest.raises(TrunklineError, match="is not one of a Trunkline server"):
        transport.get("/x")


def test_stream_yields_objects_up_to_done(server: Scripted, transport: Server) -> None:
    server.stream('{"a": "\u2028"}', '{"a": 2}', "[DONE]", '{"a": 3}')
    assert list(transport.events("/x", {})) == [{"a": "\u2028"}, {"a": 2}]


def test_stream_without_done_is_an_error(server: Scripted, transport: Server) -> None:
    server.stream('{"a": 1}')
    value = transport.events("/x", {})
    assert next(value) == {"a": 1}
    with pytest.raises(UnavailableError, match="ended the stream"):
        next(value)


def test_error_inside_a_stream_is_raised(server: Scripted, transport: Server) -> None:
    server.stream('{"a": 1}', '{"error": {"message": "The engine failed."}}', "[DONE]")
    value = transport.events("/x", {})
    next(value)
    with pytest.raises(TrunklineError, match="The engine failed"):
        next(value)


def test_code_inside_a_stream_selects_the_error_class(server: Scripted, transport: Server) -> None:
    server.stream('{"error": {"message": "Late.", "code": "deadline_exceeded"}}')
    with pytest.raises(DeadlineError, match="Late"):
        next(transport.events("/x", {}))


def test_refused_stream_is_an_error(server: Scripted, transport: Server) -> None:
    server.refuse(404, "There is no adapter.")
    with pytest.raises(NotFoundError, match="There is no adapter"):
        next(transport.events("/x", {}))


def test_response_that_is_not_a_stream_is_an_error(server: Scripted, transport: Server) -> None:
    server.reply(200, b"{}", content_type="application/json")
    with pytest.raises(TrunklineError, match="failed"):
        next(transport.events("/x", {}))


@pytest.mark.parametrize(
    "args",
    [
        ("ps",),
        ("predict", "toy/animals", "x"),
        ("generate", "base", "x"),
        ("chat",),
    ],
    ids=lambda args: args[0],
)
def test_server_that_does_not_answer_is_an_error(nowhere: str, args: tuple[str, ...]) -> None:
    result = invoke(*args, "--url", nowhere, input="x\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"Error: No server answers at {nowhere}" in result.stderr
    assert "Hint: `trunkline serve` starts" in result.stderr


def test_ps_uses_the_url_of_the_environment(nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_URL", nowhere)
    assert nowhere in invoke("ps").stderr


def test_ps_of_another_program_is_an_error(server: Scripted) -> None:
    server.reply(200, b"{}")
    result = invoke("ps", "--url", server.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is not one of a Trunkline server of this version" in result.stderr


# ------------------------------------------------------------------- replies to administrators

STATE = {
    "base": "tiny", "draining": False, "in_flight": 0, "waiting": 0, "running": 2, "rows": 16,
    "steps": 7, "kv_tokens": 2048, "kv_tokens_used": 64, "cached_tokens": 0,
    "engines": [
        {"base": "tiny", "modality": "text", "waiting": 0, "running": 2, "rows": 16, "steps": 7}
    ],
}  # fmt: skip
RESIDENTS = {"object": "list", "data": [], "total_bytes": 0, "budget_bytes": 1 << 30}
PROMOTION = {
    "ref": "toy/animals@2", "adapter": "toy/animals", "alias": "champion", "old": 1, "new": 2,
    "forced": False, "checks": [{"name": "beats", "passed": True, "figures": "+0.1"}],
    "head": "3:abc",
}  # fmt: skip


def reply(server: Scripted, *bodies: object) -> None:
    for body in bodies:
        server.reply(200, json.dumps(body).encode())


def test_ps_prints_the_state(server: Scripted) -> None:
    reply(server, STATE, RESIDENTS)
    assert "2 of 16 rows running, 0 waiting" in invoke("ps", "--url", server.url).stdout


@pytest.mark.parametrize(
    "wrong", [{"running": "2"}, {"rows": None}, {"kv_tokens": 1.5}, {"draining": 0}], ids=str
)
def test_ps_refuses_a_state_of_another_form(server: Scripted, wrong: dict[str, object]) -> None:
    reply(server, STATE | wrong, RESIDENTS)
    result = invoke("ps", "--url", server.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is not one of a Trunkline server of this version" in result.stderr


def test_promote_prints_the_move(server: Scripted) -> None:
    reply(server, PROMOTION)
    result = invoke("adapters", "promote", "toy/animals", "--url", server.url)
    assert result.stdout.splitlines() == ["yes  beats  (+0.1)", "toy/animals  champion: 1 → 2"]


@pytest.mark.parametrize(
    "wrong", [{"new": "2"}, {"checks": None}, {"checks": [{"name": "beats"}]}, {"head": 3}], ids=str
)
def test_promote_refuses_a_reply_of_another_form(
    server: Scripted, wrong: dict[str, object]
) -> None:
    reply(server, PROMOTION | wrong)
    result = invoke("adapters", "promote", "toy/animals", "--url", server.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is not one of a Trunkline server of this version" in result.stderr


def test_refusal_with_checks_of_another_form_is_an_error(server: Scripted) -> None:
    error = {"message": "No.", "checks": [{"name": "beats", "passed": "no", "figures": ""}]}
    server.reply(409, json.dumps({"error": error}).encode())
    result = invoke("adapters", "promote", "toy/animals", "--url", server.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is not one of a Trunkline server of this version" in result.stderr


def test_client_reads_replies_without_loading_the_server() -> None:
    program = (
        "import sys\n"
        "import trunkline.cli.http_client, trunkline.serving.admin_schemas\n"
        "print(sorted({'fastapi', 'uvicorn', 'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
