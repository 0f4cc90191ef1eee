"""The core's baselines for labels, spans and candidates, besides those in ``baselines``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from trunkline.contracts import (
    BaselineContext,
    BaselinePredictions,
    BaselineSpec,
    Scored,
    Span,
    Target,
)
from trunkline.data.targets import labels_in, spans_of
from trunkline.evaluation.baselines import LOGISTIC_C, cleaned_texts, majority, vectorizer_of
from trunkline.evaluation.metrics import micro_f1

THRESHOLDS = tuple(step / 20 for step in range(1, 20))
"""Probabilities from which a label may be predicted; the best one on validation is used."""


def one_versus_rest(context: BaselineContext) -> BaselinePredictions:
    """TF-IDF + a logistic regression for each label.

    C and the probability from which a label is predicted are those that are best on validation.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    labels = sorted({label for row in context.train for label in labels_in(row.target)})
    if not labels:
        return majority(context)
    truth = np.array([[label in row.target for label in labels] for row in context.train])  # type: ignore[operator]
    vectorizer = vectorizer_of("char")
    try:
        train = vectorizer.fit_transform(cleaned_texts(context, context.train))
    except ValueError:  # no text of two characters
        return majority(context)
    validation, test = (
        vectorizer.transform(cleaned_texts(context, rows))
        for rows in (context.validation, context.test)
    )
    varied: Any = truth.any(axis=0) & ~truth.all(axis=0)
    constant: Any = truth.all(axis=0)

    def probabilities(model: Any, features: Any) -> Any:
        table = np.repeat(constant[None].astype(float), features.shape[0], axis=0)
        if model is not None:
            table[:, varied] = model.predict_proba(features)
        return table

    best: tuple[float, list[Target], str] = (-1.0, [], "")
    for c in LOGISTIC_C:
        model = None
        if varied.any():
            model = OneVsRestClassifier(LogisticRegression(C=c, max_iter=1000, tol=1e-3))
            model.fit(train, truth[:, varied].astype(int))
        table = probabilities(model, validation)
        for threshold in THRESHOLDS:
            chosen = _chosen(table, labels, threshold)
            targets = [row.target for row in context.validation]
            score = micro_f1(Scored(targets=targets, predictions=chosen))
            if score > best[0]:
                values = _chosen(probabilities(model, test), labels, threshold)
                best = (score, values, f"characters 2-5, C={c:g}, from {threshold:g}")
    return BaselinePredictions(values=best[1], detail=best[2])


def _chosen(table: Any, labels: Sequence[str], threshold: float) -> list[Target]:
    return [
        tuple(label for label, value in zip(labels, row, strict=True) if value >= threshold)
        for row in table
    ]


def dictionary(context: BaselineContext) -> BaselinePredictions:
    """The longest texts of training spans, with their most frequent label.

    A text counts if more than half of its occurrences in train, at the borders of words, are spans.
    """
    import re

    named: dict[str, Counter[str]] = defaultdict(Counter)
    for row in context.train:
        for span in spans_of(row):
            named[row.text[span.start : span.end].casefold()][span.label] += 1
    if not named:
        return BaselinePredictions(values=[()] * len(context.test), detail="no spans in train")
    pattern = re.compile(
        r"(?<!\w)(?:" + "|".join(map(re.escape, sorted(named, key=len, reverse=True))) + r")(?!\w)",
        re.IGNORECASE,
    )
    seen: Counter[str] = Counter()
    for row in context.train:
        seen.update(match[0].casefold() for match in pattern.finditer(row.text))
    labels = {
        text: counts.most_common(1)[0][0]
        for text, counts in named.items()
        if 2 * counts.total() > seen[text]
    }
    values: list[Target] = [
        tuple(
            Span(match.start(), match.end(), labels[match[0].casefold()])
            for match in pattern.finditer(row.text)
            if match[0].casefold() in labels
        )
        for row in context.test
    ]
    return BaselinePredictions(values=values, detail=f"{len(labels):,} texts")


def popularity(context: BaselineContext) -> BaselinePredictions:
    """The candidates by how often they are relevant in train."""
    counts = Counter(str(row.target) for row in context.train)
    values: list[Target] = [
        tuple(sorted(row.candidates, key=lambda one: -counts[one])) for row in context.test
    ]
    return BaselinePredictions(values=values, detail=f"{len(counts):,} relevant in train")


def similarity(context: BaselineContext) -> BaselinePredictions:
    """The candidates by their cosine to the query, of character 2-5 gram TF-IDF vectors."""
    vectorizer = vectorizer_of("char")
    clean = context.recipe.template.cleaned
    known = {clean(one) for row in context.train for one in (row.text, *row.candidates)}
    try:
        vectorizer.fit(sorted(known))
    except ValueError:  # no text of two characters
        return popularity(context)
    values: list[Target] = []
    for row in context.test:
        query = vectorizer.transform([clean(row.text)])
        cosines = (vectorizer.transform(map(clean, row.candidates)) @ query.T).toarray().ravel()
        order = sorted(range(len(row.candidates)), key=lambda index: -cosines[index])
        values.append(tuple(row.candidates[index] for index in order))
    return BaselinePredictions(values=values, detail="characters 2-5")


STRUCTURED: tuple[BaselineSpec, ...] = (
    BaselineSpec(
        name="one-versus-rest",
        description="TF-IDF + a logistic regression per label, chosen on validation",
        tasks=("multilabel",),
        predict=one_versus_rest,
    ),
    BaselineSpec(
        name="dictionary",
        description="the longest texts of training spans, with their most frequent label",
        tasks=("tagging",),
        predict=dictionary,
    ),
    BaselineSpec(
        name="popularity",
        description="candidates by how often they are relevant in train",
        tasks=("ranking",),
        predict=popularity,
    ),
    BaselineSpec(
        name="similarity",
        description="candidates by their similarity to the query, by TF-IDF",
        tasks=("ranking",),
        predict=similarity,
    ),
)
"""Registered by the plugin ``core``."""
