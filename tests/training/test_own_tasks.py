"""Multilabel, tagging and ranking: trained on own files, proved, evaluated and served like PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from own_files import DRUGS, GOODS, OWN_TASKS, own_recipe
from trunkline.api import Platform
from trunkline.contracts import NoProgress, Span
from trunkline.data.encode import encode_prompt
from trunkline.data.prepare import prepare
from trunkline.errors import Interrupted, UsageError
from trunkline.inference.request import Request
from trunkline.training.trainer import train_adapter

TEXTS = ("shirt in red and blue", "Patient №7 took “aspirin today", "ein Hemd, groß")


def peft_logits(platform: Platform, name: str, prompts: list[str]) -> list[Any]:
    """Logits ``[tokens, outputs]`` or ``[outputs]`` of plain PEFT for each prompt."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    version = platform.resolve(name).version
    folder = platform.store.fetch(version).folder
    config = json.loads((folder / "adapter_config.json").read_text())
    kind = {
        "SEQ_CLS": AutoModelForSequenceClassification,
        "TOKEN_CLS": AutoModelForTokenClassification,
    }[config["task_type"]]
    tensors = platform.store.fetch(version).tensors
    outputs = next(info.shape[0] for key, info in tensors.items() if "lora" not in key)
    base = platform.engine.base
    plain = kind.from_pretrained(base.info.folder, num_labels=outputs)
    plain.config.pad_token_id = base.tokenizer.pad_token_id
    model = PeftModel.from_pretrained(plain, folder).eval()
    with torch.inference_mode():
        return [
            model(input_ids=torch.tensor([base.tokenizer(one).input_ids])).logits[0]
            for one in prompts
        ]


@pytest.mark.parametrize("name", OWN_TASKS)
def test_training_lowers_the_loss(platform: Platform, tmp_path: Path, name: str) -> None:
    losses: list[float] = []
    settings = {"max_steps": 40, "warmup_ratio": 0.0, "early_stopping_patience": 0}
    job = platform.training_job(own_recipe(name, tmp_path, **settings), {})
    train_adapter(
        job,
        prepare(job.dataset, job.recipe, job.transforms),
        platform.engine,
        tmp_path / "run",
        listener=NoProgress(),
        log=lambda step, values: losses.extend([values["loss"]] if "loss" in values else []),
        should_stop=lambda: False,
    )
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", OWN_TASKS)
def test_report_has_a_baseline_and_an_interval(own_platform: Platform, name: str) -> None:
    version = own_platform.resolve(name).version
    evaluated = own_platform.evaluation_report(version)
    assert evaluated is not None
    report = evaluated[0]
    assert report.baselines
    assert report.rows >= 10
    assert report.score.low <= report.score.value <= report.score.high
    again = own_platform.evaluate(name)
    assert again.scores == report.scores
    assert again.difference == report.difference


@pytest.mark.parametrize("name", OWN_TASKS)
def test_interrupted_training_ends_with_the_same_digest(
    platform: Platform, own_workspace: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    recipe = own_recipe(name, folder)
    steps: list[int] = []

    def should_stop() -> bool:
        steps.append(1)
        return len(steps) == 3

    with pytest.raises(Interrupted):
        platform.train(recipe, should_stop=should_stop)
    resumed = platform.train(recipe, resume=1)
    uninterrupted = platform.train(recipe)
    assert resumed.version.digest == uninterrupted.version.digest


def test_multilabel_gives_pefts_probabilities(own_platform: Platform) -> None:
    answers = own_platform.predict("shop/colors", TEXTS)
    table = peft_logits(own_platform, "shop/colors", [*TEXTS])
    for answer, logits in zip(answers, table, strict=True):
        assert answer.probabilities is not None
        expected = logits.sigmoid().tolist()
        assert list(answer.probabilities) == ["blue", "green", "red"]
        assert list(answer.probabilities.values()) == pytest.approx(expected, abs=1e-4)
        threshold = own_platform.store.fetch(
            own_platform.resolve("shop/colors").version
        ).manifest.task["threshold"]
        over = [label for label, value in answer.probabilities.items() if value >= threshold]
        assert answer.labels == tuple(sorted(over))


def test_tags_are_pefts_and_spans_count_the_characters(own_platform: Platform) -> None:
    answers = own_platform.predict("clinic/drugs", TEXTS)
    logits = peft_logits(own_platform, "clinic/drugs", [*TEXTS])
    template = own_platform.store.fetch(
        own_platform.resolve("clinic/drugs").version
    ).manifest.make_template()
    tokenizer = own_platform.engine.base.tokenizer
    for text, answer, rows in zip(TEXTS, answers, logits, strict=True):
        assert answer.spans is not None
        prompt = encode_prompt(text, template, tokenizer, with_offsets=True)
        tagged = [
            span
            for span, tag in zip(prompt.offsets, rows.argmax(-1).tolist(), strict=True)
            if tag and span and span[0] < span[1]
        ]
        covered = {at for start, end in tagged for at in range(start, end)}
        spanned = {at for span in answer.spans for at in range(span.start, span.end)}
        assert covered <= spanned
        for span in answer.spans:
            assert span.text == text[span.start : span.end]
            assert 0 < span.probability <= 1


def test_learned_spans_are_returned_as_they_were_given(platform: Platform, tmp_path: Path) -> None:
    recipe = own_recipe(
        "clinic/drugs", tmp_path, max_steps=150, num_train_epochs=30.0, r=16,
        early_stopping_patience=0, warmup_ratio=0.0,
    )  # fmt: skip
    trained = platform.train(recipe)
    assert trained.evaluation_report.scores["entity_f1"].value > 0.8
    text = f"Patient №3 took “{DRUGS[0]} und\n{DRUGS[2]} today"
    spans = platform.predict("clinic/drugs", [text])[0].spans
    assert spans is not None
    expected = [Span(text.index(drug), text.index(drug) + len(drug), "DRUG") for drug in
                (DRUGS[0], DRUGS[2])]  # fmt: skip
    assert [(one.start, one.end, one.label) for one in spans] == expected


def test_ranking_is_that_of_pefts_scores(own_platform: Platform) -> None:
    ranking = own_platform.rank("shop/next", "basket 1: milk", GOODS)
    prompts = [f"basket 1: milk\n{one}" for one in GOODS]
    scores = [float(one[0]) for one in peft_logits(own_platform, "shop/next", prompts)]
    order = sorted(range(len(GOODS)), key=lambda index: -scores[index])
    assert ranking.candidates == tuple(GOODS[index] for index in order)
    assert sum(ranking.probabilities) == pytest.approx(1)
    assert list(ranking.probabilities) == sorted(ranking.probabilities, reverse=True)


def test_all_tasks_share_a_batch(own_platform: Platform) -> None:
    def requests() -> list[Request]:
        return [
            Request("shop/colors", TEXTS[0]),
            Request("clinic/drugs", TEXTS[1]),
            Request("shop/next", "basket 1: milk", candidate="tea"),
            Request("toy/animals", "a young heron"),
            Request("toy/prices", "2 kg of good number 3"),
            Request("toy/plurals", "two goats", max_new_tokens=4),
            Request("clinic/drugs", TEXTS[2]),
        ]

    together = own_platform.run(requests())
    for request, answer in zip(requests(), together, strict=True):
        alone = own_platform.run([request])[0]
        assert answer.output == alone.output or answer.value == pytest.approx(alone.value, abs=1e-4)


def test_candidate_is_wanted_by_a_ranking_alone(own_platform: Platform) -> None:
    with pytest.raises(UsageError, match="ranks candidates"):
        own_platform.predict("shop/next", ["basket 1: milk"])
    with pytest.raises(UsageError, match="only a ranking"):
        own_platform.rank("shop/colors", "shirt", GOODS)
    for candidates in (["tea"], ["tea", "tea"], ["tea", " "], "tea"):
        with pytest.raises(UsageError):
            own_platform.rank("shop/next", "basket 1: milk", candidates)
