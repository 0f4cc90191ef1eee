"""``trunkline adapters verify`` and ``rm``, ``trunkline gc``: whether the store is sound, and tidy.

Owns: their words and exit codes. Must not know: how anything is verified or found.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Command, Example
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import bytes_text, counted, json_option, note, print_json, print_table
from trunkline.errors import UsageError
from trunkline.refs import EXAMPLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trunkline.adapters.gc import Garbage, VerifyResult
    from trunkline.api import Platform


@click.command(
    "verify",
    cls=Command,
    example="trunkline adapters verify --all",
)
@click.argument("ref", required=False)
@click.option("--all", "everything", is_flag=True, help="Every version of the store.")
@click.option(
    "--require-signature",
    is_flag=True,
    help="One that is not signed by a key that counts is damaged; else as trunkline.toml demands.",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A public key that counts; by default those of trunkline.toml. May be repeated.",
)
@json_option
@with_globals
def verify(
    said: Globals,
    ref: str | None,
    everything: bool,
    require_signature: bool,
    keys: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Recompute the digests of a version's files, as they lie in the store itself.

    Exits 1 if one is damaged. Card and signature lie outside of a version's identity and may be
    written anew, which is told; a changed provenance is damage.
    """
    if (ref is None) != everything:
        raise UsageError(
            "Say which version to verify, or all.",
            f"`trunkline adapters verify {EXAMPLE}`, or `… verify --all`.",
        )
    verdicts = []
    for verdict in _verdicts(said, ref, require_signature or bool(keys), keys):
        verdicts.append(verdict)
        if not as_json:
            _tell(verdict)
    damaged = sum(verdict.damage is not None for verdict in verdicts)
    if as_json:
        print_json(verdicts)
    elif everything:
        note(
            f"{damaged} of {counted(len(verdicts), 'version')} "
            f"{'is' if damaged == 1 else 'are'} damaged."
            if damaged
            else f"{counted(len(verdicts), 'version')}, all sound."
        )
    if damaged:
        usual = "Restore the files from a copy, or train it again."
        advice = {one.hint or usual: None for one in verdicts if one.damage is not None}
        for text in advice:
            note(f"Hint: {text}")
        sys.exit(1)


def _verdicts(
    said: Globals, ref: str | None, require_signature: bool, keys: tuple[Path, ...]
) -> Iterator[VerifyResult]:
    platform = said.platform
    if ref is not None:
        version = said.version(ref)
        yield platform.verify(version, require_signature=require_signature, keys=keys)
        return
    from trunkline.cli.progress import working

    total = platform.registry.artifacts.count()
    with working("versions") as listener:
        listener.stage("verifying")
        for done, version in enumerate(platform.registry.artifacts.iter_visible(), 1):
            yield platform.verify(version, require_signature=require_signature, keys=keys)
            listener.progress(done, max(done, total), {})


def _tell(verdict: VerifyResult) -> None:
    state = "sound  " if verdict.damage is None else "DAMAGED"
    signed = f"  signed by {verdict.signed_by}" if verdict.signed_by else ""
    click.echo(f"{state}  {verdict.version}{signed}")
    for line in (*((verdict.damage,) if verdict.damage else ()), *verdict.remarks):
        click.echo(f"         {line}")


@click.command(
    "rm",
    cls=Command,
    example=(
        Example(
            'trunkline adapters rm finance/naics-sector@1 --reason "trained on the wrong year"',
            "writes",
        ),
        Example('trunkline adapters rm medical/icd10-chapter@2 --reason "old"', "fails"),
    ),
)
@click.argument("ref")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept for good.")
@json_option
@with_globals
def rm(said: Globals, ref: str, reason: str, as_json: bool) -> None:
    """Take a version's files away for good; what is known of it stays.

    Name the version by its number or digest. Refused while an alias points at it or a running
    server holds it.
    """
    removed = said.platform.remove_version(ref, reason)
    if as_json:
        print_json({"removed": str(removed.version.ref), "files_kept": removed.files_kept})
        return
    click.echo(
        f"{removed.version.ref} is removed. Its lineage stays; its number is not given again."
    )
    if removed.files_kept:
        note(f"Its files are still there ({removed.files_kept}); `trunkline gc` takes them later.")


@click.command(
    "gc",
    cls=Command,
    example="trunkline gc --dry-run",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be taken.")
@click.option(
    "--unknown",
    is_flag=True,
    help="Take whole versions too that this registry has never heard of.",
)
@json_option
@with_globals
def gc(said: Globals, dry_run: bool, unknown: bool, as_json: bool) -> None:
    """Take away what publications, removals and trainings left behind.

    Never what a version, an alias or a running server holds, nor what is being published: a
    publisher on this host counts as gone when its process is, one on another host after an hour.
    Versions that the store has lost are told of, and so are whole versions of another registry.
    """
    platform = said.platform
    found = platform.find_garbage(unknown=unknown)
    garbage = [one for one in found if one.deletable]
    told = [one for one in found if not one.deletable]
    taken = garbage if dry_run else _take(platform, garbage)
    if as_json:
        print_json({"dry_run": dry_run, "taken": taken, "told": told})
        return
    if taken:
        print_table(
            ["would take" if dry_run else "took", "name", "size", "why"],
            [(one.kind, one.name, bytes_text(one.bytes), one.reason) for one in taken],
            right=("size",),
            fold=("name", "why"),
        )
    for one in told:
        note(f"{one.kind}: {one.name}: {one.reason}")
    size = bytes_text(sum(one.bytes for one in taken))
    end = " Nothing was changed." if dry_run else ""
    note(f"{counted(len(taken), 'thing')}, {size}.{end}" if taken else "Nothing to take.")


def _take(platform: Platform, garbage: list[Garbage]) -> list[Garbage]:
    from trunkline.cli.progress import working

    taken = []
    with working("things") as listener:
        if garbage:
            listener.stage("taking away")
        for one in platform.collect_garbage(garbage):
            taken.append(one)
            listener.progress(len(taken), len(garbage), {})
    return taken
