"""The core's baselines: inexpensive methods on the same split and the same cleaned text.

A baseline is fitted on the training rows, chooses its hyperparameters on the validation rows, and
is evaluated on the test rows, exactly as an adapter is.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from trunkline.contracts import (
    BaselineContext,
    BaselinePredictions,
    BaselineSpec,
    RecipeSpec,
    Row,
    Target,
)
from trunkline.data.encode import chat_messages, encode_chat, encode_row, history_messages
from trunkline.data.split import Split
from trunkline.data.targets import labels_in, number, prediction_problem
from trunkline.errors import PluginCallError, plugin_call
from trunkline.preprocessing import Preprocessing

LOGISTIC_C = (1.0, 10.0, 100.0)
FEATURES_C = (0.001, 0.01, 0.1, 1.0)
RIDGE_ALPHA = (0.1, 1.0, 10.0)
FEATURES_ALPHA = (1.0, 100.0, 10_000.0)
PICTURES_AT_ONCE = 32
FEW_SHOT = 8
NO_TEXT = "no training text is long enough to compare"


@dataclass(frozen=True, slots=True)
class Baseline:
    """The predictions of one baseline for the test rows, in the order of the rows."""

    name: str
    predictions: list[Target]
    detail: str = ""


def fit_baselines(
    specs: Sequence[BaselineSpec],
    recipe: RecipeSpec,
    split: Split,
    base: Any,
    on_stage: Callable[[str], None] = lambda _: None,
) -> list[Baseline]:
    """Fit every baseline of a recipe and predict the test rows.

    Args:
        specs: the recipe's baselines; see ``Catalog.baselines_for``.
        recipe: its template, scale and ``max_new_tokens``.
        split: fitted on train, chosen on validation, predicted on test.
        base: the loaded base; baselines for generation and for pictures use it.
        on_stage: called with a phrase before each baseline.

    Raises:
        PluginCallError: a baseline raised, or did not predict every test row.
    """
    context = BaselineContext(
        recipe=recipe, train=split.train, validation=split.validation, test=split.test, base=base
    )
    results = []
    for spec in specs:
        on_stage(f"baseline: {spec.name}")
        results.append(_fit(spec, context))
    return results


def _fit(spec: BaselineSpec, context: BaselineContext) -> Baseline:
    hint = "See the BaselineSpec contract in docs/hooks.md."
    with plugin_call(f"The baseline {spec.name}", hint):
        predicted = spec.predict(context)
        values, detail = list(predicted.values), predicted.detail
    if not isinstance(detail, str) or not detail.isprintable():
        raise PluginCallError(
            f"The baseline {spec.name} has the detail {detail!r:.60}, not one printable line.", hint
        )
    if len(values) != len(context.test):
        raise PluginCallError(
            f"The baseline {spec.name} gave {len(values)} predictions for "
            f"{len(context.test)} test rows.",
            hint,
        )
    values = [tuple(value) if isinstance(value, list) else value for value in values]
    for value, row in zip(values, context.test, strict=True):
        wanted = prediction_problem(value, context.recipe.task, row)
        if wanted is not None:
            raise PluginCallError(
                f"The baseline {spec.name} predicted {value!r:.80}, not {wanted}.", hint
            )
    return Baseline(spec.name, values, detail)


def majority(context: BaselineContext) -> BaselinePredictions:
    """The most frequent training label, or set of labels, for every row."""
    counts = Counter(row.target for row in context.train)
    label = max(sorted(counts, key=str), key=lambda target: counts[target])
    named = ", ".join(map(repr, labels_in(label))) or "no label"
    return BaselinePredictions(values=[label] * len(context.test), detail=f"always {named}")


def tfidf(context: BaselineContext) -> BaselinePredictions:
    """TF-IDF + logistic regression.

    The features (words 1-2 or characters 2-5) and C are those that are best on validation.
    """
    return classified(context, _tfidf_features(context))


def linear(context: BaselineContext) -> BaselinePredictions:
    """TF-IDF + ridge regression on the recipe's scale, chosen on validation like :func:`tfidf`."""
    return regressed(context, _tfidf_features(context))


def embedding(context: BaselineContext) -> BaselinePredictions:
    """Sentence embeddings + logistic or ridge regression, chosen on validation."""
    from trunkline.evaluation.embeddings import embed

    def features() -> Iterator[Features]:
        parts = (context.train, context.validation, context.test)
        train, validation, test = (embed(cleaned_texts(context, rows)) for rows in parts)
        yield "MiniLM", train, validation, test

    fitted = regressed if context.recipe.task == "regression" else classified
    return fitted(context, features())


def frozen_features(context: BaselineContext) -> BaselinePredictions:
    """The features of the frozen image base + logistic or ridge regression, chosen on validation.

    This is what the base knows without an adapter (linear probe; Chen et al. 2020, "A Simple
    Framework for Contrastive Learning of Visual Representations", section 2.3). Features are
    standardized by the training pictures.
    """
    from sklearn.preprocessing import StandardScaler

    def features() -> Iterator[Features]:
        parts = (context.train, context.validation, context.test)
        steps = context.base.info.preprocessing.resized(context.recipe.settings.image_size)
        train, validation, test = (_pooled(context.base, rows, steps) for rows in parts)
        scaler = StandardScaler().fit(train)
        yield "frozen features", *map(scaler.transform, (train, validation, test))

    if context.recipe.task == "regression":
        return regressed(context, features(), FEATURES_ALPHA)
    return classified(context, features(), FEATURES_C)


def _pooled(base: Any, rows: Sequence[Row], steps: Preprocessing) -> Any:
    """The base's pooled features of pictures, ``[rows, features]`` float32."""
    import numpy as np
    import torch

    from trunkline.data.pictures import read_pixels, to_tensor

    parts = []
    for start in range(0, len(rows), PICTURES_AT_ONCE):
        batch = rows[start : start + PICTURES_AT_ONCE]
        pixels = np.stack([read_pixels(row.picture, steps) for row in batch])
        with torch.inference_mode():
            parts.append(base.model.pooled(to_tensor(pixels, steps)).float().cpu().numpy())
    return np.concatenate(parts)


Features = tuple[str, Any, Any, Any]
"""A name, and the features ``[rows, features]`` of the training, validation and test rows."""


def classified(
    context: BaselineContext,
    features: Iterable[Features],
    grid: Sequence[float] = LOGISTIC_C,
) -> BaselinePredictions:
    """Logistic regression on the features and with the C that are best on validation."""
    from sklearn.linear_model import LogisticRegression

    targets = [str(row.target) for row in context.train]
    if len(set(targets)) == 1:  # so few training rows that only one class is left
        return BaselinePredictions(
            values=[targets[0]] * len(context.test), detail="one class in train"
        )

    def fit(train: Any, c: float) -> Any:
        model = LogisticRegression(C=c, max_iter=1000, tol=1e-3)
        return model.fit(train, targets)

    def score(predictions: Any) -> float:
        truth = [str(row.target) for row in context.validation]
        hits = sum(one == other for one, other in zip(truth, predictions, strict=True))
        return hits / len(truth)

    best = _best(features, grid, "C", fit, score)
    if best is None:
        return BaselinePredictions(values=majority(context).values, detail=NO_TEXT)
    predictions, detail = best
    return BaselinePredictions(values=[str(label) for label in predictions], detail=detail)


def regressed(
    context: BaselineContext,
    features: Iterable[Features],
    grid: Sequence[float] = RIDGE_ALPHA,
) -> BaselinePredictions:
    """Ridge regression on the recipe's scale, chosen like :func:`classified`."""
    from sklearn.linear_model import Ridge

    is_log = context.recipe.scale == "log"

    def scale(target: Target) -> float:
        return math.log(number(target)) if is_log else number(target)

    targets = [scale(row.target) for row in context.train]

    def fit(train: Any, alpha: float) -> Any:
        return Ridge(alpha=alpha).fit(train, targets)

    def score(predictions: Any) -> float:
        truth = [scale(row.target) for row in context.validation]
        return -statistics.median(abs(a - b) for a, b in zip(truth, predictions, strict=True))

    best = _best(features, grid, "alpha", fit, score)
    if best is None:
        return BaselinePredictions(values=group_median(context).values, detail=NO_TEXT)
    predictions, detail = best
    values = [math.exp(min(value, 300.0)) if is_log else float(value) for value in predictions]
    return BaselinePredictions(values=values, detail=detail)


def group_median(context: BaselineContext) -> BaselinePredictions:
    """The median of the training rows in the same first slice; of all rows for an unseen slice.

    The group of a test row is never in train, so the median of its own group is not available.
    """
    by_slice: dict[str, list[float]] = defaultdict(list)
    for row in context.train:
        by_slice[_first_slice(row)].append(number(row.target))
    overall = statistics.median(number(row.target) for row in context.train)
    medians = {name: statistics.median(values) for name, values in by_slice.items()}
    predictions = [medians.get(_first_slice(row), overall) for row in context.test]
    return BaselinePredictions(values=predictions, detail=f"{len(medians)} medians")


def nearest(context: BaselineContext) -> BaselinePredictions:
    """The target of the nearest training text, by cosine of character 2-5 gram TF-IDF vectors."""
    import numpy as np

    vectorizer = vectorizer_of("char")
    try:
        train = vectorizer.fit_transform(cleaned_texts(context, context.train))
    except ValueError:  # no text of two characters
        values = [context.train[0].target] * len(context.test)
        return BaselinePredictions(values=values, detail=NO_TEXT)
    predictions: list[Target] = []
    texts = cleaned_texts(context, context.test)
    for start in range(0, len(texts), 256):
        cosines = vectorizer.transform(texts[start : start + 256]) @ train.T
        best = np.asarray(cosines.argmax(axis=1)).ravel()
        predictions += [context.train[index].target for index in best.tolist()]
    return BaselinePredictions(values=predictions, detail="characters 2-5")


def prompted(context: BaselineContext, shots: int) -> BaselinePredictions:
    """The base with no adapter, with ``shots`` training examples in its prompt.

    A prompt that would exceed the base's context gets as many examples as fit; a text that is too
    long for the adapter's prompt is cut in the same way.
    """
    from trunkline.inference.forward import generate_texts

    recipe, base = context.recipe, context.base
    template, tokenizer = recipe.template, base.tokenizer
    limit = min(recipe.settings.max_length, base.info.context) - recipe.max_new_tokens

    def messages_of(row: Row) -> list[dict[str, str]]:
        text = row.text if row.history else encode_row(row, template, tokenizer, limit).text
        return chat_messages(history_messages(row.history), text, template)

    step = max(1, len(context.train) // max(1, shots))
    examples = [
        [*_turns(messages_of(row)), {"role": "assistant", "content": str(row.target)}]
        for row in context.train[::step][:shots]
    ]
    prompts: list[list[int]] = []
    for row in context.test:
        if not shots:
            prompts.append(encode_row(row, template, tokenizer, limit).ids)
            continue
        messages = messages_of(row)
        turns = _turns(messages)
        system = messages[: len(messages) - len(turns)]
        for start in range(len(examples) + 1):
            shown = chain.from_iterable(examples[start:])
            prompt = encode_chat([*system, *shown, *turns], tokenizer)
            if len(prompt) + recipe.max_new_tokens <= base.info.context:
                break
        prompts.append(prompt)
    texts = generate_texts(base.model, tokenizer, prompts, recipe.max_new_tokens)
    if any("\n" in str(row.target).strip() for row in context.train):
        values: list[Target] = [text.strip() for text in texts]
    else:
        values = [text.splitlines()[0].strip() if text else "" for text in texts]
    return BaselinePredictions(values=values, detail=f"{shots} examples in the prompt")


def _turns(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The messages without the system's."""
    return [message for message in messages if message["role"] != "system"]


BASELINES: tuple[BaselineSpec, ...] = (
    BaselineSpec(
        name="majority",
        description="always the most frequent training label or set of labels",
        tasks=("classification", "multilabel"),
        predict=majority,
        modalities=("text", "image"),
    ),
    BaselineSpec(
        name="frozen-features",
        description="features of the frozen image base + logistic or ridge regression",
        tasks=("classification", "regression"),
        predict=frozen_features,
        modalities=("image",),
    ),
    BaselineSpec(
        name="tfidf",
        description="TF-IDF + logistic regression, features and C chosen on validation",
        tasks=("classification",),
        predict=tfidf,
    ),
    BaselineSpec(
        name="embedding",
        description="sentence embeddings (all-MiniLM-L6-v2) + logistic or ridge regression",
        tasks=("classification", "regression"),
        predict=embedding,
    ),
    BaselineSpec(
        name="group-median",
        description="median of the training rows in the same first slice",
        tasks=("regression",),
        predict=group_median,
        modalities=("text", "image"),
    ),
    BaselineSpec(
        name="linear",
        description="TF-IDF + ridge regression, features and alpha chosen on validation",
        tasks=("regression",),
        predict=linear,
    ),
    BaselineSpec(
        name="base",
        description="the base with no adapter",
        tasks=("generation",),
        predict=partial(prompted, shots=0),
    ),
    BaselineSpec(
        name="few-shot",
        description=f"the base with {FEW_SHOT} training examples in its prompt",
        tasks=("generation",),
        predict=partial(prompted, shots=FEW_SHOT),
    ),
    BaselineSpec(
        name="nearest",
        description="target of the nearest training text by TF-IDF",
        tasks=("classification", "regression", "generation"),
        predict=nearest,
    ),
)
"""Registered by the plugin ``core``."""


def _tfidf_features(context: BaselineContext) -> Iterator[Features]:
    """Features of words and of characters; none if no text has any."""
    for kind, name in (("word", "words 1-2"), ("char", "characters 2-5")):
        vectorizer = vectorizer_of(kind)
        try:
            train = vectorizer.fit_transform(cleaned_texts(context, context.train))
        except ValueError:  # texts without a single word or pair of characters, such as "?"
            continue
        validation = vectorizer.transform(cleaned_texts(context, context.validation))
        yield name, train, validation, vectorizer.transform(cleaned_texts(context, context.test))


def _best(
    features: Iterable[Features],
    grid: Sequence[float],
    parameter: str,
    fit: Callable[[Any, float], Any],
    score: Callable[[Any], float],
) -> tuple[list[Any], str] | None:
    """Test predictions of the best features and hyperparameter; None if there are no features."""
    best: tuple[float, list[Any], str] | None = None
    for name, train, validation, test in features:
        for value in grid:
            model = fit(train, value)
            result = score(model.predict(validation))
            if best is None or result > best[0]:
                best = (result, list(model.predict(test)), f"{name}, {parameter}={value:g}")
    return None if best is None else best[1:]


def vectorizer_of(kind: str) -> Any:
    """The TF-IDF of words (1-2) or of characters (2-5), ``kind`` ``word`` or ``char``."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    ngrams = (1, 2) if kind == "word" else (2, 5)
    return TfidfVectorizer(analyzer=kind, ngram_range=ngrams, sublinear_tf=True)


def cleaned_texts(context: BaselineContext, rows: Sequence[Row]) -> list[str]:
    """The rows' texts, with their histories, as the template cleans them."""
    return [context.recipe.template.cleaned(row.full_text) for row in rows]


def _first_slice(row: Row) -> str:
    return next(iter(row.slices.values()), "")
