"""``trunkline db``: the registry's database: its schema, its backups, and what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Example, Group
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import bytes_text, json_option, note, plain, print_fields, print_json
from trunkline.cli.progress import working

if TYPE_CHECKING:
    from trunkline.registry.chain import Head


@click.group(
    cls=Group,
    lazy={"rebuild": "trunkline.cli.rebuild:rebuild"},
    short_help="The registry's database: schema, backups, rebuilding.",
)
def db() -> None:
    """The registry's database, whichever engine holds it."""


@db.command(
    "upgrade",
    example=Example("trunkline db upgrade", "writes"),
)
@json_option
@with_globals
def upgrade(said: Globals, as_json: bool) -> None:
    """Bring the schema to the one that this release needs, in one transaction.

    Every command does so when it opens a registry; this one does nothing else and says what it
    did. Killed half-way, the registry is as it was before.
    """
    from trunkline.registry.schema import upgrade as bring

    done = bring(said.platform.workspace.registry_url)
    if as_json:
        print_json(done)
    elif done.steps:
        click.echo(f"{done.where}: {done.before or 'empty'} -> {done.after}")
        for step in done.steps:
            click.echo(f"  {step.revision}  {step.title}")
    else:
        click.echo(f"{done.where}: {done.after}, nothing to do")


@db.command(
    "current",
    example="trunkline db current",
)
@json_option
@with_globals
def current(said: Globals, as_json: bool) -> None:
    """Show engine, schema, the heads of both chains and how many rows there are; change nothing.

    Tables are counted up to 100,000 rows.
    """
    from trunkline.registry.schema import MAX_ROW_COUNT, head_revision, inspect_database

    head = head_revision()
    found = inspect_database(said.platform.workspace.registry_url)
    if as_json:
        print_json({**plain(found), "newest": head, "counted_to": MAX_ROW_COUNT})
        return
    schema = found.revision or "empty"
    if found.revision == head:
        schema += ", the newest"
    elif found.revision is None or found.revision < head:
        schema += f"; `trunkline db upgrade` makes it {head}"
    else:
        schema += f", of a newer release than this one, which knows {head}"
    rows = [
        f"{name} {'over ' if count > MAX_ROW_COUNT else ''}{min(count, MAX_ROW_COUNT):,}"
        for name, count in found.rows.items()
        if count
    ]
    print_fields(
        [
            ("registry", found.where),
            ("engine", found.engine),
            ("schema", schema),
            *found.heads.items(),
            ("rows", ", ".join(rows) or "none"),
        ]
    )


@db.command(
    "backup",
    example=Example("trunkline db backup registry-2026-11-22.db", "writes"),
)
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@with_globals
def backup(said: Globals, file: Path, as_json: bool) -> None:
    """Copy the registry into FILE, one SQLite file whatever the engine, while others go on.

    FILE is the registry at one moment, and it is complete or it is not there. The artifacts in
    the store are not in it. It tells who asked what, if the log does: keep it as you keep the
    registry.
    """
    from trunkline.registry.backup import back_up
    from trunkline.registry.chain import CHAINS

    with working("parts") as listener:
        made = back_up(said.platform.workspace.registry_url, file, listener=listener)
    if as_json:
        told = {"file": made.path, "schema": made.revision, "bytes": made.bytes}
        print_json({**told, "heads": _written(made.heads)})
        return
    click.echo(f"{made.path}: schema {made.revision}, {bytes_text(made.bytes)}")
    print_fields(_written(made.heads).items())
    if len(made.heads) < len(CHAINS):
        note("Not every chain has a head in it: ask `trunkline audit verify`.")
        return
    note("Keep the heads elsewhere; `trunkline audit verify --head` is asked with them.")


@db.command(
    "restore",
    example=Example("trunkline db restore registry-2026-11-22.db --replace", "writes"),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--replace",
    is_flag=True,
    help="Also where the registry holds rows; it is set aside in a file beside the workspace's.",
)
@json_option
@with_globals
def restore(said: Globals, file: Path, replace: bool, as_json: bool) -> None:
    """Read a backup into the registry, on either engine, in one transaction.

    FILE's schema and both its chains are checked before anything is touched. Numbers that the old
    registry had given out stay used, and the restoring is an event. Killed half-way, the registry
    is as it was before. End the servers of the workspace first.
    """
    from trunkline.registry.restore import restore as read_back
    from trunkline.registry.restore import unused_path

    workspace = said.platform.workspace
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    with working("rows") as listener:
        done = read_back(
            workspace.registry_url,
            file,
            replace=replace,
            save_as=unused_path(workspace.root, stamp),
            listener=listener,
        )
    if as_json:
        told = {"registry": done.where, "rows": done.rows, "previous": done.previous}
        print_json({**told, "heads": _written(done.heads)})
        return
    click.echo(f"{done.where}: {done.rows:,} rows out of {file}")
    if done.previous is not None:
        click.echo(f"The registry that was there is kept in {done.previous}.")
    print_fields(_written(done.heads).items())


def _written(heads: Mapping[str, Head]) -> dict[str, str]:
    return {name: str(head) for name, head in heads.items()}
