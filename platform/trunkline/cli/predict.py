"""``trunkline predict``: labels and numbers, for texts or for a file of them."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from trunkline.cli.answering import Client, Voice, answering
from trunkline.cli.command import Command, Example
from trunkline.cli.options import Globals, url_option, with_globals
from trunkline.cli.output import counted, figure, json_option, note, plain, print_json, print_table
from trunkline.cli.progress import working
from trunkline.errors import DataError, TooLargeError, UsageError
from trunkline.refs import BASE

if TYPE_CHECKING:
    from trunkline.data.readers import TextFile, TextRow
    from trunkline.inference.request import Answer


@click.command(
    "predict",
    cls=Command,
    short_help="Labels or numbers for texts, or for a file of them.",
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
@click.option("--column", metavar="NAME", default="text", show_default=True, help="Of the file.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --file: write JSON lines there, all or none; else they go to stdout.",
)
@click.option("--skip-empty", is_flag=True, help="Leave out rows of the file without a text.")
@click.option(
    "--top",
    type=click.IntRange(min=0),
    metavar="N",
    default=3,
    show_default=True,
    help="So many labels with their probabilities; 0: all.",
)
@url_option
@json_option
@with_globals
def predict(
    said: Globals,
    ref: str,
    texts: tuple[str, ...],
    file: Path | None,
    column: str,
    out: Path | None,
    skip_empty: bool,
    top: int,
    url: str | None,
    as_json: bool,
) -> None:
    """Ask an adapter for the label or the number of each text; `-` reads lines from stdin."""
    if bool(texts) == (file is not None):
        raise UsageError(
            "Texts come as arguments or from --file, one of the two.",
            f'`trunkline predict {ref} "a text"` or `trunkline predict {ref} --file rows.csv`',
        )
    if out is not None and file is None:
        raise UsageError("--out goes with --file.", "For arguments, send stdout into a file.")
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"There is no folder for {str(out)!r}.", "Make it first.")
    if out is not None and out.is_dir():
        raise UsageError(f"{str(out)!r} is a folder.", "Name a file in it.")
    if out is not None and file is not None and out.resolve() == file.resolve():
        raise UsageError(
            f"--out {str(out)!r} is the file that the texts come from.", "Name another file."
        )
    if texts == ("-",):
        texts = tuple(line.rstrip("\n") for line in sys.stdin if line.strip())
        if not texts:
            raise UsageError("No text came on stdin.", "Send one text a line.")
    with answering(said, url) as client:
        if ref == BASE:
            client.predict(Voice(), [])
        if file is not None:
            from trunkline.data.readers import open_texts

            rows = open_texts(file, column, skip_empty=skip_empty)
            _answer_file(client, client.find(ref), rows, out, top)
            return
        answers = client.predict(client.find(ref), texts)
    if as_json:
        print_json(
            [
                {"text": text, **_shown(answer, top)}
                for text, answer in zip(texts, answers, strict=True)
            ]
        )
        return
    _print_answers(texts, answers, top)


def _print_answers(texts: Sequence[str], answers: Sequence[Answer], top: int) -> None:
    for text, answer in zip(texts, answers, strict=True):
        indent = ""
        if len(texts) > 1:
            click.echo(text)
            indent = "  "
        if answer.value is not None:
            click.echo(indent + value_text(answer))
        else:
            print_table(
                ["", ""],
                [
                    (f"{indent}{label}", chance_text(chance))
                    for label, chance in likeliest(answer, top).items()
                ],
                fold=("",),
            )


def value_text(answer: Answer) -> str:
    """The number of a regression in its unit."""
    assert answer.value is not None
    return f"{figure(answer.value)} {answer.unit or ''}".rstrip()


def chance_text(chance: float) -> str:
    """A probability with three decimals, never a false zero."""
    return f"{chance:.3f}" if chance >= 0.0005 or chance == 0 else "<0.001"


def likeliest(answer: Answer, top: int) -> dict[str, float]:
    """The ``top`` labels (0: all) with their probabilities, the likeliest first."""
    ordered = sorted((answer.probabilities or {}).items(), key=lambda item: -item[1])
    return dict(ordered[:top] if top else ordered)


def _shown(answer: Answer, top: int) -> dict[str, Any]:
    fields = answer.to_json()
    if answer.probabilities is not None:
        fields["probabilities"] = likeliest(answer, top)
    return fields


def _answer_file(client: Client, voice: Voice, rows: TextFile, out: Path | None, top: int) -> None:
    with working("rows") as listener, _written(out) as sink:
        client.prepare(listener)
        listener.stage(f"answering {counted(rows.rows, 'row')} of {rows.path.name}")
        done = 0
        for batch in rows.batches():
            for row, answer in zip(batch, _answers(client, voice, batch), strict=True):
                fields = {"row": row.number, "text": row.text, **_shown(answer, top)}
                for name in ("digest", "prompt_tokens", "new_tokens", "cached_tokens"):
                    fields.pop(name, None)
                sink.write(json.dumps(plain(fields), ensure_ascii=False) + "\n")
            done += len(batch)
            listener.progress(done, rows.rows, {})
    if rows.empty:
        note(f"Left out: {counted(rows.empty, 'row')} without a text.")
    if out is not None:
        note(f"{counted(rows.rows, 'answer')} in {out}")


def _answers(client: Client, voice: Voice, batch: Sequence[TextRow]) -> list[Answer]:
    try:
        return client.predict(voice, [row.text for row in batch])
    except (DataError, TooLargeError):
        for row in batch:  # a text that is refused is refused before anything is computed
            try:
                client.predict(voice, [row.text])
            except (DataError, TooLargeError) as error:
                raise DataError(f"Row {row.number}: {error.message}", error.hint) from error
        raise


@contextmanager
def _written(out: Path | None) -> Iterator[IO[str]]:
    """Stdout, or a file that comes into being when all is written."""
    if out is None:
        yield sys.stdout
        return
    handle, beside = tempfile.mkstemp(dir=out.absolute().parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as sink:
            yield sink
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside, 0o666 & ~umask)
        os.replace(beside, out)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
