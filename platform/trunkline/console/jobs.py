"""Trainings and estimates that the console started, each in a process of its own.

A job is a folder in the workspace: ``job.json`` says what to do, ``process.json`` which process
does it, ``state.json`` how far it is, ``log`` what it printed. The process goes on when the browser
closes its tab and when the server stops.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trunkline.console.pages import N_
from trunkline.errors import BusyError, IntegrityError, NotFoundError
from trunkline.files import indented_json, read_json_object, write_atomically
from trunkline.registry.actors import process_is_alive, process_start

if TYPE_CHECKING:
    from trunkline.api import Platform

MAX_KEPT = 50
"""Jobs whose folders are kept; older ones that have ended are removed."""

JOB, STATE, PROCESS, LOG = "job.json", "state.json", "process.json", "log"

_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a process is to do.

    Attributes:
        kind: ``train``, or ``plan``: only estimate the cost.
        adapter: ``domain/name`` of the recipe.
        config: a recipe for own data, as :class:`~trunkline.training.config.RecipeConfig` has it;
            None: the plugin's recipe with the adapter's name.
        settings: overrides, as text.
        resume: the number of a run to continue.
        actor: who started it, for events.
        command: the command line that does the same in a terminal.
        platform: arguments of :func:`trunkline.open`.
    """

    kind: Literal["train", "plan"]
    adapter: str
    config: Mapping[str, Any] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    resume: int | None = None
    actor: str | None = None
    command: str = ""
    created: str = ""
    platform: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """How far a job is; what its process has not reported yet is None.

    Attributes:
        alive: whether its process runs.
        stage: what it does now.
        done, total: optimizer steps.
        run: its number, once it is recorded.
        version: that it published.
        plan: the estimate, of a job that only estimates.
        error, hint: why it ended.
    """

    id: str
    job: Job
    alive: bool
    stage: str = ""
    done: int = 0
    total: int = 0
    run: int | None = None
    version: str | None = None
    plan: Mapping[str, Any] | None = None
    error: str | None = None
    hint: str | None = None
    ended: bool = False


def start(platform: Platform, job: Job) -> str:
    """Start a job in a process of its own; returns its id.

    Raises:
        BusyError: another one is running.
    """
    folder = _folder(platform)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        states = [_state(one) for one in _folders(platform)]
        if any(one.alive for one in states):
            raise BusyError(
                N_("Another training of the console is running; two would slow down each other."),
                N_("Wait until it ends, or stop it."),
            )
        for old in states[MAX_KEPT - 1 :]:
            shutil.rmtree(folder / old.id, ignore_errors=True)
        id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        place = folder / id
        place.mkdir()
        values = asdict(job) | {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "platform": _arguments(platform),
        }
        write_atomically(place / JOB, indented_json(values))
        with (place / LOG).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "trunkline.console.worker", str(place)],
                cwd=platform.workspace.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        identity = {"pid": process.pid, "started": process_start(process.pid)}
        write_atomically(place / PROCESS, indented_json(identity))
    threading.Thread(target=process.wait, name="job", daemon=True).start()
    return id


def get(platform: Platform, id: str) -> JobState:
    """A job by its id.

    Raises:
        NotFoundError: there is none.
    """
    place = _folder(platform) / id
    if not _ID.fullmatch(id) or not (place / JOB).is_file():
        raise NotFoundError(N_("There is no such training."), N_("See those under Train."))
    return _state(place)


def newest(platform: Platform) -> list[JobState]:
    """The jobs, newest first."""
    return [_state(one) for one in _folders(platform)]


def stop(platform: Platform, id: str) -> None:
    """Ask the process of a job to stop, as Ctrl-C would; nothing happens if it has ended."""
    state = get(platform, id)
    pid = _values(_folder(platform) / id / PROCESS).get("pid")
    if state.alive and isinstance(pid, int):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def read_job(place: Path) -> Job:
    """The job of a folder."""
    return Job(**read_json_object(place / JOB))


def write_state(place: Path, values: Mapping[str, Any]) -> None:
    """Store how far a job is: fields of :class:`JobState`."""
    write_atomically(place / STATE, indented_json(dict(values)))


def _state(place: Path) -> JobState:
    values = _values(place / STATE)
    alive = not values.get("ended") and _is_alive(_values(place / PROCESS))
    state = JobState(id=place.name, job=read_job(place), alive=alive, **values)
    if alive or state.ended:
        return state
    lost = {
        "error": N_("The process ended without reporting a result; it may have been killed."),
        "hint": f"See what it printed: .trunkline/jobs/{place.name}/{LOG}.",
        "ended": True,
    }
    return JobState(id=place.name, job=state.job, alive=False, **{**values, **lost})


def _values(file: Path) -> dict[str, Any]:
    """The fields of a file; none if it is missing or damaged."""
    with suppress(OSError, IntegrityError):
        return read_json_object(file)
    return {}


def _is_alive(identity: Mapping[str, Any]) -> bool:
    pid = identity.get("pid")
    if not isinstance(pid, int) or not process_is_alive(pid):
        return False
    return process_start(pid) == identity.get("started")


def _folder(platform: Platform) -> Path:
    return platform.workspace.root / ".trunkline" / "jobs"


def _folders(platform: Platform) -> list[Path]:
    """The folders of complete jobs, newest first."""
    folder = _folder(platform)
    with suppress(OSError):
        names = [one for one in folder.iterdir() if _ID.fullmatch(one.name)]
        return sorted((one for one in names if (one / JOB).is_file()), reverse=True)
    return []


def _arguments(platform: Platform) -> dict[str, Any]:
    return {
        "workspace": str(platform.workspace.root),
        "base": platform.base_name,
        "device": platform.device,
        "dtype": platform.dtype,
        "no_plugins": platform.no_plugins,
        "block": list(platform.block),
        "strict": platform.strict,
        "image_base": platform.image_base_name,
    }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time start a job."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=10):
            yield
    except Timeout:
        raise BusyError(N_("Another training is being started."), N_("Retry later.")) from None
