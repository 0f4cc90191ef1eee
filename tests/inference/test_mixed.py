"""In any batch, each answer equals that of plain PEFT with its adapter, token for token.

A token may differ only where the two likeliest ones of the reference are nearly equal; such
ties are counted and must be rare.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from driving import EngineDriver, MakeDriver, assert_close, count_ties, reference_outputs
from tiny_base import Family
from trunkline.adapters.artifact import read_artifact
from trunkline.bases import Base
from trunkline.data.encode import encode_prompt
from trunkline.inference.request import Answer
from trunkline.inference.request_state import GenerationHandle
from trunkline.tasks import task_from_json
from workbench import make_artifact

BEGINNING = "organic whole milk, one gallon, from the dairy department: "
TEXTS = (
    "a goat",
    BEGINNING + "what is it?",
    BEGINNING + "twice",
    BEGINNING + "what is it? " + BEGINNING,
    "Acute appendicitis and other diseases of the digestive system, the quick brown fox",
    "x",
)
TARGETS: dict[Family, tuple[str, ...]] = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "qwen2": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
}
TIGHT = {"rows": 3, "chunk_tokens": 8}
"""Few rows and small chunks, so that sequences wait, and prompts take several steps."""

QUICK = (Phase.explicit, Phase.reuse, Phase.generate)
"""Without shrinking, which takes minutes where an example makes adapters."""


@dataclass
class Tally:
    """Counts of everything that was compared."""

    tokens: int = 0
    ties: int = 0
    cached: int = 0

    def assert_rare(self) -> None:
        print(f"\n{self.tokens} tokens, {self.ties} where the reference's best two are equal")
        assert self.tokens > 100
        assert self.ties * 50 <= self.tokens


def compare(
    driver: EngineDriver, handles: list[GenerationHandle], truths: dict[str, Any], tally: Tally
) -> None:
    """Compare every answer with the truth of the version that it names."""
    end_ids = driver.engine.end_ids
    for handle in handles:
        answer, truth = handle.answer(0), truths[handle.digest]
        tally.cached += answer.cached_tokens
        if answer.task != "generation":
            compare_head(driver, handle, answer, truth)
            continue
        request = handle.state.request
        assert len(answer.choices) == request.n
        for choice in answer.choices:
            record = driver.record(handle, choice.index)
            limit = request.max_new_tokens or 8
            tally.ties += count_ties(truth, record, end_ids=end_ids, limit=limit)
            tally.tokens += len(record.ids)
            text_ids = [token for token in record.ids if token not in end_ids]
            decode = driver.engine.base.tokenizer.decode
            assert choice.text == decode(text_ids, skip_special_tokens=True)


def compare_head(
    driver: EngineDriver, handle: GenerationHandle, answer: Answer, truth: Any
) -> None:
    """Compare a label's probabilities, or the logarithm of a number."""
    artifact = handle.state.artifact
    assert artifact is not None
    tokenizer, template = driver.engine.base.tokenizer, artifact.manifest.make_template()
    prompt = encode_prompt(handle.state.request.text, template, tokenizer).ids
    task = task_from_json(dict(artifact.manifest.task))

    def compute(model: Any, prompt: list[int]) -> torch.Tensor:
        outputs = reference_outputs(model, prompt)
        if task.kind == "classification":
            return outputs.softmax(-1)[None]
        return torch.tensor([[math.log(float(task.decode(outputs[None])[0][0]))]])

    if task.kind == "classification":
        ours = list((answer.probabilities or {}).values())
    else:
        ours = [math.log(answer.value or 0)]
    assert_close(torch.tensor([ours]), compute(truth, prompt), truth, compute, prompt)


# ------------------------------------------------------------------------------ anything mixed


@dataclass(frozen=True)
class Arrival:
    """A request, and how many steps are taken before it arrives."""

    adapter: int
    text: int
    new_tokens: int
    n: int
    pause: int


@st.composite
def lora_configs(draw: st.DrawFn, family: Family) -> dict[str, Any]:
    """Settings for LoraConfig."""
    some = st.lists(st.sampled_from(TARGETS[family]), min_size=1, unique=True)
    return {
        "r": draw(st.integers(1, 20)),
        "lora_alpha": draw(st.sampled_from([1, 4, 16, 32])),
        "target_modules": draw(st.one_of(st.just([*TARGETS[family]]), some)),
        "use_rslora": draw(st.booleans()),
        "use_dora": draw(st.booleans()),
        "layers_to_transform": draw(st.sampled_from([None, None, [1, 2], [0]])),
    }


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[Family, list[dict[str, Any]], list[Arrival]]:
    """A family, adapters of it (two that write, one with labels, one with a number), requests."""
    family = cast(Family, draw(st.sampled_from(sorted(TARGETS))))
    loras = [draw(lora_configs(family)) for _ in range(4)]
    arrival = st.builds(
        Arrival,
        adapter=st.integers(0, 4),
        text=st.integers(0, len(TEXTS) - 1),
        new_tokens=st.integers(1, 12),
        n=st.sampled_from([1, 1, 1, 3]),
        pause=st.integers(0, 6),
    )
    return family, loras, draw(st.lists(arrival, min_size=4, max_size=10))


KINDS = ("generation", "generation", "classification", "regression")


@pytest.mark.parametrize("examples", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_answers_of_any_mixture_are_those_of_plain_peft(
    examples: int,
    bases: dict[Family, Base],
    family_bases: dict[Family, Path],
    bare: dict[Family, Any],
    tmp_path: Path,
) -> None:
    tally = Tally()

    @settings(max_examples=examples, deadline=None, phases=QUICK)
    @given(mixtures())
    def check(mixture: tuple[Family, list[dict[str, Any]], list[Arrival]]) -> None:
        family, loras, arrivals = mixture
        base = bases[family]
        truths, artifacts = {base.digest: bare[family]}, []
        for number in sorted({one.adapter for one in arrivals} - {len(KINDS)}):
            folder = tmp_path / f"made{number}"
            shutil.rmtree(folder, ignore_errors=True)
            lora = loras[number]
            truth = make_artifact(folder, family_bases[family], KINDS[number], seed=number, **lora)
            artifacts.append((number, read_artifact(folder)))
            truths[artifacts[-1][1].digest] = truth
        by_number = dict(artifacts)
        with EngineDriver(base, **TIGHT, kv_tokens=1024) as driver:
            handles = []
            for one in arrivals:
                for _ in range(one.pause):
                    driver.step()
                options: dict[str, Any] = {"max_new_tokens": one.new_tokens}
                if one.adapter in (0, 1, 4):
                    options["n"] = one.n
                handles.append(
                    driver.submit(by_number.get(one.adapter), TEXTS[one.text], **options)
                )
            driver.finish()
            compare(driver, handles, truths, tally)
            driver.assert_nothing_is_held()

    check()
    tally.assert_rare()
    assert tally.cached > 0


@pytest.fixture(scope="module")
def bare(family_bases: dict[Family, Path]) -> dict[Family, Any]:
    """Family → transformers' own model of the tiny base."""
    from transformers import AutoModelForCausalLM

    return {
        family: AutoModelForCausalLM.from_pretrained(folder).eval()
        for family, folder in family_bases.items()
    }


def test_texts_are_those_that_peft_generates_from_the_sealed_folder(
    adapters: dict[str, Any], tiny: Path, base: Base, truth: Any, make_driver: MakeDriver
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    driver = make_driver(**TIGHT)
    names = ("low", "middle", "high", None)
    models = {None: truth} | {
        name: PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny), adapters[name].artifact.folder
        ).eval()
        for name in names
        if name is not None
    }
    handles = [
        (name, driver.submit(adapters[name].artifact if name else None, text, max_new_tokens=12))
        for text in TEXTS[:4]
        for name in names
    ]
    driver.finish()
    for name, handle in handles:
        record = driver.record(handle, 0)
        theirs = models[name].generate(
            input_ids=torch.tensor([record.prompt]),
            attention_mask=torch.ones(1, len(record.prompt), dtype=torch.int64),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=sorted(driver.engine.end_ids),
            pad_token_id=base.tokenizer.pad_token_id,
        )
        assert record.ids == theirs[0, len(record.prompt) :].tolist()
