"""Training rows of a search that stops losing trials, against the same trials trained to the end.

For each classification recipe of the plugins: a search, then every trial that it stopped once more
in full. Prints the rows of both, which trial each chooses, and their scores on the validation rows.
Counts and scores do not depend on how busy the machine is. Asserts nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import timing
from made import BASE
from timing import title

RECIPES = ("medical/icd10-chapter", "finance/naics-sector", "retail/department")


def full_score(platform: Any, recipe: str, settings: dict[str, Any]) -> float:
    """The best validation score of a complete training."""
    from trunkline.contracts import NoProgress
    from trunkline.data.prepare import prepare
    from trunkline.training.trainer import train_adapter

    job = platform.training_job(recipe, settings)
    with tempfile.TemporaryDirectory() as folder:
        output = train_adapter(
            job,
            prepare(job.dataset, job.recipe, job.transforms),
            platform.engine,
            Path(folder),
            listener=NoProgress(),
            log=lambda step, values: None,
            should_stop=lambda: False,
        )
    return float(output.best_score or 0.0)


def main() -> None:
    parser = timing.options(__doc__)
    parser.add_argument("--recipe", action="append", help="one of the recipes; may be repeated")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=48)
    options = parser.parse_args()
    timing.say_where(None)
    trials, steps = (3, 8) if options.quick else (options.trials, options.steps)

    import trunkline

    for recipe in options.recipe or RECIPES:
        platform = trunkline.open(tempfile.mkdtemp(), base=BASE)
        fixed = {"max_steps": steps, "evals_per_epoch": 8, "early_stopping_patience": 0}
        result = platform.tune(recipe, trials=trials, **fixed)
        scores = {trial.number: trial.score for trial in result.trials}
        for trial in result.trials:
            if trial.state == "stopped":
                scores[trial.number] = full_score(platform, recipe, {**fixed, **trial.settings})
        title(f"{recipe}, {trials} trials of {steps} steps (target: 3x fewer rows, same score)")
        for trial in result.trials:
            values = ", ".join(f"{name}={value:.3g}" for name, value in trial.settings.items())
            print(
                f"  trial {trial.number + 1}: {trial.state:<8} after {trial.share:4.0%}, score "
                f"{trial.score:.3f}, in full {scores[trial.number]:.3f}  {values}"
            )
        best = max(scores, key=lambda number: scores[number] or 0.0)
        assert result.best is not None
        print(
            f"  rows {result.rows:,} against {result.full_rows:,}: "
            f"{result.full_rows / result.rows:.2f}x fewer\n"
            f"  chosen: trial {result.best.number + 1} with {scores[result.best.number]:.3f}; "
            f"of all trained in full: trial {best + 1} with {scores[best]:.3f}"
        )


if __name__ == "__main__":
    main()
