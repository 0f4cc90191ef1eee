"""What a request samples depends on itself alone; its stream equals its answer."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

from driving import EngineDriver, MakeDriver, MakeEngine, make_request, reference_logits
from trunkline.errors import Interrupted, TrunklineError
from trunkline.inference.batching import Stepper, StepResult
from trunkline.inference.engine import Engine
from trunkline.inference.request import Answer, StreamChunk
from trunkline.inference.request_state import GenerationHandle

HOT: dict[str, Any] = {"temperature": 1.3, "max_new_tokens": 10}
LONG = "organic whole milk, one gallon, from the dairy department: what is it? " * 2


def crowd(driver: EngineDriver, adapters: dict[str, Any]) -> None:
    """Submit other requests of every kind that sample too."""
    driver.submit(adapters["low"].artifact, LONG, seed=4, **HOT)
    driver.submit(None, "sheep", seed=4, n=2, **HOT)
    driver.submit(adapters["labels"].artifact, LONG)


@pytest.mark.parametrize(
    "way", [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.9}, {"logprobs": 2}], ids=str
)
def test_same_seed_gives_the_same_alone_and_in_a_crowd(
    make_driver: MakeDriver, adapters: dict[str, Any], way: dict[str, Any]
) -> None:
    driver = make_driver(rows=4, chunk_tokens=8)
    texts = []
    for before in (None, 0, 1, 5):
        if before is not None:
            crowd(driver, adapters)
            for _ in range(before):
                driver.step()
        handle = driver.submit(adapters["middle"].artifact, LONG, seed=7, **HOT, **way)
        texts.append(driver.answers([handle])[0].text)
    assert len(set(texts)) == 1


def test_answers_of_one_request_are_those_of_the_seeds_that_follow(
    make_driver: MakeDriver, adapters: dict[str, Any]
) -> None:
    driver = make_driver(rows=3, chunk_tokens=16)
    artifact = adapters["high"].artifact
    many = driver.submit(artifact, LONG, seed=20, n=5, **HOT)
    singles = [driver.submit(artifact, LONG, seed=20 + number, **HOT) for number in range(5)]
    together, *apart = driver.answers([many, *singles])
    assert [choice.index for choice in together.choices] == list(range(5))
    assert [choice.text for choice in together.choices] == [answer.text for answer in apart]
    assert len({answer.text for answer in apart}) > 1
    assert together.new_tokens == sum(answer.new_tokens for answer in apart)
    assert (together.text, together.finish) == (apart[0].text, apart[0].finish)


def test_answers_of_one_request_read_its_prompt_once(
    make_driver: MakeDriver, adapters: dict[str, Any]
) -> None:
    driver = make_driver(rows=8, chunk_tokens=16)
    handle = driver.submit(adapters["low"].artifact, LONG, n=6, max_new_tokens=2)
    driver.finish()
    computed = sum(tokens for parts in driver.steps for _, tokens in parts)
    new = handle.answer(0).new_tokens - 6  # the last token of an answer is never computed
    again = 5 * (handle.prompt_tokens - (handle.prompt_tokens - 1) // 16 * 16)
    assert computed - new == handle.prompt_tokens + again


def test_other_seeds_give_other_texts(make_driver: MakeDriver) -> None:
    driver = make_driver()
    answers = driver.answers([driver.submit(None, seed=seed, **HOT) for seed in range(6)])
    assert len({answer.text for answer in answers}) > 1


def test_random_numbers_of_the_caller_are_left_alone(make_driver: MakeDriver) -> None:
    driver = make_driver()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    driver.answers([driver.submit(None, **HOT)])
    assert torch.equal(torch.rand(3), expected)


# -------------------------------------------------------------------------- log probabilities


@pytest.mark.parametrize("heat", [0.0, 1.3])
def test_log_probabilities_are_those_of_peft(
    make_driver: MakeDriver, adapters: dict[str, Any], heat: float
) -> None:
    driver = make_driver(rows=3, chunk_tokens=8)
    crowd(driver, adapters)
    handle = driver.submit(
        adapters["high"].artifact, LONG, max_new_tokens=6, temperature=heat, seed=3, logprobs=4
    )
    (answer,) = driver.answers([handle])
    scores, record = answer.choices[0].scores, driver.record(handle, 0)
    assert [score.id for score in scores] == record.ids
    assert len(scores) == answer.new_tokens
    truth = reference_logits(adapters["high"].truth, record.prompt, record.ids).log_softmax(-1)
    for score, row in zip(scores, truth, strict=True):
        assert score.logprob == pytest.approx(float(row[score.id]), abs=1e-4)
        assert [one.logprob for one in score.top] == pytest.approx(
            row.topk(4).values.tolist(), abs=1e-4
        )
        assert all(one.logprob == pytest.approx(float(row[one.id]), abs=1e-4) for one in score.top)
        assert score.token == driver.engine.base.tokenizer.decode([score.id])
        if heat == 0:
            assert score.id == score.top[0].id


def test_log_probability_of_the_sampled_token_alone(make_driver: MakeDriver) -> None:
    driver = make_driver()
    (answer,) = driver.answers([driver.submit(None, max_new_tokens=3, logprobs=0)])
    assert [score.top for score in answer.choices[0].scores] == [()] * answer.new_tokens


def test_no_log_probabilities_unless_requested(make_driver: MakeDriver) -> None:
    driver = make_driver()
    (answer,) = driver.answers([driver.submit(None, max_new_tokens=3)])
    assert answer.choices[0].scores == ()


# ---------------------------------------------------------------------------------------- ends


def test_answer_ends_before_the_stop_that_comes_first(make_driver: MakeDriver) -> None:
    driver = make_driver(end_ids=())
    text = driver.answers([driver.submit(None, max_new_tokens=30)])[0].text or ""
    assert len(text) > 12
    for start, stop in ((0, 2), (3, 5), (8, 12)):
        string = text[start:stop]
        handle = driver.submit(None, max_new_tokens=30, stop=("never, ever", string))
        (answer,) = driver.answers([handle])
        assert (answer.text, answer.finish) == (text[: text.index(string)], "stop")
        assert "".join(chunk.text for chunk in handle.chunks()) == answer.text


def test_stop_that_never_occurs_cuts_nothing(make_driver: MakeDriver) -> None:
    driver = make_driver(end_ids=())
    handles = [driver.submit(None, max_new_tokens=12, stop=stop) for stop in ((), ("never, ever",))]
    plain, stopped = driver.answers(handles)
    assert stopped.text == plain.text
    assert stopped.finish == plain.finish == "length"


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_limit_ends_the_answer(make_driver: MakeDriver, limit: int) -> None:
    driver = make_driver(end_ids=())
    (answer,) = driver.answers([driver.submit(None, max_new_tokens=limit)])
    assert (answer.new_tokens, answer.finish) == (limit, "length")


def test_end_token_ends_the_answer_and_is_not_part_of_the_text(
    make_driver: MakeDriver,
) -> None:
    driver = make_driver(end_ids=())
    first = driver.submit(None, max_new_tokens=6)
    driver.finish()
    ids = driver.ids(first)
    end = next(token for token in ids[1:] if token != ids[0])
    driver = make_driver(end_ids=[end])
    (answer,) = driver.answers([driver.submit(None, max_new_tokens=6, logprobs=0)])
    assert answer.finish == "stop"
    assert answer.new_tokens == ids.index(end) + 1
    assert [score.id for score in answer.choices[0].scores] == ids[: ids.index(end) + 1]
    assert answer.text == driver.engine.base.tokenizer.decode(
        ids[: ids.index(end)], skip_special_tokens=True
    )
    ignoring = driver.submit(None, max_new_tokens=6, ignore_eos=True)
    (answer,) = driver.answers([ignoring])
    assert (answer.new_tokens, answer.finish) == (6, "length")
    assert driver.ids(ignoring) == ids


# -------------------------------------------------------------------------------------- streams


def assert_chunks_equal_the_answer(chunks: list[StreamChunk], answer: Answer) -> None:
    for choice in answer.choices:
        own = [chunk for chunk in chunks if chunk.index == choice.index]
        assert "".join(chunk.text for chunk in own) == choice.text
        assert [chunk.finish for chunk in own] == [None] * (len(own) - 1) + [choice.finish]
        assert sum((chunk.scores for chunk in own), ()) == choice.scores


@pytest.mark.parametrize("options", [{}, {"n": 3}, {"logprobs": 1}, {"stop": ("e",)}], ids=str)
def test_chunks_together_are_the_answer(
    engine: Engine, adapters: dict[str, Any], options: dict[str, Any]
) -> None:
    handle = engine.submit(make_request(adapters["low"].artifact, seed=5, **HOT, **options))
    chunks = list(handle.chunks())
    assert_chunks_equal_the_answer(chunks, handle.answer(0))
    assert list(handle.chunks()) == chunks


def test_label_has_no_chunks(engine: Engine, adapters: dict[str, Any]) -> None:
    handle = engine.submit(make_request(adapters["labels"].artifact))
    assert list(handle.chunks()) == []
    assert handle.answer(0).label is not None


def test_async_stream_equals_the_answer(engine: Engine, adapters: dict[str, Any]) -> None:
    async def run() -> tuple[list[StreamChunk], Answer]:
        request = make_request(adapters["low"].artifact, n=2, seed=5, **HOT)
        handle = await asyncio.to_thread(engine.submit, request)
        chunks = [chunk async for chunk in handle.stream()]
        return chunks, await handle.answer_async()

    assert_chunks_equal_the_answer(*asyncio.run(run()))


def test_many_async_streams_at_once(engine: Engine, adapters: dict[str, Any]) -> None:
    names = ("low", "middle", "high", None)
    requests = [
        make_request(
            adapters[name].artifact if name else None, f"goat {number}", seed=number, **HOT
        )
        for number, name in enumerate(names * 5)
    ]
    expected = [answer.text for answer in engine.run(requests)]

    async def read(handle: GenerationHandle) -> str:
        return "".join([chunk.text async for chunk in handle.stream()])

    async def run() -> list[str]:
        handles = [await asyncio.to_thread(engine.submit, request) for request in requests]
        return await asyncio.gather(*(read(handle) for handle in handles))

    assert asyncio.run(run()) == expected


def test_failure_is_raised_in_mid_stream(make_engine: MakeEngine) -> None:
    steps = itertools.count()

    def run_step(stepper: Stepper, parts: Any) -> StepResult:
        if next(steps) == 4:
            raise RuntimeError("out of memory")
        return stepper.run(parts)

    received: list[StreamChunk] = []

    async def read(stream: AsyncIterator[StreamChunk]) -> None:
        async for chunk in stream:
            received.append(chunk)

    engine = make_engine(run_step=run_step, end_ids=())
    stream = engine.submit(make_request(max_new_tokens=20)).stream()
    with pytest.raises(TrunklineError, match="out of memory"):
        asyncio.run(read(stream))
    assert received


def test_leaving_an_async_stream_does_not_cancel(make_engine: MakeEngine) -> None:
    engine = make_engine(end_ids=())

    async def run() -> Answer:
        handle = await asyncio.to_thread(engine.submit, make_request(max_new_tokens=20))
        stream = handle.stream()
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        return await handle.answer_async()

    assert asyncio.run(run()).new_tokens == 20


def test_awaiting_a_cancelled_request_raises(make_driver: MakeDriver) -> None:
    driver = make_driver()

    async def run() -> None:
        handle = driver.submit(None)
        waiting = asyncio.create_task(handle.answer_async())
        await asyncio.sleep(0)
        handle.cancel()
        driver.step()
        with pytest.raises(Interrupted):
            await waiting

    asyncio.run(run())


def test_timeout_of_a_wait_does_not_end_the_request(make_driver: MakeDriver) -> None:
    driver = make_driver()
    handle = driver.submit(None, max_new_tokens=2)
    with pytest.raises(TimeoutError):
        handle.answer(0.001)
    assert driver.answers([handle])[0].text is not None


# -------------------------------------------------------------------------------------- threads


def test_many_threads_each_get_their_own_answers(engine: Engine, adapters: dict[str, Any]) -> None:
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (adapters["low"].artifact, HOT), (adapters["high"].artifact, {"max_new_tokens": 5}),
        (None, HOT), (adapters["labels"].artifact, {}), (adapters["number"].artifact, {}),
    ]  # fmt: skip
    batches = [
        [make_request(artifact, f"{LONG if number % 2 else ''}goat {number}", **options)]
        for number in range(6)
        for artifact, options in kinds
    ]
    alone = [engine.run(batch)[0] for batch in batches]
    wrong: list[int] = []
    ready = threading.Barrier(len(batches))

    def run(index: int) -> None:
        ready.wait()
        for _ in range(2):
            answer, expected = engine.run(batches[index])[0], alone[index]
            same = answer.text == expected.text and answer.label == expected.label
            close = (answer.value or 0) == pytest.approx(expected.value or 0, rel=1e-4)
            if not (same and close and answer.digest == expected.digest):
                wrong.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
