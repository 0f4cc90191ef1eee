"""``trunkline datasets``: the datasets of the plugins, their parts, and Croissant descriptions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.command import Example, Group
from trunkline.cli.file_options import column_options, make_own_recipe, option_name, own_name
from trunkline.cli.output import (
    check_output,
    counts,
    heading,
    json_option,
    note,
    plain,
    print_fields,
    print_json,
    print_table,
    shorten,
    terminal_width,
)
from trunkline.cli.progress import working
from trunkline.cli.root import GlobalOptions, pass_options
from trunkline.data.lengths import lengths_text
from trunkline.errors import BaseModelError, DataError, UsageError
from trunkline.files import output_file

if TYPE_CHECKING:
    from trunkline.contracts import DatasetSpec, RecipeSpec, Row, TransformSpec
    from trunkline.data.check_report import DataFinding, DatasetCheck, PictureReport
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
    from trunkline.data.lengths import count_lengths
    from trunkline.data.prepare import default_recipe

    split = report.prepared.split
    rows = (*split.train, *split.validation, *split.test)
    recipes = [
        recipe
        for recipe in options.with_plugins.catalog.recipes()
        if recipe.dataset == report.spec.name
    ]
    if (known := _tokenizer(options)) is None:
        return None
    recipes = recipes or [default_recipe(report.spec)]
    return {recipe.name: count_lengths(rows, report.spec, recipe, *known) for recipe in recipes}


def _print_report(report: DatasetReport, lengths: dict[str, LengthReport] | None) -> None:
    from trunkline.labels import similar_text

    spec, rows = report.spec, report.prepared.report
    print_fields(
        [
            ("dataset", spec.name),
            ("description", spec.description),
            ("task", f"{spec.task}, in {spec.unit}" if spec.unit else spec.task),
            ("license", spec.license),
            ("restrictions", spec.restrictions or None),
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

    heads = ("picture" if rows and rows[0].image is not None else "text", "target", "group")
    columns = terminal_width() - 2 * (len(heads) - 1)
    side = columns // 4
    short = [(shorten(str(row.target), side), shorten(row.group, side)) for row in rows]
    for cells in zip(heads[1:], *short, strict=True):
        columns -= max(map(cell_len, cells))
    print_table(
        heads,
        [
            (shorten(row.title, columns), target, group)
            for row, (target, group) in zip(rows, short, strict=True)
        ],
    )


def _spec_fields(spec: DatasetSpec) -> dict[str, object]:
    names = (
        *("name", "description", "task", "unit", "license", "restrictions", "source", "grouping"),
        "slices",
    )
    return {name: getattr(spec, name) for name in names}


_MARKS = {"error": "error", "warning": "warning", "note": "note"}


@datasets.command(
    "check",
    example="trunkline datasets check claims.csv --text description --label category",
)
@click.argument("name", metavar="FILE_OR_NAME")
@column_options
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write the report as a page with charts, a .html; replaced if it exists.",
)
@click.option(
    "--contact-sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Of pictures: also draw some of each label, a .png; replaced if it exists.",
)
@json_option
@pass_options
def check(
    options: GlobalOptions,
    name: str,
    columns: dict[str, Any],
    html: Path | None,
    contact_sheet: Path | None,
    as_json: bool,
) -> None:
    """Look for what is wrong in your own file, or in a plugin's dataset, row by row.

    Empty and repeated rows, contradicting labels, near-duplicates on both sides of the split, rare
    labels, texts that are cut, characters of a wrong encoding, personal data, and labels that are
    probably wrong. Of pictures: files that can't be decoded, color modes, rotation, size and
    brightness. The exit code is 1 if the rows can't be trained on.
    """
    from trunkline.data.check import check_dataset

    if html is not None and html.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{str(html)!r} is not a page.", "Name a file.html for --html.")
    if contact_sheet is not None and contact_sheet.suffix.lower() != ".png":
        raise UsageError(
            f"{str(contact_sheet)!r} is not a PNG.", "Name a file.png for --contact-sheet."
        )
    sources = [Path(one) for one in (name, columns.get("test"), columns.get("validation")) if one]
    for option, out in (("--html", html), ("--contact-sheet", contact_sheet)):
        if out is not None:
            check_output(out, *sources, option=option)
    with working() as listener:
        rows = _own_or_plugins(options, name, columns)
        if contact_sheet is not None and rows[0].modality == "text":
            raise UsageError(
                f"--contact-sheet is for pictures, and {rows[0].name} holds texts.", "Leave it out."
            )
        result = check_dataset(
            *rows,
            _tokenizer(options),
            on_stage=listener.stage,
            contact_sheet=bool(contact_sheet or html),
        )
    if html is not None:
        from trunkline.data.check_page import render_page

        with output_file(html) as page:
            page.write(render_page(result))
    if contact_sheet is not None and result.contact_sheet is not None:
        with output_file(contact_sheet, binary=True) as file:
            file.write(result.contact_sheet)
    if as_json:
        values = plain(result)
        del values["contact_sheet"]
        print_json({"usable": result.usable, **values})
    else:
        _print_check(result)
    if html is not None:
        note(f"The report as a page is in {html}.")
    if contact_sheet is not None:
        note(f"The contact sheet is in {contact_sheet}.")
    if not result.usable:
        raise DataError(f"{result.name} can't be trained on.", "Correct the errors above.")


@datasets.command(
    "preview",
    example="trunkline datasets preview claims.csv --text description --label category --rows 1",
)
@click.argument("name", metavar="FILE_OR_NAME")
@column_options
@click.option(
    "--template",
    metavar="TEXT",
    help="The prompt, such as 'Claim: {text}'.  [default: the text alone]",
)
@click.option(
    "--rows",
    "count",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Rows to show.",
)
@json_option
@pass_options
def preview(
    options: GlobalOptions,
    name: str,
    columns: dict[str, Any],
    template: str | None,
    count: int,
    as_json: bool,
) -> None:
    """Show training rows as the model reads them: the whole prompt, and what it learns from.

    Tokens that carry loss are in brackets.
    """
    from trunkline.data.preview import preview_rows

    rows = _own_or_plugins(options, name, columns, template)
    if (tokenizer := _tokenizer(options)) is None:
        raise BaseModelError(
            "The base is not on this machine, so its tokens are unknown.",
            "`trunkline base pull` fetches it.",
        )
    with working() as listener:
        listener.stage(f"reading {rows[0].name}")
        previews = preview_rows(*rows, *tokenizer, count=count)
    if as_json:
        print_json(previews)
        return
    for one in previews:
        heading(f"Row {one.id}: {one.summary}")
        click.echo(one.prompt, nl=False)
        click.secho(one.learned, bold=True)


def _own_or_plugins(
    options: GlobalOptions, name: str, columns: dict[str, Any], template: str | None = None
) -> tuple[DatasetSpec, RecipeSpec, tuple[TransformSpec, ...]]:
    """The rows of a file or of a plugin's dataset, with the recipe that reads them.

    Raises:
        UsageError: there are options for columns, but ``name`` is no file.
    """
    from trunkline.data.prepare import default_recipe
    from trunkline.data.readers import holds_pictures, is_dataset

    platform = options.with_plugins
    file = Path(name)
    is_folder = is_dataset(file) or holds_pictures(file) or (columns and file.is_dir())
    if file.suffix or file.is_file() or is_folder:
        job = platform.training_job(make_own_recipe(own_name(file), file, columns, template), {})
        return job.dataset, job.recipe, job.transforms
    if columns or template:
        option = option_name(next(iter(columns), "template"))
        raise UsageError(f"{option} needs a file.", f"{name!r} is the name of a dataset.")
    catalog = platform.catalog
    dataset = catalog.dataset(name)
    users = (recipe for recipe in catalog.recipes() if recipe.dataset == dataset.name)
    recipe = next(users, default_recipe(dataset))
    return dataset, recipe, tuple(map(catalog.transform, recipe.transforms))


def _tokenizer(options: GlobalOptions) -> tuple[Any, int] | None:
    """The tokenizer and the context of the base; None if it is not on this machine."""
    from trunkline.bases import DEFAULT_BASE, local_tokenizer

    return local_tokenizer(options.base or DEFAULT_BASE)


def _print_check(result: DatasetCheck) -> None:
    print_fields(
        [
            ("dataset", result.name),
            ("task", result.task),
            ("rows", f"{result.rows:,}"),
            ("labels", f"{len(result.labels):,}" if result.labels else None),
            ("parts", counts(result.parts) or None),
            ("prompts", lengths_text(result.lengths.to_json()) if result.lengths else None),
            *_picture_fields(result.pictures),
        ]
    )
    if not result.findings:
        heading("Nothing suspicious was found.")
        return
    heading(f"Findings ({len(result.findings)})")
    print_table(
        ["", "rows", "finding"],
        [
            (
                _MARKS[finding.level],
                f"{finding.count:,}" if finding.count else "",
                _sentence(finding),
            )
            for finding in result.findings
        ],
        right=("rows",),
        fold=("finding",),
    )


def _picture_fields(pictures: PictureReport | None) -> list[tuple[str, str]]:
    """How the pictures are distributed, a line each."""
    if pictures is None:
        return []
    edges = [
        f"{noun} {least:,} to {most:,} (median {median:,})"
        for noun, (least, median, most) in (("width", pictures.width), ("height", pictures.height))
    ]
    return [
        ("pixels", ", ".join(edges)),
        ("sizes", counts(pictures.sizes)),
        ("modes", counts(pictures.modes)),
        ("brightness", counts({one: n for one, n in pictures.brightness.items() if n})),
    ]


def _sentence(finding: DataFinding) -> str:
    """The finding, the advice and the first rows."""
    parts = [f"{finding.message[:1].upper()}{finding.message[1:]}.", finding.advice]
    if finding.rows:
        more = ", …" if finding.count > len(finding.rows) else ""
        parts.append(f"Rows {', '.join(finding.rows)}{more}")
    return " ".join(filter(None, parts))


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

    if output is not None and rows is not None and output.resolve() == rows.resolve():
        raise UsageError(f"--output and --rows are both {str(rows)!r}.", "Name two files.")
    for option, out in (("--output", output), ("--rows", rows)):
        if out is not None:
            check_output(out, option=option)
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
