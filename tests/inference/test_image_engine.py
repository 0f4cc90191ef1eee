"""The engine of pictures: batches of any adapters, limits, cancelling and closing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_images import encoded, make_tiny_image_base, picture
from trunkline.adapters.artifact import Artifact, read_artifact, seal
from trunkline.bases import ImageBase, describe_image, load_image, release_image
from trunkline.contracts import Settings, Template
from trunkline.data.pictures import decode, prepare, to_tensor
from trunkline.errors import (
    BusyError,
    DataError,
    DeadlineError,
    Interrupted,
    UnavailableError,
    UsageError,
)
from trunkline.images import ImageSource
from trunkline.inference import image_engine
from trunkline.inference.image_engine import ImageEngine
from trunkline.inference.request import Request, ResolvedRequest
from trunkline.inference.request_state import RequestStats
from trunkline.inference.settings import EngineSettings
from trunkline.tasks import ClassificationTask
from trunkline.training.image_model import image_lora_model

TASK = ClassificationTask(("cat", "dog"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_image_base(tmp_path_factory.mktemp("engine") / "resnet", "resnet")


@pytest.fixture(scope="module")
def base(folder: Path) -> Iterator[ImageBase]:
    release_image()
    yield load_image(str(folder))
    release_image()


@pytest.fixture(scope="module")
def models(folder: Path) -> list[Any]:
    """Three models with random adapters."""
    made = []
    for seed in range(3):
        model = image_lora_model(str(folder), TASK, Settings(r=8), "cpu")
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
        made.append(model.eval())
    return made


@pytest.fixture(scope="module")
def artifacts(
    folder: Path, models: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> list[Artifact]:
    info = describe_image(str(folder))
    made = []
    for model in models:
        place = tmp_path_factory.mktemp("artifact")
        model.save_pretrained(place, save_embedding_layers=False)
        (place / "README.md").unlink(missing_ok=True)
        seal(
            place,
            base={"name": "tiny", "digest": info.digest},
            task=TASK.to_json(),
            template=Template(),
            data={},
            preprocessing=info.preprocessing,
        )
        made.append(read_artifact(place))
    return made


@pytest.fixture
def engine(base: ImageBase) -> Iterator[ImageEngine]:
    engine = ImageEngine(base, EngineSettings(rows=4, queue=3))
    yield engine
    engine.close()


def request(artifact: Artifact, seed: int = 0, **fields: Any) -> ResolvedRequest:
    image = ImageSource(encoded(picture(seed)))
    return ResolvedRequest(Request("own/pets", image=image, **fields), artifact, "own/pets@1")


def expected(model: Any, base: ImageBase, seed: int) -> list[float]:
    """The probabilities that PEFT's model gives a picture."""
    steps = base.info.preprocessing
    pixels = to_tensor(prepare(decode(encoded(picture(seed))), steps), steps)
    with torch.inference_mode():
        probabilities: list[float] = model(pixel_values=pixels[None]).logits[0].softmax(-1).tolist()
    return probabilities


class Held:
    """Holds the engine's steps until it is released."""

    def __init__(self, engine: ImageEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.released = threading.Event(), threading.Event()
        compute = engine._compute

        def wait(*args: Any) -> Any:
            self.entered.set()
            assert self.released.wait(30)
            return compute(*args)

        monkeypatch.setattr(engine, "_compute", wait)


def test_each_picture_has_the_answer_of_its_own_adapter(
    engine: ImageEngine, base: ImageBase, models: list[Any], artifacts: list[Artifact]
) -> None:
    order = [index % 3 for index in range(10)]
    answers = engine.run([request(artifacts[one], seed) for seed, one in enumerate(order)])
    for seed, (one, answer) in enumerate(zip(order, answers, strict=True)):
        assert answer.digest == artifacts[one].digest
        probabilities = list((answer.probabilities or {}).values())
        assert probabilities == pytest.approx(expected(models[one], base, seed), abs=1e-3)


def test_next_batch_is_decoded_while_one_is_computed(
    engine: ImageEngine, artifacts: list[Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, decoded = Held(engine, monkeypatch), threading.Event()

    def read() -> bytes:
        assert held.entered.wait(30)
        decoded.set()
        return encoded(picture(9))

    late = Request("own/pets", image=ImageSource(read))
    requests = [request(artifacts[0], seed) for seed in range(4)]
    requests.append(ResolvedRequest(late, artifacts[0], "own/pets@1"))
    answers: list[Any] = []
    runner = threading.Thread(target=lambda: answers.extend(engine.run(requests)))
    runner.start()
    assert decoded.wait(30)
    held.released.set()
    runner.join(30)
    assert len(answers) == 5


def test_no_request_is_no_answer(engine: ImageEngine) -> None:
    assert engine.run([]) == []


def test_batch_of_several_passes_gives_the_same_answers(
    engine: ImageEngine, artifacts: list[Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [request(artifacts[index % 3], index) for index in range(4)]
    expected = [one.probabilities for one in engine.run(requests)]
    monkeypatch.setattr(image_engine, "PASS_PIXELS", 3 * 32 * 32)
    actual = [one.probabilities for one in engine.run(requests)]
    assert actual == [pytest.approx(one, abs=1e-5) for one in expected]


def test_more_adapters_than_slots_take_turns(
    base: ImageBase, models: list[Any], artifacts: list[Artifact]
) -> None:
    engine = ImageEngine(base, EngineSettings(rows=4, slots=1))
    answers = engine.run([request(artifacts[index % 3], index) for index in range(7)])
    engine.close()
    for index, answer in enumerate(answers):
        probabilities = list((answer.probabilities or {}).values())
        assert probabilities == pytest.approx(expected(models[index % 3], base, index), abs=1e-3)


def test_account_of_a_request_is_observed(engine: ImageEngine, artifacts: list[Artifact]) -> None:
    accounts: list[RequestStats] = []
    engine.observers.append(accounts.append)
    engine.run([request(artifacts[0])])
    assert [(one.outcome, one.prompt_tokens) for one in accounts] == [("done", 0)]
    assert accounts[0].seconds >= accounts[0].queue_seconds >= 0


def test_full_queue_refuses(
    engine: ImageEngine, artifacts: list[Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(engine, monkeypatch)
    first = engine.submit(request(artifacts[0]))
    assert held.entered.wait(30)
    others = [engine.submit(request(artifacts[0], seed)) for seed in range(3)]
    with pytest.raises(BusyError, match="3 requests are waiting"):
        engine.submit(request(artifacts[0]))
    assert (engine.state().waiting, engine.state().running) == (3, 1)
    held.released.set()
    assert all(handle.answer(30).label for handle in (first, *others))


def test_cancelled_and_late_requests_end(
    engine: ImageEngine, artifacts: list[Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(engine, monkeypatch)
    first = engine.submit(request(artifacts[0]))
    assert held.entered.wait(30)
    cancelled = engine.submit(request(artifacts[0]))
    late = engine.submit(request(artifacts[0], deadline=0.0))
    cancelled.cancel()
    held.released.set()
    with pytest.raises(Interrupted):
        cancelled.answer(30)
    with pytest.raises(DeadlineError):
        late.answer(30)
    assert first.answer(30).label


def test_failed_step_ends_its_requests_and_no_others(
    engine: ImageEngine, artifacts: list[Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_compute", lambda *_: 1 / 0)
        with pytest.raises(Exception, match="The step failed: ZeroDivisionError"):
            engine.run([request(artifacts[0])])
    assert engine.run([request(artifacts[0])])[0].label
    assert not any(one.in_use for one in engine.pool.residents())


def test_closed_engine_refuses(base: ImageBase, artifacts: list[Artifact]) -> None:
    engine = ImageEngine(base)
    assert engine.drain(1)
    engine.close()
    with pytest.raises(UnavailableError):
        engine.submit(request(artifacts[0]))


def test_training_waits_for_running_requests_and_later_ones_wait_for_it(
    engine: ImageEngine, artifacts: list[Artifact]
) -> None:
    with engine.base_released():
        handle = engine.submit(request(artifacts[0]))
        with pytest.raises(TimeoutError):
            handle.answer(0.2)
    assert handle.answer(30).label


def test_undecodable_picture_of_several_is_named(
    engine: ImageEngine, artifacts: list[Artifact]
) -> None:
    broken = Request("own/pets", image=ImageSource(b"text", "b.png"))
    requests = [request(artifacts[0]), ResolvedRequest(broken, artifacts[0], "own/pets@1")]
    with pytest.raises(DataError, match=r"b\.png is not a picture"):
        engine.run(requests)
    assert engine.state().waiting == 0


def test_text_and_abstention_without_thresholds_are_refused(
    engine: ImageEngine, artifacts: list[Artifact]
) -> None:
    with pytest.raises(UsageError, match="reads pictures"):
        engine.submit(ResolvedRequest(Request("own/pets", "a cat"), artifacts[0], "own/pets@1"))
    with pytest.raises(UsageError, match="no thresholds"):
        engine.submit(request(artifacts[0], abstain=0.9))


def test_request_of_picture_and_text_is_refused(
    engine: ImageEngine, artifacts: list[Artifact]
) -> None:
    both = Request("own/pets", "a cat", image=ImageSource(b"x"))  # only a fusion reads both
    with pytest.raises(UsageError, match="reads pictures, and the request has a text"):
        engine.submit(ResolvedRequest(both, artifacts[0], "own/pets@1"))
    with pytest.raises(UsageError, match="a picture and messages"):
        Request("own/pets", messages=({"role": "user", "content": "x"},), image=ImageSource(b"x"))
