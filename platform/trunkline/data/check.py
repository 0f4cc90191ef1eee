"""Check a dataset row by row before anything is trained: ``datasets check``.

Each finding counts rows, names the first of them, and says what to do.
"""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from trunkline.contracts import DatasetSpec, RecipeSpec, Row, Span, Template, TransformSpec
from trunkline.data.check_report import (
    DataFinding,
    DatasetCheck,
    Level,
    PictureReport,
    finding,
)
from trunkline.data.lengths import LengthReport, check_answers_fit, count_lengths
from trunkline.data.near_duplicates import NearDuplicate, near_duplicates
from trunkline.data.prepare import Prepared, input_of, prepare, read_rows
from trunkline.data.targets import LABELED, labels_in, normalized, spans_of
from trunkline.errors import TrunklineError
from trunkline.labels import clean_label, is_blank, similar_text

UNBALANCED = 10
"""Labels are reported if one has so many times the rows of another."""

RARE = 8
"""A label with fewer rows than this is reported: it has about one row in the test part."""

_FOLDS = 5

MISSING_EXTRA = "not checked: pip install 'trunkline[check]'"

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_REPLACED = "\ufffd"
_SEPARATORS = (",", ";", "|", "/", "\t")
_IN_A_WORD = re.compile(r"[A-Za-z\u00c0-\u052f]{2}")
"""Two letters of a script that writes blanks between words: Latin, Greek or Cyrillic."""
_PERSONAL: dict[str, re.Pattern[str]] = {
    "an e-mail address": re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b", re.ASCII),
    "a telephone number": re.compile(
        r"(?<![\w.])(?<![0-9] )(?:\+|00)[1-9][0-9](?:[ ().-]?[0-9]){6,12}(?!\w)"
    ),
    "a US social security number": re.compile(r"(?<![\w-])[0-9]{3}-[0-9]{2}-[0-9]{4}(?![\w-])"),
    "an IBAN": re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "a payment card number": re.compile(
        r"(?<![\w.])(?<![0-9][ -])(?:[0-9]{13,19}|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}"
        r"|[0-9]{4}([ -])[0-9]{6}\2[0-9]{5})(?![\w.]|[ -][0-9])"
    ),
    "an IP address": re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w.])"),
}


def check_dataset(
    dataset: DatasetSpec,
    recipe: RecipeSpec,
    transforms: Sequence[TransformSpec] = (),
    tokenizer: tuple[Any, int] | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
    *,
    contact_sheet: bool = False,
) -> DatasetCheck:
    """Examine every row as a training of the recipe would read it; nothing is trained.

    Args:
        tokenizer: of the base, with its context in tokens; None: lengths are not counted.
        on_stage: called with a phrase when a stage begins.
        contact_sheet: draw one, of a dataset of pictures.

    Raises:
        PluginCallError, DataError: the rows can't be read.
        UsageError: the package that decodes pictures is missing.
    """
    on_stage(f"reading {dataset.name}")
    pictured = dataset.modality == "image"
    unreadable: dict[str, TrunklineError] = {}
    rows = read_rows(dataset, unreadable if pictured else None)
    total = len(rows) + len(unreadable)
    findings: list[DataFinding] = []
    pictures: PictureReport | None = None
    if pictured:
        from trunkline.data.check_pictures import examine_pictures

        on_stage("decoding pictures")
        rows, pictures, findings = examine_pictures(rows, unreadable)
    else:
        findings += _text_findings(rows, recipe)
    findings += _target_findings(rows)
    dataset = replace(dataset, load=lambda: rows)
    prepared: Prepared | None = None
    lengths: LengthReport | None = None
    if rows or not total:  # else every row has its error already
        on_stage("comparing rows")
        try:
            prepared = prepare(dataset, recipe, transforms)
            findings += _prepared_findings(rows, prepared, dataset, recipe)
            if tokenizer is not None and not pictured:
                on_stage("counting tokens")
                check_answers_fit(prepared, recipe, tokenizer[0])
                lengths = count_lengths(_used(prepared), dataset, recipe, *tokenizer)
                findings += _length_findings(lengths, recipe)
        except TrunklineError as error:
            findings.append(
                DataFinding("unusable", "error", error.message.rstrip("."), error.hint or "")
            )
    labels: Counter[str] = Counter()
    if dataset.task in LABELED:
        for row in rows:
            if pictured or not is_blank(recipe.template.cleaned(row.text)):
                labels.update({clean_label(str(label)) for label in labels_in(row.target)} - {""})
        findings += _rare_labels(labels)
        findings += _balance_findings(labels)
        if prepared is not None and dataset.task == "classification" and not pictured:
            on_stage("looking for wrong labels")
            findings += _label_errors(prepared, recipe)
    sheet: bytes | None = None
    if pictured and contact_sheet:
        from trunkline.data.contact_sheet import draw_contact_sheet

        on_stage("drawing the contact sheet")
        sheet = draw_contact_sheet(rows, () if prepared is None else prepared.near_duplicates)
    order = {"error": 0, "warning": 1, "note": 2}
    return DatasetCheck(
        name=dataset.name,
        task=dataset.task,
        rows=total,
        labels=dict(labels.most_common()),
        parts=prepared.report.parts if prepared else {},
        lengths=lengths,
        findings=tuple(sorted(findings, key=lambda one: order[one.level])),
        pictures=pictures,
        contact_sheet=sheet,
    )


def personal_data(text: str) -> Iterator[str]:
    """The kinds of personal data whose pattern occurs in a text, such as ``an IBAN``."""
    for kind, pattern in _PERSONAL.items():
        check = _CHECKS.get(kind, lambda _: True)
        if any(check(match[0]) for match in pattern.finditer(text)):
            yield kind


def script_of(text: str) -> str:
    """The writing system of most letters of a text, such as ``LATIN``; empty without letters."""
    scripts = Counter(
        unicodedata.name(char, "UNKNOWN").partition(" ")[0] for char in text[:500] if char.isalpha()
    )
    return scripts.most_common(1)[0][0] if scripts else ""


# ------------------------------------------------------------------------------------- findings


def _text_findings(rows: Sequence[Row], recipe: RecipeSpec) -> Iterator[DataFinding]:
    """Findings about the texts of single rows, whatever the others are."""
    empty = [row.id for row in rows if is_blank(recipe.template.cleaned(row.text))]
    yield from finding(
        "empty texts", "warning", empty, "no text, so the row is dropped", "Fill them in."
    )
    damaged = [row.id for row in rows if _is_damaged(row.full_text)]
    yield from finding(
        "encoding", "warning", damaged,
        "characters that a wrong encoding leaves behind, such as Ã© or \ufffd",
        "Read the file with its true --encoding, or correct the texts.",
    )  # fmt: skip
    scripts = {row.id: script for row in rows if (script := script_of(row.full_text))}
    common = Counter(scripts.values()).most_common(1)
    others = [name for name, script in scripts.items() if script != common[0][0]]
    if others and len(others) * 20 < len(scripts):
        yield from finding(
            "language", "note", others,
            f"a text that is not written in {common[0][0].title()}, as most are",
            "Keep them only if requests will look like this.",
        )  # fmt: skip
    personal: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for kind in personal_data(row.full_text):
            personal[kind].append(row.id)
    for kind, ids in personal.items():
        yield from finding(
            "personal data", "warning", ids, f"what looks like {kind}",
            "Remove it: an adapter can repeat what it was trained on.",
        )  # fmt: skip


def _target_findings(rows: Sequence[Row]) -> Iterator[DataFinding]:
    """Findings about the targets of single rows."""
    blank = [row.id for row in rows if _has_no_target(row)]
    yield from finding(
        "empty targets", "warning", blank, "no target, so the row is dropped",
        "Fill them in, or leave the rows out.",
    )  # fmt: skip
    infinite = [row.id for row in rows if _is_infinite(row.target)]
    yield from finding(
        "infinite targets", "warning", infinite,
        "a number that is too large, so the row is dropped", "Correct it, or leave the row out.",
    )  # fmt: skip


def _prepared_findings(
    rows: Sequence[Row], prepared: Prepared, dataset: DatasetSpec, recipe: RecipeSpec
) -> Iterator[DataFinding]:
    """Findings about rows beside each other."""
    split, report, template = prepared.split, prepared.report, recipe.template
    noun = "text" if dataset.modality == "text" else "picture"
    kept = {row.id: row for row in (*split.train, *split.validation, *split.test)}
    if dataset.text_and_image:  # a row of the split has the half that the adapter reads
        kept = {row.id: row for row in rows if row.id in kept}
    seen = {(input_of(row, template), row.target) for row in kept.values()}

    def cleaned(row: Row) -> tuple[tuple[str, ...], Any]:
        with suppress(ValueError):  # the row was refused, or dropped for another reason
            row = normalized(row, dataset.task)
        target = clean_label(row.target) if isinstance(row.target, str) else row.target
        return input_of(row, template), target

    repeated = [row.id for row in rows if row.id not in kept and cleaned(row) in seen]
    yield from finding(
        "duplicates", "warning", repeated,
        f"the {noun} and target of another row, so the row is dropped", "Leave them out.",
    )  # fmt: skip
    targets: dict[tuple[str, ...], set[Any]] = defaultdict(set)
    for row in kept.values():
        targets[input_of(row, template)].add(row.target)
    conflicting = [row.id for row in kept.values() if len(targets[input_of(row, template)]) > 1]
    yield from finding(
        "label conflicts", "warning", conflicting,
        f"the {noun} of a row with another target",
        "Correct the targets, or add to the text what tells the rows apart."
        if noun == "text"
        else "Correct the targets.",
    )  # fmt: skip
    spaced = [
        row.id
        for row in rows
        if dataset.task == "classification"
        and str(row.target).strip()
        and clean_label(str(row.target)) != row.target
    ]
    yield from finding(
        "label spaces", "warning", spaced,
        "white space or invisible characters at the ends of the label, which are removed",
        "Write the labels without them.",
    )  # fmt: skip
    for group in report.similar_labels:
        yield from finding(
            "similar labels", "warning",
            [row.id for row in kept.values() if not set(group).isdisjoint(labels_in(row.target))],
            f"the labels {similar_text([group])} differ only in case, white space or Unicode form",
            "Write each label in one way.",
        )  # fmt: skip
    if dataset.task == "multilabel":
        yield from _separator_finding(kept.values())
    if dataset.task == "tagging":
        torn = [
            row.id for row in kept.values() if any(map(partial(_is_torn, row.text), spans_of(row)))
        ]
        yield from finding(
            "torn spans", "warning", torn,
            "a span that begins or ends inside a word, or at white space",
            "Spans count characters (Unicode code points, not bytes) from 0; the end is excluded.",
        )  # fmt: skip
    method = report.compared_by
    advice = "Put near-duplicates into one group (--group)."
    if noun == "picture":
        advice = f"Look at them (--contact-sheet). {advice}"
    in_train = {pair.row.id for pair in prepared.near_duplicates}
    validation = near_duplicates(split.validation, split.train, template, method)
    test = near_duplicates(split.test, split.validation, template, method)
    kinds: tuple[tuple[Level, Sequence[NearDuplicate], str], ...] = (
        (
            "warning",
            prepared.near_duplicates,
            "a test row with a near-duplicate in train, which makes scores too high",
        ),
        ("note", validation, "a validation row with a near-duplicate in train"),
        (
            "note",
            [pair for pair in test if pair.row.id not in in_train],
            "a test row with a near-duplicate in validation",
        ),
    )
    for level, pairs, message in kinds:
        example = f": row {pairs[0].row.id} is like row {pairs[0].other.id}" if pairs else ""
        yield from finding(
            "near-duplicates", level, [pair.row.id for pair in pairs], message + example,
            advice,
        )  # fmt: skip


def _separator_finding(rows: Iterable[Row]) -> Iterator[DataFinding]:
    """A finding if no row has several labels, but labels hold what may separate them."""
    single = [row for row in rows if len(labels_in(row.target)) == 1]
    if any(len(labels_in(row.target)) > 1 for row in rows):
        return
    for separator in _SEPARATORS:
        joined = [row.id for row in single if separator in labels_in(row.target)[0]]
        yield from finding(
            "separator", "warning", joined,
            f"one label that contains {separator!r}, and no row has several labels",
            f"If it separates labels, use --separator {separator!r}.",
        )  # fmt: skip


def _is_torn(text: str, span: Span) -> bool:
    """Whether a span begins or ends inside a word or at white space, by its offsets."""
    part = text[span.start : span.end]
    inside = (text[edge - 1 : edge + 1] for edge in (span.start, span.end) if edge)
    return part != part.strip() or any(
        len(one) == 2 and _IN_A_WORD.fullmatch(one) for one in inside
    )


def _rare_labels(labels: Counter[str]) -> Iterator[DataFinding]:
    rare = {label: count for label, count in labels.items() if count < RARE}
    if rare:
        named = ", ".join(f"{label!r} {count}" for label, count in list(rare.items())[:5])
        more = ", …" if len(rare) > 5 else ""
        yield DataFinding(
            "rare labels",
            "warning",
            f"a label with fewer than {RARE} rows: {named}{more}",
            "Add rows, or merge labels: scores of rare ones are a matter of luck.",
            sum(rare.values()),
        )


def _balance_findings(labels: Counter[str]) -> Iterator[DataFinding]:
    """A finding if some labels are far more frequent than others.

    Args:
        labels: label → rows.
    """
    ordered = sorted(labels.items(), key=lambda item: -item[1])
    if ordered and ordered[0][1] >= UNBALANCED * ordered[-1][1]:
        (most, many), (least, few) = ordered[0], ordered[-1]
        yield DataFinding(
            "class balance",
            "note",
            f"{most!r} has {many:,} rows and {least!r} {few:,}",
            "Try loss_options: {class_weight: balanced}, and decide by macro_f1.",
        )


def _length_findings(lengths: LengthReport, recipe: RecipeSpec) -> Iterator[DataFinding]:
    answer = recipe.max_new_tokens if recipe.task == "generation" else 0
    if lengths.truncated:
        yield DataFinding(
            "cut texts",
            "warning",
            f"a text that is too long and cut to {lengths.limit:,} tokens ({lengths.share:.1%} of "
            f"all); 95 % have at most {lengths.p95:,}",
            f"Use --set max_length={lengths.p95 + answer}, or put what matters first.",
            lengths.truncated,
        )


def _label_errors(prepared: Prepared, recipe: RecipeSpec) -> Iterator[DataFinding]:
    """Rows whose label a classifier that has not seen them finds improbable.

    Confident learning (Northcutt et al. 2021) over out-of-fold probabilities.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        yield DataFinding("label errors", "note", f"probable label errors are {MISSING_EXTRA}", "")
        return
    rows = _used(prepared)
    codes = [prepared.labels.index(str(row.target)) for row in rows]
    probabilities = _out_of_fold_probabilities(rows, codes, recipe.template)
    if probabilities is None:
        return
    issues = find_label_issues(
        codes, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    yield from finding(
        "label errors", "note", [rows[index].id for index in issues],
        "a label that is improbable to a classifier that has not seen the row, the worst first",
        "Look at them: some are wrong, others are only hard.",
    )  # fmt: skip


def _out_of_fold_probabilities(
    rows: Sequence[Row], codes: Sequence[int], template: Template
) -> Any | None:
    """Probabilities ``[rows, labels]`` of TF-IDF and logistic regression, over group folds.

    None if a label has too few groups to be in every fold.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    groups: dict[int, set[str]] = defaultdict(set)
    for row, code in zip(rows, codes, strict=True):
        groups[code].add(row.group)
    if min(map(len, groups.values())) < _FOLDS:
        return None
    model = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2),
        LogisticRegression(C=10.0, max_iter=100, tol=1e-3),
    )
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    texts = [template.cleaned(row.text) for row in rows]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return cross_val_predict(
                model, texts, codes, groups=[row.group for row in rows], cv=folds,
                method="predict_proba",
            )  # fmt: skip
    except ValueError:  # no word occurs twice, or a fold misses a label
        return None


def _used(prepared: Prepared) -> list[Row]:
    split = prepared.split
    return [*split.train, *split.validation, *split.test]


def _has_no_target(row: Row) -> bool:
    """Whether the target is empty; in a column of numbers that is not a number."""
    return row.target != row.target if isinstance(row.target, float) else is_blank(str(row.target))


def _is_infinite(target: Any) -> bool:
    return isinstance(target, float) and math.isinf(target)


def _is_damaged(text: str) -> bool:
    if _REPLACED in text or _CONTROL.search(text):
        return True
    if text.isascii():
        return False
    try:
        from ftfy.badness import is_bad
    except ImportError:
        return False
    return bool(is_bad(text))


# ------------------------------------------------------------------------------- personal data


def _has_luhn_digit(number: str) -> bool:
    """Whether the last digit is the check digit of ISO/IEC 7812-1."""
    digits = [int(char) for char in number if char.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


def _has_iban_digits(number: str) -> bool:
    """Whether the check digits are those of ISO 13616."""
    plain = number.replace(" ", "")
    return int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1


def _is_ip_address(text: str) -> bool:
    parts = text.split(".")
    return all(int(part) < 256 for part in parts) and parts[0] != "0"


_CHECKS: dict[str, Callable[[str], bool]] = {
    "a payment card number": _has_luhn_digit,
    "an IBAN": _has_iban_digits,
    "an IP address": _is_ip_address,
}
