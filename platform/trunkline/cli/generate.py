"""``trunkline generate``: text, by an adapter or by the bare base."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from trunkline.cli.answering import answering
from trunkline.cli.command import Command
from trunkline.cli.options import Globals, url_option, with_globals
from trunkline.cli.output import json_option, note, print_json


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of drawing tokens."""
    for option in (
        click.option("--seed", type=int, default=0, show_default=True, help="Of the sampling."),
        click.option(
            "--top-p", type=float, default=1.0, show_default=True, help="Nucleus sampling."
        ),
        click.option(
            "--temperature",
            type=float,
            default=0.0,
            show_default=True,
            help="0 takes the likeliest token each time.",
        ),
        click.option("--max-new-tokens", type=int, metavar="N", help="Longest answer, in tokens."),
    ):
        function = option(function)
    return function


@click.command(
    "generate",
    cls=Command,
    short_help="Text by an adapter, or by the bare base.",
    example='trunkline generate base "Name three fruits." --max-new-tokens 24',
)
@click.argument("ref")
@click.argument("prompt")
@sampling_options
@url_option
@json_option
@with_globals
def generate(
    said: Globals, /, ref: str, prompt: str, url: str | None, as_json: bool, **sampling: Any
) -> None:
    """Let an adapter, or the bare `base`, write a text; the prompt `-` is read from stdin."""
    if prompt == "-":
        prompt = sys.stdin.read()
    with answering(said, url) as client:
        answer = client.generate(client.find(ref), prompt, sampling)
    if as_json:
        print_json({"prompt": prompt, **answer.to_json()})
        return
    click.echo(answer.text)
    if answer.finish == "length":
        note("(cut off; --max-new-tokens allows more)")
