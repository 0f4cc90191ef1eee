"""Predict the rows of a file or the pictures of a folder, and write a line for each."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trunkline.cli.client import Client, Model
from trunkline.cli.output import counted, note, plain, print_json
from trunkline.cli.progress import working
from trunkline.errors import DataError, TooLargeError
from trunkline.files import output_file

if TYPE_CHECKING:
    from trunkline.data.readers import PictureFolder, TextFile, TextRow
    from trunkline.inference.request import Answer

_PICTURES_AT_ONCE = 32

_COLUMNS = {
    "classification": ("label", "probability"),
    "multilabel": ("labels",),
    "regression": ("value", "unit"),
    "tagging": ("spans",),
}
"""Task → the columns of a table of answers."""

Write = Callable[[Mapping[str, Any]], None]
"""Writes the fields of one row."""


def likeliest(answer: Answer, top: int) -> dict[str, float]:
    """The ``top`` labels (0: all) with their probabilities, the likeliest first."""
    ordered = sorted((answer.probabilities or {}).items(), key=lambda item: -item[1])
    return dict(ordered[:top] if top else ordered)


def answer_fields(answer: Answer, top: int) -> dict[str, Any]:
    """The answer as JSON, with the ``top`` likeliest labels."""
    fields = answer.to_json()
    if answer.probabilities is not None:
        fields["probabilities"] = likeliest(answer, top)
    return fields


def note_truncated(count: int) -> None:
    """Say how many texts were cut."""
    if count:
        verb = "was" if count == 1 else "were"
        note(
            f"{counted(count, 'text')} {verb} longer than max_length of the adapter, and the end "
            "was cut off, as in training (`truncated` in JSON)."
        )


def predict_all(
    client: Client, models: Sequence[Model], texts: Sequence[str], abstain: float | None
) -> list[Answer]:
    """The answers of one model, or the averages of several; for pictures, texts are paths."""

    def predict(model: Model) -> list[Answer]:
        if model.modality == "image":
            return client.predict_images(model, [Path(text) for text in texts], abstain)
        return client.predict(model, texts, abstain)

    if len(models) == 1:
        return predict(models[0])
    from trunkline.inference.ensemble import average

    answers = [predict(model) for model in models]
    return [average(of_text) for of_text in zip(*answers, strict=True)]


def predict_file(
    client: Client,
    models: Sequence[Model],
    rows: TextFile,
    out: Path | None,
    top: int,
    abstain: float | None,
    as_json: bool,
) -> None:
    """Write a line for each row, or with ``as_json`` one array of them."""
    answers: list[Mapping[str, Any]] = []
    columns = ("row", "text", *_COLUMNS.get(models[0].task, ()))
    collected = answers if as_json and out is None else None
    with working("rows") as listener, _output(out, columns, collected) as write:
        client.prepare(listener, "text")
        listener.stage(f"answering {counted(rows.rows, 'row')} of {rows.path.name}")
        done = truncated = abstained = 0
        for batch in rows.batches():
            for row, answer in zip(
                batch, _predict_batch(client, models, batch, abstain), strict=True
            ):
                truncated += answer.truncated
                abstained += answer.abstained
                write({"row": row.number, "text": row.text, **_row_fields(answer, top)})
            done += len(batch)
            listener.progress(done, rows.rows, {})
    if rows.empty:
        note(f"Skipped {counted(rows.empty, 'row')} without a text.")
    note_truncated(truncated)
    if abstain is not None:
        note(f"No label for {counted(abstained, 'row')} of {rows.rows:,}: too uncertain.")
    if as_json:
        counts = {
            "out": out,
            "rows": rows.rows,
            "skipped": rows.empty,
            "truncated": truncated,
            **({} if abstain is None else {"abstained": abstained}),
        }
        print_json(answers if out is None else counts)
    if out is not None:
        note(f"{counted(rows.rows, 'answer')} in {out}")


def predict_folder(
    client: Client,
    models: Sequence[Model],
    folder: PictureFolder,
    out: Path | None,
    top: int,
    abstain: float | None,
    as_json: bool,
    *,
    skips: bool,
) -> None:
    """Write a line for each picture, or with ``as_json`` one array of them.

    Args:
        skips: give a picture that can't be read its error, instead of ending.

    Raises:
        DataError, TooLargeError: a picture can't be read; names it.
    """
    answers: list[Mapping[str, Any]] = []
    columns = ("path", *_COLUMNS.get(models[0].task, ()), *(("error",) if skips else ()))
    collected = answers if as_json and out is None else None
    total = len(folder.pictures)
    with working("pictures") as listener, _output(out, columns, collected) as write:
        client.prepare(listener, "image")
        listener.stage(f"answering {counted(total, 'picture')} of {folder.path.name}")
        done = unreadable = abstained = 0
        remaining = iter(folder.pictures)
        while batch := list(islice(remaining, _PICTURES_AT_ONCE)):
            for path, answer in _predict_pictures(client, models, folder, batch, abstain, skips):
                if isinstance(answer, str):
                    unreadable += 1
                    write({"path": path.as_posix(), "error": answer})
                    continue
                abstained += answer.abstained
                write({"path": path.as_posix(), **_row_fields(answer, top)})
            done += len(batch)
            listener.progress(done, total, {})
    if folder.others:
        note(f"{counted(folder.others, 'other file')} left out.")
    if unreadable:
        note(f"No answer for {counted(unreadable, 'picture')} of {total:,}; see `error`.")
    if abstain is not None:
        note(f"No label for {counted(abstained, 'picture')} of {total:,}: too uncertain.")
    if as_json:
        counts = {
            "out": out,
            "pictures": total,
            "unreadable": unreadable,
            "others": folder.others,
            **({} if abstain is None else {"abstained": abstained}),
        }
        print_json(answers if out is None else counts)
    if out is not None:
        note(f"{counted(total - unreadable, 'answer')} in {out}")


def _row_fields(answer: Answer, top: int) -> dict[str, Any]:
    """The fields of an answer in a line of a file."""
    fields = answer_fields(answer, top)
    for name in ("digest", "prompt_tokens", "new_tokens", "cached_tokens"):
        fields.pop(name, None)
    return fields


@contextmanager
def _output(
    out: Path | None, columns: Sequence[str], collected: list[Mapping[str, Any]] | None
) -> Iterator[Write]:
    """Where rows are written: a .csv as a table, other files and stdout as JSON lines.

    Args:
        out: None: stdout.
        columns: of the table.
        collected: receives the rows instead, unless it is None.
    """
    if collected is not None:
        yield collected.append
        return
    if out is None:
        yield _json_lines(sys.stdout)
        return
    with output_file(out) as sink:
        yield _table(sink, columns) if out.suffix.lower() == ".csv" else _json_lines(sink)


def _json_lines(sink: IO[str]) -> Write:
    def write(fields: Mapping[str, Any]) -> None:
        sink.write(json.dumps(plain(fields), ensure_ascii=False) + "\n")

    return write


def _table(sink: IO[str], columns: Sequence[str]) -> Write:
    """Cells of a CSV file; a list is written as JSON, and ``probability`` is that of the label."""
    table = csv.writer(sink, lineterminator="\n")
    table.writerow(columns)

    def cell(fields: Mapping[str, Any], column: str) -> Any:
        if column == "probability":
            return (fields.get("probabilities") or {}).get(fields.get("label"))
        value = plain(fields.get(column))
        return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value

    def write(fields: Mapping[str, Any]) -> None:
        table.writerow([cell(fields, column) for column in columns])

    return write


def _predict_batch(
    client: Client, models: Sequence[Model], batch: Sequence[TextRow], abstain: float | None
) -> list[Answer]:
    try:
        return predict_all(client, models, [row.text for row in batch], abstain)
    except (DataError, TooLargeError):
        for row in batch:  # find the row; a text is refused before anything is computed
            try:
                predict_all(client, models, [row.text], None)
            except (DataError, TooLargeError) as error:
                raise DataError(f"{row.place}: {error.message}", error.hint) from error
        raise


def _predict_pictures(
    client: Client,
    models: Sequence[Model],
    folder: PictureFolder,
    batch: Sequence[Path],
    abstain: float | None,
    skips: bool,
) -> list[tuple[Path, Answer | str]]:
    """Each picture with its answer or, where ``skips``, the sentence on why it has none."""
    paths = [str(folder.path / path) for path in batch]
    try:
        return [*zip(batch, predict_all(client, models, paths, abstain), strict=True)]
    except (DataError, TooLargeError):
        answers: list[tuple[Path, Answer | str]] = []
        for path, full in zip(batch, paths, strict=True):  # find the picture
            try:
                answers.append((path, predict_all(client, models, [full], abstain)[0]))
            except (DataError, TooLargeError) as error:
                if not skips:
                    place = f"{folder.path.name}/{path.as_posix()}"
                    hint = f"{error.hint or ''} --skip-unreadable goes on without it.".strip()
                    raise type(error)(f"{place}: {error.message}", hint) from error
                answers.append((path, error.message))
        return answers
