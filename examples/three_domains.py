"""Three short adapters on one base: fetch, train, evaluate, swap.

Run by `make demo`. It works in ./demo, so running it again finds the adapters there and goes
straight to the table. The trainings are cut short to take minutes; the recipes' own settings do
better (see the plugins' READMEs). `make demo STEPS=3` trains three steps each, which is enough to
try the commands.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

import trunkline
from trunkline import Request, bases
from trunkline.evaluation.intervals import Estimate
from trunkline.evaluation.report import EvaluationReport

SHORT = {"max_steps": 150, "learning_rate": 1e-3}
"""Settings of every training."""
RECIPES = ("medical/icd10-chapter", "finance/naics-sector", "retail/department")
PROMPTS = (
    "Type 2 diabetes mellitus with diabetic chronic kidney disease",
    "Commercial banking and credit unions",
    "frozen pizza, family size",
)


class Lines:
    """Progress as plain lines on stderr."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next = 0.0

    def stage(self, text: str) -> None:
        print(f"  {self._name}: {text}", file=sys.stderr, flush=True)

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        if done == total or time.monotonic() >= self._next:
            self._next = time.monotonic() + 15
            figures = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
            self.stage(f"step {done} of {total}  {figures}".rstrip())


def interval_text(score: Estimate) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train three adapters and swap them.")
    parser.add_argument("--steps", type=int, default=SHORT["max_steps"], help="of each training")
    parser.add_argument(
        "--full", action="append", default=[], metavar="RECIPE", help="not shortened by --steps"
    )
    chosen = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 118)
    print("Base: fetched and converted once, then kept in the cache.", file=sys.stderr)
    bases.pull(bases.DEFAULT_BASE, on_stage=Lines(bases.DEFAULT_BASE).stage)

    folder = Path("demo")
    folder.mkdir(exist_ok=True)
    platform = trunkline.open(folder)
    there = {str(adapter.ref) for adapter in platform.registry.adapters.list()}
    for recipe in RECIPES:
        if recipe not in there:
            steps = SHORT["max_steps"] if recipe in chosen.full else chosen.steps
            print(f"Training {recipe} for {steps} steps.", file=sys.stderr)
            settings = {**SHORT, "max_steps": steps}
            platform.train(recipe, listener=Lines(recipe), **settings)

    table = Table(
        box=box.SIMPLE_HEAD,
        title="Three adapters, one base (95 % intervals; verdict against the best baseline)",
        title_justify="left",
    )
    for column in ("adapter", "task", "examples", "score", "baselines", "verdict"):
        table.add_column(column, no_wrap=column == "adapter", overflow="fold")
    for recipe in RECIPES:
        version = platform.resolve(recipe).version
        evaluated = platform.evaluation_report(version)
        assert evaluated is not None
        report: EvaluationReport = evaluated[0]
        baselines = "\n".join(
            f"{name} {interval_text(scores[report.metric])}"
            for name, scores in report.baselines.items()
        )
        table.add_row(
            str(version.ref),
            version.task,
            f"{report.rows} rows\n{report.groups} groups",
            f"{report.metric} {interval_text(report.score)}".replace(" [", "\n["),
            baselines,
            report.verdict,
        )

    requests = [Request(None, text, max_new_tokens=24) for text in PROMPTS]
    requests += [Request(recipe, text) for recipe in RECIPES for text in PROMPTS]
    answers = iter(platform.run(requests))
    swaps = Table(
        box=box.SIMPLE_HEAD, title="The same prompts, swapping adapters", title_justify="left"
    )
    for column in ("answered by", *PROMPTS):
        swaps.add_column(column, no_wrap=column == "answered by", overflow="fold")
    for _ in ("base", *RECIPES):
        row = [next(answers) for _ in PROMPTS]
        cells = [
            f"{answer.label} ({answer.confidence:.2f})" if answer.label else str(answer.text)
            for answer in row
        ]
        swaps.add_row(row[0].adapter, *cells)
    console.print(table)
    console.print(swaps)
    console.print(
        "The workspace in a browser: (cd demo && ../.venv/bin/trunkline serve), then open"
    )
    console.print("http://127.0.0.1:8000/console")


if __name__ == "__main__":
    main()
