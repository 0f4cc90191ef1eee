"""The quality of a plugin's recipe over seeds, beside its baselines and published scores."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import timing
from timing import title

from trunkline.bases import DEFAULT_IMAGE_BASE

THINNED = 20
"""In a smoke run, one row of so many is used."""


def main(doc: str | None, recipe: str, published: Mapping[str, str]) -> None:
    """Train ``recipe`` with several seeds, and print its scores; nothing is published.

    Args:
        doc: of the benchmark.
        recipe: of a plugin, for pictures.
        published: what was measured → its accuracy, as its authors write it.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run of few rows and steps")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    timing.say_where(DEFAULT_IMAGE_BASE)

    import trunkline
    from trunkline.contracts import NoProgress
    from trunkline.training.cross_validation import repeat_seeds
    from trunkline.training.job import parse_assignment

    settings = dict(map(parse_assignment, options.set))
    if options.quick:
        settings = {"max_steps": "2", **settings}
    with tempfile.TemporaryDirectory() as workspace:
        platform = trunkline.open(workspace, base=DEFAULT_IMAGE_BASE)
        job = platform.training_job(recipe, settings)
        if options.quick:
            rows = list(job.dataset.load())[::THINNED]
            job = replace(job, dataset=replace(job.dataset, load=lambda: rows))
        start = time.perf_counter()
        context = platform.run_context(job, NoProgress(), lambda: False)
        result = repeat_seeds(context, job, 2 if options.quick else options.seeds)
        _print(recipe, result, published, time.perf_counter() - start)
        platform.registry.close()


def _print(recipe: str, result: Any, published: Mapping[str, str], seconds: float) -> None:
    first = result.reports[0]
    metrics = list(result.spread)
    title(f"{recipe}, {len(result.reports)} seeds on one split of {first.rows:,} test rows")
    print(f"  {'':<36} " + " ".join(f"{metric:<28}" for metric in metrics))
    for seed, report in enumerate(result.reports):
        _line(f"seed {seed}", [report.scores[metric] for metric in metrics], report.verdict)
    for name, scores in first.baselines.items():
        _line(f"baseline {name}", [scores[metric] for metric in metrics])
    for metric, one in result.spread.items():
        print(
            f"  {metric}: mean {one.mean:.3f}, deviation {one.deviation:.3f}, "
            f"{one.low:.3f} to {one.high:.3f}"
        )
    for name, accuracy in published.items():
        print(f"  published: {name:<25} {accuracy}")
    print(f"  all trainings and baselines: {seconds / 60:.1f} min", flush=True)


def _line(name: str, scores: list[Any], note: str = "") -> None:
    cells = [f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in scores]
    print(f"  {name:<36} " + " ".join(f"{cell:<28}" for cell in cells) + note, flush=True)
