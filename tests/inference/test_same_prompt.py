"""Training, validation, test and serving read the same token ids for the same row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driving import MakeEngine
from made_rows import make_dataset, make_recipe, make_row, make_split
from trunkline.adapters.artifact import Artifact, read_artifact, seal
from trunkline.bases import Base
from trunkline.contracts import Settings, Template
from trunkline.errors import DataError, UsageError
from trunkline.evaluation.report import predict_rows
from trunkline.inference.batching import Part, Stepper, StepResult
from trunkline.inference.engine import Engine
from trunkline.inference.request import Request, ResolvedRequest
from trunkline.tasks import AnyTask, ClassificationTask, GenerationTask
from trunkline.training.job import EncodedParts, TrainingJob, encode_parts, prompt_of

LABELS = ClassificationTask(("bird", "fish", "mammal"))
ANSWERS = GenerationTask(2)
TASKS: dict[str, AnyTask] = {task.kind: task for task in (LABELS, ANSWERS)}
TARGETS = {"classification": "bird", "generation": ""}

pieces = st.sampled_from(
    ["a", "goat", " ", "\n", "é", "日本", "🦄", "👩‍🚀", "ﬁ", "<|im_end|>", "{"]
)
texts = st.lists(pieces, min_size=1, max_size=120).map("".join).filter(lambda text: text.strip())
templates = st.builds(
    lambda prefix, suffix, clean, system: Template(
        prompt=f"{prefix}{{text}}{suffix}", clean=clean, chat=system != "plain",
        system=system if system not in ("plain", None) else None,
    ),
    st.sampled_from(["", "Animal: ", "🦄 {{"]),
    st.sampled_from(["", "\nLabel:", " ⇒ κατηγορία?", "🦄"]),
    st.sampled_from([(), ("strip", "squeeze"), ("lowercase",)]),
    st.sampled_from(["plain", None, "Be kind: 日本."]),
)  # fmt: skip


class Recorder:
    """Computes the engine's steps and keeps the prompt of every request."""

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []

    def __call__(self, stepper: Stepper, parts: Sequence[Part]) -> StepResult:
        for part in parts:
            if (prompt := part.sequence.state.prompt) not in self.prompts:
                self.prompts.append(prompt)
        return stepper.run(parts)


@pytest.fixture(scope="module")
def recorded(base: Base) -> Iterator[tuple[Engine, Recorder]]:
    """An engine with the recorder of its prompts."""
    recorder = Recorder()
    engine = Engine(base, run_step=recorder)
    yield engine, recorder
    engine.close()


def sealed(artifact: Artifact, task: AnyTask, template: Template, max_length: int) -> Artifact:
    """The artifact with another template and limit."""
    seal(
        artifact.folder,
        base=artifact.manifest.base,
        task=task.to_json(),
        template=template,
        data=artifact.manifest.data,
        max_length=max_length,
    )
    return read_artifact(artifact.folder)


def encoded_parts(
    texts: Sequence[str], task: AnyTask, template: Template, max_length: int, engine: Engine
) -> EncodedParts:
    """The rows encoded as training encodes each of its three parts."""
    rows = [make_row(n, text=text, target=TARGETS[task.kind]) for n, text in enumerate(texts)]
    prepared: Any = SimpleNamespace(split=make_split(rows, rows, rows), augmented=())
    recipe = make_recipe(
        task.kind,  # type: ignore[arg-type]
        template=template,
        settings=Settings(max_length=max_length),
        max_new_tokens=ANSWERS.max_new_tokens,
    )
    job = TrainingJob(recipe, make_dataset(rows), (), None, (), ())  # type: ignore[arg-type]
    return encode_parts(job, prepared, task, engine)


@pytest.mark.parametrize("kind", TASKS)
@settings(max_examples=40, deadline=None)
@given(text=texts, template=templates, max_length=st.integers(4, 120))
def test_same_row_gives_the_same_token_ids_in_training_validation_test_and_serving(
    recorded: tuple[Engine, Recorder],
    artifacts: dict[str, Artifact],
    kind: str,
    text: str,
    template: Template,
    max_length: int,
) -> None:
    (engine, recorder), task = recorded, TASKS[kind]
    recorder.prompts.clear()
    artifact = sealed(artifacts[kind], task, template, max_length)
    request = ResolvedRequest(Request("toy/x", text), artifact, "toy/x@1")
    try:
        parts = encoded_parts([text], task, template, max_length, engine)
    except DataError:
        with pytest.raises(DataError, match="no room for the text"):
            engine.submit(request)
        return
    ids = [prompt_of(part.examples[0]) for part in (parts.train, parts.validation, parts.test)]

    predict_rows(engine, artifact, "toy/x", [make_row(1, text=text)])
    handle = engine.submit(request)
    handle.answer(10)

    assert recorder.prompts == [ids[0]]
    assert ids == [handle.state.prompt] * 3
    assert handle.truncated == handle.answer(0).truncated == bool(parts.lengths.truncated)
    if kind == "generation":
        messages = ({"role": "user", "content": text},)
        chat = engine.submit(replace(request, request=Request("toy/x", messages=messages)))
        chat.answer(10)
        assert chat.state.prompt == ids[0]


def test_conversation_of_several_messages_is_not_cut(
    make_engine: MakeEngine, artifacts: dict[str, Artifact]
) -> None:
    engine = make_engine()
    artifact = sealed(artifacts["generation"], ANSWERS, Template(chat=True), 60)
    chat = [{"role": "user", "content": "a goat " * 8}, {"role": "assistant", "content": "yes"}]
    messages = (*chat, chat[0])
    handle = engine.submit(ResolvedRequest(Request("toy/x", messages=messages), artifact))

    assert handle.prompt_tokens > 60
    assert not handle.truncated


def test_limit_of_an_artifact_without_one_is_the_bases_context(
    make_engine: MakeEngine, artifacts: dict[str, Artifact]
) -> None:
    artifact = artifacts["regression"]
    assert artifact.manifest.max_length is None
    engine = make_engine()
    with pytest.raises(DataError, match="context of 256"):
        engine.submit(ResolvedRequest(Request("toy/x", "é" * 400), artifact))


def test_max_length_above_the_context_is_the_context(make_engine: MakeEngine) -> None:
    engine = make_engine()
    parts = encoded_parts(["é" * 400, "a"], LABELS, Template(), 4000, engine)

    assert parts.max_length == engine.base.info.context
    assert parts.train.longest <= parts.max_length
    assert (parts.lengths.truncated, parts.lengths.rows) == (3, 6)
    assert parts.lengths.longest == 800


def test_answers_that_leave_no_room_for_a_prompt_are_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(UsageError, match="no room for a prompt") as caught:
        encoded_parts(["a"], GenerationTask(30), Template(), 30, make_engine())
    assert "--set max_length=" in (caught.value.hint or "")


def test_rows_beyond_the_engines_memory_are_refused_before_training(
    make_engine: MakeEngine,
) -> None:
    from trunkline.inference.settings import EngineSettings

    engine = make_engine(EngineSettings(kv_tokens=64))
    with pytest.raises(DataError, match="holds 64") as caught:
        encoded_parts(["é" * 40], LABELS, Template(), 128, engine)
    assert "--set max_length=64" in (caught.value.hint or "")
    assert encoded_parts(["é" * 40], LABELS, Template(), 64, engine).lengths.truncated == 3


def test_limit_is_part_of_the_manifest(artifacts: dict[str, Artifact]) -> None:
    artifact = sealed(artifacts["classification"], LABELS, Template(), 77)
    stored = json.loads((artifact.folder / "trunkline.json").read_text())

    assert stored["max_length"] == 77
    assert asdict(Template()).keys() == stored["template"].keys()
    assert sealed(artifact, LABELS, Template(), 78).digest != artifact.digest
