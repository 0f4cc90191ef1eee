"""Stop a training from another process: a file in the run's folder, looked for after each step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trunkline.errors import RefusedError
from trunkline.files import write_atomically
from trunkline.registry.records import RunRecord

if TYPE_CHECKING:
    from trunkline.registry.registry import Registry
    from trunkline.workspace import Workspace

LOCK = ".lock"
"""The file in a run's folder that its process locks."""

CHECKPOINTS = "checkpoints"
"""The folder of the checkpoints in a run's folder."""

_STOP = "stop"


def request_stop(
    workspace: Workspace, registry: Registry, number: int, *, actor: str | None = None
) -> RunRecord:
    """Ask the process that trains a run to stop after its step; the run can be resumed.

    Args:
        actor: who asks, for the run's event.

    Raises:
        NotFoundError: there is no such run.
        RefusedError: it has ended, or no process of this workspace trains it.
    """
    run = registry.runs.get(number)
    if run.status != "running":
        raise RefusedError(
            f"Run {number} has ended already: its status is {run.status}.",
            f"See it with: trunkline runs show {number}.",
        )
    folder = workspace.run_path(number)
    if not is_trained(folder):
        raise RefusedError(
            f"No process trains run {number} any more in this workspace.",
            f"Resume it with: trunkline train {run.recipe} --resume {number}.",
        )
    registry.runs.record_stop_request(number, actor=actor)
    write_atomically(folder / _STOP, "")
    return run


def is_trained(folder: Path) -> bool:
    """Whether a process trains the run with this folder."""
    from filelock import FileLock, Timeout

    if not folder.is_dir():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def is_resumable(folder: Path, status: str) -> bool:
    """Whether a run with this status has ended early, and left checkpoints to go on from."""
    return status != "finished" and (folder / CHECKPOINTS).is_dir() and not is_trained(folder)


def stop_requests(folder: Path) -> Callable[[], bool]:
    """A function that tells whether a stop was requested."""
    return (folder / _STOP).exists


def forget_stop(folder: Path) -> None:
    """Forget the request that ended an earlier part of the run."""
    (folder / _STOP).unlink(missing_ok=True)
