"""``trunkline adapters card`` and ``trunkline datasets croissant``: what is told to strangers.

Owns: their words and where they go. Must not know: what stands in a card or a Croissant file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import json_option, note, print_json
from trunkline.cli.progress import working
from trunkline.errors import UsageError


@click.command(
    "card",
    cls=Command,
    example="trunkline adapters card retail/department",
)
@click.argument("ref")
@click.option("--write", is_flag=True, help="Also keep it as the version's README.md.")
@json_option
@with_globals
def card(said: Globals, ref: str, write: bool, as_json: bool) -> None:
    """Print a version's model card, made from its lineage as it is known now.

    It is in the form that the Hugging Face Hub reads: a metadata block and Markdown. What only
    people can say stands there as NOT PROVIDED. The card lies outside of the version's identity.
    """
    version = said.version(ref)
    platform = said.platform
    text = platform.store.render_card(version)
    if write:
        platform.store.update_card(version)
        note(f"Kept as README.md of {version.ref}.")
    if as_json:
        print_json({"adapter": str(version.ref), "digest": version.digest, "card": text})
    else:
        click.echo(text, nl=False)


@click.command(
    "croissant",
    cls=Command,
    example=Example(
        "trunkline datasets croissant retail/department --output department.json --rows rows.jsonl",
        "writes",
    ),
)
@click.argument("name")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write it there instead of to stdout.",
)
@click.option(
    "--rows",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write the rows that it describes.",
)
@json_option
@with_globals
def croissant(
    said: Globals, name: str, output: Path | None, rows: Path | None, as_json: bool
) -> None:
    """Describe a data set in MLCommons' Croissant format, which is JSON.

    Without --output it goes to stdout; with it, --json tells what was written.

    It is of the rows before any recipe's own cleaning steps; training puts one of the rows that it
    used into every artifact. What is not known of them stands there as NOT PROVIDED.
    """
    from trunkline.data.croissant import croissant_of, row_lines

    platform = said.with_plugins
    platform.catalog.dataset(name)
    with working() as listener:
        listener.stage(f"reading {name}")
        report = platform.dataset_report(name)
    prepared = report.prepared
    described = croissant_of(report.spec, prepared.split, prepared.fingerprint)
    digest = described["distribution"][0]["sha256"]
    if rows is not None:
        _write(rows, b"".join(row_lines(prepared.split)))
        note(f"{rows}: sha256 {digest}")
    if output is None:
        print_json(described)
        return
    _write(output, f"{json.dumps(described, indent=2, ensure_ascii=False)}\n".encode())
    note(f"{output}: {name}, {prepared.report.kept:,} rows")
    if as_json:
        print_json({"dataset": name, "output": output, "rows": rows, "sha256": digest})


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UsageError(
            f"{str(path)!r} can't be written: {error.strerror or error}.",
            "Name a file in a folder that exists and can be written.",
        ) from error
