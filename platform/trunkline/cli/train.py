"""``trunkline train``: a recipe becomes a evaluated version; or what that would cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Command
from trunkline.cli.options import Globals, run_number, with_globals
from trunkline.cli.output import (
    bytes_text,
    counts,
    duration,
    figure,
    heading,
    json_option,
    note,
    print_fields,
    print_json,
    short_digest,
)
from trunkline.cli.progress import stop_on_interrupt, working
from trunkline.cli.report_view import print_evaluation_report
from trunkline.errors import UsageError

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.training.plan import TrainingPlan

set_option = click.option(
    "--set",
    "assignments",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a setting of the recipe; may be repeated (`recipes show` lists them).",
)


@click.command(
    "train",
    cls=Command,
    short_help="Train a recipe, evaluate it, publish it as a version.",
    example="""
    $ trunkline train finance/naics-sector --set max_steps=80
    opening the base
    reading data
    …
      80 of 80, loss 0.525, accuracy 0.805, 1.3 s/step
    …
    rows         1,344 read, 1,344 kept; dropped 0; duplicated 0; conflicting 0
    near-copies  0 test rows have one in train
    parts        train 902, validation 169, test 273 (groups: train 216, validation 31, test 61)
    tokens       11,223 trained on; longest example 25; 0 truncated
    steps        80 of 80; best at 80: accuracy 0.822 on validation
    proof        loaded back, 16 rows: 0.00% from the trained model, 94.06% from the base
    took         2 min 9 s, training 1 min 52 s

    Evaluated on 273 held-out rows in 61 groups (95 % intervals, groups resampled)
                    accuracy              macro_f1              finance/expected_cost
    this adapter    0.703 [0.591, 0.811]  0.471 [0.347, 0.540]  0.319 [0.198, 0.451]
    baseline majority  0.355 [0.195, 0.512]  0.031 [0.021, 0.051]  0.668 [0.497, 0.844]
    baseline tfidf     0.692 [0.572, 0.808]  0.438 [0.321, 0.513]  0.299 [0.189, 0.414]
    baseline majority: always 'Manufacturing'
    baseline tfidf: characters 2-5, C=100
    It ties with the baseline tfidf: accuracy 0.703 against 0.692,
    difference +0.011 [-0.074, +0.091].

    Run 2 published finance/naics-sector@2 (sha256:374e8fcf2932)
    Ask it:     trunkline predict finance/naics-sector@2 "a text"
    Go live:    trunkline adapters promote finance/naics-sector@2
    """,
)
@click.argument("recipe")
@set_option
@click.option("--dry-run", is_flag=True, help="Only show the resolved recipe and its cost.")
@click.option(
    "--resume", type=run_number, metavar="RUN", help="Go on with a run that did not finish."
)
@json_option
@with_globals
def train(
    said: Globals,
    recipe: str,
    assignments: tuple[str, ...],
    dry_run: bool,
    resume: int | None,
    as_json: bool,
) -> None:
    """Train an adapter, prove it, evaluate it beside the baselines, and publish it as a version.

    It is published whatever the verdict; `adapters promote` asks the gate. Ctrl-C stops after the
    step and keeps the run for --resume.
    """
    settings = parsed(assignments)
    platform = said.with_plugins
    platform.training_job(recipe, settings)
    if dry_run:
        if resume is not None:
            raise UsageError("A dry run resumes nothing.", "Leave --dry-run or --resume away.")
        _dry_run(platform, recipe, settings, as_json)
        return
    with working() as listener, stop_on_interrupt(listener) as asked:
        listener.stage("opening the base")
        run = platform.train(
            recipe, resume=resume, listener=listener, should_stop=asked, **settings
        )
    if as_json:
        print_json(
            {
                "run": run.number,
                "version": run.version,
                "adapter": str(run.version.ref),
                "report": run.report,
                "evaluation_report": run.evaluation_report,
            }
        )
        return
    print_report(run.report, run.evaluation_report.metric)
    print_evaluation_report(run.evaluation_report)
    heading(f"Run {run.number} published {run.version.ref} ({short_digest(run.version.digest)})")
    verb = "generate" if run.version.task == "generation" else "predict"
    note(f'Ask it:     trunkline {verb} {run.version.ref} "a text"')
    note(f"Go live:    trunkline adapters promote {run.version.ref}")


def parsed(assignments: tuple[str, ...]) -> dict[str, str]:
    """``--set`` options → settings, still as texts."""
    from trunkline.training.job import parse_assignment

    return dict(parse_assignment(text) for text in assignments)


def print_report(report: Mapping[str, Any], metric: str) -> None:
    """Write what a run read, left out, trained on, and took."""
    data, proof = report["data"], report["proof"]
    steps = f"{report['steps']:,} of {report['total_steps']:,}"
    if report["steps"] < report["total_steps"]:
        steps += " (stopped early)"
    if report["best_score"] is not None:
        steps += (
            f"; best at {report['best_step']:,}: {metric} "
            f"{figure(report['best_score'])} on validation"
        )
    print_fields(
        [
            ("rows", rows_text(data)),
            ("near-copies", f"{data['near_duplicates']:,} test rows have one in train"),
            ("parts", f"{counts(data['parts'])} (groups: {counts(data['groups'])})"),
            ("augmented", f"{data['augmented']:,} rows" if data["augmented"] else None),
            (
                "tokens",
                f"{report['tokens_trained']:,} trained on; longest example {report['longest']:,}; "
                f"{report['truncated']:,} truncated",
            ),
            ("steps", steps),
            (
                "proof",
                f"loaded back, {proof['rows']} rows: {proof['to_trained']:.2%} from the trained "
                f"model, {proof['to_base']:.2%} from the base"
                if proof
                else None,
            ),
            ("took", _took(report)),
        ]
    )


def rows_text(data: Mapping[str, Any]) -> str:
    """``65 read, 63 kept; dropped: empty text 1; duplicated 1; conflicting 0``."""
    dropped = f"dropped: {counts(data['dropped'])}" if data["dropped"] else "dropped 0"
    return (
        f"{data['read']:,} read, {data['kept']:,} kept; {dropped}; "
        f"duplicated {data['duplicated']:,}; conflicting {data['conflicting']:,}"
    )


def _took(report: Mapping[str, Any]) -> str:
    """The whole time is not in the reports of the first releases' artifacts."""
    training = f"training {duration(report['train_seconds'])}"
    return f"{duration(report['seconds'])}, {training}" if "seconds" in report else training


def _dry_run(platform: Platform, recipe: str, settings: Mapping[str, Any], as_json: bool) -> None:
    from trunkline.cli.recipes import print_recipe

    with working() as listener:
        listener.stage("reading data and building the adapter")
        plan = platform.plan(recipe, **settings)
    if as_json:
        print_json(plan)
        return
    print_recipe(platform.training_job(recipe, settings))
    _print_cost(plan)


def _print_cost(plan: TrainingPlan) -> None:
    heading("What it would take; nothing was trained or written")
    parts = plan.data["parts"]
    print_fields(
        [
            ("base", plan.base),
            ("rows", rows_text(plan.data)),
            ("parts", f"{counts(parts)} (groups: {counts(plan.data['groups'])})"),
            ("steps", f"{plan.steps:,}"),
            (
                "tokens",
                f"{plan.tokens:,}; longest example {plan.longest:,}; "
                f"{plan.truncated:,} examples truncated",
            ),
            (
                "adapter",
                f"{plan.trainable_parameters:,} parameters, {bytes_text(plan.adapter_bytes)}",
            ),
            ("arithmetic", f"at most {plan.training_flops:.2g} operations"),
            (
                "time",
                f"about {duration(plan.seconds)}, by this recipe's last run here"
                if plan.seconds is not None
                else "not known: this recipe has no finished run here yet",
            ),
        ]
    )
