"""``trunkline db``: the registry's database: schema, backup, restore and rebuild."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Example, Group
from trunkline.cli.output import (
    bytes_text,
    counted,
    json_option,
    note,
    plain,
    print_fields,
    print_json,
)
from trunkline.cli.progress import working
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.errors import IntegrityError

if TYPE_CHECKING:
    from trunkline.registry.chain import Head


@click.group(cls=Group, short_help="The registry's database: schema, backup, rebuild.")
def db() -> None:
    """The registry's database, on SQLite or PostgreSQL."""


@db.command("upgrade", example=Example("trunkline db upgrade", "writes"))
@json_option
@pass_options
def upgrade(options: GlobalOptions, as_json: bool) -> None:
    """Upgrade the schema to the one of this release, in one transaction.

    Every command does this when it opens a registry; this one does nothing else and prints the
    steps. If it is killed, the registry is unchanged.
    """
    from trunkline.registry.session import upgrade as upgrade_schema

    result = upgrade_schema(options.platform.workspace.registry_url)
    if as_json:
        print_json(result)
    elif result.steps:
        click.echo(f"{result.where}: {result.before or 'empty'} -> {result.after}")
        for step in result.steps:
            click.echo(f"  {step.revision}  {step.title}")
    else:
        click.echo(f"{result.where}: {result.after}, nothing to do")


@db.command("current", example="trunkline db current")
@json_option
@pass_options
def current(options: GlobalOptions, as_json: bool) -> None:
    """Show the engine, the schema, the heads of both chains and the row counts; change nothing.

    Tables are counted up to 100,000 rows.
    """
    from trunkline.registry.session import MAX_ROW_COUNT, head_revision, inspect_database

    head = head_revision()
    state = inspect_database(options.platform.workspace.registry_url)
    if as_json:
        print_json({**plain(state), "newest": head, "counted_to": MAX_ROW_COUNT})
        return
    schema = state.revision or "empty"
    if state.revision == head:
        schema += ", the newest"
    elif state.revision is None or state.revision < head:
        schema += f"; `trunkline db upgrade` upgrades it to {head}"
    elif state.oldest is not None and state.oldest <= head:
        schema += f", newer than this release, which may use it (code from {state.oldest})"
    else:
        schema += f", newer than this release, which supports up to {head}"
    rows = [
        f"{name} {'over ' if count > MAX_ROW_COUNT else ''}{min(count, MAX_ROW_COUNT):,}"
        for name, count in state.rows.items()
        if count
    ]
    print_fields(
        [
            ("registry", state.where),
            ("engine", state.engine),
            ("schema", schema),
            *state.heads.items(),
            ("rows", ", ".join(rows) or "none"),
        ]
    )


@db.command("backup", example=Example("trunkline db backup registry-backup.db", "writes"))
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@pass_options
def backup(options: GlobalOptions, file: Path, as_json: bool) -> None:
    """Copy the registry into FILE, a SQLite file for either engine, while others use it.

    FILE is a consistent snapshot; it is complete or does not exist. The artifacts in the store are
    not part of it. It contains the request log, so protect it as you protect the registry.
    """
    from trunkline.registry.backup import back_up
    from trunkline.registry.chain import CHAINS

    with working("parts") as listener:
        result = back_up(options.platform.workspace.registry_url, file, listener=listener)
    heads = _head_texts(result.heads)
    if as_json:
        print_json(
            {"file": result.path, "schema": result.revision, "bytes": result.bytes, "heads": heads}
        )
        return
    click.echo(f"{result.path}: schema {result.revision}, {bytes_text(result.bytes)}")
    print_fields(heads.items())
    if len(heads) < len(CHAINS):
        note("A chain has no head in this backup: run `trunkline audit verify`.")
        return
    note("Store the heads elsewhere; `trunkline audit verify --head` compares with them.")


@db.command(
    "restore", example=Example("trunkline db restore registry-backup.db --replace", "writes")
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--replace",
    is_flag=True,
    help="Also if the registry is not empty; the old one is saved in a file in the workspace.",
)
@json_option
@pass_options
def restore(options: GlobalOptions, file: Path, replace: bool, as_json: bool) -> None:
    """Restore the registry from a backup, on either engine, in one transaction.

    The schema of FILE and both its chains are checked first. Numbers that the old registry used
    are not reused, and the restore is recorded as an event. If it is killed, the registry is
    unchanged. Stop the servers of the workspace first.
    """
    from trunkline.registry.restore import restore as restore_backup
    from trunkline.registry.restore import unused_path

    workspace = options.platform.workspace
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    with working("rows") as listener:
        result = restore_backup(
            workspace.registry_url,
            file,
            replace=replace,
            save_as=unused_path(workspace.root, stamp),
            listener=listener,
        )
    heads = _head_texts(result.heads)
    if as_json:
        print_json(
            {
                "registry": result.where,
                "rows": result.rows,
                "previous": result.previous,
                "heads": heads,
            }
        )
        return
    click.echo(f"{result.where}: {result.rows:,} rows from {file}")
    if result.previous is not None:
        click.echo(f"The old registry is saved in {result.previous}.")
    print_fields(heads.items())


@db.command("rebuild", example=Example("trunkline db rebuild", "writes"))
@json_option
@pass_options
def rebuild(options: GlobalOptions, as_json: bool) -> None:
    """Rebuild a lost registry from the artifacts.

    Recovers bases, datasets, summaries of runs, versions and cards. What only the database
    contained is lost, and the command prints a list of it. Damaged artifacts are skipped and
    named, and the exit code is 1. A registry that is not empty is refused: if it is only damaged,
    `trunkline db restore` of a backup recovers everything.
    """
    from trunkline.adapters.rebuild import LOST, rebuild_registry

    platform = options.platform
    with working("artifacts") as listener:
        result = rebuild_registry(platform.store, listener=listener)
    for sentence in result.notes:
        note(sentence)
    note(f"Lost permanently: {LOST}.")
    skipped = len(result.skipped)
    if as_json:
        print_json({**plain(result), "lost": LOST})
    else:
        print_fields(
            [
                ("bases", result.bases),
                ("datasets", result.datasets),
                ("runs", result.runs),
                ("versions", result.versions),
                ("skipped", counted(skipped, "artifact") if skipped else None),
                ("cards", f"{result.cards} rewritten"),
            ]
        )
    if skipped:
        total = counted(result.versions + skipped, "artifact")
        raise IntegrityError(
            f"{skipped} of {total} {'was' if skipped == 1 else 'were'} skipped; the others are in "
            "the registry.",
            "The notes above give the reasons. Restore these artifacts from a copy, and rebuild "
            "again into an empty registry.",
        )


def _head_texts(heads: Mapping[str, Head]) -> dict[str, str]:
    return {name: str(head) for name, head in heads.items()}
