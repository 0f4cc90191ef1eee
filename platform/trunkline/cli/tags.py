"""``trunkline tag`` and ``trunkline note``: words about anything that the registry knows."""

from __future__ import annotations

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import json_option, note, print_fields, print_json
from trunkline.errors import UsageError

SUBJECTS = """SUBJECT is domain/name, domain/name@3, run/3, dataset/<id>, base/<digest>,
    request/<id>, key/<id> or server/<number>."""


@click.command(
    "tag",
    cls=Command,
    short_help="Tag a version, a run, or anything else.",
    help=f"""Set and remove tags, then print those that the subject has.

    A tag is a key with a value; setting it again replaces the value. `adapters list --where
    'tag.KEY=VALUE'` finds versions by their tags.

    {SUBJECTS}
    """,
    example=Example("trunkline tag medical/icd10-chapter@2 reviewed=yes ticket=AUD-114", "writes"),
)
@click.argument("subject")
@click.argument("pairs", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--remove", metavar="KEY", multiple=True, help="Take a tag away; may be repeated.")
@json_option
@with_globals
def tag(
    said: Globals, subject: str, pairs: tuple[str, ...], remove: tuple[str, ...], as_json: bool
) -> None:
    values = dict(_pair(pair) for pair in pairs)
    if both := sorted(values.keys() & set(remove)):
        raise UsageError(f"The tag {both[0]!r} is both set and removed.", "Say one of the two.")
    registry = said.platform.registry
    if values or remove:
        registry.tags.update(subject, values, remove=remove)
    found = registry.tags.get(subject)
    if as_json:
        print_json({"subject": found.subject, "tags": found.tags})
    elif found.tags:
        note(f"{found.subject} has the tags:")
        print_fields(found.tags.items())
    else:
        note(f"{found.subject} has no tag.")


@click.command(
    "note",
    cls=Command,
    short_help="Add a note to anything's history.",
    help=f"""Add a note, which stands in the history for good, or print the notes there are.

    A note can't be changed or taken back; add another one.

    {SUBJECTS}
    """,
    example=Example(
        'trunkline note medical/icd10-chapter@2 "Seen by the board on 21 November."', "writes"
    ),
)
@click.argument("subject")
@click.argument("text", required=False)
@json_option
@with_globals
def note_(said: Globals, subject: str, text: str | None, as_json: bool) -> None:
    registry = said.platform.registry
    if text is not None:
        made = registry.tags.add_note(subject, text)
        if as_json:
            print_json({"subject": made, "text": text})
        else:
            click.echo(f"{made}: noted")
        return
    notes = registry.tags.notes(subject)
    if as_json:
        print_json(notes)
        return
    for one in notes:
        click.echo(f"{one.at.isoformat(timespec='seconds')}  {one.actor}  {one.detail['text']}")
    if not notes:
        note(f"Nothing is noted of {subject}.")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is no tag.", "Write KEY=VALUE, for example reviewed=yes.")
    return key, value
