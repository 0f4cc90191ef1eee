"""The real base: three adapters and the bare base in one batch, compared with plain PEFT."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from driving import EngineDriver, count_ties, reference_outputs
from trunkline.adapters.artifact import Artifact, read_artifact
from workbench import make_artifact

pytestmark = [pytest.mark.real, pytest.mark.merge]

LONG = (
    "The patient was admitted with acute appendicitis and type 2 diabetes mellitus with diabetic "
    "chronic kidney disease; the discharge letter should name the chapter of each, and say"
)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "low": ("generation", {"r": 2, "lora_alpha": 1}),
    "high": ("generation", {"r": 16, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}),
    "labels": ("classification", {"r": 8, "lora_alpha": 2}),
}
NEW = 24


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> dict[str, Artifact]:
    """Random adapters that change the base without breaking it."""
    room = tmp_path_factory.mktemp("sealed")
    for seed, (name, (kind, lora)) in enumerate(KINDS.items()):
        make_artifact(room / name, base_folder, kind, seed=seed, **lora)
        gc.collect()
    return {name: read_artifact(room / name) for name in KINDS}


@pytest.fixture(scope="module")
def driver() -> Iterator[EngineDriver]:
    """The engine on the base, with small chunks and fewer rows than requests."""
    from trunkline.bases import DEFAULT_BASE, load, pull, release

    release()
    pull(DEFAULT_BASE)
    with EngineDriver(load(DEFAULT_BASE, device="cpu"), rows=4, chunk_tokens=16) as engine_driver:
        yield engine_driver
    release()


def plain(base_folder: Path, artifact: Artifact | None) -> Any:
    """Plain PEFT's model of the base and a sealed folder."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if artifact is None:
        return AutoModelForCausalLM.from_pretrained(base_folder).eval()
    if artifact.manifest.task["kind"] == "generation":
        model = AutoModelForCausalLM.from_pretrained(base_folder)
    else:
        labels = len(artifact.manifest.task["labels"])
        model = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=labels)
    return PeftModel.from_pretrained(model, artifact.folder).eval()


def test_each_answer_in_a_mixed_batch_is_that_of_plain_peft(
    driver: EngineDriver, sealed: dict[str, Artifact], base_folder: Path
) -> None:
    submitted = []
    for text in (LONG, LONG + " why", "What is the capital of France?"):
        for name in ("low", "high", "labels", "base"):
            limit = {} if name == "labels" else {"max_new_tokens": NEW}
            submitted.append((name, driver.submit(sealed.get(name), text, **limit)))
            driver.step()
    driver.finish()
    driver.assert_nothing_is_held()
    assert [handle.answer(0).cached_tokens > 0 for _, handle in submitted[4:8]] == [True] * 4
    tokens = ties = 0
    for name in ("low", "high", "labels", "base"):
        truth = plain(base_folder, sealed.get(name))
        for _, handle in [one for one in submitted if one[0] == name]:
            answer = handle.answer(0)
            if name == "labels":
                ids = driver.engine.base.tokenizer(
                    handle.state.request.text, add_special_tokens=False
                ).input_ids
                chances = reference_outputs(truth, ids).softmax(-1).tolist()
                assert list((answer.probabilities or {}).values()) == pytest.approx(
                    chances, abs=1e-4
                )
            else:
                record = driver.record(handle, 0)
                ties += count_ties(truth, record, end_ids=driver.engine.end_ids, limit=NEW)
                tokens += len(record.ids)
        del truth
        gc.collect()
    print(f"\n{tokens} tokens, {ties} where the reference's best two are equal")
    assert ties * 20 <= tokens
    texts = [handle.answer(0).text for name, handle in submitted[:4] if name != "labels"]
    assert len(set(texts)) == 3
