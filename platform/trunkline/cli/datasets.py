"""``trunkline datasets``: what the plugins bring to train on, and how it is split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Group
from trunkline.cli.options import Globals, with_globals
from trunkline.cli.output import (
    counts,
    heading,
    json_option,
    note,
    print_fields,
    print_json,
    print_table,
)
from trunkline.cli.progress import working

if TYPE_CHECKING:
    from trunkline.contracts import DatasetSpec
    from trunkline.data.prepare import DatasetReport

_LABELS = 30


@click.group(
    cls=Group,
    short_help="What the plugins bring to train on.",
    lazy={"croissant": "trunkline.cli.card:croissant"},
)
def datasets() -> None:
    """Data sets: named rows with a license, a source and a way of splitting them."""


@datasets.command(
    "list",
    example="trunkline datasets list",
)
@json_option
@with_globals
def list_(said: Globals, as_json: bool) -> None:
    """List the data sets of all plugins."""
    found = said.with_plugins.catalog.datasets()
    if as_json:
        print_json([_described(spec) for spec in found])
        return
    if not found:
        note("No plugin brings a data set: `trunkline plugins list`.")
        return
    print_table(
        ["dataset", "task", "description"],
        [(one.name, one.task, one.description) for one in found],
        fold=("description",),
    )


@datasets.command(
    "show",
    example="trunkline datasets show retail/department",
)
@click.argument("name")
@json_option
@with_globals
def show(said: Globals, name: str, as_json: bool) -> None:
    """Read a data set and show its origin, what is left out, its parts, labels and some rows."""
    platform = said.with_plugins
    platform.catalog.dataset(name)
    with working() as listener:
        listener.stage(f"reading {name}")
        report = platform.dataset_report(name)
    if as_json:
        print_json(
            {
                **_described(report.spec),
                "fingerprint": report.prepared.fingerprint,
                "split_fingerprint": report.prepared.split.fingerprint,
                **report.prepared.report.to_json(),
                "label_counts": report.labels,
                "examples": report.examples,
            }
        )
        return
    _print_report(report)


def _print_report(report: DatasetReport) -> None:
    spec, counted = report.spec, report.prepared.report
    print_fields(
        [
            ("dataset", spec.name),
            ("description", spec.description),
            ("task", f"{spec.task}, in {spec.unit}" if spec.unit else spec.task),
            ("license", spec.license),
            ("source", spec.source),
            ("group", spec.grouping),
            ("slices", ", ".join(spec.slices) or None),
            ("fingerprint", report.prepared.fingerprint),
            ("rows", f"{counted.read:,} read, {counted.kept:,} kept"),
            ("dropped", counts(counted.dropped) or None),
            ("duplicates", f"{counted.duplicated:,} (same text and target; dropped)"),
            ("label conflicts", f"{counted.label_conflicts:,} (same text, another target; kept)"),
            ("near-duplicates", f"{counted.near_duplicates:,} test rows have one in train"),
        ]
    )
    heading("Parts")
    print_table(
        ["part", "rows", "groups"],
        [(part, f"{rows:,}", f"{counted.groups[part]:,}") for part, rows in counted.parts.items()],
        right=("rows", "groups"),
    )
    if report.labels:
        ordered = sorted(report.labels.items(), key=lambda item: -item[1])
        more = len(ordered) - _LABELS
        heading(f"Labels ({len(ordered)})" + (f", the first {_LABELS}" if more > 0 else ""))
        print_table(
            ["rows", "label"],
            [(f"{count:,}", label) for label, count in ordered[:_LABELS]],
            right=("rows",),
            fold=("label",),
        )
    heading("Examples")
    print_table(
        ["text", "target", "group"],
        [(row.text, row.target, row.group) for row in report.examples],
        fold=("text", "target", "group"),
    )


def _described(spec: DatasetSpec) -> dict[str, object]:
    names = ("name", "description", "task", "unit", "license", "source", "grouping", "slices")
    return {name: getattr(spec, name) for name in names}
