"""``trunkline audit``: verify, list and export the events and the request log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Example, Group
from trunkline.cli.output import (
    counted,
    json_option,
    moment,
    note,
    plain,
    print_json,
    print_table,
)
from trunkline.cli.progress import Lines, Live, working
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.errors import IntegrityError, UsageError
from trunkline.files import output_file

if TYPE_CHECKING:
    from trunkline.registry.chain import Head
    from trunkline.registry.records import ChainReport

_HEAD = re.compile(r"([0-9]{1,19}):([0-9a-f]{64})", re.ASCII)
_LONGEST_DETAIL = 100
_FEW_ROWS = 20_000
_ROWS_PER_REPORT = 1000


@click.group(cls=Group, short_help="Verify and export the events and the request log.")
def audit() -> None:
    """Events and request log: who did what, and whether the records were changed."""


@audit.command("verify", example='trunkline audit verify --head "$HEAD"')
@click.option("--head", metavar="SEQ:DIGEST", help="A saved head of the events.")
@click.option("--requests-head", metavar="SEQ:DIGEST", help="A saved head of the request log.")
@json_option
@pass_options
def verify(
    options: GlobalOptions, head: str | None, requests_head: str | None, as_json: bool
) -> None:
    """Verify both hash chains row by row; the exit code is 1 if one is broken.

    Changed, missing and inserted rows are detected. A truncated tail, or a chain rewritten from
    some row on, is only detected with a head that was saved elsewhere: --head takes what
    `audit export`, `db backup` and `adapters promote` print, of any age.
    """
    saved = {
        name: _parse_head(text, option)
        for name, text, option in (
            ("events", head, "--head"),
            ("requests", requests_head, "--requests-head"),
        )
        if text is not None
    }
    registry = options.platform.registry
    with working("rows") as listener:
        current = ""

        def on_rows(chain: str, done: int, total: int) -> None:
            nonlocal current
            if total <= _FEW_ROWS:
                return
            if chain != current:
                current = chain
                listener.stage(f"verifying the {chain}")
            listener.progress(done, total, {})

        reports = registry.audit.verify(saved, progress=on_rows)
    if as_json:
        print_json([{**plain(one), "intact": one.intact} for one in reports])
    else:
        _print_reports(reports)
    broken = [one.chain for one in reports if not one.intact]
    if broken:
        raise IntegrityError(
            f"The chain of the {' and of the '.join(broken)} is broken.",
            "Compare with an export or a backup; docs/audit.md explains each result.",
        )
    missing = [one.chain for one in reports if one.expected_head is None and one.rows]
    if missing:
        note(
            f"No saved head was given for the {' and the '.join(missing)}: a truncated tail or a "
            "rewritten chain can't be detected."
        )


def _print_reports(reports: Iterable[ChainReport]) -> None:
    print_table(
        ["chain", "rows", "head", "result"],
        [(one.chain, f"{one.rows:,}", str(one.head)[:24], _result(one)) for one in reports],
        right=("rows",),
        fold=("result",),
    )
    for report in reports:
        for defect in report.breaks:
            click.echo(f"{report.chain}: {defect.message}")
        if report.break_count > len(report.breaks):
            click.echo(f"{report.chain}: and {report.break_count - len(report.breaks):,} more")


@audit.command("export", example=Example("trunkline audit export events.jsonl", "writes"))
@click.argument("file", default="-")
@click.option("--requests", is_flag=True, help="Export the request log instead of the events.")
@click.option(
    "--after",
    metavar="SEQ",
    type=click.IntRange(min=0),
    default=0,
    help="Only rows after this number.",
)
@pass_options
def export(options: GlobalOptions, file: str, requests: bool, after: int) -> None:
    """Write each row as a line of JSON, oldest first, and print the chain's head on stderr.

    Save the head in a place that users of the registry can't write to. FILE must not exist;
    it is written completely or not at all. `-`, or no FILE, means stdout.
    """
    chain = "requests" if requests else "events"
    registry = options.platform.registry
    expected = registry.events.heads()[chain].seq - after
    head: Head | None = None
    count = 0

    def lines(listener: Lines | Live) -> Iterable[str]:
        from trunkline.registry.chain import Head

        nonlocal head, count
        if expected > _FEW_ROWS:
            listener.stage(f"writing the {chain}")
        for row in registry.audit.export(chain, after=after):
            head, count = Head(row["seq"], row["hash"]), count + 1
            if expected > _FEW_ROWS and count % _ROWS_PER_REPORT == 0:
                listener.progress(count, max(count, expected), {})
            yield json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    with working("rows") as listener:
        if file == "-":
            for line in lines(listener):
                click.echo(line)
        else:
            with output_file(Path(file), overwrite=False) as stream:
                stream.writelines(f"{line}\n" for line in lines(listener))
    if file != "-":
        note(f"Wrote {counted(count, chain[:-1])} to {file}.")
    note(f"Head of the {chain}: {head or registry.events.heads()[chain]}")


@audit.command("list", example="trunkline audit list --limit 2")
@click.option("--subject", metavar="NAME", help="Only of one subject: domain/name@3, run/7, …")
@click.option("--kind", metavar="KIND", help="Only of one kind, such as alias.moved.")
@click.option("--before", metavar="SEQ", type=click.IntRange(min=0), help="Only older events.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    help="List at most N.",
)
@json_option
@pass_options
def list_(
    options: GlobalOptions,
    subject: str | None,
    kind: str | None,
    before: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the events, newest first, one page at a time; --json adds the details and hashes."""
    events = options.platform.registry.events.list(subject, kind, before, limit + 1)
    page = events[:limit]
    if as_json:
        print_json(page)
    elif page:
        print_table(
            ["seq", "at", "actor", "kind", "subject", "detail"],
            [
                (one.seq, moment(one.at), one.actor, one.kind, one.subject, _detail(one.detail))
                for one in page
            ],
            right=("seq",),
            fold=("at", "actor", "kind", "subject", "detail"),
        )
    else:
        note("No matching event.")
    if len(events) > limit:
        filters = [("--subject", subject), ("--kind", kind), ("--limit", limit)]
        text = " ".join(f"{name} {value}" for name, value in filters if value is not None)
        note(f"There are more: trunkline audit list {text} --before {page[-1].seq}")


def _parse_head(text: str, option: str) -> Head:
    from trunkline.registry.chain import Head

    match = _HEAD.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(
            f"{option} can't be {text[:100]!r}.",
            "Write it as it was printed: a row number, ':' and 64 hex digits.",
        )
    return Head(int(match[1]), match[2])


def _result(report: ChainReport) -> str:
    if not report.intact:
        return f"BROKEN in {counted(report.break_count, 'place')}"
    return "ok" if report.expected_head is None else "ok, matches the saved head"


def _detail(detail: Mapping[str, Any]) -> str:
    """``alias=champion new=3``; long and nested values are only in --json."""
    if not isinstance(detail, Mapping):
        return "?"
    pairs = [
        f"{name}={value}"
        for name, value in detail.items()
        if isinstance(value, str | int | float) and value != ""
    ]
    text = " ".join(pairs) or "-"
    return text if len(text) <= _LONGEST_DETAIL else text[: _LONGEST_DETAIL - 1] + "…"
