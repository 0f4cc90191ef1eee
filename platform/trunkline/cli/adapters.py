"""``trunkline adapters``: what was trained, how it was judged, and what is live."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Group
from trunkline.cli.judgement_view import print_judgement, score_text
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
from trunkline.errors import TrunklineError

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.registry.records import VersionRecord

limit_option = click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="List so many at most.",
)


@click.group(
    cls=Group,
    short_help="What was trained, how it was judged, what is live.",
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
    """Adapters: the trained versions, their judgements and their aliases."""


@adapters.command(
    "list",
    example="""
    $ trunkline adapters list
    adapter                task            newest  aliases     its score                      floor
    finance/naics-sector   classification  2 of 2  trial=1     accuracy 0.703 [0.591, 0.811]  ties
    medical/icd10-chapter  classification  2 of 2  champion=2  accuracy 0.853 [0.811, 0.892]  beats
    retail/department      classification  1 of 1  -           accuracy 0.767 [0.726, 0.805]  beats
    """,
)
@limit_option
@json_option
@with_globals
def list_(said: Globals, limit: int, as_json: bool) -> None:
    """List the adapters with the score and the verdict of their newest version."""
    platform = said.platform
    found = platform.registry.adapters(limit=limit + 1)
    lines = []
    for one in found[:limit]:
        judged = platform.judgement(platform.resolve(f"{one.ref}@{one.newest}"))
        lines.append((one, judged[0] if judged else None))
    if as_json:
        print_json(
            [
                {
                    "adapter": str(one.ref),
                    **plain(one),
                    "metric": judgement and judgement.metric,
                    "score": judgement and judgement.score,
                    "verdict": judgement and judgement.verdict,
                }
                for one, judgement in lines
            ]
        )
    elif lines:
        print_table(
            ["adapter", "task", "newest", "aliases", "its score", "floor"],
            [
                (
                    one.ref,
                    one.task,
                    f"{one.newest} of {one.versions}",
                    ", ".join(f"{alias}={number}" for alias, number in one.aliases.items()) or "-",
                    score_text(judgement),
                    judgement.verdict if judgement else "-",
                )
                for one, judgement in lines
            ],
            fold=("aliases", "its score"),
        )
    else:
        note("No adapter yet: `trunkline recipes list`, then `trunkline train RECIPE`.")
    tell_of_more(len(found) > limit)


def tell_of_more(more: bool) -> None:
    """Say on stderr that a listing was cut."""
    if more:
        note("There are more; --limit shows them.")


@adapters.command(
    "show",
    example="""
    $ trunkline adapters show finance/naics-sector@2
    finance/naics-sector@2
    adapter  finance/naics-sector@2
    aliases  none
    task     classification
    digest   sha256:374e8fcf29327efbacd672f15de7f347042e651c4c5de9fe62ec7456dc2c21f5
    base     smollm2-135m (81e285c179b0f7eafa4000990cbe8916e9fb16bd07206c3660276c13c3f712f0)
    dataset  finance/naics-sector
    rows     bc376fb50efd47c8682aaa02b230adb51c1ab57afd88f610b9daece8c53a28c8
    split    f57aa57c0862e319dd4442cb23ec6d1abc06aab2393df41e773495193bdb336f
    run      2
    created  2026-11-21 22:12
    size     19.6 MB
    folder   /home/ada/work/adapters/finance/naics-sector/2
    files    verified
    …
    Versions
    version  digest               created           aliases  score                          floor
          2  sha256:374e8fcf2932  2026-11-21 22:12  -        accuracy 0.703 [0.591, 0.811]  ties
          1  sha256:00bc6ba0b852  2026-11-21 22:03  trial    accuracy 0.788 [0.688, 0.875]  ties
    """,
)
@click.argument("ref")
@json_option
@with_globals
def show(said: Globals, ref: str, as_json: bool) -> None:
    """Show one version: its identity, origin and judgement; and its sisters."""
    version = said.version(ref)
    platform = said.platform
    versions = platform.registry.versions(version.domain, version.name)
    judged = platform.judgement(version)
    folder = platform.workspace.adapters / version.path
    damage = _damage(platform, version)
    if as_json:
        print_json(
            {
                "adapter": str(version.ref),
                **plain(version),
                "folder": folder,
                "damage": damage,
                "judgement": judged and judged[0],
                "gate": judged and judged[1],
                "versions": versions,
            }
        )
        return
    print_fields(
        [
            ("adapter", version.ref),
            ("aliases", ", ".join(version.aliases) or "none"),
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
    if judged:
        print_judgement(judged[0], slices=True)
    else:
        note(f"Not judged yet: `trunkline eval {version.ref}`.")
    heading("Versions")
    _print_versions(platform, versions)


def _damage(platform: Platform, version: VersionRecord) -> str | None:
    """What is wrong with the artifact's files, if anything is."""
    try:
        platform.store.fetch(version)
    except TrunklineError as error:
        return f"DAMAGED: {error.message}"
    return None


def _print_versions(platform: Platform, versions: list[VersionRecord]) -> None:
    lines = []
    for one in versions:
        judged = platform.judgement(one)
        lines.append(
            (
                one.number,
                short_digest(one.digest),
                moment(one.created),
                ", ".join(one.aliases) or "-",
                score_text(judged[0] if judged else None),
                judged[0].verdict if judged else "-",
            )
        )
    print_table(
        ["version", "digest", "created", "aliases", "score", "floor"],
        lines,
        right=("version",),
        fold=("aliases", "score"),
    )
