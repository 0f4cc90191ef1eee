"""``trunkline eval REF --retention``: what an adapter changes in general English."""

from __future__ import annotations

import click

from trunkline.cli.output import figure, heading, interval, plain, print_json, print_table
from trunkline.cli.progress import working
from trunkline.cli.root import GlobalOptions

_HEADED = (
    "Its head answers its own task only, so no answer is affected by this. The figures compare the "
    "language-model head, which reads the hidden states that the adapter changes."
)


def print_retention(options: GlobalOptions, name: str, as_json: bool) -> None:
    """Measure the retention of a version and write the report."""
    from trunkline.evaluation.general_texts import GENERAL_TEXTS
    from trunkline.evaluation.retention import measure_retention

    version = options.version(name)
    platform = options.platform
    with working("texts") as listener:
        listener.stage("opening the base")
        artifact = platform.resolve(str(version.ref)).artifact()
        assert artifact is not None
        engine = platform.engine
        listener.stage("reading general texts")
        report = measure_retention(
            engine,
            artifact,
            on_done=lambda done: listener.progress(done, len(GENERAL_TEXTS), {}),
        )
    headed = version.task != "generation"
    if as_json:
        print_json(
            {
                "adapter": str(version.ref),
                "digest": version.digest,
                "task": version.task,
                **plain(report),
            }
        )
        return
    heading(
        f"{version.ref} on {report.texts} general English texts, {report.tokens:,} tokens "
        "(95 % intervals, texts resampled)"
    )
    base = report.base_perplexity
    print_table(
        ["per token", "base", "adapter", "adapter minus base"],
        [
            (
                "log likelihood",
                figure(report.base_log_likelihood.value),
                interval(report.log_likelihood),
                interval(report.difference, sign=True),
            ),
            ("perplexity", figure(base.value), interval(report.perplexity), "-"),
            ("same most likely token", "-", interval(report.agreement), "-"),
            ("KL divergence, nats", "-", interval(report.kl_divergence), "-"),
        ],
        right=("base",),
    )
    click.echo(
        "It changes nothing: both distributions are equal."
        if report.kl_divergence.value == 0
        else f"The adapter's perplexity is {report.perplexity.value / base.value:.3g} times the "
        "base's."
    )
    if headed:
        click.echo(_HEADED)
