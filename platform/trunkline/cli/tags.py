"""``trunkline tag`` and ``trunkline note``: tags and notes on anything in the registry."""

from __future__ import annotations

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.output import json_option, note, print_fields, print_json
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.errors import UsageError

SUBJECTS = """SUBJECT is domain/name, domain/name@3, run/3, dataset/<id>, base/<digest>,
    request/<id>, key/<id> or server/<number>."""


@click.command(
    "tag",
    cls=Command,
    short_help="Tag a version, a run or another subject.",
    help=f"""Set and remove tags, then print the subject's tags.

    A tag is a key with a value; setting it again replaces the value. `adapters list --where
    'tag.KEY=VALUE'` lists versions by their tags.

    {SUBJECTS}
    """,
    example=Example("trunkline tag finance/naics-sector@1 reviewed=yes ticket=AUD-114", "writes"),
)
@click.argument("subject")
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--remove", metavar="KEY", multiple=True, help="Remove a tag; may be repeated.")
@json_option
@pass_options
def tag(
    options: GlobalOptions,
    subject: str,
    pairs: tuple[str, ...],
    remove: tuple[str, ...],
    as_json: bool,
) -> None:
    values = dict(_parse_pair(pair) for pair in pairs)
    if both := sorted(values.keys() & set(remove)):
        raise UsageError(f"The tag {both[0]!r} is both set and removed.", "Do one of the two.")
    registry = options.platform.registry
    if values or remove:
        registry.tags.update(subject, values, remove=remove)
    result = registry.tags.get(subject)
    if as_json:
        print_json({"subject": result.subject, "tags": result.tags})
    elif result.tags:
        note(f"Tags of {result.subject}:")
        print_fields(result.tags.items())
    else:
        note(f"{result.subject} has no tags.")


@click.command(
    "note",
    cls=Command,
    short_help="Add a note to a subject's history.",
    help=f"""Add a note to the history, or print the notes of the subject.

    A note is permanent; to correct one, add another.

    {SUBJECTS}
    """,
    example=Example(
        'trunkline note finance/naics-sector@1 "Seen by the board on 21 November."', "writes"
    ),
)
@click.argument("subject")
@click.argument("text", required=False)
@json_option
@pass_options
def note_(options: GlobalOptions, subject: str, text: str | None, as_json: bool) -> None:
    registry = options.platform.registry
    if text is not None:
        resolved = registry.tags.add_note(subject, text)
        if as_json:
            print_json({"subject": resolved, "text": text})
        else:
            click.echo(f"{resolved}: noted")
        return
    notes = registry.tags.notes(subject)
    if as_json:
        print_json(notes)
        return
    for one in notes:
        click.echo(f"{one.at.isoformat(timespec='seconds')}  {one.actor}  {one.detail['text']}")
    if not notes:
        note(f"{subject} has no notes.")


def _parse_pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is not a tag.", "Write KEY=VALUE, for example reviewed=yes.")
    return key, value
