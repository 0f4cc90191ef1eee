"""Three adapters of three domains trained at once on one base, against one after another.

The recipes are those of the three plugins, with their own settings but for the number of steps.
Seconds are those of whole trainings: loading the base, steps, validations, artifact and proof. Each
way has a process of its own, in turn. Prints medians, ratios, and the peak memory of each process;
asserts nothing.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import timing
from children import Child
from made import BASE
from timing import title

RECIPES = ("medical/icd10-chapter", "finance/naics-sector", "retail/department")


class Trainings:
    """Trainings of all recipes in one process."""

    def __init__(self, steps: int) -> None:
        import trunkline
        from trunkline.data.prepare import prepare

        self._platform = trunkline.open(tempfile.mkdtemp(), base=BASE)
        settings = {"max_steps": steps, "evals_per_epoch": 1}
        self._jobs = [self._platform.training_job(recipe, settings) for recipe in RECIPES]
        self._prepared = [prepare(job.dataset, job.recipe, job.transforms) for job in self._jobs]
        assert self._platform.engine  # loaded before any measurement

    def train(self, together: bool) -> float:
        """Seconds of all trainings."""
        from trunkline.training.together import train_together

        with tempfile.TemporaryDirectory() as folder:
            functions = [self._training(index, Path(folder)) for index in range(len(RECIPES))]
            started = time.perf_counter()
            if together:
                outcomes = train_together(RECIPES, functions)
            else:
                outcomes = [
                    train_together([name], [function])[0]
                    for name, function in zip(RECIPES, functions, strict=True)
                ]
            taken = time.perf_counter() - started
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return taken

    def peak(self) -> float:
        """Peak memory of this process in GB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    def _training(self, index: int, folder: Path) -> Callable[[Any], Any]:
        from trunkline.contracts import NoProgress
        from trunkline.training.trainer import train_adapter

        return lambda place: train_adapter(
            self._jobs[index],
            self._prepared[index],
            self._platform.engine,
            folder / str(index),
            listener=NoProgress(),
            log=lambda step, values: None,
            should_stop=lambda: False,
            place=place,
        )


def main() -> None:
    options = timing.options(__doc__).parse_args()
    timing.say_where(None)
    rounds, steps = (1, 3) if options.quick else (3, 6)
    ways = {"one after another": False, "at once": True}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with ExitStack() as stack:
        children = {name: stack.enter_context(Child(Trainings, steps)) for name in ways}
        for child in children.values():
            child.wait()
        for _ in range(rounds):
            for name, together in ways.items():
                seconds[name].append(children[name].ask("train", together))
        peaks = {name: child.ask("peak") for name, child in children.items()}
    title(f"Three adapters, {steps} steps each (target: no slower in total, one base in memory)")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(
            f"  {name:<18} {value:6.1f} s, {value / medians['one after another']:4.2f}x; "
            f"peak {peaks[name]:.2f} GB"
        )


if __name__ == "__main__":
    main()
