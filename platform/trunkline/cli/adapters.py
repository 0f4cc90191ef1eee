"""``trunkline adapters``: what was trained, how it was evaluated, and what is live."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Group
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import (
    bytes_text,
    heading,
    json_option,
    moment,
    note,
    plain,
    print_fields,
    print_json,
    print_table,
    short_digest,
)
from trunkline.cli.report_view import print_evaluation_report, standing_text
from trunkline.errors import TrunklineError, UsageError
from trunkline.refs import Ref

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.registry.records import AdapterRecord, VersionRecord
    from trunkline.registry.search import Page

_SISTERS = 50

limit_option = click.option(
    "--limit",
    type=click.IntRange(min=1, max=10_000),
    default=100,
    show_default=True,
    metavar="N",
    help="List so many at most.",
)


@click.group(
    cls=Group,
    short_help="What was trained, how it was evaluated, what is live.",
    lazy={
        "promote": "trunkline.cli.promoting:promote",
        "rollback": "trunkline.cli.promoting:rollback",
        "unalias": "trunkline.cli.promoting:unalias",
        "history": "trunkline.cli.history:history",
        "diff": "trunkline.cli.diff:adapters_diff",
        "card": "trunkline.cli.card:card",
        "verify": "trunkline.cli.upkeep:verify",
        "rm": "trunkline.cli.upkeep:rm",
        "export": "trunkline.cli.moving:export",
        "import": "trunkline.cli.importing:import_",
        "sign": "trunkline.cli.moving:sign",
    },
)
def adapters() -> None:
    """Adapters: the trained versions, their evaluations and their aliases."""


@adapters.command(
    "list",
    example=(
        "trunkline adapters list",
        'trunkline adapters list --where "test.accuracy>0.8 and alias=champion"',
    ),
)
@click.option(
    "--where",
    metavar="SEARCH",
    help='List the versions that meet this, newest first: "test.accuracy>0.8 and alias=champion".',
)
@click.option("--removed", is_flag=True, help="List the versions that were removed, and why.")
@click.option("--after", metavar="REF", help="Only what comes behind this one, for the next page.")
@limit_option
@json_option
@with_globals
def list_(
    said: Globals, where: str | None, removed: bool, after: str | None, limit: int, as_json: bool
) -> None:
    """List the adapters with the score and the verdict of their newest version.

    With --where, versions are listed instead: fields are domain, name, adapter, task, version,
    newest, alias, base, dataset, license, run, created and others, tag.KEY, and figures such as
    test.accuracy or test.accuracy.low; joined by and, or, not and brackets.
    """
    if where is not None and removed:
        raise UsageError("--where and --removed can't be combined.", "Say one of the two.")
    registry = said.platform.registry
    behind = None if after is None else Ref.parse(after)
    if where is not None:
        found, last = _gathered(partial(registry.versions.search, where), limit, behind)
        _list_found(found, last, as_json)
    elif removed:
        found, last = _gathered(registry.versions.list_removed, limit, behind)
        _list_removed(found, last, as_json)
    else:
        _list_adapters(
            registry.adapters.list(limit=limit + 1, after=behind, scored=True), limit, as_json
        )


def _gathered(
    ask: Callable[..., Page], limit: int, after: Ref | None
) -> tuple[list[VersionRecord], Ref | None]:
    """So many versions, out of as many queries as it takes, and where the next page begins."""
    found: list[VersionRecord] = []
    while True:
        page = ask(limit=limit - len(found), after=after)
        found += page.versions
        after = page.next
        if after is None or len(found) == limit:
            return found, after


def _list_adapters(found: Sequence[AdapterRecord], limit: int, as_json: bool) -> None:
    page = found[:limit]
    if as_json:
        print_json([{"adapter": str(one.ref), **plain(one), **_scored(one)} for one in page])
    elif page:
        print_table(
            ["adapter", "task", "newest", "aliases", "its score", "baseline"],
            [
                (
                    one.ref,
                    one.task,
                    f"{one.newest} of {one.versions}",
                    ", ".join(f"{alias}={number}" for alias, number in one.aliases.items()) or "-",
                    standing_text(one.score),
                    one.score.verdict if one.score else "-",
                )
                for one in page
            ],
            fold=("aliases", "its score"),
        )
    else:
        note("No adapter yet: `trunkline recipes list`, then `trunkline train RECIPE`.")
    if len(found) > limit:
        note(f"There are more: --after {page[-1].ref}, or a higher --limit.")


def _list_found(found: Sequence[VersionRecord], behind: Ref | None, as_json: bool) -> None:
    if as_json:
        print_json([{"ref": str(one.ref), **plain(one)} for one in found])
    elif found:
        print_table(
            ["version", "task", "created", "aliases", "score", "baseline"],
            [
                (
                    one.ref,
                    one.task,
                    moment(one.created),
                    ", ".join(one.aliases) or "-",
                    standing_text(one.score),
                    one.score.verdict if one.score else "-",
                )
                for one in found
            ],
            fold=("aliases", "score"),
        )
    else:
        note("No version meets that.")
    if behind is not None:
        note(f"There may be more: --after {behind}.")


def _list_removed(found: Sequence[VersionRecord], behind: Ref | None, as_json: bool) -> None:
    if as_json:
        print_json([{"ref": str(one.ref), **plain(one)} for one in found])
    elif found:
        print_table(
            ["version", "digest", "created", "removed", "because"],
            [
                (
                    one.ref,
                    short_digest(one.digest),
                    moment(one.created),
                    moment(one.removed) if one.removed else "-",
                    one.removal_reason or "-",
                )
                for one in found
            ],
            fold=("because",),
        )
    else:
        note("No version was removed.")
    if behind is not None:
        note(f"There may be more: --after {behind}.")


def _scored(one: AdapterRecord) -> dict[str, object]:
    """The standing in the words of a evaluation."""
    standing = one.score
    return {
        "metric": standing and standing.metric,
        "score": standing and {"value": standing.value, "low": standing.low, "high": standing.high},
        "verdict": standing and standing.verdict,
    }


@adapters.command(
    "show",
    example="trunkline adapters show finance/naics-sector@2",
)
@click.argument("ref")
@json_option
@with_globals
def show(said: Globals, ref: str, as_json: bool) -> None:
    """Show one version: its identity, origin and evaluation; and its sisters."""
    version = said.version(ref)
    platform = said.platform
    found = platform.registry.versions.list(
        version.domain, version.name, limit=_SISTERS + 1, scored=True
    )
    versions = found[:_SISTERS]
    tags = platform.registry.tags.get(str(version.ref)).tags
    evaluated = platform.evaluation_report(version)
    folder = platform.store.location(version)
    damage = _damage(platform, version)
    if as_json:
        print_json(
            {
                "adapter": str(version.ref),
                **plain(version),
                "folder": folder,
                "damage": damage,
                "tags": tags,
                "evaluation_report": evaluated and evaluated[0],
                "gate": evaluated and evaluated[1],
                "versions": versions,
            }
        )
        return
    print_fields(
        [
            ("adapter", version.ref),
            ("aliases", ", ".join(version.aliases) or "none"),
            ("tags", ", ".join(f"{key}={value}" for key, value in tags.items()) or None),
            ("task", version.task),
            ("digest", version.digest),
            ("base", f"{version.base_name} ({version.base_digest})"),
            ("dataset", version.dataset),
            ("rows", version.dataset_fingerprint),
            ("split", version.split_fingerprint),
            ("run", version.run),
            ("created", moment(version.created)),
            ("size", bytes_text(version.bytes)),
            ("folder", folder),
            ("files", damage or "verified"),
        ]
    )
    if evaluated:
        print_evaluation_report(evaluated[0], slices=True)
    elif version.dataset is None:
        from trunkline.promotion import no_dataset_error
        from trunkline.registry.lookup import CHAMPION

        why = no_dataset_error(version)
        live = CHAMPION in version.aliases
        note(why.message if live else f"{why.message} {why.hint}")
    else:
        note(f"Not evaluated yet: `trunkline eval {version.ref}`.")
    heading("Versions")
    _print_versions(versions)
    if len(found) > len(versions):
        note(f'There are more: trunkline adapters list --where "adapter={version.ref.adapter}".')


def _damage(platform: Platform, version: VersionRecord) -> str | None:
    """What is wrong with the artifact's files, if anything is."""
    try:
        platform.store.fetch(version)
    except TrunklineError as error:
        return f"DAMAGED: {error.message}"
    return None


def _print_versions(versions: Sequence[VersionRecord]) -> None:
    print_table(
        ["version", "digest", "created", "aliases", "score", "baseline"],
        [
            (
                one.number,
                short_digest(one.digest),
                moment(one.created),
                ", ".join(one.aliases) or "-",
                standing_text(one.score),
                one.score.verdict if one.score else "-",
            )
            for one in versions
        ],
        right=("version",),
        fold=("aliases", "score"),
    )
