"""The warm process that every command is forked from.

It reads jobs from standard input, one JSON line each, and answers each with one line. A new
interpreter takes a second, or four with torch; a fork takes milliseconds. This process has one
thread, no connection and no lock, so its forks are safe.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from faults.steps import Fault, Step, Watch
from faults.watched_files import watch_files
from faults.watched_services import watch_services


def main(jobs: TextIO, answers: TextIO) -> None:
    """Answer jobs for :func:`warm`, :func:`rehearse` and :func:`run` until there are none."""
    for line in jobs:
        job = json.loads(line)
        if "warm" in job:
            warm(job["warm"])
            answer: dict[str, Any] = {}
        elif "rehearse" in job:
            rehearse(job["rehearse"], job["arguments"], job["environment"])
            answer = {}
        else:
            answer = run(job)
        print(json.dumps(answer), file=answers, flush=True)


def warm(modules: list[str]) -> None:
    """Import modules that the children need."""
    for name in modules:
        importlib.import_module(name)


def rehearse(operation: str, arguments: dict[str, Any], environment: dict[str, str]) -> None:
    """Run an operation in this process, unwatched, in a scratch workspace.

    What is created on first use (mappers, dialects, the commands' modules) then exists in
    every child.
    """
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        getattr(importlib.import_module("faults.operations"), operation)(**arguments)
    finally:
        os.environ.clear()
        os.environ.update(before)
        tempfile.tempdir = None
        gc.collect()
        gc.freeze()


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Fork a child that runs one operation, and return its outcome.

    Args:
        job: ``operation`` (a function of ``faults.operations``), its ``arguments``, the
            ``environment`` to set, the folder to ``watch`` (None: nothing is), the ``fault``, and
            a folder for ``scratch`` files.

    Returns:
        ``killed`` (by SIGKILL), ``status`` (else), ``output`` (both streams), and, if it came to
        its end, ``result`` and ``steps``.
    """
    scratch = Path(tempfile.mkdtemp(prefix="job-", dir=job["scratch"]))
    output, result_file = scratch / "output", scratch / "result_file"
    child = os.fork()
    if child == 0:
        _be_the_child(job, output, result_file)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    answer = {
        "killed": code == -signal.SIGKILL,
        "status": code,
        "output": output.read_text(errors="replace"),
    }
    if result_file.exists():
        answer |= json.loads(result_file.read_text())
    for path in (output, result_file):
        path.unlink(missing_ok=True)
    scratch.rmdir()
    return answer


def _be_the_child(job: dict[str, Any], output: Path, result_file: Path) -> None:
    status = 1
    try:
        stream = os.open(output, os.O_WRONLY | os.O_CREAT)
        for number in (1, 2):
            os.dup2(stream, number)
        os.environ.update(job["environment"])
        tempfile.tempdir = os.environ["TMPDIR"]
        tempfile._name_sequence = _names()  # type: ignore[attr-defined]
        operation = getattr(importlib.import_module("faults.operations"), job["operation"])
        watch = None
        if job["watch"] is not None:
            fault = job["fault"]
            if fault is not None:
                fault = Fault(fault["index"], fault["when"], Step(**fault["step"]))
            watch = Watch(Path(job["watch"]), fault)
            watch_files(watch)
            watch_services(watch)
        result = operation(**job["arguments"])
        steps = [] if watch is None else [asdict(step) for step in watch.steps]
        sys.stdout.flush()
        sys.stderr.flush()
        with result_file.open("w") as file:
            json.dump({"result": result, "steps": steps}, file)
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _names() -> Iterator[str]:
    """Temporary names that are the same in every run, which makes steps comparable."""
    number = 0
    while True:
        yield f"name{number:04}"
        number += 1


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main(sys.stdin, out)
