"""serve, ps, and predict, generate and chat with --url: a server gives the answers given here."""

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

from cli_runner import invoke
from trunkline.cli.answering import HttpClient, LocalClient, Voice
from trunkline.cli.options import Globals
from trunkline.cli.remote import Remote

if TYPE_CHECKING:
    from conftest import Run, Shared
    from trunkline.api import Platform

SHORT = ("--max-new-tokens", "3")


@dataclass(frozen=True)
class Process:
    """`trunkline serve` as a process of its own; ``told`` is what it said until it listened."""

    url: str
    workspace: Path
    told: str
    popen: subprocess.Popen[str]


@contextmanager
def process(workspace: Path, base: Path, *words: str) -> Iterator[Process]:
    place = ("--workspace", str(workspace), "--base", str(base))
    program = (sys.executable, "-c", "from trunkline.cli import main; main()")
    with subprocess.Popen(
        [*program, *place, "serve", "--port", "0", *words], stderr=subprocess.PIPE, text=True
    ) as popen:
        try:
            assert popen.stderr is not None
            told = ""
            for line in popen.stderr:
                told += line
                if line.startswith("  curl "):
                    break
            found = re.search(r"^Listening on (http://127\.0\.0\.1:\d+);", told, re.MULTILINE)
            assert found, told
            yield Process(found[1], workspace, told, popen)
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
    raise AssertionError("It did not come to that.")


@pytest.fixture(scope="module")
def server(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server on a copy of the trained workspace, with toy/animals in memory."""
    workspace = tmp_path_factory.mktemp("served") / "workspace"
    shutil.copytree(shared.workspace, workspace)
    words = ("--rows", "4", "--limit", "max_new_tokens=200", "--preload", "toy/animals")
    with process(workspace, shared.base, *words) as started:
        yield started


@pytest.fixture
def ask(server: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the program with --url, in an empty workspace."""
    monkeypatch.setenv("TRUNKLINE_WORKSPACE", str(tmp_path))

    def ask(*words: str, input: str | None = None) -> Result:
        return invoke(*words, "--url", server.url, input=input)

    return ask


ASKED = [
    ("predict", "toy/animals", "a carp"),
    ("predict", "toy/animals", "one", "two", "--top", "0"),
    ("predict", "toy/prices", "3 kg of good number 4"),
    ("generate", "base", "hello", *SHORT),
    ("generate", "toy/plurals", "two carp", *SHORT),
    ("generate", "base", "hello", *SHORT, "--temperature", "1", "--seed", "3"),
    ("generate", "base", "hello", *SHORT, "--temperature", "1", "--top-p", "0.5"),
]


@pytest.mark.parametrize("words", ASKED, ids=" ".join)
def test_server_prints_the_same(run: Run, ask: Run, words: tuple[str, ...]) -> None:
    there = ask(*words)
    assert there.exit_code == 0
    assert there.stdout == run(*words).stdout


@pytest.mark.parametrize("words", ASKED[1:5], ids=" ".join)
def test_server_gives_the_same_json(run: Run, ask: Run, words: tuple[str, ...]) -> None:
    """But for the last bits, in which batches differ, and what the prefix cache saved."""
    there = json.loads(ask(*words, "--json").stdout)
    here = json.loads(run(*words, "--json").stdout, parse_float=_about)
    for one in (there, here):
        for answer in one if isinstance(one, list) else [one]:
            answer.pop("cached_tokens", None)
    assert there == here


def _about(figure: str) -> Any:
    return pytest.approx(float(figure), rel=1e-4)


def test_server_names_the_version_on_stderr(ask: Run) -> None:
    assert ask("predict", "toy/animals", "x").stderr == "toy/animals@1\n"


def test_file_goes_to_the_server_in_parts(run: Run, ask: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + "".join(f"row {number}\n" for number in range(70)))
    words = ("predict", "toy/animals", "--top", "1", "--file", str(path))
    there, here = (
        [json.loads(line) for line in asked(*words).stdout.splitlines()] for asked in (ask, run)
    )
    assert [(one["row"], one["label"]) for one in there] == [
        (one["row"], one["label"]) for one in here
    ]
    assert there[0].keys() == here[0].keys()


def test_row_that_the_server_refuses_is_named(ask: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\nshort\n" + "word " * 300 + "\n")
    result = ask("predict", "toy/animals", "--file", str(path))
    assert result.exit_code == 1
    assert "Error: Row 2: The text 'word" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
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
def test_wrong_use_of_a_server_exits_with_2(ask: Run, words: tuple[str, ...], told: str) -> None:
    result = ask(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


def test_chat_with_a_server_is_the_same_talk(run: Run, ask: Run) -> None:
    talk = "one\n/use toy/animals\na carp\n/use toy/plurals\ntwo carp\n/base\ntwo\n/adapters\n"
    there = ask("chat", *SHORT, input=talk)
    assert there.exit_code == 0
    assert there.stdout == run("chat", *SHORT, input=talk).stdout


def test_chat_with_a_server_goes_on_after_a_refusal(ask: Run) -> None:
    talk = ask("chat", *SHORT, input="word " * 300 + "\nhello\n")
    assert "too long" in talk.stderr
    assert talk.stdout.strip() == ask("generate", "base", "hello", *SHORT).stdout.strip()


LONG = {"max_new_tokens": 200, "temperature": 0.0, "top_p": 1.0, "seed": 0}
TALK = [{"role": "user", "content": "hello"}]


def test_answer_that_is_left_frees_its_place_here(shared: Shared) -> None:
    said = Globals(workspace=str(shared.workspace), base=str(shared.base))
    ended = _outcomes(said.platform)
    pieces = LocalClient(said).stream(Voice(), TALK, LONG)
    next(pieces)
    pieces.close()
    _wait_until(lambda: bool(ended))
    said.platform.engine.close()
    assert ended == ["cancelled"]


def test_answer_that_is_left_frees_its_place_there(shared: Shared, tmp_path: Path) -> None:
    with threaded(tmp_path, shared.base) as (url, platform), Remote(url) as remote:
        ended = _outcomes(platform)
        pieces = HttpClient(remote).stream(Voice(), TALK, LONG)
        next(pieces)
        pieces.close()
        _wait_until(lambda: bool(ended))
    assert ended == ["cancelled"]


def _outcomes(platform: Platform) -> list[str]:
    """How requests end from now on."""
    ended: list[str] = []
    platform.engine.observers.append(lambda told: ended.append(told.outcome))
    return ended


def test_ps_shows_the_residents(ask: Run, server: Process) -> None:
    told = ask("ps").stdout
    assert f"server    {server.url}\n" in told
    assert "of 4 rows running" in told
    line = next(line for line in told.splitlines() if line.startswith("toy/animals@1"))
    assert "kB" in line


def test_ps_json_has_state_and_residents(ask: Run, server: Process) -> None:
    told = json.loads(ask("ps", "--json").stdout)
    shown = invoke("--workspace", str(server.workspace), "adapters", "show", "toy/animals@1",
                   "--json")  # fmt: skip
    assert json.loads(shown.stdout)["digest"] in {one["digest"] for one in told["data"]}
    assert told["state"]["draining"] is False
    assert told["url"] == server.url


def test_answer_leads_to_its_version(server: Process) -> None:
    body = {"model": "base", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    with Remote(server.url) as remote:
        id = remote.post("/v1/chat/completions", body)["id"]
    words = ("--workspace", str(server.workspace), "lineage", "--request", id, "--json")
    assert json.loads(invoke(*words).stdout)["request"]["version"] == "base"


def test_unknown_key_is_told(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Path(shutil.copytree(shared.workspace, tmp_path / "locked"))
    words = ("--workspace", str(workspace), "keys", "create", "ada", "--admin")
    key = invoke(*words).stdout.strip()
    with threaded(workspace, shared.base) as (url, _):
        refused = invoke("ps", "--url", url)
        monkeypatch.setenv("TRUNKLINE_API_KEY", key)
        let_in = invoke("ps", "--url", url)
    assert refused.exit_code == 1
    assert "TRUNKLINE_API_KEY" in refused.stderr
    assert let_in.exit_code == 0


# ------------------------------------------------------------------------------------------- serve


def test_serve_says_who_is_answered_and_what_it_loads(server: Process) -> None:
    assert server.told.startswith("No key is in force")
    assert "loading toy/animals@1\n" in server.told


def test_serve_ends_well_when_it_is_told_to(shared: Shared, tmp_path: Path) -> None:
    with process(tmp_path, shared.base, "--no-request-log") as started:
        started.popen.send_signal(signal.SIGTERM)
        assert started.popen.wait(60) == 0
        assert started.popen.stderr is not None
        assert "Traceback" not in started.popen.stderr.read()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--log-text", "--no-request-log"), "exclude each other"),
        (("--preload", "toy/animal"), "Did you mean 'toy/animals'?"),
        (("--preload", "base"), "is not an adapter"),
        (("--host", "0.0.0.0"), "trunkline keys create"),
        (("--host", "no host"), "has no address"),
        (("--rows", "0"), "is not in the range"),
        (("--limit", "request_timout=5"), "Did you mean 'request_timeout'?"),
        (("--limit", "max_inputs=many"), "Give a whole number"),
        (("--limit", "drain_seconds=-1"), "can't be -1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_use_of_serve_exits_with_2(run: Run, words: tuple[str, ...], told: str) -> None:
    result = run("serve", "--port", "0", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


def test_server_that_does_not_start_says_only_why(run: Run) -> None:
    words = ("--port", "0", "--host", "0.0.0.0", "--preload", "toy/animals")
    told = run("serve", *words).stderr
    assert [line.partition(":")[0] for line in told.splitlines()] == ["Error", "Hint"]


def test_limit_of_serve_reaches_the_server(ask: Run) -> None:
    refused = ask("generate", "base", "hello", "--max-new-tokens", "201")
    assert refused.exit_code == 2
    assert "200" in refused.stderr


def test_serve_on_a_taken_port_says_so(run: Run) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        result = run("serve", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2
    assert "is already in use" in result.stderr
