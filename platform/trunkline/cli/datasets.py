"""``trunkline datasets``: the datasets of the plugins, their parts, and Croissant descriptions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trunkline.cli.command import Example, Group
from trunkline.cli.output import (
    counts,
    heading,
    json_option,
    note,
    print_fields,
    print_json,
    print_table,
    shorten,
    terminal_width,
)
from trunkline.cli.progress import working
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.data.lengths import lengths_text
from trunkline.files import output_file

if TYPE_CHECKING:
    from trunkline.contracts import DatasetSpec, Row
    from trunkline.data.lengths import LengthReport
    from trunkline.data.prepare import DatasetReport

_LABELS = 30


@click.group(cls=Group, short_help="The plugins' datasets.")
def datasets() -> None:
    """Datasets: named rows with a license, a source and a rule for splitting them."""


@datasets.command("list", example="trunkline datasets list")
@json_option
@pass_options
def list_(options: GlobalOptions, as_json: bool) -> None:
    """List the datasets of all plugins."""
    specs = options.with_plugins.catalog.datasets()
    if as_json:
        print_json([_spec_fields(spec) for spec in specs])
        return
    if not specs:
        note("No plugin has a dataset: `trunkline plugins list`.")
        return
    print_table(
        ["dataset", "task", "description"],
        [(spec.name, spec.task, spec.description) for spec in specs],
        fold=("description",),
    )


@datasets.command("show", example="trunkline datasets show retail/department")
@click.argument("name")
@json_option
@pass_options
def show(options: GlobalOptions, name: str, as_json: bool) -> None:
    """Read a dataset; show its origin, dropped rows, parts, labels and some examples."""
    platform = options.with_plugins
    platform.catalog.dataset(name)
    with working() as listener:
        listener.stage(f"reading {name}")
        report = platform.dataset_report(name)
        lengths = _lengths(options, report)
    if as_json:
        print_json(
            {
                **_spec_fields(report.spec),
                "fingerprint": report.prepared.fingerprint,
                "split_fingerprint": report.prepared.split.fingerprint,
                **report.prepared.report.to_json(),
                "lengths": lengths,
                "label_counts": report.labels,
                "examples": report.examples,
            }
        )
        return
    _print_report(report, lengths)


def _lengths(options: GlobalOptions, report: DatasetReport) -> dict[str, LengthReport] | None:
    """How long the prompts of each recipe are; None if the base is not on this machine."""
    from trunkline.bases import DEFAULT_BASE, local_tokenizer
    from trunkline.data.lengths import count_lengths
    from trunkline.data.prepare import default_recipe

    split = report.prepared.split
    rows = (*split.train, *split.validation, *split.test)
    recipes = [
        recipe
        for recipe in options.with_plugins.catalog.recipes()
        if recipe.dataset == report.spec.name
    ]
    if (known := local_tokenizer(options.base or DEFAULT_BASE)) is None:
        return None
    recipes = recipes or [default_recipe(report.spec)]
    return {recipe.name: count_lengths(rows, report.spec, recipe, *known) for recipe in recipes}


def _print_report(report: DatasetReport, lengths: dict[str, LengthReport] | None) -> None:
    from trunkline.data.findings import similar_text

    spec, rows = report.spec, report.prepared.report
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
            ("rows", f"{rows.read:,} read, {rows.kept:,} kept"),
            ("dropped", counts(rows.dropped) or None),
            ("duplicates", f"{rows.duplicated:,} (same text and target; dropped)"),
            ("label conflicts", f"{rows.label_conflicts:,} (same text, another target; kept)"),
            ("near-duplicates", f"{rows.near_duplicates:,} test rows have one in train"),
            (
                "cleaned labels",
                f"{rows.labels_cleaned:,} rows (white space at the ends)"
                if rows.labels_cleaned
                else None,
            ),
            ("similar labels", similar_text(rows.similar_labels) or None),
            ("split", "given by the dataset" if rows.given_split else None),
            *(
                (f"prompts of {name}", lengths_text(counted.to_json()))
                for name, counted in (lengths or {}).items()
            ),
        ]
    )
    heading("Parts")
    print_table(
        ["part", "rows", "groups"],
        [(part, f"{count:,}", f"{rows.groups[part]:,}") for part, count in rows.parts.items()],
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
    _print_examples(report.examples)


def _print_examples(rows: Sequence[Row]) -> None:
    """Some rows, a line each, as wide as the terminal; --json prints them in full."""
    from rich.cells import cell_len

    heads = ("text", "target", "group")
    columns = terminal_width() - 2 * (len(heads) - 1)
    side = columns // 4
    short = [(shorten(str(row.target), side), shorten(row.group, side)) for row in rows]
    for cells in zip(heads[1:], *short, strict=True):
        columns -= max(map(cell_len, cells))
    print_table(
        heads,
        [
            (shorten(row.text, columns), target, group)
            for row, (target, group) in zip(rows, short, strict=True)
        ],
    )


def _spec_fields(spec: DatasetSpec) -> dict[str, object]:
    names = ("name", "description", "task", "unit", "license", "source", "grouping", "slices")
    return {name: getattr(spec, name) for name in names}


@datasets.command(
    "croissant",
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
    help="Write the description to this file.  [default: stdout]",
)
@click.option(
    "--rows",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write the rows that it describes.",
)
@json_option
@pass_options
def croissant(
    options: GlobalOptions, name: str, output: Path | None, rows: Path | None, as_json: bool
) -> None:
    """Describe a dataset in MLCommons' Croissant format, which is JSON.

    Without --output the description goes to stdout; with it, --json prints what was written.

    The description covers the rows before a recipe's own cleaning steps. Each artifact contains
    one of the rows that it was trained on. Unknown values read NOT PROVIDED.
    """
    from trunkline.data.croissant import croissant_of, row_lines

    platform = options.with_plugins
    platform.catalog.dataset(name)
    with working() as listener:
        listener.stage(f"reading {name}")
        report = platform.dataset_report(name)
    prepared = report.prepared
    description = croissant_of(report.spec, prepared.split, prepared.fingerprint)
    digest = description["distribution"][0]["sha256"]
    if rows is not None:
        with output_file(rows) as file:
            file.writelines(line.decode() for line in row_lines(prepared.split))
        note(f"{rows}: sha256 {digest}")
    if output is None:
        print_json(description)
        return
    with output_file(output) as file:
        file.write(f"{json.dumps(description, indent=2, ensure_ascii=False)}\n")
    note(f"{output}: {name}, {prepared.report.kept:,} rows")
    if as_json:
        print_json({"dataset": name, "output": output, "rows": rows, "sha256": digest})
