"""``trunkline audit``: the events and the request log as an auditor wants them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Example, Group
from trunkline.cli.options import Globals, with_globals
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
from trunkline.errors import IntegrityError, TrunklineError, UsageError

if TYPE_CHECKING:
    from trunkline.registry.chain import Head
    from trunkline.registry.records import ChainReport

_HEAD = re.compile(r"([0-9]{1,19}):([0-9a-f]{64})", re.ASCII)
_LONGEST_DETAIL = 100
_FEW_ROWS = 20_000
_TOLD_EVERY = 1000


@click.group(cls=Group, short_help="Check and hand out the events and the request log.")
def audit() -> None:
    """What was done, by whom; and whether anybody has changed the record of it."""


@audit.command(
    "verify",
    example='trunkline audit verify --head "$HEAD"',
)
@click.option("--head", metavar="SEQ:DIGEST", help="A head of the events that was kept elsewhere.")
@click.option("--requests-head", metavar="SEQ:DIGEST", help="A kept head of the request log.")
@json_option
@with_globals
def verify(said: Globals, head: str | None, requests_head: str | None, as_json: bool) -> None:
    """Follow both hash chains from row to row; exits with 1 where one does not hold.

    A row that was changed, taken out or put in is found. A tail that was cut off, or a chain that
    was rewritten from some row on, is found only against a head kept elsewhere: --head takes what
    `audit export`, `db backup` and `adapters promote` print, of any age.
    """
    kept = {
        name: _head(text, option)
        for name, text, option in (
            ("events", head, "--head"),
            ("requests", requests_head, "--requests-head"),
        )
        if text is not None
    }
    registry = said.platform.registry
    with working("rows") as listener:
        now = ""

        def progress(chain: str, done: int, total: int) -> None:
            nonlocal now
            if total <= _FEW_ROWS:
                return
            if chain != now:
                now = chain
                listener.stage(f"verifying the {chain}")
            listener.progress(done, total, {})

        reports = registry.audit.verify(kept, progress=progress)
    if as_json:
        print_json([{**plain(one), "sound": one.intact} for one in reports])
    else:
        print_table(
            ["chain", "rows", "head", "found"],
            [(one.chain, f"{one.rows:,}", str(one.head)[:24], _found(one)) for one in reports],
            right=("rows",),
            fold=("found",),
        )
        for report in reports:
            for broken in report.breaks:
                click.echo(f"{report.chain}: {broken.message}")
            if report.break_count > len(report.breaks):
                click.echo(f"{report.chain}: and {report.break_count - len(report.breaks):,} more")
    bad = [one.chain for one in reports if not one.intact]
    if bad:
        raise IntegrityError(
            f"The {' and the '.join(bad)} are not as they were written.",
            "Compare with an export or a backup; docs/audit.md says what each finding means.",
        )
    missing = [one.chain for one in reports if one.expected_head is None and one.rows]
    if missing:
        note(
            f"No kept head was given for the {' and the '.join(missing)}: a cut-off tail or a "
            "rewritten chain would not have shown."
        )


@audit.command(
    "export",
    example=Example("trunkline audit export events-2026-11.jsonl", "writes"),
)
@click.argument("file", default="-")
@click.option("--requests", is_flag=True, help="The request log instead of the events.")
@click.option(
    "--after", metavar="SEQ", type=click.IntRange(min=0), default=0, help="Only rows after this."
)
@with_globals
def export(said: Globals, file: str, requests: bool, after: int) -> None:
    """Write every row as a line of JSON, oldest first, and tell the chain's head on stderr.

    Keep the head where nobody who can write the registry can write. FILE must not exist yet; it is
    complete or absent. `-`, or no FILE, is stdout.
    """
    chain = "requests" if requests else "events"
    registry = said.platform.registry
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
            if expected > _FEW_ROWS and count % _TOLD_EVERY == 0:
                listener.progress(count, max(count, expected), {})
            yield json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    with working("rows") as listener:
        if file == "-":
            for line in lines(listener):
                click.echo(line)
        else:
            _write_new(Path(file), lines(listener))
    if file != "-":
        note(f"Wrote {counted(count, chain[:-1])} to {file}.")
    note(f"Head of the {chain}: {head or registry.events.heads()[chain]}")


@audit.command(
    "list",
    example="trunkline audit list --limit 2",
)
@click.option("--subject", metavar="NAME", help="Only of one thing: domain/name@3, run/7, …")
@click.option("--kind", metavar="KIND", help="Only of one kind, such as alias.moved.")
@click.option("--before", metavar="SEQ", type=click.IntRange(min=0), help="Only older events.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(1, 10_000), default=20, show_default=True,
    help="At most so many.",
)  # fmt: skip
@json_option
@with_globals
def list_(
    said: Globals,
    subject: str | None,
    kind: str | None,
    before: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the events, newest first, a page at a time; --json has the details and the hashes."""
    found = said.platform.registry.events.list(subject, kind, before, limit + 1)
    page = found[:limit]
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
            fold=("actor", "subject", "detail"),
        )
    else:
        note("No such event.")
    if len(found) > limit:
        words = [("--subject", subject), ("--kind", kind), ("--limit", limit)]
        asked = " ".join(f"{name} {value}" for name, value in words if value is not None)
        note(f"There are more: trunkline audit list {asked} --before {page[-1].seq}")


def _head(text: str, option: str) -> Head:
    from trunkline.registry.chain import Head

    match = _HEAD.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(
            f"{option} can't be {text[:100]!r}.",
            "Write it as it was printed: the row's number, ':' and 64 hex digits.",
        )
    return Head(int(match[1]), match[2])


def _found(report: ChainReport) -> str:
    if not report.intact:
        return f"BROKEN in {counted(report.break_count, 'place')}"
    return "sound" if report.expected_head is None else "sound, with the head that was kept"


def _detail(detail: Mapping[str, Any]) -> str:
    """``alias=champion new=3``; what is long or nested is left to --json."""
    if not isinstance(detail, Mapping):
        return "?"
    told = [
        f"{name}={value}"
        for name, value in detail.items()
        if isinstance(value, str | int | float) and value != ""
    ]
    text = " ".join(told) or "-"
    return text if len(text) <= _LONGEST_DETAIL else text[: _LONGEST_DETAIL - 1] + "…"


def _write_new(path: Path, lines: Iterable[str]) -> None:
    """Write a file that must not exist; it is there whole or not at all.

    Raises:
        UsageError: something of that name exists.
        TrunklineError: it can't be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    if path.exists():
        raise UsageError(f"{str(path)!r} exists already.", "Name another file.")
    try:
        with beside.open("w", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in lines)
            stream.flush()
            os.fsync(stream.fileno())
        beside.rename(path)
    except OSError as error:
        raise TrunklineError(
            f"{str(path)!r} can't be written: {error.strerror or error}.",
            "Name a file in a folder that you may write, on a disk with room.",
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
