"""The main job on the real base and real data: train, reload with plain PEFT, swap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import trunkline
from trunkline import Request
from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.api import Platform

pytestmark = [pytest.mark.real, pytest.mark.merge]

CHAPTER, PRICE, TITLE = "medical/icd10-chapter", "retail/unit-price", "medical/icd10-title"
TEXTS = {
    CHAPTER: ["Acute appendicitis", "Type 2 diabetes mellitus with diabetic kidney disease"],
    PRICE: ["organic whole milk 1 gal", "toothbrush soft 2 ct"],
    TITLE: ["Classical cholera", "Painter's colic"],
}


def artifact_of(platform: Platform, adapter: str) -> Artifact:
    version = platform.resolve(adapter).version
    return read_artifact(platform.workspace.adapters / version.path, version.digest)


def prompts(platform: Platform, adapter: str) -> list[list[int]]:
    from trunkline.data.encode import encode_prompt

    template = artifact_of(platform, adapter).manifest.make_template()
    tokenizer = platform.engine.base.tokenizer
    return [encode_prompt(text, template, tokenizer).ids for text in TEXTS[adapter]]


def plain_peft(base: Path, adapter: Artifact) -> Any:
    """The model as the card says to load it, with no code of ours."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    task = adapter.manifest.task
    if task["kind"] == "generation":
        model = AutoModelForCausalLM.from_pretrained(base)
    else:
        outputs = len(task.get("labels", "1"))
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=outputs)
    return PeftModel.from_pretrained(model, adapter.folder).eval()


@pytest.mark.parametrize("adapter", TEXTS)
def test_every_task_was_trained_evaluated_and_published(trained: Platform, adapter: str) -> None:
    version = trained.resolve(adapter).version
    run = trained.registry.runs.get(version.run or 0)
    assert run.status == "finished"
    assert run.report is not None
    assert run.report["steps"] == 3
    assert run.report["proof"]["to_trained"] < 1e-4
    evaluated = trained.evaluation_report(version)
    assert evaluated is not None
    assert evaluated[0].verdict in ("beats", "ties", "loses")


@pytest.mark.parametrize("adapter", [CHAPTER, PRICE])
def test_plain_peft_gives_the_same_head_outputs(
    trained: Platform, base_folder: Path, adapter: str
) -> None:
    import torch

    from trunkline.inference.forward import last_hidden

    artifact = artifact_of(trained, adapter)
    engine = trained.engine
    trained.predict(adapter, TEXTS[adapter])
    ids = prompts(trained, adapter)
    with engine.pool.activate(artifact.digest) as resident:
        assert resident is not None
        assert resident.head is not None
        ours = resident.head(last_hidden(engine.base.model, ids, 0))
    model = plain_peft(base_folder, artifact)
    with torch.inference_mode():
        theirs = torch.cat([model(torch.tensor([row])).logits for row in ids])
    assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))


def test_plain_peft_gives_the_same_next_token_logits(trained: Platform, base_folder: Path) -> None:
    import torch

    from trunkline.inference.forward import next_logits

    artifact = artifact_of(trained, TITLE)
    engine = trained.engine
    trained.generate([(TITLE, TEXTS[TITLE][0])], max_new_tokens=1)
    ids = prompts(trained, TITLE)
    with engine.pool.activate(artifact.digest):
        ours = next_logits(engine.base.model, ids, 0)
    model = plain_peft(base_folder, artifact)
    with torch.inference_mode():
        theirs = torch.cat([model(torch.tensor([row])).logits[:, -1] for row in ids])
    assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))


def test_swapping_among_three_adapters_and_the_base_gives_each_its_own_answers(
    trained: Platform,
) -> None:
    requests = [
        Request(adapter, text, max_new_tokens=None if adapter in (CHAPTER, PRICE) else 8)
        for place in range(2)
        for adapter, text in (
            (TITLE, TEXTS[TITLE][place]),
            (CHAPTER, TEXTS[CHAPTER][place]),
            (None, TEXTS[TITLE][place]),
            (PRICE, TEXTS[PRICE][place]),
        )
    ]
    together = trained.run(requests)
    for request, answer in zip(requests, together, strict=True):
        alone = trained.run([request])[0]
        name = f"{request.adapter}@1" if request.adapter else "base"
        assert answer.adapter == alone.adapter == name
        if answer.text is not None:
            assert answer.text == alone.text
        elif answer.value is not None:
            assert answer.value == pytest.approx(alone.value, rel=1e-3)
        else:
            assert answer.probabilities == pytest.approx(alone.probabilities, abs=1e-4)


def test_adapter_answers_otherwise_than_the_base(trained: Platform) -> None:
    import torch

    from trunkline.inference.forward import next_logits

    engine = trained.engine
    ids = prompts(trained, TITLE)
    trained.generate([(TITLE, TEXTS[TITLE][0])], max_new_tokens=1)
    bare = next_logits(engine.base.model, ids, 0)
    with engine.pool.activate(trained.resolve(TITLE).digest):
        assert not torch.allclose(next_logits(engine.base.model, ids, 0), bare, atol=1e-2)
    assert torch.equal(next_logits(engine.base.model, ids, 0), bare)


def test_bare_base_knows_the_capital_of_france(trained: Platform) -> None:
    (answer,) = trained.generate([(None, "What is the capital of France?")], max_new_tokens=12)
    assert "Paris" in (answer.text or "")
    assert answer.adapter == "base"


def test_python_lines_of_a_newcomer(trained: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_WORKSPACE", str(trained.workspace.root))
    platform = trunkline.open()
    run = platform.train("medical/icd10-chapter", max_steps=2, max_train_samples=16)
    assert str(run.version.ref) == "medical/icd10-chapter@2"
    (label,) = platform.predict("medical/icd10-chapter@1", ["Acute appendicitis"])
    assert label.adapter == "medical/icd10-chapter@1"
    assert label.label in (label.probabilities or {})
    answers = platform.generate(
        [("medical/icd10-title@1", "Classical cholera"), (None, "Name three fruits.")],
        max_new_tokens=24,
    )
    assert [answer.adapter for answer in answers] == ["medical/icd10-title@1", "base"]
    assert json.dumps([answer.to_json() for answer in answers])
    platform.registry.close()
