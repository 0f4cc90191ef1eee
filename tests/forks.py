"""Processes of their own for a few milliseconds each: forked from one that has imported it all.

That one is started once and has opened no database, because neither SQLite's nor PostgreSQL's
connections live through a fork.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from tempfile import TemporaryFile
from typing import IO, Any

LONGEST_SECONDS = 120


@dataclass(frozen=True)
class Child:
    """What a process is to know: its ``sys.argv[1:]``, and what its environment has besides."""

    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """A process that has ended; ``code`` is negative where a signal ended it."""

    code: int
    out: str
    error: str


def together(script: str, children: Sequence[Child]) -> list[Ended]:
    """Run the script in as many processes, which begin at once."""
    nursery = _nursery()
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    children_json = [
        {"arguments": one.arguments, "environment": {**one.environment}} for one in children
    ]
    nursery.stdin.write(json.dumps({"script": script, "children": children_json}) + "\n")
    nursery.stdin.flush()
    return [Ended(**one) for one in json.loads(nursery.stdout.readline())]


def alone(script: str, *arguments: str, **environment: str) -> Ended:
    """Run the script in one process."""
    return together(script, [Child(arguments, environment)])[0]


@cache
def _nursery() -> subprocess.Popen[str]:
    import atexit

    made = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(made.kill)
    return made


def _serve() -> None:
    import alembic.autogenerate
    import alembic.command
    import alembic.config
    import alembic.script
    import psycopg
    import sqlalchemy.dialects.postgresql.psycopg

    import trunkline.registry.registry

    assert alembic
    assert psycopg
    assert sqlalchemy
    assert trunkline
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_run(request["script"], request["children"])), flush=True)


def _run(script: str, children: list[dict[str, Any]]) -> list[dict[str, Any]]:
    waiting, go = os.pipe()
    code = compile(script, "<script>", "exec")
    with ExitStack() as streams:
        started: list[tuple[int, IO[str], IO[str]]] = []
        for child in children:
            out, error = (streams.enter_context(TemporaryFile("w+")) for _ in range(2))
            process = os.fork()
            if process == 0:
                os.close(go)
                os.read(waiting, 1)
                _become(code, child, out, error)
            started.append((process, out, error))
        os.close(waiting)
        os.close(go)
        return [_ended(*one) for one in started]


def _ended(process: int, out: IO[str], error: IO[str]) -> dict[str, Any]:
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    for stream in (out, error):
        stream.seek(0)
    return {"code": status, "out": out.read().strip(), "error": error.read().strip()}


def _become(code: Any, child: dict[str, Any], out: IO[str], error: IO[str]) -> None:
    signal.alarm(LONGEST_SECONDS)
    os.dup2(out.fileno(), 1)
    os.dup2(error.fileno(), 2)
    sys.argv = ["script", *child["arguments"]]
    os.environ.update(child["environment"])
    time.tzset()
    status = 0
    try:
        exec(code, {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _serve()
