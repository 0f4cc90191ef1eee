"""serve and ps; predict, generate and chat with --url print what they print without it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import Result
from sqlalchemy import Engine, event

from cli_runner import invoke
from trunkline.cli.client import LocalClient, Model
from trunkline.cli.http_client import HttpClient, Server
from trunkline.cli.root import GlobalOptions

if TYPE_CHECKING:
    from conftest import Run, Shared
    from trunkline.api import Platform

SHORT = ("--max-new-tokens", "3")


@dataclass(frozen=True)
class Process:
    """`trunkline serve` in its own process; ``output`` is its stderr until it listened."""

    url: str
    workspace: Path
    output: str
    popen: subprocess.Popen[str]


@contextmanager
def process(workspace: Path, base: Path, *args: str) -> Iterator[Process]:
    place = ("--workspace", str(workspace), "--base", str(base))
    program = (sys.executable, "-c", "from trunkline.cli import main; main()")
    with subprocess.Popen(
        [*program, *place, "serve", "--port", "0", *args], stderr=subprocess.PIPE, text=True
    ) as popen:
        try:
            assert popen.stderr is not None
            output = ""
            for line in popen.stderr:
                output += line
                if line.startswith("  curl "):
                    break
            match = re.search(r"^Listening on (http://127\.0\.0\.1:\d+);", output, re.MULTILINE)
            assert match, output
            yield Process(match[1], workspace, output, popen)
        finally:
            popen.kill()


@contextmanager
def threaded(workspace: Path, base: Path) -> Iterator[tuple[str, Platform]]:
    """A server in a thread of this process: its URL and its platform."""
    import uvicorn

    from trunkline.api import open
    from trunkline.serving.app import create_app
    from trunkline.serving.settings import ServerSettings

    platform = open(workspace, base=str(base))
    app = create_app(platform, ServerSettings(port=0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, access_log=False))
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        _wait_until(lambda: app.state.service.ready)
        try:
            yield f"http://127.0.0.1:{port}", platform
        finally:
            server.should_exit = True
            thread.join(30)
            platform.engine.close()
            platform.registry.close()


def _wait_until(done: Callable[[], bool]) -> None:
    for _ in range(6000):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("The condition was not met in time.")


@pytest.fixture(scope="module")
def server(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server on a copy of the trained workspace, with toy/animals in memory."""
    workspace = tmp_path_factory.mktemp("served") / "workspace"
    shutil.copytree(shared.workspace, workspace)
    args = ("--rows", "4", "--limit", "max_new_tokens=200", "--preload", "toy/animals")
    with process(workspace, shared.base, *args) as started:
        yield started


@pytest.fixture
def ask(server: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the program with --url, in an empty workspace."""
    monkeypatch.setenv("TRUNKLINE_WORKSPACE", str(tmp_path))

    def ask(*args: str, input: str | None = None) -> Result:
        return invoke(*args, "--url", server.url, input=input)

    return ask


REQUESTS = [
    ("predict", "toy/animals", "a carp"),
    ("predict", "toy/animals", "one", "two", "--top", "0"),
    ("predict", "toy/prices", "3 kg of good number 4"),
    ("predict", "toy/animals", "longer " * 40),
    ("generate", "toy/plurals", "two carp " * 40, *SHORT),
    ("generate", "base", "hello", *SHORT),
    ("generate", "toy/plurals", "two carp", *SHORT),
    ("generate", "base", "hello", *SHORT, "--temperature", "1", "--seed", "3"),
    ("generate", "base", "hello", *SHORT, "--temperature", "1", "--top-p", "0.5"),
]


@pytest.mark.parametrize("args", REQUESTS, ids=lambda args: " ".join(args)[:60])
def test_server_prints_the_same(run: Run, ask: Run, args: tuple[str, ...]) -> None:
    remote = ask(*args)
    assert remote.exit_code == 0
    assert remote.stdout == run(*args).stdout


@pytest.mark.parametrize("args", REQUESTS[1:7], ids=lambda args: " ".join(args)[:60])
def test_server_gives_the_same_json(run: Run, ask: Run, args: tuple[str, ...]) -> None:
    """Except for rounding, which depends on the batch, and the cached tokens."""
    remote = json.loads(ask(*args, "--json").stdout)
    local = json.loads(run(*args, "--json").stdout, parse_float=_about)
    for one in (remote, local):
        for answer in one if isinstance(one, list) else [one]:
            answer.pop("cached_tokens", None)
    assert remote == local


def _about(figure: str) -> Any:
    return pytest.approx(float(figure), rel=1e-4)


def test_server_names_the_version_on_stderr(ask: Run) -> None:
    assert ask("predict", "toy/animals", "x").stderr == "toy/animals@1\n"


def test_file_goes_to_the_server_in_parts(run: Run, ask: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + "".join(f"row {number}\n" for number in range(70)))
    args = ("predict", "toy/animals", "--top", "1", "--file", str(path))
    remote, local = (
        [json.loads(line) for line in send(*args).stdout.splitlines()] for send in (ask, run)
    )
    assert [(one["row"], one["label"]) for one in remote] == [
        (one["row"], one["label"]) for one in local
    ]
    assert remote[0].keys() == local[0].keys()


def test_row_that_the_server_refuses_is_named(ask: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\nshort\n" + "word " * 50_000 + "\n")
    result = ask("predict", "toy/animals", "--file", str(path))
    assert result.exit_code == 1
    assert "Error: Row 2 (line 3) of rows.csv: The request's texts have" in result.stderr


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("predict", "toy/animal", "x"), "'toy/animal'"),
        (("predict", "toy/animals@9", "x"), "'toy/animals@9'"),
        (("predict", "../animals", "x"), "is not a valid domain"),
        (("predict", "base", "x"), "trunkline generate base"),
        (("predict", "toy/plurals", "x"), "trunkline generate toy/plurals@1"),
        (("generate", "toy/animals", "x"), "trunkline predict toy/animals@1"),
        (("generate", "base", "x", "--max-new-tokens", "0"), "0"),
        (("chat", "toy/animal"), "'toy/animal'"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_wrong_usage_of_a_server_exits_with_2(
    ask: Run, args: tuple[str, ...], expected: str
) -> None:
    result = ask(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr


def test_chat_with_a_server_prints_the_same(run: Run, ask: Run) -> None:
    lines = "one\n/use toy/animals\na carp\n/use toy/plurals\ntwo carp\n/base\ntwo\n/adapters\n"
    remote = ask("chat", *SHORT, input=lines)
    assert remote.exit_code == 0
    assert remote.stdout == run("chat", *SHORT, input=lines).stdout


def test_chat_with_a_server_goes_on_after_a_refusal(ask: Run) -> None:
    result = ask("chat", *SHORT, input="word " * 300 + "\nhello\n")
    assert "too long" in result.stderr
    assert result.stdout.strip() == ask("generate", "base", "hello", *SHORT).stdout.strip()


LONG = {"max_new_tokens": 200, "temperature": 0.0, "top_p": 1.0, "seed": 0}
MESSAGES = [{"role": "user", "content": "hello"}]


def test_local_client_resolves_a_ref_once(shared: Shared) -> None:
    options = GlobalOptions(workspace=str(shared.workspace), base=str(shared.base))
    client = LocalClient(options)
    model = client.resolve("toy/animals")
    client.predict(model, ["a carp"])
    statements: list[str] = []

    def record(connection: object, cursor: object, statement: str, *more: object) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", record)
    try:
        client.predict(model, ["a hen"])
    finally:
        event.remove(Engine, "before_cursor_execute", record)
        options.platform.engine.close()
    assert statements == []


def test_abandoned_local_answer_is_cancelled(shared: Shared) -> None:
    options = GlobalOptions(workspace=str(shared.workspace), base=str(shared.base))
    ended = _outcomes(options.platform)
    chunks = LocalClient(options).stream(Model(), MESSAGES, LONG)
    next(chunks)
    chunks.close()
    _wait_until(lambda: bool(ended))
    options.platform.engine.close()
    assert ended == ["cancelled"]


def test_abandoned_http_answer_is_cancelled(shared: Shared, tmp_path: Path) -> None:
    with threaded(tmp_path, shared.base) as (url, platform), Server(url) as transport:
        ended = _outcomes(platform)
        chunks = HttpClient(transport).stream(Model(), MESSAGES, LONG)
        next(chunks)
        chunks.close()
        _wait_until(lambda: bool(ended))
    assert ended == ["cancelled"]


def _outcomes(platform: Platform) -> list[str]:
    """The outcomes of the requests from now on."""
    ended: list[str] = []
    platform.engine.observers.append(lambda stats: ended.append(stats.outcome))
    return ended


def test_ps_shows_the_residents(ask: Run, server: Process) -> None:
    text = ask("ps").stdout
    assert f"server    {server.url}\n" in text
    assert "of 4 rows running" in text
    line = next(line for line in text.splitlines() if line.startswith("toy/animals@1"))
    assert "kB" in line


def test_ps_json_has_state_and_residents(ask: Run, server: Process) -> None:
    data = json.loads(ask("ps", "--json").stdout)
    shown = invoke("--workspace", str(server.workspace), "adapters", "show", "toy/animals@1",
                   "--json")  # fmt: skip
    assert json.loads(shown.stdout)["digest"] in {one["digest"] for one in data["data"]}
    assert data["state"]["draining"] is False
    assert data["url"] == server.url


def test_answer_leads_to_its_version(server: Process) -> None:
    body = {"model": "base", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    with Server(server.url) as transport:
        id = transport.post("/v1/chat/completions", body)["id"]
    args = ("--workspace", str(server.workspace), "lineage", "--request", id, "--json")
    assert json.loads(invoke(*args).stdout)["request"]["version"] == "base"


def test_unknown_key_is_refused(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Path(shutil.copytree(shared.workspace, tmp_path / "locked"))
    args = ("--workspace", str(workspace), "keys", "create", "ada", "--admin")
    key = invoke(*args).stdout.strip()
    with threaded(workspace, shared.base) as (url, _):
        refused = invoke("ps", "--url", url)
        monkeypatch.setenv("TRUNKLINE_API_KEY", key)
        let_in = invoke("ps", "--url", url)
    assert refused.exit_code == 1
    assert "TRUNKLINE_API_KEY" in refused.stderr
    assert let_in.exit_code == 0


# ------------------------------------------------------------------------------------------- serve


def test_serve_prints_whom_it_answers_and_what_it_loads(server: Process) -> None:
    assert server.output.startswith("There are no active keys")
    assert "loading toy/animals@1\n" in server.output


@pytest.mark.merge
def test_serve_stops_cleanly_on_sigterm(shared: Shared, tmp_path: Path) -> None:
    with process(tmp_path, shared.base, "--no-request-log") as started:
        started.popen.send_signal(signal.SIGTERM)
        assert started.popen.wait(60) == 0
        assert started.popen.stderr is not None
        assert "Traceback" not in started.popen.stderr.read()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--log-text", "--no-request-log"), "can't be combined"),
        (("--preload", "toy/animal"), "Did you mean 'toy/animals'?"),
        (("--preload", "base"), "is not an adapter"),
        (("--host", "0.0.0.0"), "trunkline keys create"),
        (("--host", "no host"), "has no address"),
        (("--rows", "0"), "is not in the range"),
        (("--limit", "request_timout=5"), "Did you mean 'request_timeout'?"),
        (("--limit", "max_inputs=many"), "Give an integer"),
        (("--limit", "drain_seconds=-1"), "can't be -1"),
        (("--cors-origin", "chat.example.org"), "is not the origin of a web page"),
        (("--cors-origin", "*"), "trunkline keys create"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_usage_of_serve_exits_with_2(run: Run, args: tuple[str, ...], expected: str) -> None:
    result = run("serve", "--port", "0", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr


def test_server_that_does_not_start_says_only_why(run: Run) -> None:
    args = ("--port", "0", "--host", "0.0.0.0", "--preload", "toy/animals")
    text = run("serve", *args).stderr
    assert [line.partition(":")[0] for line in text.splitlines()] == ["Error", "Hint"]


def test_limit_of_serve_reaches_the_server(ask: Run) -> None:
    refused = ask("generate", "base", "hello", "--max-new-tokens", "201")
    assert refused.exit_code == 2
    assert "200" in refused.stderr


def test_serve_on_a_taken_port_says_so(run: Run) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        result = run("serve", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2
    assert "is already in use" in result.stderr
