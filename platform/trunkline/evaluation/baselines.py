"""Cheap methods on the very same split and the same cleaned text.

Owns: what a baseline predicts. Must not know: adapters, the registry. A baseline is fitted on the
training rows, chooses on the validation rows, and is evaluated on the test rows, as an adapter is.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trunkline.contracts import RecipeSpec, Row, Target
from trunkline.data.encode import encode_chat, encode_prompt
from trunkline.data.split import Split
from trunkline.errors import NotFoundError
from trunkline.inference.forward import generate_texts

OWN: dict[str, tuple[str, ...]] = {
    "classification": ("majority", "tfidf"),
    "regression": ("group-median", "linear"),
    "generation": ("base",),
}
"""Every recipe of a task is evaluated against these."""

NAMED: dict[str, tuple[str, ...]] = {
    "classification": ("nearest",),
    "regression": ("nearest",),
    "generation": ("few-shot", "nearest"),
}
"""A recipe may name these in its ``baselines``."""

LOGISTIC_C = (1.0, 10.0, 100.0)
RIDGE_ALPHA = (0.1, 1.0, 10.0)
FEW_SHOT = 8
NO_TEXT = "no training text is long enough to compare"


@dataclass(frozen=True, slots=True)
class Baseline:
    """A cheap method's predictions for the test rows, in their order."""

    name: str
    predictions: list[Target]
    detail: str = ""


def baselines(
    recipe: RecipeSpec, split: Split, base: Any, on_stage: Callable[[str], None] = lambda _: None
) -> list[Baseline]:
    """The baselines of the recipe's task, then those that it names.

    Args:
        recipe: its task, template and ``baselines``.
        split: fitted on train, chosen on validation, predicted on test.
        base: a loaded :class:`~trunkline.bases.Base`; used by generation only.
        on_stage: told what is being computed.

    Raises:
        NotFoundError: the recipe names a baseline that does not exist.
    """
    known: dict[str, Callable[[], Baseline]] = {
        "majority": lambda: majority(split),
        "tfidf": lambda: tfidf(recipe, split),
        "group-median": lambda: group_median(split),
        "linear": lambda: linear(recipe, split),
        "base": lambda: prompted(recipe, split, base, 0),
        "few-shot": lambda: prompted(recipe, split, base, FEW_SHOT),
        "nearest": lambda: nearest(recipe, split),
    }
    results = []
    for name in baseline_names(recipe):
        on_stage(f"baseline: {name}")
        results.append(known[name]())
    return results


def baseline_names(recipe: RecipeSpec) -> tuple[str, ...]:
    """The baselines that a recipe is evaluated against; cheap, so it can be asked before training.

    Raises:
        NotFoundError: the recipe names a baseline that its task does not have.
    """
    known = (*OWN[recipe.task], *NAMED[recipe.task])
    for name in recipe.baselines:
        if name not in known:
            raise NotFoundError.named(
                f"baseline of a {recipe.task}", name, known, f"Known: {', '.join(known)}."
            )
    return tuple(dict.fromkeys((*OWN[recipe.task], *recipe.baselines)))


def majority(split: Split) -> Baseline:
    """The most frequent training label, for every row."""
    counts = Counter(row.target for row in split.train)
    label = max(sorted(counts, key=str), key=lambda target: counts[target])
    return Baseline("majority", [label] * len(split.test), f"always {label!r}")


def tfidf(recipe: RecipeSpec, split: Split) -> Baseline:
    """TF-IDF + logistic regression: the better of words 1-2 and characters 2-5 on validation,
    with its C chosen there too."""
    from sklearn.linear_model import LogisticRegression

    targets = [str(row.target) for row in split.train]
    if len(set(targets)) == 1:  # so few training rows that one class is left
        return Baseline("tfidf", [targets[0]] * len(split.test), "one class in train")

    def fit(features: Any, c: float) -> Any:
        model = LogisticRegression(C=c, max_iter=1000, tol=1e-3)
        return model.fit(features, targets)

    def score(predicted: Any) -> float:
        wanted = [str(row.target) for row in split.validation]
        return sum(one == other for one, other in zip(wanted, predicted, strict=True)) / len(wanted)

    best = _best_on_text(recipe, split, LOGISTIC_C, "C", fit, score)
    if best is None:
        return Baseline("tfidf", majority(split).predictions, NO_TEXT)
    predictions, detail = best
    return Baseline("tfidf", [str(label) for label in predictions], detail)


def linear(recipe: RecipeSpec, split: Split) -> Baseline:
    """TF-IDF + ridge regression on the recipe's scale, chosen on validation like :func:`tfidf`."""
    from sklearn.linear_model import Ridge

    logs = recipe.scale == "log"

    def scale(target: Target) -> float:
        return math.log(float(target)) if logs else float(target)

    targets = [scale(row.target) for row in split.train]

    def fit(features: Any, alpha: float) -> Any:
        return Ridge(alpha=alpha).fit(features, targets)

    def score(predicted: Any) -> float:
        wanted = [scale(row.target) for row in split.validation]
        return -statistics.median(abs(a - b) for a, b in zip(wanted, predicted, strict=True))

    best = _best_on_text(recipe, split, RIDGE_ALPHA, "alpha", fit, score)
    if best is None:
        return Baseline("linear", group_median(split).predictions, NO_TEXT)
    predictions, detail = best
    values = [math.exp(min(value, 700.0)) if logs else float(value) for value in predictions]
    return Baseline("linear", list(values), detail)


def group_median(split: Split) -> Baseline:
    """The median of the training rows in the same first slice; of all, where that is unseen.

    A test row's own group is held out as a whole, so its median is not to be had.
    """
    by_slice: dict[str, list[float]] = defaultdict(list)
    for row in split.train:
        by_slice[_first_slice(row)].append(float(row.target))
    overall = statistics.median(float(row.target) for row in split.train)
    medians = {name: statistics.median(values) for name, values in by_slice.items()}
    predictions: list[Target] = [medians.get(_first_slice(row), overall) for row in split.test]
    return Baseline("group-median", predictions, f"{len(medians)} medians")


def nearest(recipe: RecipeSpec, split: Split) -> Baseline:
    """The target of the training text nearest by TF-IDF of characters 2-5 (cosine)."""
    import numpy as np

    vectorizer = _vectorizer("char")
    try:
        train = vectorizer.fit_transform(_texts(recipe, split.train))
    except ValueError:  # no text of two characters
        return Baseline("nearest", [split.train[0].target] * len(split.test), NO_TEXT)
    predictions: list[Target] = []
    texts = _texts(recipe, split.test)
    for start in range(0, len(texts), 256):
        cosines = vectorizer.transform(texts[start : start + 256]) @ train.T
        best = np.asarray(cosines.argmax(axis=1)).ravel()
        predictions += [split.train[index].target for index in best.tolist()]
    return Baseline("nearest", predictions, "characters 2-5")


def prompted(recipe: RecipeSpec, split: Split, base: Any, shots: int) -> Baseline:
    """The base with no adapter, with ``shots`` training examples in its prompt.

    A prompt that would not fit the base's context gets as many examples as do.
    """
    template, tokenizer = recipe.template, base.tokenizer
    step = max(1, len(split.train) // max(1, shots))
    examples = split.train[::step][:shots]
    system = [{"role": "system", "content": template.system}] if template.system else []
    prompts: list[list[int]] = []
    for row in split.test:
        if not shots:
            prompts.append(encode_prompt(row.text, template, tokenizer))
            continue
        talk: list[dict[str, str]] = []
        for example in examples:
            talk += [
                {"role": "user", "content": template.filled(example.text)},
                {"role": "assistant", "content": str(example.target)},
            ]
        talk.append({"role": "user", "content": template.filled(row.text)})
        prompt = encode_chat([*system, *talk], tokenizer)
        while len(prompt) + recipe.max_new_tokens > base.info.context and len(talk) > 1:
            del talk[:2]
            prompt = encode_chat([*system, *talk], tokenizer)
        prompts.append(prompt)
    texts = generate_texts(base.model, tokenizer, prompts, recipe.max_new_tokens)
    firsts: list[Target] = [text.splitlines()[0].strip() if text else "" for text in texts]
    name = "few-shot" if shots else "base"
    return Baseline(name, firsts, f"{shots} examples in the prompt")


def _best_on_text(
    recipe: RecipeSpec,
    split: Split,
    grid: Sequence[float],
    knob: str,
    fit: Callable[[Any, float], Any],
    score: Callable[[Any], float],
) -> tuple[list[Any], str] | None:
    """Predictions of the best of both vectorizers and all knobs; None if no text has a feature."""
    best: tuple[float, list[Any], str] | None = None
    for kind, words in (("word", "words 1-2"), ("char", "characters 2-5")):
        vectorizer = _vectorizer(kind)
        try:
            train = vectorizer.fit_transform(_texts(recipe, split.train))
        except ValueError:  # texts without a single word or pair of characters, such as "?"
            continue
        validation = vectorizer.transform(_texts(recipe, split.validation))
        test = vectorizer.transform(_texts(recipe, split.test))
        for value in grid:
            model = fit(train, value)
            figure = score(model.predict(validation))
            if best is None or figure > best[0]:
                best = (figure, list(model.predict(test)), f"{words}, {knob}={value:g}")
    return None if best is None else best[1:]


def _vectorizer(kind: str) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    ngrams = (1, 2) if kind == "word" else (2, 5)
    return TfidfVectorizer(analyzer=kind, ngram_range=ngrams, sublinear_tf=True)


def _texts(recipe: RecipeSpec, rows: Sequence[Row]) -> list[str]:
    return [recipe.template.cleaned(row.text) for row in rows]


def _first_slice(row: Row) -> str:
    return next(iter(row.slices.values()), "")
