"""``trunkline predict`` and ``generate``: answers of an adapter, for texts, pictures or many."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trunkline.cli.client import TRUNCATED, Client, Model, open_client
from trunkline.cli.command import Command, Example
from trunkline.cli.file_options import file_options, parse_file_options, read_stdin
from trunkline.cli.output import (
    check_output,
    figure,
    json_option,
    note,
    print_json,
    print_table,
)
from trunkline.cli.predict_rows import (
    answer_fields,
    likeliest,
    note_truncated,
    predict_all,
    predict_file,
    predict_folder,
)
from trunkline.cli.root import GlobalOptions, pass_options, url_option
from trunkline.errors import UsageError
from trunkline.images import SUFFIXES
from trunkline.labels import is_blank
from trunkline.refs import BASE

if TYPE_CHECKING:
    from trunkline.inference.ranking import Ranking
    from trunkline.inference.request import Answer, ScoredSpan


@click.command(
    "predict",
    cls=Command,
    short_help="Predict labels or numbers for texts, pictures or a file.",
    example=(
        'trunkline predict medical/icd10-chapter "Acute appendicitis"',
        Example(
            "trunkline predict medical/icd10-chapter --file notes.csv --column note "
            "--out labels.jsonl",
            "writes",
        ),
    ),
)
@click.argument("ref")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the texts from a CSV, TSV, JSON lines, JSON or Parquet file.",
)
@click.option("--column", metavar="NAME", help="With --file: its text column.  [default: text]")
@file_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --file or --folder: write this file, all or none: a .csv as a table, else JSON "
    "lines.  [default: JSON lines to stdout]",
)
@click.option("--skip-empty", is_flag=True, help="Skip rows of the file without a text.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Read all pictures of this folder and of those in it.",
)
@click.option(
    "--skip-unreadable",
    is_flag=True,
    help="With --folder: a picture that can't be read gets an error instead of an answer.",
)
@click.option(
    "--top",
    type=click.IntRange(min=0),
    metavar="N",
    default=3,
    show_default=True,
    help="Print N labels with their probabilities; 0 prints all.",
)
@click.option(
    "--ensemble",
    multiple=True,
    metavar="REF",
    help="Average with another adapter of the same labels or unit; may be repeated.",
)
@click.option(
    "--abstain",
    type=click.FloatRange(0.5, 0.99),
    metavar="PRECISION",
    help="Give no label where it is too uncertain for this share of right labels, such as 0.95.",
)
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    metavar="TEXT",
    help="Of a ranking: what to rank for the text, the query; give it twice or more.",
)
@url_option
@json_option
@pass_options
def predict(
    options: GlobalOptions,
    ref: str,
    texts: tuple[str, ...],
    file: Path | None,
    column: str | None,
    out: Path | None,
    skip_empty: bool,
    folder: Path | None,
    skip_unreadable: bool,
    reading: dict[str, Any],
    top: int,
    ensemble: tuple[str, ...],
    abstain: float | None,
    candidates: tuple[str, ...],
    url: str | None,
    as_json: bool,
) -> None:
    """Predict the label, the labels, the number or the spans of each text, or rank candidates.

    The text `-` reads texts from stdin, one per line. An adapter for pictures takes their paths
    instead of texts, or a folder of them. A fusion takes a text and the path of a picture.
    """
    if bool(texts) + (file is not None) + (folder is not None) != 1:
        raise UsageError(
            "Give the texts either as arguments or with --file, pictures also with --folder.",
            f'`trunkline predict {ref} "a text"` or `trunkline predict {ref} --file rows.csv`',
        )
    _check_out(out, file, folder)
    for option, given in (("--column", column is not None), ("--skip-empty", skip_empty)):
        if given and file is None:
            raise UsageError(f"{option} needs --file.", "It applies to a file of rows.")
    if skip_unreadable and folder is None:
        raise UsageError("--skip-unreadable needs --folder.", "It applies to a folder of pictures.")
    if ensemble and abstain is not None:
        raise UsageError(
            "--ensemble and --abstain can't be combined.",
            "The thresholds are those of single adapters; leave out one of the options.",
        )
    file_format = parse_file_options(reading, has_file=file is not None)
    if "-" in texts and len(texts) > 1:
        raise UsageError(
            "`-` reads the texts from stdin and can't be combined with other texts.",
            "Give either; a text that is only a dash can come from stdin or a file.",
        )
    if texts == ("-",):
        texts = tuple(line for line in read_stdin().split("\n") if not is_blank(line))
        if not texts:
            raise UsageError("No text arrived on stdin.", "Send one text per line.")
    if candidates:
        if len(texts) != 1 or ensemble or abstain is not None:
            raise UsageError(
                "--candidate takes one text as the query, without --file, --ensemble or --abstain.",
                f'`trunkline predict {ref} "a query" --candidate A --candidate B`',
            )
        with open_client(options, url) as client:
            _print_ranking(client.rank(client.resolve(ref), texts[0], candidates), top, as_json)
        return
    with open_client(options, url) as client:
        if ref == BASE:
            client.predict(Model(), [])
        if file is not None:
            from trunkline.data.readers import open_texts

            rows = open_texts(file, column or "text", skip_empty=skip_empty, options=file_format)
            models = [client.resolve(one) for one in (ref, *ensemble)]
            _check_modalities(models, rows.path.name, ())
            predict_file(client, models, rows, out, top, abstain, as_json)
            return
        if folder is not None:
            from trunkline.data.readers import find_pictures

            pictures = find_pictures(folder)
            models = [client.resolve(one) for one in (ref, *ensemble)]
            _check_modalities(models, None, (), folder=folder)
            predict_folder(
                client, models, pictures, out, top, abstain, as_json, skips=skip_unreadable
            )
            return
        models = [client.resolve(one) for one in (ref, *ensemble)]
        if len(models) == 1 and models[0].modality == "text+image":
            _predict_pair(client, models[0], texts, abstain, top, as_json)
            return
        pictured = _check_modalities(models, None, texts)
        answers = predict_all(client, models, texts, abstain)
    note_truncated(sum(answer.truncated for answer in answers))
    if as_json:
        print_json(
            [
                {"image" if pictured else "text": text, **answer_fields(answer, top)}
                for text, answer in zip(texts, answers, strict=True)
            ]
        )
        return
    print_answers(texts, answers, top)


def _predict_pair(
    client: Client,
    model: Model,
    arguments: Sequence[str],
    abstain: float | None,
    top: int,
    as_json: bool,
) -> None:
    """Answer the text and the picture of the arguments together."""
    from trunkline.inference.fusion import read_pair

    text, picture = read_pair(model.name, arguments)
    answer = client.predict_pair(model, text, Path(picture), abstain)
    note_truncated(int(answer.truncated))
    if as_json:
        print_json([{"text": text, "image": picture, **answer_fields(answer, top)}])
        return
    print_answers([text], [answer], top)


def _check_modalities(
    models: Sequence[Model],
    file: str | None,
    texts: Sequence[str],
    *,
    folder: Path | None = None,
) -> bool:
    """Whether all models read pictures.

    Raises:
        UsageError: they read different things, or something else than they are given.
    """
    if fused := next((model for model in models if model.modality == "text+image"), None):
        raise UsageError(
            f"{fused.name} is a fusion, which reads one text and one picture at a time.",
            f'`trunkline predict {fused.name} "a text" picture.jpg`, without --ensemble, --file '
            "and --folder.",
        )
    pictured = [model for model in models if model.modality == "image"]
    if pictured and len(pictured) < len(models):
        raise UsageError(
            f"{pictured[0].name} reads pictures and others read text.",
            "Average adapters that read the same.",
        )
    if pictured and file is not None:
        raise UsageError(
            f"{pictured[0].name} reads pictures, and {file} holds texts.",
            f"Name the pictures: `trunkline predict {pictured[0].name} a.jpg b.jpg`, or their "
            "folder with --folder.",
        )
    if folder is not None and not pictured:
        raise UsageError(
            f"{models[0].name} reads text, and {str(folder)!r} is a folder of pictures.",
            "Name an adapter that reads pictures, or give texts.",
        )
    if pictured:
        for text in texts:
            if os.path.isdir(text):
                raise UsageError(
                    f"{text!r} is a folder.",
                    f"`trunkline predict {pictured[0].name} --folder {text}` reads its pictures.",
                )
    else:
        for text in texts:
            if text.lower().endswith(SUFFIXES) and os.path.isfile(text):
                raise UsageError(
                    f"{models[0].name} reads text, and {text!r} is a picture.",
                    "Name an adapter that reads pictures, or give a text.",
                )
    return bool(pictured)


def _check_out(out: Path | None, file: Path | None, folder: Path | None) -> None:
    if out is None:
        return
    if file is None and folder is None:
        raise UsageError(
            "--out needs --file or --folder.", "For texts as arguments, redirect stdout."
        )
    check_output(out, file, folder)


def print_answers(texts: Sequence[str], answers: Sequence[Answer], top: int) -> None:
    """Write answers of heads, below their texts if there are several."""
    for text, answer in zip(texts, answers, strict=True):
        indent = ""
        if len(texts) > 1:
            click.echo(text)
            indent = "  "
        if answer.value is not None:
            click.echo(indent + value_text(answer))
        elif answer.spans is not None:
            _print_spans(answer.spans, indent)
        else:
            if answer.labels is not None:
                click.echo(indent + (", ".join(answer.labels) or "no label"))
            if answer.abstained:
                click.echo(f"{indent}no label: too uncertain")
            print_table(
                ["", ""],
                [
                    (f"{indent}{label}", probability_text(probability))
                    for label, probability in likeliest(answer, top).items()
                ],
                fold=("",),
            )


def _print_spans(spans: Sequence[ScoredSpan], indent: str) -> None:
    if not spans:
        click.echo(f"{indent}no spans")
        return
    rows = [
        (
            f"{indent}{one.text}",
            one.label,
            f"{one.start}-{one.end}",
            probability_text(one.probability),
        )
        for one in spans
    ]
    print_table(["", "", "", ""], rows, fold=("",))


def _print_ranking(ranking: Ranking, top: int, as_json: bool) -> None:
    note_truncated(int(ranking.truncated))
    if as_json:
        print_json(ranking)
        return
    pairs = list(zip(ranking.candidates, ranking.probabilities, strict=True))
    rows = [(one, probability_text(probability)) for one, probability in pairs]
    print_table(["", ""], rows[:top] if top else rows, fold=("",))
    if 0 < top < len(rows):
        note(f"{len(rows) - top:,} more with --top 0.")


def value_text(answer: Answer) -> str:
    """The number of a regression with its unit."""
    assert answer.value is not None
    return f"{figure(answer.value)} {answer.unit or ''}".rstrip()


def probability_text(probability: float) -> str:
    """A probability with three decimals; a small one is not rounded to zero."""
    if probability >= 0.0005 or probability == 0:
        return f"{probability:.3f}"
    return "<0.001"


# ------------------------------------------------------------------------------------ generate


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of sampling to a command."""
    for option in (
        click.option(
            "--seed", type=int, default=0, show_default=True, help="Seed of the sampling."
        ),
        click.option(
            "--top-p", type=float, default=1.0, show_default=True, help="Nucleus sampling."
        ),
        click.option(
            "--temperature",
            type=float,
            default=0.0,
            show_default=True,
            help="0 always takes the likeliest token.",
        ),
        click.option(
            "--max-new-tokens", type=int, metavar="N", help="Limit of the answer, in tokens."
        ),
    ):
        function = option(function)
    return function


@click.command(
    "generate",
    cls=Command,
    short_help="Generate text with an adapter or the bare base.",
    example='trunkline generate base "Name three fruits." --max-new-tokens 24',
)
@click.argument("ref")
@click.argument("prompt")
@sampling_options
@url_option
@json_option
@pass_options
def generate(
    options: GlobalOptions,
    /,
    ref: str,
    prompt: str,
    url: str | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Generate text with an adapter, or with the bare `base`; the prompt `-` reads stdin."""
    if prompt == "-":
        prompt = read_stdin()
    with open_client(options, url) as client:
        answer = client.generate(client.resolve(ref), prompt, sampling)
    if as_json:
        print_json({"prompt": prompt, **answer.to_json()})
        return
    click.echo(answer.text)
    if answer.truncated:
        note(TRUNCATED)
    if answer.finish == "length":
        note("(truncated; --max-new-tokens raises the limit)")
