"""``trunkline adapters``: list, show, verify and remove versions, and print their model cards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Example, Group
from trunkline.cli.eval import print_evaluation_report, score_text
from trunkline.cli.output import (
    READS,
    base_text,
    bytes_text,
    counted,
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
from trunkline.cli.root import GlobalOptions, limit_option, pass_options
from trunkline.errors import TrunklineError, UsageError
from trunkline.refs import EXAMPLE, Ref

if TYPE_CHECKING:
    from trunkline.adapters.gc import VerifyResult
    from trunkline.api import Platform
    from trunkline.registry.records import AdapterRecord, VersionRecord
    from trunkline.registry.search import Page

_OTHER_VERSIONS = 50


@click.group(
    cls=Group,
    short_help="Trained adapters: versions, evaluations, aliases.",
    lazy={
        "promote": "trunkline.cli.promote:promote",
        "rollback": "trunkline.cli.promote:rollback",
        "unalias": "trunkline.cli.promote:unalias",
        "history": "trunkline.cli.promote:history",
        "diff": "trunkline.cli.lineage:adapters_diff",
        "export": "trunkline.cli.adapter_files:export",
        "import": "trunkline.cli.adapter_files:import_",
        "merge": "trunkline.cli.merge:merge",
        "sign": "trunkline.cli.adapter_files:sign",
    },
)
def adapters() -> None:
    """Trained adapters: their versions, evaluations and aliases."""


@adapters.command(
    "list",
    example=(
        "trunkline adapters list",
        'trunkline adapters list --where "test.accuracy>0.5 and task=classification"',
    ),
)
@click.option(
    "--where",
    metavar="QUERY",
    help="List the matching versions instead, newest first: "
    '"test.accuracy>0.5 and task=classification".',
)
@click.option("--removed", is_flag=True, help="List the removed versions, and why.")
@click.option("--after", metavar="REF", help="Start after this one, for the next page.")
@limit_option
@json_option
@pass_options
def list_(
    options: GlobalOptions,
    where: str | None,
    removed: bool,
    after: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the adapters with the score and the verdict of their newest version.

    With --where, versions are listed instead. Fields are domain, name, adapter, task, version,
    newest, alias, base, modality (text or image), dataset, license, run, created and others,
    tag.KEY, and figures such as test.accuracy or test.accuracy.low. Combine them with and, or, not
    and parentheses.
    """
    if where is not None and removed:
        raise UsageError("--where and --removed can't be combined.", "Use one of them.")
    registry = options.platform.registry
    start = None if after is None else Ref.parse(after)
    if where is not None:
        versions, end = _collect(partial(registry.versions.search, where), limit, start)
        _list_versions(versions, as_json)
    elif removed:
        versions, end = _collect(registry.versions.list_removed, limit, start)
        _list_removed(versions, as_json)
    else:
        records = registry.adapters.list(limit=limit + 1, after=start, scored=True)
        _list_adapters(records[:limit], as_json)
        end = records[limit - 1].ref if len(records) > limit else None
    if end is not None:
        note(f"There may be more: --after {end}.")


def _collect(
    query: Callable[..., Page], limit: int, after: Ref | None
) -> tuple[list[VersionRecord], Ref | None]:
    """Up to ``limit`` versions from as many queries as needed, and where the next page begins."""
    versions: list[VersionRecord] = []
    while True:
        page = query(limit=limit - len(versions), after=after)
        versions += page.versions
        after = page.next
        if after is None or len(versions) == limit:
            return versions, after


def _list_adapters(records: Sequence[AdapterRecord], as_json: bool) -> None:
    if as_json:
        print_json(
            [{"adapter": str(one.ref), **plain(one), **_score_fields(one)} for one in records]
        )
    elif records:
        print_table(
            ["adapter", "task", "reads", "base", "newest", "aliases", "score", "vs. baseline"],
            [
                (
                    one.ref,
                    one.task,
                    READS[one.modality],
                    base_text(one.base),
                    f"{one.newest} of {one.versions}",
                    ", ".join(f"{alias}={number}" for alias, number in one.aliases.items()) or "-",
                    score_text(one.score),
                    one.score.verdict if one.score else "-",
                )
                for one in records
            ],
            fold=("aliases", "score", "vs. baseline"),
        )
    else:
        note("No adapters yet: `trunkline recipes list`, then `trunkline train RECIPE`.")


def _list_versions(versions: Sequence[VersionRecord], as_json: bool) -> None:
    if as_json:
        print_json([{"ref": str(one.ref), **plain(one)} for one in versions])
    elif versions:
        print_table(
            ["version", "task", "reads", "created", "aliases", "score", "vs. baseline"],
            [
                (
                    one.ref,
                    one.task,
                    READS[one.modality],
                    moment(one.created),
                    ", ".join(one.aliases) or "-",
                    score_text(one.score),
                    one.score.verdict if one.score else "-",
                )
                for one in versions
            ],
            fold=("created", "aliases", "score", "vs. baseline"),
        )
    else:
        note("No version matches.")


def _list_removed(versions: Sequence[VersionRecord], as_json: bool) -> None:
    if as_json:
        print_json([{"ref": str(one.ref), **plain(one)} for one in versions])
    elif versions:
        print_table(
            ["version", "digest", "created", "removed", "reason"],
            [
                (
                    one.ref,
                    short_digest(one.digest),
                    moment(one.created),
                    moment(one.removed) if one.removed else "-",
                    one.removal_reason or "-",
                )
                for one in versions
            ],
            fold=("created", "removed", "reason"),
        )
    else:
        note("No version was removed.")


def _score_fields(record: AdapterRecord) -> dict[str, object]:
    """The score with the field names of an evaluation report."""
    score = record.score
    return {
        "metric": score and score.metric,
        "score": score and {"value": score.value, "low": score.low, "high": score.high},
        "verdict": score and score.verdict,
    }


@adapters.command("show", example="trunkline adapters show finance/naics-sector@2")
@click.argument("ref")
@json_option
@pass_options
def show(options: GlobalOptions, ref: str, as_json: bool) -> None:
    """Show a version's identity, origin and evaluation, and the adapter's other versions."""
    version = options.version(ref)
    platform = options.platform
    records = platform.registry.versions.list(
        version.domain, version.name, limit=_OTHER_VERSIONS + 1, scored=True
    )
    versions = records[:_OTHER_VERSIONS]
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
            ("reads", READS[version.modality]),
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

        error = no_dataset_error(version)
        live = CHAMPION in version.aliases
        note(error.message if live else f"{error.message} {error.hint}")
    else:
        note(f"Not evaluated yet: `trunkline eval {version.ref}`.")
    heading("Versions")
    _print_versions(versions)
    if len(records) > len(versions):
        note(f'There are more: trunkline adapters list --where "adapter={version.ref.adapter}".')


def _damage(platform: Platform, version: VersionRecord) -> str | None:
    """What is wrong with the artifact's files, or None."""
    try:
        platform.store.fetch(version)
    except TrunklineError as error:
        return f"DAMAGED: {error.message}"
    return None


def _print_versions(versions: Sequence[VersionRecord]) -> None:
    print_table(
        ["version", "digest", "created", "aliases", "score", "vs. baseline"],
        [
            (
                one.number,
                short_digest(one.digest),
                moment(one.created),
                ", ".join(one.aliases) or "-",
                score_text(one.score),
                one.score.verdict if one.score else "-",
            )
            for one in versions
        ],
        right=("version",),
        fold=("created", "aliases", "score", "vs. baseline"),
    )


@adapters.command("card", example="trunkline adapters card retail/department")
@click.argument("ref")
@click.option("--write", is_flag=True, help="Also save it as the version's README.md.")
@json_option
@pass_options
def card(options: GlobalOptions, ref: str, write: bool, as_json: bool) -> None:
    """Print a version's model card, made from its current lineage.

    The card has the format of the Hugging Face Hub: a metadata block and Markdown. Fields that
    only people can fill in read NOT PROVIDED. The card is not part of the version's identity.
    """
    version = options.version(ref)
    platform = options.platform
    text = platform.store.render_card(version)
    if write:
        platform.store.update_card(version)
        note(f"Saved as README.md of {version.ref}.")
    if as_json:
        print_json({"adapter": str(version.ref), "digest": version.digest, "card": text})
    else:
        click.echo(text, nl=False)


# -------------------------------------------------------------------------- verify and remove


@adapters.command("verify", example="trunkline adapters verify --all")
@click.argument("ref", required=False)
@click.option("--all", "all_versions", is_flag=True, help="Every version in the store.")
@click.option(
    "--require-signature",
    is_flag=True,
    help="Count a version without a trusted signature as damaged.  [default: as trunkline.toml "
    "says]",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A trusted public key; may be repeated.  [default: the keys in trunkline.toml]",
)
@json_option
@pass_options
def verify(
    options: GlobalOptions,
    ref: str | None,
    all_versions: bool,
    require_signature: bool,
    keys: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Recompute the digests of a version's files in the store.

    The exit code is 1 if a version is damaged. Card and signature are not part of a version's
    identity and may be rewritten, which is only reported; a changed provenance is damage.
    """
    if (ref is None) != all_versions:
        raise UsageError(
            "Name one version, or pass --all.",
            f"`trunkline adapters verify {EXAMPLE}`, or `… verify --all`.",
        )
    verdicts = []
    for verdict in _verdicts(options, ref, require_signature or bool(keys), keys):
        verdicts.append(verdict)
        if not as_json:
            _print_verdict(verdict)
    damaged = sum(verdict.damage is not None for verdict in verdicts)
    if as_json:
        print_json(verdicts)
    elif all_versions:
        note(
            f"{damaged} of {counted(len(verdicts), 'version')} "
            f"{'is' if damaged == 1 else 'are'} damaged."
            if damaged
            else f"{counted(len(verdicts), 'version')}, none damaged."
        )
    if damaged:
        default = "Restore the files from a copy, or train again."
        hints = {one.hint or default: None for one in verdicts if one.damage is not None}
        for hint in hints:
            note(f"Hint: {hint}")
        click.get_current_context().exit(1)


def _verdicts(
    options: GlobalOptions, ref: str | None, require_signature: bool, keys: tuple[Path, ...]
) -> Iterator[VerifyResult]:
    platform = options.platform
    if ref is not None:
        version = options.version(ref)
        yield platform.verify(version, require_signature=require_signature, keys=keys)
        return
    from trunkline.cli.progress import working

    total = platform.registry.artifacts.count()
    with working("versions") as listener:
        listener.stage("verifying")
        for done, version in enumerate(platform.registry.artifacts.iter_visible(), 1):
            yield platform.verify(version, require_signature=require_signature, keys=keys)
            listener.progress(done, max(done, total), {})


def _print_verdict(verdict: VerifyResult) -> None:
    state = "ok     " if verdict.damage is None else "DAMAGED"
    signed = f"  signed by {verdict.signed_by}" if verdict.signed_by else ""
    click.echo(f"{state}  {verdict.version}{signed}")
    for line in (*((verdict.damage,) if verdict.damage else ()), *verdict.remarks):
        click.echo(f"         {line}")


@adapters.command(
    "rm",
    example=(
        Example(
            'trunkline adapters rm finance/naics-sector@2 --reason "trained too briefly"',
            "writes",
        ),
        Example('trunkline adapters rm finance/naics-sector@1 --reason "old"', "fails"),
    ),
)
@click.argument("ref")
@click.option("--reason", required=True, metavar="TEXT", help="Why; recorded permanently.")
@json_option
@pass_options
def rm(options: GlobalOptions, ref: str, reason: str, as_json: bool) -> None:
    """Delete a version's files permanently; its lineage stays in the registry.

    Name the version by its number or digest. Refused while an alias points to it, a running server
    has it loaded, or a fusion answers with it.
    """
    removed = options.platform.remove_version(ref, reason)
    if as_json:
        print_json({"removed": str(removed.version.ref), "files_kept": removed.files_kept})
        return
    click.echo(
        f"{removed.version.ref} is removed. Its lineage stays, and its number is not reused."
    )
    if removed.files_kept:
        note(f"Its files still exist ({removed.files_kept}); `trunkline gc` deletes them later.")
