"""The process of a job: ``python -m trunkline.console.worker FOLDER``."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trunkline
from trunkline.console.formats import plain
from trunkline.console.jobs import Job, read_job, write_state
from trunkline.errors import Interrupted, TrunklineError, one_line
from trunkline.redaction import redact, redact_exception, redact_logs

if TYPE_CHECKING:
    from trunkline.training.config import RecipeConfig

_WRITE_SECONDS = 1.0


class StateFile:
    """A :class:`~trunkline.contracts.ProgressListener` that writes the job's state."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._values: dict[str, Any] = {}
        self._written = 0.0

    def set(self, **values: Any) -> None:
        """Change the state and write it."""
        self._values |= plain(values)
        self._written = time.monotonic()
        write_state(self._place, self._values)

    def stage(self, text: str) -> None:
        self.set(stage=text)

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        self._values |= {"done": done, "total": total}
        if done == total or time.monotonic() - self._written >= _WRITE_SECONDS:
            self.set()


def work(job: Job, state: StateFile) -> None:
    """Do what the job says, and write how it ended."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        if job.kind == "plan":
            raise Interrupted("Stopped.")

    signal.signal(signal.SIGTERM, stop)
    state.stage("opening the base")
    platform = trunkline.open(**job.platform)
    recipe = _recipe(job)
    if job.kind == "plan":
        state.stage("reading data, building the adapter, timing a step")
        plan = platform.plan(recipe, **job.settings)
        state.set(plan={**asdict(plan), "recipe": plan.recipe.name})
        return
    from trunkline.training.config import resumed
    from trunkline.training.run import train

    settings, run = dict(job.settings), None
    if job.resume is not None:
        run = platform.registry.runs.get(job.resume)
        recipe, settings = resumed(run, recipe, settings)
    training = platform.training_job(recipe, settings)
    context = replace(
        platform.run_context(training, state, lambda: stopped),
        actor=job.actor,
        on_run=lambda number: state.set(run=number),
    )
    result = train(context, training, run)
    state.set(version=str(result.version.ref))


def _recipe(job: Job) -> str | RecipeConfig:
    from trunkline.training.config import make_config

    return job.adapter if job.config is None else make_config(job.config, "The recipe")


def main(place: Path) -> int:
    """Work on the job of a folder; returns the exit code."""
    redact_logs()
    state = StateFile(place)
    try:
        work(read_job(place), state)
    except TrunklineError as error:
        state.set(error=redact(error.message), hint=error.hint and redact(error.hint), ended=True)
        return error.exit_code
    except Exception as error:
        redact_exception(error)
        state.set(error=redact(one_line(error, with_type=True)), ended=True)
        print(redact("".join(traceback.format_exception(error))), file=sys.stderr)
        return 1
    state.set(stage="", ended=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
