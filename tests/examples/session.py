"""Run the commands of help texts and guides in a prepared workspace, and compare their outputs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

from click.testing import CliRunner

PORT = ":8000"
URL = f"http://127.0.0.1{PORT}"
WIDTH = 100
"""Columns of the terminal that outputs are recorded for."""

DEMO = Path(__file__).resolve().parents[2] / "demo"
"""The workspace that ``make demo`` leaves behind: one version each of three domains' adapters."""

_SHELL = re.compile(r"[|<>;&$`\\]|^\w+=")
_BIN = Path(sys.executable).parent


class Session:
    """A shell in one workspace: state that a command leaves is there for the next one."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.values: dict[str, str] = {}
        """Shell variables that stand for what differs from run to run, such as ``KEY_ID``."""
        self._server: subprocess.Popen[str] | None = None
        self._port = _free_port()

    def run(self, line: str) -> str:
        """Output of one command line, stdout and stderr as a terminal shows them.

        Paths of this machine and what pip prints on the way are left out. The server has a port of
        its own, which is replaced, so that sessions can run side by side.

        Raises:
            AssertionError: the program failed with something else than a refusal (exit code 1).
        """
        output = self._run(line.replace(PORT, f":{self._port}"))
        return without_machine(output.replace(f":{self._port}", PORT), self.workspace)

    def _run(self, line: str) -> str:
        for name, value in self.values.items():
            value = value.replace(PORT, f":{self._port}")
            line = line.replace(f'"${name}"', value).replace(f"${name}", value)
        if line.startswith("trunkline serve"):
            return self._serve(line)
        if line.startswith("trunkline console"):
            return self._show_console(line)
        with contextlib.chdir(self.workspace):
            if line.startswith("trunkline ps"):
                line += f" --url http://127.0.0.1:{self._port}"
            if line.startswith("trunkline ") and not _SHELL.search(line):
                return self._invoke(shlex.split(line)[1:])
            return self._shell(line)

    def close(self) -> None:
        """Stop the server, if one was started."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(60)
            self._server = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _environment(self) -> Mapping[str, str]:
        return {
            "TRUNKLINE_WORKSPACE": str(self.workspace),
            **self.values,
            "COLUMNS": str(WIDTH),
            "NO_COLOR": "1",
            "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def _invoke(self, arguments: list[str]) -> str:
        from trunkline.cli.root import trunkline

        outcome = CliRunner(env=self._environment()).invoke(
            trunkline, arguments, prog_name="trunkline"
        )
        if outcome.exit_code not in (0, 1) or (
            outcome.exception is not None and not isinstance(outcome.exception, SystemExit)
        ):
            raise AssertionError(f"{shlex.join(arguments)}: {outcome.output}") from (
                outcome.exception
            )
        return outcome.output

    def _shell(self, line: str) -> str:
        done = subprocess.run(
            ["bash", "-c", line],
            env={**os.environ, **self._environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode in (0, 1), f"{line}: {done.stdout}"
        return done.stdout

    def _serve(self, line: str) -> str:
        """Start the server and return what it prints until it listens; it runs until the end."""
        assert self._server is None, "one server runs already"
        self._server = self._start(line, self._port)
        assert self._server.stdout is not None
        lines: list[str] = []
        for text in self._server.stdout:
            lines.append(text)
            if "curl" in "".join(lines) and text.rstrip().endswith("'"):
                break
        self._wait_until_ready()
        return "".join(lines)

    def _show_console(self, line: str) -> str:
        """Start the console beside the server and return what it prints; it is stopped at once."""
        port = _free_port()
        process = self._start(line, port)
        assert process.stdout is not None
        lines = []
        for text in process.stdout:
            lines.append(text.replace(f":{port}", f":{self._port}"))
            if text.rstrip().endswith("/console"):
                break
        process.send_signal(signal.SIGINT)
        process.wait(60)
        return "".join(lines)

    def _start(self, line: str, port: int) -> subprocess.Popen[str]:
        program = (
            "import sys; from trunkline.cli import main; "
            f"sys.argv = {[*shlex.split(line), '--port', str(port)]!r}; main()"
        )
        return subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=self.workspace,
            env={**os.environ, **self._environment()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _wait_until_ready(self) -> None:
        from urllib.error import URLError
        from urllib.request import urlopen

        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(URLError, OSError),
                urlopen(f"http://127.0.0.1:{self._port}/ready") as reply,
            ):
                if reply.status == 200:
                    return
            time.sleep(0.2)
        raise AssertionError("the server did not become ready")


_PIP = re.compile(
    r"\s*(Looking in |Requirement already satisfied|Installing build dep|Getting requirements|"
    r"Preparing (editable )?metadata|Building |Created wheel|Stored in|Processing |Installing coll|"
    r"Found existing|Uninstalling |Successfully )"
)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def without_machine(output: str, workspace: Path) -> str:
    """An output without this machine's paths, secrets and package indexes."""
    lines = [line for line in output.splitlines(keepends=True) if not _PIP.match(line)]
    text = "".join(lines).replace(str(workspace), "/home/ada/work")
    text = re.sub(r"\btl-(\w{8})-[\w-]{20,}", r"tl-\1-…", text)
    return text.replace(str(Path.home()), "~")


# --------------------------------------------------------------------------------- comparing

_VARIABLE = (
    (r"\b\d\.\d{6,}(?:e[+-]?\d*)?…?", "NUMBER"),
    (r"\b(?:Linux|macOS|Windows)-[\w.-]+", "PLATFORM"),
    (r"\barchive_sha256=[0-9a-f]+…?", "archive_sha256=HEX"),
    (r"\bversion\.bytes +\d+ +\d+", "version.bytes N N"),
    (r"\b\d{8}T\d{6}Z", "TIME"),
    (r"\b[0-9a-f]{32,}(?:…)?\b", "HEX"),
    (r"\b[0-9a-f]{12,31}…?", "HEX"),
    (r"sha256:[0-9a-f]{6,}…?", "sha256:HEX"),
    (r"\btl-[\w-]+…?", "KEY"),
    (r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?(?:Z|\+00:00)?(?: UTC)?", "TIME"),
    (r"\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} [\d:]+ GMT", "TIME"),
    (
        r"\b\d[\d,.]*(?:e[+-]?\d+)? ?(?:ms|s|min|h|d|B|kB|MB|GB|KiB|MiB|GiB|tok/s|rows/s)\b",
        "AMOUNT",
    ),
    (r"[+-]?\b\d+\.\d+(?:e[+-]?\d+)?\b", "NUMBER"),
    (r"\b(?:system|key):[\w./-]+", "ACTOR"),
    (r"\bpid \d+", "pid N"),
    (r"\b\d+ threads? on \d+ cores?", "N threads on N cores"),
    (r"content-length: \d+", "content-length: N"),
    (r"\b[\d,]+ rows from ", "N rows from "),
    (r"/tmp/[\w./-]+", "PATH"),
    (r"\b(?:yes|no|NO|beats|ties(?: with)?|loses(?: to)?)\b", "VERDICT"),
    (r'"label":"[^"\n]*', '"label":"LABEL'),
    (r"[▁▂▃▄▅▆▇█]+[▁▂▃▄▅▆▇█ ]*", "BARS "),
    (r"\b\d+ rows? only\b", "N rows only"),
    (r"\bat \d+(?=[,;\n])", "at N"),
)
"""What may differ between machines and runs: times, sizes, digests, rates, scores and verdicts."""


def normalized(text: str) -> str:
    """A recorded output without what differs between machines, and with single spaces."""
    for pattern, name in _VARIABLE:
        text = re.sub(pattern, name, text)
    text = re.sub(r"\bAMOUNT(?: AMOUNT)+", "AMOUNT", text)
    text = re.sub(r"[─━]+|-{3,}", "-", text)
    text = "\n".join(" ".join(line.split()) for line in text.strip().splitlines())
    return _labels().sub("LABEL", text)


@cache
def _labels() -> re.Pattern[str]:
    """The labels that the adapters of the demo's workspace predict, longest first."""
    names: set[str] = set()
    for file in DEMO.glob("adapters/*/*/*/trunkline.json"):
        names.update(json.loads(file.read_text(encoding="utf-8"))["task"]["labels"])
    ordered = sorted(names, key=len, reverse=True)
    return re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in ordered) or r"(?!)")


def key_ids(text: str) -> set[str]:
    """The ids of the API keys that outputs show."""
    return set(re.findall(r"\btl-([a-z0-9]{8})-", text))


def comparable(session: str) -> str:
    """Commands with their normalized outputs, without what depends on the verdict of a gate."""
    parts = re.split(r"^(?=\$ )", session, flags=re.MULTILINE)
    kept = []
    for part in parts:
        lines = normalized(part).splitlines()
        if ("adapters promote" in part and "--force" not in part) or '--where "test.' in part:
            lines = lines[:2]
        elif part.startswith(("$ trunkline predict", "$ trunkline tune")):
            lines = lines[:3]
        kept += [line for line in lines if not _BY_SCORE.match(line)]
    return "\n".join(kept)


_BY_SCORE = re.compile(r"--abstain NUMBER: |gained: |lost: ")
"""Lines that are printed or not, depending on the scores of a training."""


def shortened(output: str, lines: int | None) -> str:
    """At most so many lines, then an ellipsis, without the steps of a progress display.

    Long lines and trailing space are cut.
    """
    kept = [line.rstrip() for line in output.rstrip().splitlines()]
    kept = [line for line in kept if not _PROGRESS.match(line)]
    kept = [line if len(line) <= 120 else line[:119] + "…" for line in kept]
    if lines is not None and len(kept) > lines:
        kept = [*kept[:lines], "…"]
    return "\n".join(kept)


# ------------------------------------------------------------------------------------- pages

_PROGRESS = re.compile(r"\s+[\d,.]+ ?\w* of [\d,.]+ ?\w*, |Other processes keep ")
"""Lines that depend on how fast the machine is, or how busy."""

_BLOCK = re.compile(
    r"(?:<!-- example:(?P<options>[^>]*)-->\n)?(?P<fence>```)\n(?P<body>\$ .*?)\n```", re.DOTALL
)


def rerun(
    page: str,
    session: Session,
    before: Callable[[Session, str], None],
    after: Callable[[Session, str, str], None],
) -> Iterator[tuple[str, str]]:
    """Every block of a page whose lines begin with ``$``, as it is and as it is when run again.

    An HTML comment before the block sets options: ``<!-- example: lines=8 -->`` keeps eight lines
    of each output, ``skip`` leaves the block as it is; its text says why.
    """
    for match in _BLOCK.finditer(page):
        options = match["options"] or ""
        if "skip" in options:
            continue
        limit = re.search(r"lines=(\d+)", options)
        outputs = []
        for command in _commands(match["body"]):
            line = command.replace("\\\n", " ")
            before(session, line)
            output = session.run(line)
            after(session, line, output)
            text = shortened(output, int(limit[1]) if limit else None)
            outputs.append(f"$ {command}" + (f"\n{text}" if text else ""))
        old = match["body"]
        yield old, "\n\n".join(outputs) if "\n\n$ " in old else "\n".join(outputs)


def _commands(body: str) -> Iterator[str]:
    lines = iter(body.splitlines())
    for line in lines:
        if not line.startswith("$ "):
            continue
        command = line[2:]
        while command.endswith("\\"):
            command += "\n" + next(lines)
        yield command
